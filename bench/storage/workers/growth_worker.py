"""Steps of the growth bench, each in a process of its own so that its memory is its own.

    python growth_worker.py fill ARCHIVE FROM TO    add that many tiny chunks, numbered
    python growth_worker.py open ARCHIVE            open, look one chunk up, close
    python growth_worker.py put ARCHIVE FILE        put a file that is new to it
    python growth_worker.py get ARCHIVE DIGEST OUT  get a file

A million real chunks would be 4 TB. What could grow with their number is the index, the recovery on open and the
segments' tables of contents, and none of these looks at the content: so the chunks here are 16 bytes long, and are
handed to the store directly, below the layer that cuts files.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from blake3 import blake3

from csf_store import Archive, Digest
from csf_store.segment import chunk_header

_BATCH = 20_000
_RAW_CODEC = 0


def content(number: int) -> bytes:
    return number.to_bytes(16, "little")


def fill(path: Path, first: int, last: int) -> dict[str, object]:
    with Archive.open(path) as archive:
        store = archive._store
        for number in range(first, last):
            data = content(number)
            store.append(chunk_header(blake3(data).digest(), _RAW_CODEC, len(data), data), data)
            if number % _BATCH == _BATCH - 1:
                store.commit()
        store.commit()
    return {}


def open_once(path: Path) -> dict[str, object]:
    with Archive.open(path) as archive:
        found = archive._store.find_chunk(blake3(content(0)).digest())
    if found is None:
        raise SystemExit("the first chunk is not there")
    return {}


def put(path: Path, file: Path) -> dict[str, object]:
    with Archive.open(path) as archive:
        stored = archive.put_file(file)
    if not stored.new:
        raise SystemExit(f"{file} was not new to the archive")
    return {"digest": str(stored.digest)}


def get(path: Path, digest: Digest, out: Path) -> dict[str, object]:
    with Archive.open(path) as archive:
        archive.get_file(digest, out)
    return {}


def peak_memory() -> int:
    """The most bytes this process has held. getrusage would count what its parent held before the program began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    verb, path, *rest = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    import csf_store.archive  # noqa: F401, PLC0415 - outside the clock, which is for the archive

    before = peak_memory()
    begun = time.perf_counter()
    if verb == "fill":
        answer = fill(path, int(rest[0]), int(rest[1]))
    elif verb == "open":
        answer = open_once(path)
    elif verb == "put":
        answer = put(path, Path(rest[0]))
    else:
        answer = get(path, Digest.parse(rest[0]), Path(rest[1]))
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "grown": peak_memory() - before, **answer}))


if __name__ == "__main__":
    main()
