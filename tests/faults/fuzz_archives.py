"""``make fuzz``: broken archives through the reader, many of them.

    python tests/faults/fuzz_archives.py [--count 100000] [--seconds 0] [--seed 1] [--jobs 2]

Each is drawn from the golden archives (see ``mutations``) and looked at with every rule that a hostile one must not
make us break (see ``examining``). Seed and number say which one it is, however many jobs share the work. One that does
break a rule is kept, with what it did, and can be looked at again with ``--replay``.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from examining import examine, limits
from mutations import Mutator
from pieces import Files, load, store

from csf_store import Archive, Digest, NamePattern, Query, find

GOLDEN = Path(__file__).parents[1] / "golden" / "archives"
_MEMORY = Path("/dev/shm")
_BATCH = 200


def corpus(with_index: Path) -> tuple[dict[str, Files], dict[Digest, bytes]]:
    """The golden archives, each with and without parity and the caches of an open one; and every content in them."""
    files: dict[str, Files] = {}
    contents: dict[Digest, bytes] = {}
    for path in sorted(each for each in GOLDEN.iterdir() if (each / "csf.json").exists()):
        files[path.name] = load(path)
        copy = with_index / path.name
        shutil.copytree(path, copy)
        with Archive.open(copy) as archive:
            for info in archive.objects():
                contents[info.digest] = archive.get_bytes(info.digest, kind=info.kinds[0])
            archive.add_parity(percent=20)
            find(archive, Query(tensor=NamePattern("*")))  # which makes the catalogue
        kept = {name: content for name, content in load(copy).items() if not name.endswith(("-shm", ".lock"))}
        files[f"{path.name} with caches"] = kept
    return files, contents


class Fuzz:
    """Draws archives and looks at them."""

    def __init__(self, seed: int, scratch: Path, keep: Path) -> None:
        self.corpus, self.contents = corpus(scratch / "corpus")
        self.counts: Counter[str] = Counter()
        self._seed = seed
        self._place = scratch / "archive"
        self._keep = keep

    def one(self, number: int) -> str:
        """Draws number so-and-so; returns what it made us do, empty if nothing. Such a one is kept."""
        chance = random.Random(f"{self._seed} {number}")
        with limits():  # a mutator that goes astray shall not take the machine along
            what, files = Mutator(self.corpus, chance).draw()
        failure = self.look(files, quick=chance.random() < 0.7)
        if failure:
            place = self._keep / f"{self._seed}-{number}"
            shutil.rmtree(place, ignore_errors=True)
            store(files, place)
            place.with_suffix(".txt").write_text(f"{what}\n{failure}")
            failure = f"WRONG {place} ({what}): {failure.splitlines()[-1]}"
        return failure

    def look(self, files: Files, *, quick: bool = False) -> str:
        """Looks at an archive; returns what it made us do, empty if nothing."""
        store(files, self._place)
        try:
            with limits():
                opened = examine(self._place, self.contents, quick=quick)
        except Exception:  # noqa: BLE001 - whatever it is, it is what we are looking for
            self.counts["wrong"] += 1
            return traceback.format_exc()
        finally:
            shutil.rmtree(self._place)
        self.counts["opened" if opened else "refused"] += 1
        return ""


@contextlib.contextmanager
def fuzzing(seed: int, keep: Path) -> Iterator[Fuzz]:
    """A ``Fuzz`` with a place for its archives, in memory if the machine has such a place."""
    with tempfile.TemporaryDirectory(prefix="csf-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None) as scratch:
        yield Fuzz(seed, Path(scratch), keep)


def batch(seed: int, numbers: range, keep: Path) -> tuple[Counter[str], list[str]]:
    """What one job does."""
    with fuzzing(seed, keep) as fuzz:
        failures = [failure for number in numbers if (failure := fuzz.one(number))]
        return fuzz.counts, failures


def summary(counts: Counter[str]) -> str:
    """One line."""
    return f"{counts.total()} archives, {counts['opened']} opened, {counts['refused']} refused, {counts['wrong']} wrong"


def main() -> int:
    """Runs; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="archives to draw")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long; 0 for no limit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=Path(".fuzz"), help="where failing archives go")
    parser.add_argument("--replay", type=Path, help="look at one archive again instead")
    asked = parser.parse_args()
    if asked.replay:
        with fuzzing(asked.seed, asked.keep) as fuzz:
            print(fuzz.look(load(asked.replay)) or "nothing wrong")
            return int(bool(fuzz.counts["wrong"]))
    print(f"seed {asked.seed}", flush=True)
    counts = run(asked.count, asked.seconds, asked.seed, asked.jobs, asked.keep)
    print(summary(counts))
    return int(bool(counts["wrong"]))


def run(count: int, seconds: float, seed: int, jobs: int, keep: Path) -> Counter[str]:
    """Shares the work among processes, with a line of progress for each batch that is done."""
    counts: Counter[str] = Counter()
    began = time.monotonic()
    batches = [range(start, min(count, start + _BATCH)) for start in range(0, count, _BATCH)]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(batch, seed, numbers, keep) for numbers in batches]
        try:
            for done in as_completed(waiting):
                found, failures = done.result()
                counts.update(found)
                passed = time.monotonic() - began
                print("".join(f"{failure}\n" for failure in failures), end="", flush=True)
                rate = counts.total() / passed
                print(f"\r{summary(counts)}; {rate:.0f} a second ", end="", file=sys.stderr, flush=True)
                if seconds and passed > seconds:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    print(file=sys.stderr)
    return counts


if __name__ == "__main__":
    sys.exit(main())
