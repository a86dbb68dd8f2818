"""Applies mutations to copies of one victim and asks an auditor each time.

    python tests/tamper/harness.py --count 2000 --seed 1

prints, for every kind of tampering, how often it was caught, then the total, and how many audits of untouched copies
raised a false alarm. It exits with 1 unless all was caught and nothing else was.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
    names = [options.only] if options.only else list(MUTATIONS)
    tried: Counter[str] = Counter()
    missed: list[tuple[str, int]] = []
    with scratch() as root:
        harness = Harness(root)
        for number in range(options.count):
            name, seed = names[number % len(names)], options.seed * 1_000_003 + number
            tried[name] += 1
            if not harness.alarms(name, seed):
                missed.append((name, seed))
                print(f"MISSED  {name}  seed {seed}", flush=True)
        untouched = max(1, options.count // 40)
        false = sum(bool(harness.alarms(None, number)) for number in range(untouched))
    lost = Counter(name for name, _ in missed)
    for name in names:
        print(f"{tried[name] - lost[name]:>5} of {tried[name]:<5} {name.replace('-', ' ')}")
    print(f"caught {options.count - len(missed)} of {options.count}; false alarms {false} of {untouched}")
    return 1 if missed or false else 0


if __name__ == "__main__":
    sys.exit(main())
