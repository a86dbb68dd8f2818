"""Every file-system call of the archive, behind one small protocol, and the few durable moves built on it.

Durability is a matter of order, and order can only be tested where it can be broken: the archive never calls ``os``
for its data but goes through ``FileSystem``, so that a test can wrap it and drop, cut or refuse any single call.
(The SQLite index is outside of this: it is a cache and may lie or vanish at any time.)

Locks are ``flock``: they belong to an open file and die with the process, so there are no stale locks to clean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from csf_store.digest import Buffer
from csf_store.errors import StorageError

_NEW_FILE: Final = 0o644
HASTE: Final = 1 << 20
"""From how many bytes on a single write is worth being hastened to the disk."""


class FileStat(NamedTuple):
    """What the archive wants to know of a file: size in bytes and modification time in nanoseconds."""

    size: int
    mtime_ns: int


class FileSystem(Protocol):
    """The calls through which all archive data goes. Every method may raise ``OSError``."""

    def open(self, path: Path, flags: int) -> int:
        """Opens ``path`` with ``os.open`` flags; returns a descriptor."""
        ...

    def close(self, fd: int) -> None:
        """Closes a descriptor."""
        ...

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:
        """Writes at the descriptor's position; may write less than asked, and returns how much."""
        ...

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Reads up to ``length`` bytes at ``offset``."""
        ...

    def read_into(self, fd: int, parts: Sequence[memoryview], offset: int) -> int:
        """Fills ``parts`` one after the other with the bytes from ``offset`` on; returns how many there were."""
        ...

    def hasten(self, fd: int, offset: int, length: int) -> None:
        """Asks the system to begin writing these bytes to the disk now; promises nothing.

        The sync that follows then finds most of its work done: a third to half of the time of a large put.
        """
        ...

    def fsync(self, fd: int) -> None:
        """Makes a file's data and size durable."""
        ...

    def fsync_directory(self, path: Path) -> None:
        """Makes the names in a directory durable."""
        ...

    def truncate(self, fd: int, length: int) -> None:
        """Cuts a file."""
        ...

    def stat(self, fd: int) -> FileStat:
        """Size and time of an open file."""
        ...

    def scan(self, path: Path) -> dict[str, FileStat]:
        """The regular files of a directory, with size and time."""
        ...

    def mkdir(self, path: Path) -> None:
        """Makes one directory; it may exist."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Gives a file a second name; fails if that name exists."""
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Renames, atomically replacing ``target``."""
        ...

    def unlink(self, path: Path) -> None:
        """Removes a name; it may be gone already."""
        ...

    def lock(self, fd: int) -> None:
        """Waits for the exclusive lock of an open file."""
        ...

    def try_lock(self, fd: int) -> bool:
        """Takes the exclusive lock of an open file unless somebody holds it."""
        ...

    def lock_shared(self, fd: int) -> None:
        """Waits for a share of an open file's lock: many may have one, and nobody the exclusive lock meanwhile."""
        ...


class OsFileSystem:
    """The real one."""

    def open(self, path: Path, flags: int) -> int:  # noqa: D102 - the protocol speaks for these
        return os.open(path, flags | os.O_CLOEXEC, _NEW_FILE)

    def close(self, fd: int) -> None:  # noqa: D102
        os.close(fd)

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:  # noqa: D102
        return os.writev(fd, parts)

    def pread(self, fd: int, length: int, offset: int) -> bytes:  # noqa: D102
        return os.pread(fd, length, offset)

    def read_into(self, fd: int, parts: Sequence[memoryview], offset: int) -> int:  # noqa: D102
        return os.preadv(fd, parts, offset)

    def hasten(self, fd: int, offset: int, length: int) -> None:  # noqa: D102
        # Dirty pages are not dropped by this but written; Python has no call that says just that.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def fsync(self, fd: int) -> None:  # noqa: D102
        os.fsync(fd)

    def fsync_directory(self, path: Path) -> None:  # noqa: D102
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, length: int) -> None:  # noqa: D102
        os.ftruncate(fd, length)

    def stat(self, fd: int) -> FileStat:  # noqa: D102
        found = os.fstat(fd)
        return FileStat(found.st_size, found.st_mtime_ns)

    def scan(self, path: Path) -> dict[str, FileStat]:  # noqa: D102
        files: dict[str, FileStat] = {}
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    files[entry.name] = FileStat(found.st_size, found.st_mtime_ns)
        return files

    def mkdir(self, path: Path) -> None:  # noqa: D102
        path.mkdir(parents=True, exist_ok=True)

    def link(self, source: Path, target: Path) -> None:  # noqa: D102
        os.link(source, target)

    def replace(self, source: Path, target: Path) -> None:  # noqa: D102
        source.replace(target)

    def unlink(self, path: Path) -> None:  # noqa: D102
        path.unlink(missing_ok=True)

    def lock(self, fd: int) -> None:  # noqa: D102
        fcntl.flock(fd, fcntl.LOCK_EX)

    def try_lock(self, fd: int) -> bool:  # noqa: D102
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock_shared(self, fd: int) -> None:  # noqa: D102
        fcntl.flock(fd, fcntl.LOCK_SH)


@contextlib.contextmanager
def storage_errors(what: object) -> Iterator[None]:
    """Turns an ``OSError`` about ``what`` into a ``StorageError`` that says what to do."""
    try:
        yield
    except OSError as error:
        steps = {
            errno.ENOSPC: "free some space and try again",
            errno.EDQUOT: "free some space and try again",
            errno.EROFS: "the file system is read-only; mount it writable or choose another archive",
            errno.EACCES: "check the permissions",
            errno.EPERM: "check the permissions",
            errno.EIO: "the device is failing; check it before trusting it with more data",
        }
        step = steps.get(error.errno or 0, "check the path and the device")
        raise StorageError(f"{what}: {error.strerror or error}; {step}") from error


def write_all(fs: FileSystem, fd: int, parts: Sequence[Buffer]) -> int:
    """Writes every part, however short the single writes are; returns the number of bytes."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    total = sum(len(view) for view in views)
    while views:
        written = fs.write(fd, views)
        if written <= 0:
            raise OSError(errno.EIO, "write returned without writing")
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views and written:
            views[0] = views[0][written:]
    return total


def read_exact(fs: FileSystem, fd: int, length: int, offset: int) -> bytes:
    """Reads ``length`` bytes at ``offset``, or fewer only where the file ends."""
    data = fs.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    pieces = [data]
    got = len(data)
    while got < length:
        data = fs.pread(fd, length - got, offset + got)
        if not data:
            break
        pieces.append(data)
        got += len(data)
    return b"".join(pieces)


def fill(fs: FileSystem, fd: int, parts: Sequence[memoryview], offset: int) -> int:
    """Fills ``parts`` from ``offset`` on, in as many reads as it takes; less only where the file ends.

    Memory that is already warm is filled several times faster than ``read_exact`` can make new.
    """
    views = [part for part in parts if len(part)]
    got = 0
    while views:
        count = fs.read_into(fd, views, offset + got)
        if count <= 0:
            break
        got += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views and count:
            views[0] = views[0][count:]
    return got


def temporary_beside(path: Path) -> Path:
    """A name in the same directory that nobody else uses; the same directory, so that a rename is atomic."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")


def write_new(fs: FileSystem, path: Path, data: bytes) -> bool:
    """Creates ``path`` with ``data``, durable and complete or not at all; False if somebody else did so first."""
    temporary = temporary_beside(path)
    fd = fs.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            write_all(fs, fd, [data])
            fs.fsync(fd)
        finally:
            fs.close(fd)
        try:
            fs.link(temporary, path)
        except FileExistsError:
            return False
        fs.fsync_directory(path.parent)
        return True
    finally:
        fs.unlink(temporary)
