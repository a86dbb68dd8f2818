"""A process whose children are killed, for real, at a chosen call while they append to a ledger.

    python ledger_victim.py DIRECTORY

For each line of JSON on standard input (``at``: number of the call, ``cut``: bytes of a write that still reach it) it
forks a child that appends two events and dies by ``SIGKILL`` just before that call, or lives to the end. What the
child was promised is on standard output before its last line, which says how it ended: the signal, or 0.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from csf_store import Ledger
from csf_store.digest import Buffer
from csf_store.durable import OsFileSystem
from csf_store.ledger.cache import LedgerCache

ARCHIVE = bytes(16)


class Doomed(OsFileSystem):
    """Dies before the call of that number that changes something."""

    def __init__(self, at: int, cut: int) -> None:
        self._left = at
        self._cut = cut

    def step(self) -> bool:
        """Whether this is the last call."""
        self._left -= 1
        return self._left < 0

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def open(self, path: Path, flags: int) -> int:
        if flags & (os.O_CREAT | os.O_APPEND | os.O_TRUNC) and self.step():
            self.die()
        return super().open(path, flags)

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:
        if self.step():
            super().write(fd, [b"".join(parts)[: self._cut]])
            self.die()
        return super().write(fd, parts)

    def fsync(self, fd: int) -> None:
        if self.step():
            self.die()
        super().fsync(fd)

    def fsync_directory(self, path: Path) -> None:
        if self.step():
            self.die()
        super().fsync_directory(path)

    def truncate(self, fd: int, length: int) -> None:
        if self.step():
            self.die()
        super().truncate(fd, length)

    def close(self, fd: int) -> None:
        if self.step():
            self.die()
        super().close(fd)


def live(directory: Path, at: int, cut: int) -> None:
    """The life of a child."""
    fs = Doomed(at, cut)
    for name in ("begin", "absorb", "commit"):
        real = getattr(LedgerCache, name)

        def stepping(cache: LedgerCache, *arguments: object, real: object = real) -> object:
            if fs.step():
                fs.die()
            return real(cache, *arguments)  # type: ignore[operator]

        setattr(LedgerCache, name, stepping)
    ledger = Ledger(fs, directory, ARCHIVE)
    for number in range(2):
        entry = ledger.append("note", number=number, text="some words, so that a cut has something to cut")
        sys.stdout.write(json.dumps({"seq": entry.seq, "leaf": entry.leaf.hex()}) + "\n")
        sys.stdout.flush()


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            live(Path(sys.argv[1]), order["at"], order["cut"])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"ended": status}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
