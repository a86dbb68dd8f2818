"""Two questions that no clock answers: does a put reach the disk, and does a get notice damage?

Both are tried on a small set. ``strace`` counts the calls by which a tool asks the kernel to write to the disk; which
files they were about is told in the tool's own row, from looking at the calls with their paths once. Then one bit of
the largest file that the tool stored is flipped, its time of change put back as it was, since that is how disks go
bad; and the set is fetched again. That is done at five places, one at a time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.storage.inputs import Inputs
from bench.storage.place import FLUSHES, Place, ToolFailedError
from bench.storage.rounds import ENVIRONMENT, Row, compare

_POSITIONS = (0.21, 0.35, 0.5, 0.65, 0.79)
"""Where, as shares of the file: well inside, so that it is data and no header or table that is hit."""


def probe(rows: Sequence[Row], inputs: Inputs, work: Path) -> None:
    """Fills in the rows' flushing calls and what a flipped bit does."""
    for row in rows:
        if row.problem:
            continue
        place = Place(work / "place", environment=ENVIRONMENT)
        try:
            _put_traced(row, place, inputs)
            row.flipped = _get_after_flip(row, place, inputs)
        except ToolFailedError as error:
            row.flipped = str(error)
        finally:
            shutil.rmtree(place.root, ignore_errors=True)


def _put_traced(row: Row, place: Place, inputs: Inputs) -> None:
    place.fresh()
    row.tool.start(place)
    source = inputs.directory("base")
    row.tool.stage(place, "base", source)
    with tempfile.TemporaryDirectory() as folder:
        if shutil.which("strace"):
            place.trace = Path(folder) / "calls"
        row.tool.put(place, "base", source)
        if place.trace:
            row.flushes = _calls(Path(folder))
        place.trace = None


def _calls(folder: Path) -> int:
    """Adds up what strace counted: a line for each kind of call, and a total that is not one of them."""
    lines = [line.split() for file in folder.iterdir() for line in file.read_text().splitlines()]
    return sum(int(words[0]) for words in lines if len(words) == 2 and words[1] in FLUSHES)


def _get_after_flip(row: Row, place: Place, inputs: Inputs) -> str:
    """Damages one place at a time, and tells the worst that came of it."""
    files = (file for file in place.store.rglob("*") if file.is_file() and not file.is_symlink())
    victim = max(files, key=lambda file: file.stat().st_size)
    wrong = refused = 0
    for position in _POSITIONS:
        _flip(victim, position)
        place.empty_out()
        try:
            row.tool.get(place, "base")
        except ToolFailedError:
            refused += 1
        else:
            wrong += not _same(place, inputs)
        _flip(victim, position)
    return f"**wrong bytes, {wrong} of {len(_POSITIONS)}**" if wrong else f"refused, {refused} of {len(_POSITIONS)}"


def _same(place: Place, inputs: Inputs) -> bool:
    try:
        compare(place.out, inputs.base_file)
    except ToolFailedError:
        return False
    return True


def _flip(path: Path, position: float) -> None:
    """Flips a bit; a second time makes it whole again."""
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(int(before.st_size * position))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
