"""What the ledger costs as it grows: opening, asking, appending, proving, and reading it all again.

    python bench/ledger.py [--lines 10 --lines 10000 --lines 100000] [--rounds N] [--out DIR]

Prints a markdown table of medians, each with its ratio to the smallest ledger. Every row opens the ledger anew, as a
new process would. "Without the cache" is what every process would pay if there were none.
"""

import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import rfc8785

from csf_store import Digest, Ledger
from csf_store.durable import OsFileSystem
from csf_store.ledger.line import NO_LEAF
from csf_store.ledger.merkle import leaf_hash

ARCHIVE = bytes(16)
LINES = (10, 10_000, 100_000)


def write_ledger(directory: Path, count: int) -> None:
    """As an archive of many checkpoints writes it: pins, and every eighth line a ref that moves."""
    directory.mkdir()
    previous = NO_LEAF
    with (directory / "ledger.jsonl").open("wb") as file:
        for seq in range(count):
            digest = str(Digest.of(b"%d" % seq))
            if seq == 0:
                event: dict[str, object] = {"event": "archive.created", "archive": ARCHIVE.hex(), "format": 1}
            elif seq % 8:
                event = {"event": "pin", "digest": digest, "kind": "blob", "name": f"shard-{seq:06}.safetensors"}
            else:
                event = {"event": "ref.set", "ref": f"line-{seq % 64}", "from": None, "to": digest}
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_760_000_000 + seq)) + ".000000Z"
            line = rfc8785.dumps({**event, "seq": seq, "time": stamp, "prev": previous.hex()})  # type: ignore[dict-item]
            file.write(line + b"\n")
            previous = leaf_hash(line)


def opened(directory: Path) -> Ledger:
    return Ledger(OsFileSystem(), directory, ARCHIVE)


def timed(directory: Path, action: Callable[[Ledger], object]) -> float:
    """Milliseconds to open the ledger and do something."""
    started = time.perf_counter()
    ledger = opened(directory)
    action(ledger)
    passed = time.perf_counter() - started
    ledger.close()
    return passed * 1000


def without_cache(directory: Path) -> None:
    for path in directory.glob("ledger.sqlite*"):
        path.unlink()


def measure(directory: Path, count: int, rounds: int) -> dict[str, float]:
    known = Digest.of(b"1")
    number = iter(range(1_000_000))
    actions: dict[str, Callable[[Ledger], object]] = {
        "open, is_pinned": lambda ledger: ledger.is_pinned(known, "blob", "shard-000001.safetensors"),
        "open, first append": lambda ledger: ledger.append("note", number=next(number)),
        "open, root": lambda ledger: ledger.root(),
        "open, root of half": lambda ledger: ledger.root(count // 2),
        "open, prove one line": lambda ledger: ledger.inclusion_proof(count // 3),
        "open, prove consistency": lambda ledger: ledger.consistency_proof(count // 3),
    }
    slow: dict[str, Callable[[Ledger], object]] = {
        "open, pins()": lambda ledger: ledger.pins(),
        "open, audit()": lambda ledger: ledger.audit(),
    }
    without_cache(directory)
    found = {"without the cache: open, is_pinned": timed(directory, actions["open, is_pinned"])}
    for name, action in actions.items():
        found[name] = statistics.median(timed(directory, action) for _ in range(rounds))
    for name, action in slow.items():
        found[name] = statistics.median(timed(directory, action) for _ in range(max(1, rounds // 10)))
    ledger = opened(directory)
    ledger.append("note", number=next(number))
    appends = []
    for _ in range(rounds):
        started = time.perf_counter()
        ledger.append("note", number=next(number))
        appends.append((time.perf_counter() - started) * 1000)
    found["one more append"] = statistics.median(appends)
    ledger.close()
    return found


@click.command()
@click.option("--lines", multiple=True, type=int, default=LINES)
@click.option("--rounds", type=click.IntRange(min=1), default=50)
@click.option("--out", type=click.Path(path_type=Path), help="Where to make the ledgers; a temporary directory.")
def main(lines: tuple[int, ...], rounds: int, out: Path | None) -> None:
    work = Path(tempfile.mkdtemp(dir=out))
    columns: dict[int, dict[str, float]] = {}
    try:
        for count in sorted(lines):
            directory = work / str(count)
            write_ledger(directory, count)
            columns[count] = measure(directory, count, rounds)
    finally:
        shutil.rmtree(work)
    first = columns[min(columns)]
    print(f"{platform.machine()}, Python {platform.python_version()}, median of {rounds} rounds, milliseconds\n")
    print("| | " + " | ".join(f"{count:,} lines" for count in columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name in first:
        cells = [f"{column[name]:.2f} ({column[name] / first[name]:.1f}x)" for column in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
