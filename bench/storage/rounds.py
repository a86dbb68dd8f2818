"""Runs every tool over the three sets, several times, the tools taking turns, and keeps the median.

One round of one tool: a fresh store, then base, fine-tune and re-sharded put in that order, the base put once more
from a copy under another path, and the base fetched to files (our own rows fetch the fine-tune too). Sizes do not
change from round to round, so the later rounds leave out the sets whose times no table shows. Before each timed step
everything dirty is written back; after each put the file system is flushed (``sync -f``) on a clock of its own,
because most peers say "done" while their data is only in the page cache. So there are two speeds of a put: until the
tool says it is done, and until the data is on disk. What was fetched is compared with what was put, byte by byte,
outside the clock.

Inputs and stores are in the page cache throughout: this measures programs, not the disk.
"""

from __future__ import annotations

import filecmp
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.storage.inputs import SETS, Inputs
from bench.storage.install import Peer
from bench.storage.peers import Tool
from bench.storage.place import Place, ToolFailedError, flush, settle

KNOWN = "known"
"""The name under which the copy of the base is put."""


@dataclass
class Row:
    """What was measured of one tool.

    Attributes:
        tool: whose row this is.
        problem: why there is none, or why it ends early; empty when all went well.
        stored: bytes that each set added to the store, by set, and of the known bytes.
        seconds: by step (``put base``, ``flush base``, ``put known``, ..., ``get base``), one for each round.
        flushes: flushing system calls of a put of a small set, or None if they could not be counted.
        flipped: what a get does after a stored bit was flipped.
    """

    tool: Tool
    problem: str = ""
    stored: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    flushes: int | None = None
    flipped: str = "-"

    def median(self, *steps: str) -> float | None:
        """The median over the rounds of the steps' seconds together; None if any was never done."""
        together = [sum(times) for times in zip(*(self.seconds.get(step, []) for step in steps), strict=False)]
        return statistics.median(together) if together else None

    def ratio(self, inputs: Inputs, *names: str) -> float | None:
        """Stored bytes over logical bytes of some sets."""
        if any(name not in self.stored for name in names):
            return None
        return sum(self.stored[name] for name in names) / sum(inputs.size(name) for name in names)


def measure(
    tools: Sequence[Tool],
    peers: dict[str, Peer],
    inputs: Inputs,
    work: Path,
    *,
    rounds: int,
    say: Callable[[str], None],
) -> list[Row]:
    """One row for every tool, in their order, those that can not be run included."""
    rows = [Row(tool, _why_not(tool, peers)) for tool in tools]
    known = work / KNOWN
    shutil.copytree(inputs.directory("base"), known)
    _warm(file for name in SETS for file in inputs.directory(name).iterdir())
    _warm(known.iterdir())
    for number in range(rounds):
        for row in rows:
            if row.problem:
                continue
            say(f"round {number + 1} of {rounds}: {row.tool.name}")
            place = Place(work / "place", environment=ENVIRONMENT)
            try:
                _round(row, place, inputs, known, every_set=number == 0 or row.tool.ours)
            except ToolFailedError as error:
                row.problem = str(error)
            finally:
                shutil.rmtree(place.root, ignore_errors=True)
    shutil.rmtree(known)
    return rows


ENVIRONMENT = {
    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    "RESTIC_PASSWORD": "bench",
    "DVC_NO_ANALYTICS": "1",
    "GIT_CONFIG_NOSYSTEM": "1",
    "PYTHONWARNINGS": "ignore",
    **{f"GIT_{who}_{what}": "bench@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def _why_not(tool: Tool, peers: dict[str, Peer]) -> str:
    return peers[tool.program].missing if tool.program in peers else tool.missing()


def _warm(files: Iterable[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass


def _round(row: Row, place: Place, inputs: Inputs, known: Path, *, every_set: bool) -> None:
    place.fresh()
    row.tool.start(place)
    before = place.stored_bytes()
    sources = {name: inputs.directory(name) for name in (SETS if every_set else SETS[:1])} | {KNOWN: known}
    for name, source in sources.items():
        row.tool.stage(place, name, source)
        settle()
        row.seconds[f"put {name}"].append(row.tool.put(place, name, source))
        row.seconds[f"flush {name}"].append(flush(place.root))
        after = place.stored_bytes()
        row.stored.setdefault(name, after - before)
        before = after
    originals = [inputs.base_file, inputs.fine_tune_file] if row.tool.ours else [inputs.base_file]
    for original in originals:
        name = original.parent.name
        place.empty_out()
        settle()
        row.seconds[f"get {name}"].append(row.tool.get(place, name))
        row.seconds[f"flush out {name}"].append(flush(place.root))
        compare(place.out, original)


def compare(out: Path, original: Path) -> None:
    """Makes sure that what was fetched is what was put.

    Raises:
        ToolFailedError: if it is not.
    """
    found = [path for path in _files(out) if path.name == original.name]
    if len(found) != 1 or not filecmp.cmp(found[0], original, shallow=False):
        raise ToolFailedError(f"gave back other bytes than were put: {[path.name for path in found]}")


def _files(directory: Path) -> Iterable[Path]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry
