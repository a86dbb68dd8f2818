"""The ledger's file and its lock: every byte that is read or written, and in which order it becomes durable.

Lines are only ever appended, by whoever holds ``ledger.lock``, and synced before the lock is let go. A write or sync
that fails is taken back: the lines were promised to nobody, and after a failed sync the system may have dropped their
pages and call them clean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from csf_store.durable import FileStat, FileSystem, read_exact, storage_errors, write_all
from csf_store.errors import ConflictError, StorageError
from csf_store.ledger.line import MAX_LINE

_READ: Final = 4 << 20


class LedgerFile:
    """``ledger.jsonl``."""

    def __init__(self, fs: FileSystem, path: Path) -> None:
        self.path = path
        self._fs = fs

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        with storage_errors(self.path):
            fd = self._fs.open(self.path, flags)
            try:
                yield fd
            finally:
                self._fs.close(fd)

    def stat(self) -> FileStat | None:
        """Its size and time; None if there is no such file."""
        try:
            fd = self._fs.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError:
            with storage_errors(self.path):
                raise
        with storage_errors(self.path):
            try:
                return self._fs.stat(fd)
            finally:
                self._fs.close(fd)

    def read(self, start: int, end: int) -> bytes:
        """The bytes of one line or of what is left of one: no more than a line may have."""
        with self._opened(os.O_RDONLY) as fd:
            return read_exact(self._fs, fd, max(0, min(end - start, MAX_LINE + 1)), start)

    def lines(self, start: int, end: int) -> Iterator[bytes]:
        """The complete lines between two offsets, without their newlines, in bounded memory.

        Of a line that is longer than one may be comes only the beginning, still too long to be taken for a line.
        """
        rest = b""
        with self._opened(os.O_RDONLY) as fd:
            at = start
            while at < end:
                data = read_exact(self._fs, fd, min(_READ, end - at), at)
                if not data:
                    break
                at += len(data)
                *lines, rest = (rest + data).split(b"\n")
                yield from lines
                rest = rest[: MAX_LINE + 1]

    def sync(self, *, name: bool) -> None:
        """Makes what somebody else wrote durable before it counts; with ``name``, the file's name too."""
        with self._opened(os.O_RDONLY) as fd:
            self._fs.fsync(fd)
            if name:
                self._fs.fsync_directory(self.path.parent)

    def append(self, start: int, lines: Sequence[bytes]) -> FileStat:
        """Writes lines to the end, which is at ``start``; durable when this returns.

        Raises:
            StorageError: if they could not be written; then none of them is there, unless the device refused even that.
            ConflictError: if the file does not end at ``start``.
        """
        with self._opened(os.O_RDWR | os.O_CREAT | os.O_APPEND) as fd:
            size = self._fs.stat(fd).size
            if size != start:
                raise ConflictError(
                    f"{self.path} has {size} bytes and should have {start}: something writes to it without taking "
                    "ledger.lock; stop that, then try again"
                )
            try:
                write_all(self._fs, fd, [b"".join(lines)])  # one system call takes a thousand parts, no more
                self._fs.fsync(fd)
            except BaseException:
                # Nobody was told. If taking it back fails as well, the next writer finds whole lines or a torn one.
                with contextlib.suppress(OSError):
                    self._fs.truncate(fd, start)
                raise
            if start == 0:
                self._fs.fsync_directory(self.path.parent)
            return self._fs.stat(fd)

    def complete(self) -> None:
        """Adds the newline to a last line that lacks just that."""
        with self._opened(os.O_RDWR | os.O_APPEND) as fd:
            write_all(self._fs, fd, [b"\n"])
            self._fs.fsync(fd)

    def set_aside(self, start: int, end: int) -> Path:
        """Moves the end of the file to a file of its own: durable there before it is cut off here."""
        with self._opened(os.O_RDWR) as fd:
            digest = hashlib.sha256(b"\0")
            for data in self._blocks(fd, start, end):
                digest.update(data)
            path = self.path.with_name(f"ledger.torn-{start}-{digest.hexdigest()[:8]}")
            copy = self._fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                for data in self._blocks(fd, start, end):
                    write_all(self._fs, copy, [data])
                self._fs.fsync(copy)
            finally:
                self._fs.close(copy)
            self._fs.fsync_directory(path.parent)
            self._fs.truncate(fd, start)
            self._fs.fsync(fd)
        return path

    def _blocks(self, fd: int, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, _READ):
            yield read_exact(self._fs, fd, min(_READ, end - at), at)


class LedgerLock:
    """``ledger.lock``, an ``flock``: it dies with its process, so it is never stale."""

    def __init__(self, fs: FileSystem, path: Path) -> None:
        self._path = path
        self._fs = fs

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Holds the lock, after everybody who has it before us."""
        with storage_errors(self._path):
            fd = self._fs.open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            with storage_errors(self._path):
                self._fs.lock(fd)
            yield
        finally:
            with storage_errors(self._path):
                self._fs.close(fd)

    @contextlib.contextmanager
    def if_free(self) -> Iterator[bool]:
        """Holds the lock if nobody else does, without waiting; tells which. Without write permission, nobody waits."""
        try:
            fd = self._open()
        except StorageError:
            yield False
            return
        try:
            with storage_errors(self._path):
                held = self._fs.try_lock(fd)
            yield held
        finally:
            with storage_errors(self._path):
                self._fs.close(fd)

    def _open(self) -> int:
        with storage_errors(self._path):
            with contextlib.suppress(OSError):  # read-only; a lock needs no more than an open file
                return self._fs.open(self._path, os.O_RDWR | os.O_CREAT)
            return self._fs.open(self._path, os.O_RDONLY)
