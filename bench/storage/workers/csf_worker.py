"""``csf_store`` used as a library: one action in a process of its own, timed inside.

    python csf_worker.py init|put|get|digest ARCHIVE [NAME PATH]

The archive is opened and closed within the time. A put also pins, as the command does, so that the ledger is written
too.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from csf_store import Archive, Digest, Kind


def latest(archive: Archive, name: str) -> Digest:
    """The tree pinned under a name."""
    return next(pin.digest for pin in reversed(archive.pins()) if pin.name == name)


def put(path: Path, name: str, source: Path) -> None:
    with Archive.open(path) as archive:
        stored = archive.put_tree(source)
        archive.pin(stored.digest, kind=Kind.TREE, name=name)


def get(path: Path, name: str, out: Path) -> None:
    with Archive.open(path) as archive:
        archive.get_tree(latest(archive, name), out)


def main() -> None:
    verb, path, *rest = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    begun = time.perf_counter()
    if verb == "init":
        Archive.create(path).close()
    elif verb == "digest":
        with Archive.open(path) as archive:
            print(latest(archive, rest[0]))
        return
    elif verb == "get":
        get(path, rest[0], Path(rest[1]))
    else:
        put(path, rest[0], Path(rest[1]))
    print(json.dumps({"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
