"""Who relies on what is there, and who takes things away: one lock between them.

A put that finds a chunk stores nothing and relies on it; a pin relies on an object. Both hold a share of
``collect.lock`` from their first look until what they did is durable. Whoever takes things away (garbage collection,
repair) holds the lock alone, for the short moment in which it decides for good. So nothing vanishes between a look and
what was built on it, and puts never wait for each other.

The lock is ``flock``: it dies with its process. Readers take none.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from csf_store.durable import FileSystem, storage_errors
from csf_store.errors import ConflictError

COLLECT_LOCK: Final = "collect.lock"
UPKEEP_LOCK: Final = "upkeep.lock"
_PAUSE: Final = 0.02
Waiting = Callable[[float], None]
"""Called with the seconds waited so far."""


class Keeping:
    """The shared side of the lock: one share per process, however many threads and blocks hold it."""

    def __init__(self, fs: FileSystem, root: Path, settle: Callable[[], None]) -> None:
        """``settle`` runs each time the share was taken anew: things may have been taken away before that."""
        self._fs = fs
        self._path = root / COLLECT_LOCK
        self._settle = settle
        self._mutex = threading.Lock()
        self._holders = 0
        self._fd = -1
        self._mine = threading.local()

    @property
    def held_here(self) -> bool:
        """Whether this very thread holds it, and would wait for itself."""
        return bool(getattr(self._mine, "depth", 0))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is taken away while this block runs."""
        self._take()
        self._mine.depth = getattr(self._mine, "depth", 0) + 1
        try:
            yield
        finally:
            self._mine.depth -= 1
            self.let_go()

    def _take(self) -> None:
        with self._mutex:
            if not self._holders:
                with storage_errors(self._path):
                    fd = self._fs.open(self._path, os.O_RDWR | os.O_CREAT)
                try:
                    with storage_errors(self._path):
                        self._fs.lock_shared(fd)
                    self._settle()
                except BaseException:
                    self._fs.close(fd)
                    raise
                self._fd = fd
            self._holders += 1

    def hold_on(self) -> None:
        """Prolongs a share that is held, beyond the block, until ``let_go``."""
        with self._mutex:
            self._holders += 1

    def let_go(self) -> None:
        """Gives up one hold; the last one gives up the share."""
        with self._mutex:
            self._holders -= 1
            if not self._holders:
                self._fs.close(self._fd)


@contextlib.contextmanager
def alone(fs: FileSystem, path: Path, what: str, *, wait: float, waiting: Waiting | None = None) -> Iterator[None]:
    """Holds a lock file exclusively.

    Args:
        fs: the file system.
        path: the lock file.
        what: who is in the way when it can not be had, for the message.
        wait: seconds to try.
        waiting: told the seconds waited, about once a second.

    Raises:
        ConflictError: if somebody else held it all that time.
    """
    with storage_errors(path):
        fd = fs.open(path, os.O_RDWR | os.O_CREAT)
    try:
        began = reported = time.monotonic()
        with storage_errors(path):
            while not fs.try_lock(fd):
                now = time.monotonic()
                if now - began >= wait:
                    raise ConflictError(f"{path}: {what}, for {wait:g} s; try again later, or wait longer (--wait)")
                if waiting and now - reported >= 1:
                    reported = now
                    waiting(now - began)
                time.sleep(_PAUSE)
        yield
    finally:
        fs.close(fd)
