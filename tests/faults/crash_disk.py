"""A disk that keeps a journal, from which ``crash_states`` builds every state it may be in after the power failed.

``os.kill`` leaves the page cache alone, so a program without a single fsync passes every test of that kind. Here each
call runs on the real file system (what a live process sees) and is also noted. From the notes ``states`` builds what a
disk may hold after a crash at any moment, by the weakest reading of POSIX that real file systems come close to:

- Bytes and lengths are safe once their file was fsynced. Before that each write may be there, be missing, be there up
  to any byte, in some of its sectors only, or as zeros; later writes may survive earlier ones.
- Names are safe once their directory was fsynced. Before that each create, link, rename and unlink may be done or
  undone on its own. An fsync of a file says nothing of its name.
- After an fsync that failed the system calls the pages clean: what was waiting may be gone for good, whatever is
  synced later.

SQLite's files, the index above all, are no part of this, because the archive promises to live without them: whoever
checks a state puts those of the time, older ones, or none beside it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from csf_store.digest import Buffer
from csf_store.durable import OsFileSystem

ARCHIVE: Final = "kept/archive"
"""Where on a disk the archive belongs; not at its root, so that its parent is made on the way."""
ROOT: Final = 0


class Write(NamedTuple):
    """Bytes at an offset of a file."""

    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A file's length, set."""

    file: int
    length: int


class Names(NamedTuple):
    """Names of one directory that now stand for other files, or for none; together or not at all."""

    directory: int
    changes: tuple[tuple[str, int | None], ...]


class Sync(NamedTuple):
    """Everything waiting for a file is durable now; or, if it failed, beyond any promise."""

    file: int
    failed: bool = False


class SyncNames(NamedTuple):
    """All names of a directory are durable now."""

    directory: int


Change: TypeAlias = Write | Truncate | Names
Op: TypeAlias = Change | Sync | SyncNames


class Moment(NamedTuple):
    """The instant before an operation: how much was promised by then, and what the index looked like."""

    op: Op | None
    told: int
    index: int


class Killed(BaseException):
    """The process is gone. Whatever it still tries has no effect."""


class Blocked(BaseException):
    """A nested process would wait for its host, for ever."""


class CrashDisk:
    """One directory whose history is kept.

    Attributes:
        root: the directory.
        archive: where in it the archive belongs.
        told: everything that was promised to callers, in order; the harness says what it means.
        journal: what was done.
        indexes: every state of the index files that was seen, by name.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True)
        self.root = root
        self.archive = root / ARCHIVE
        self.told: list[object] = []
        self.journal: list[Moment] = []
        self.indexes: list[dict[str, bytes]] = [{}]
        self.directories = {ROOT}
        self.names: dict[int, dict[str, int]] = {ROOT: {}}
        self.kill_at: int | None = None
        self.interrupt: tuple[int, Callable[[], None]] | None = None
        self._fresh = itertools.count(1)

    def adopt(self, files: Mapping[str, bytes | None], index: dict[str, bytes]) -> None:
        """Begins with what an earlier crash left, directories as None, all of it durable; and with some caches."""
        fs = self.process()
        for name, content in files.items():
            if content is None:
                fs.mkdir(self.root / name)
                continue
            fd = fs.open(self.root / name, os.O_RDWR | os.O_CREAT)
            if content:
                fs.write(fd, [content])
            fs.fsync(fd)
            fs.close(fd)
        for name, content in [("", None), *files.items()]:
            if content is None:
                fs.fsync_directory(self.root / name)
        for name, content in index.items():
            (self.archive / name).write_bytes(content)

    def process(self, *, deaf: Callable[[Op, Path], bool] | None = None) -> CrashFileSystem:
        """The file system as one process sees it.

        Args:
            deaf: says of which syncs the disk shall hear nothing, to see whether the checks notice.
        """
        return CrashFileSystem(self, deaf)

    def tell(self, promise: object) -> None:
        """Notes that a caller was promised something."""
        self.told.append(promise)

    def moments(self) -> list[Moment]:
        """Every instant at which the power can fail: before each operation, and after the last."""
        return [*self.journal, self._now(None)]

    def note(self, op: Op, moment: Moment) -> None:
        """Takes in what was done; ``moment`` is the instant before."""
        self.journal.append(moment._replace(op=op))
        if isinstance(op, Names):
            for name, inode in op.changes:
                if inode is None:
                    self.names[op.directory].pop(name, None)
                else:
                    self.names[op.directory][name] = inode

    def before(self) -> Moment:
        """Called by a process that is about to change something."""
        if self.interrupt is not None and self.interrupt[0] == len(self.journal):
            _, action = self.interrupt
            self.interrupt = None
            action()
        if self.kill_at is not None and len(self.journal) >= self.kill_at:
            self.kill_at = None
            raise Killed
        return self._now(None)

    def _now(self, op: Op | None) -> Moment:
        files = sorted(path for path in self.archive.glob("*.sqlite*") if not path.name.endswith("-shm"))
        seen = {path.name: path.read_bytes() for path in files}  # without what SQLite makes anew
        if seen != self.indexes[-1]:
            self.indexes.append(seen)
        return Moment(op, len(self.told), len(self.indexes) - 1)

    def fresh(self, *, directory: bool = False) -> int:
        """The number of a new file or directory."""
        inode = next(self._fresh)
        if directory:
            self.directories.add(inode)
            self.names[inode] = {}
        return inode

    def find(self, path: Path) -> tuple[int, str, int | None]:
        """Directory, name and file of a path."""
        *parents, name = path.absolute().relative_to(self.root).parts or (".",)
        directory = ROOT
        for part in parents:
            directory = self.names[directory][part]
        return directory, name, ROOT if name == "." else self.names[directory].get(name)


class CrashFileSystem(OsFileSystem):
    """The real file system, with a diary. Made by ``CrashDisk.process``; it dies as a process does."""

    def __init__(self, disk: CrashDisk, deaf: Callable[[Op, Path], bool] | None) -> None:
        self.disk = disk
        self._deaf = deaf
        self._open: dict[int, tuple[int, Path]] = {}
        self.dead = False

    def _before(self) -> Moment:
        if self.dead:
            raise Killed
        try:
            return self.disk.before()
        except Killed:
            self.die()
            raise

    def die(self) -> None:
        """Lets go of files and locks, as the system does for the dead."""
        self.dead = True
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def open(self, path: Path, flags: int) -> int:
        if not flags & (os.O_CREAT | os.O_TRUNC):
            if self.dead:
                raise Killed
            fd = super().open(path, flags)
            self._open[fd] = (self.disk.find(path)[2] or 0, path)
            return fd
        moment = self._before()
        directory, name, inode = self.disk.find(path)
        fd = super().open(path, flags)
        if inode is None:
            inode = self.disk.fresh()
            self.disk.note(Names(directory, ((name, inode),)), moment)
        elif flags & os.O_TRUNC:
            self.disk.note(Truncate(inode, 0), moment)
        self._open[fd] = (inode, path)
        return fd

    def close(self, fd: int) -> None:
        if self._open.pop(fd, None) is not None:
            super().close(fd)
        elif not self.dead:
            raise OSError(9, "Bad file descriptor")

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:
        moment = self._before()
        written = super().write(fd, parts)
        end = os.lseek(fd, 0, os.SEEK_CUR)
        data = b"".join(bytes(part) for part in parts)[:written]
        self.disk.note(Write(self._open[fd][0], end - written, data), moment)
        return written

    def fsync(self, fd: int) -> None:
        moment = self._before()
        inode, path = self._open[fd]
        op = Sync(inode)
        if not (self._deaf and self._deaf(op, path)):
            self.disk.note(op, moment)

    def fail_sync(self, fd: int) -> None:
        """An fsync that reports an error and leaves the pages clean."""
        self.disk.note(Sync(self._open[fd][0], failed=True), self._before())

    def fsync_directory(self, path: Path) -> None:
        moment = self._before()
        inode = self.disk.find(path)[2] if path.absolute() != self.disk.root.parent else None
        if inode is None:
            return  # the root's own name is the tester's concern
        op = SyncNames(inode)
        if not (self._deaf and self._deaf(op, path)):
            self.disk.note(op, moment)

    def truncate(self, fd: int, length: int) -> None:
        moment = self._before()
        super().truncate(fd, length)
        self.disk.note(Truncate(self._open[fd][0], length), moment)

    def mkdir(self, path: Path) -> None:
        for each in [*reversed(path.parents), path]:
            if not each.is_relative_to(self.disk.root) or each.exists():
                continue
            moment = self._before()
            if not each.exists():  # nobody was faster
                directory, name, _ = self.disk.find(each)
                super().mkdir(each)
                inode = self.disk.fresh(directory=True)
                self.disk.note(Names(directory, ((name, inode),)), moment)

    def link(self, source: Path, target: Path) -> None:
        moment = self._before()
        super().link(source, target)
        directory, name, _ = self.disk.find(target)
        self.disk.note(Names(directory, ((name, self.disk.find(source)[2]),)), moment)

    def replace(self, source: Path, target: Path) -> None:
        moment = self._before()
        super().replace(source, target)
        directory, name, _ = self.disk.find(target)
        home, old, inode = self.disk.find(source)
        assert home == directory, "a rename between directories is not modelled"
        self.disk.note(Names(directory, ((old, None), (name, inode))), moment)

    def unlink(self, path: Path) -> None:
        if not os.path.lexists(path):
            return
        moment = self._before()
        super().unlink(path)
        directory, name, _ = self.disk.find(path)
        self.disk.note(Names(directory, ((name, None),)), moment)

    def lock(self, fd: int) -> None:
        if not super().try_lock(fd):
            raise Blocked

    def lock_shared(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Blocked from None
