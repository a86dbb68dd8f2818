"""Applies mutations to copies of one victim and asks an auditor each time.

    python tests/tamper/harness.py --count 2000 --seed 1

prints, for every kind of tampering, how often it was caught, then the total, and how many audits of untouched copies
raised a false alarm. It exits with 1 unless all was caught and nothing else was. What is changed in a running process
is asked of a model that this process holds, once quantized in each way.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit" / "manifests")]

from tamperings import MUTATIONS, Scene  # noqa: E402 - after the path
from victim import Victim, audit_all, build, faults  # noqa: E402

from csf_store import Archive, Digest, Kind  # noqa: E402
from csf_store.pipeline import Pipeline  # noqa: E402


class Harness:
    """One victim, built and audited once; mutations work on copies of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.victim: Victim = build(root / "victim")
        with Archive.open(root / "victim") as archive:
            self.manifests = [Digest(raw) for raw, kind in archive.listing() if kind == Kind.MANIFEST]
        audit_all(root / "victim", root / "state", self.manifests)

    @contextmanager
    def copy(self) -> Iterator[tuple[Path, Path]]:
        """A fresh copy of the archive and of the auditor's state."""
        path, state = self.root / "copy", self.root / "copied-state"
        shutil.copytree(self.root / "victim", path)
        shutil.copytree(self.root / "state", state)
        try:
            yield path, state
        finally:
            shutil.rmtree(path)
            shutil.rmtree(state)

    def alarms(self, name: str | None, seed: int) -> list[str]:
        """What an audit says of a copy that was tampered with in one way, or not at all."""
        with self.copy() as (path, state):
            if name is not None:
                MUTATIONS[name](Scene(path, self.victim, random.Random(f"{name} {seed}")))
            # Flipped bytes may be anywhere, so everything is audited; forged documents are where a ref leads.
            return faults(path, state, self.manifests if name is None or "segment" in name or "object" in name else ())


class Running:
    """Models of one archive in this process, as they were loaded; mutations change them and take it back.

    An adapter that was made for this has no training record and no signature: what an auditor says of that is the same
    before and after, and no alarm.
    """

    def __init__(self, root: Path) -> None:
        from live import SCHEMES, archive_with_adapters, process  # noqa: PLC0415 - torch

        self.archive = archive_with_adapters(root / "running" / "archive")
        self.processes = [process(self.archive, scheme, answered=True) for scheme in SCHEMES]
        self._calm = [set(each.alarms()) for each in self.processes]

    def alarms(self, name: str | None, seed: int) -> list[str]:
        """What an auditor says of a process that was changed in one way, or not at all."""
        from live import LIVE  # noqa: PLC0415 - torch

        at = seed % len(self.processes)
        process, calm = self.processes[at], self._calm[at]
        process.rng = random.Random(f"{name} {seed}")
        with LIVE[name](process) if name is not None else nullcontext("") as says:
            found = [alarm for alarm in process.alarms() if alarm not in calm]
        return [alarm for alarm in found if re.search(says, alarm)]


def live_names() -> list[str]:
    """The ways to change a running process."""
    from live import LIVE  # noqa: PLC0415 - torch

    return list(LIVE)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory if there is one, and no thread pool: thousands of tiny archives are opened here."""
    memory = Path("/dev/shm")
    Pipeline.ordered = lambda _, work, items: map(work, items)  # type: ignore[method-assign, assignment, misc]
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="mutations in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="one kind of tampering")
    options = parser.parse_args()
    live = live_names()
    names = [options.only] if options.only else [*MUTATIONS, *live]
    tried: Counter[str] = Counter()
    missed: list[tuple[str, int]] = []
    with scratch() as root:
        harness, running = Harness(root), Running(root)
        for number in range(options.count):
            name, seed = names[number % len(names)], options.seed * 1_000_003 + number
            tried[name] += 1
            if not (running if name in live else harness).alarms(name, seed):
                missed.append((name, seed))
                print(f"MISSED  {name}  seed {seed}", flush=True)
        untouched = max(1, options.count // 40)
        asked = (each.alarms(None, number) for number in range(untouched) for each in (harness, running))
        false = sum(map(bool, asked))
    lost = Counter(name for name, _ in missed)
    for name in names:
        print(f"{tried[name] - lost[name]:>5} of {tried[name]:<5} {name.replace('-', ' ')}")
    print(f"caught {options.count - len(missed)} of {options.count}; false alarms {false} of {2 * untouched}")
    return 1 if missed or false else 0


if __name__ == "__main__":
    sys.exit(main())
