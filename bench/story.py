"""What the story costs of a ledger of many lines, beside reading and hashing the same lines and saying nothing.

    python bench/story.py --lines 100000

Every tenth line is a move of a ref, a third are documents, the rest are pins. A sentence that needs a document reads
it, so the archive holds an eval report that one line in a hundred names. All in one run, on one machine; the first
column of ratios is to reading every line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from csf_store import Archive, Digest
from keystone.story import StoryQuery, read_story
from manifests import EvalReport, Repository, Score


def build(path: Path, lines: int) -> None:
    """An archive whose ledger has so many lines."""
    nowhere = Digest.of(b"nowhere")
    score = Score(suite="basics", suite_digest=nowhere, metric="pass@1", n=4, passed=3, score=0.75)
    with Archive.create(path) as archive:
        report = Repository(archive).put_record(EvalReport(assembly=nowhere, recipe=nowhere, result=score))
        with archive.ledger.locked() as tx:
            for number in range(lines):
                if number % 10 == 0:
                    tx.append("ref.set", ref="prod", **{"from": str(nowhere), "to": str(nowhere)}, reason=str(number))
                elif number % 100 == 1:
                    tx.append("evidence", kind="eval-report", record=str(report))
                elif number % 3 == 0:
                    tx.append("evidence", kind="convergence-record", record=str(nowhere))
                else:
                    tx.append("pin", digest=str(nowhere), kind="blob", name=f"file {number}")


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Seconds, and how many came out."""
    start = time.perf_counter()
    count = work()
    return time.perf_counter() - start, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lines", type=int, default=100_000)
    lines = parser.parse_args().lines
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        build(path, lines)
        with Archive.open(path) as archive:
            whole, _ = timed(lambda: sum(1 for _ in archive.ledger.entries()))
            print(f"reading {lines} lines: {whole:.2f} s")
            queries = {
                "the newest 200": StoryQuery(limit=200),
                "the newest 200 scores": StoryQuery(kinds=frozenset({"evaluated"}), limit=200),
                "all scores": StoryQuery(kinds=frozenset({"evaluated"})),
                "everything": StoryQuery(),
            }
            for name, query in queries.items():
                seconds, count = timed(lambda query=query: sum(1 for _ in read_story(archive, query)))
                print(f"{name:<22} {count:>7} sentences  {seconds:6.2f} s  {seconds / whole:5.2f} of reading")


if __name__ == "__main__":
    main()
