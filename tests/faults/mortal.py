"""File systems that stop at a chosen call: dead as after ``kill -9``, or with an error of the system."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from csf_store.digest import Buffer
from csf_store.durable import OsFileSystem


class Dead(BaseException):
    """The process is gone."""


class Mortal(OsFileSystem):
    """Counts the calls that change something; at number ``at`` it calls ``fate`` instead. Closes all it had open."""

    def __init__(self, at: int | None = None, fate: Callable[[], BaseException] = Dead) -> None:
        self.calls = 0
        self.diary: list[str] = []
        self._at = at
        self._fate = fate
        self._open: set[int] = set()
        self.dead = False

    def _count(self, what: str) -> None:
        if self.dead:
            raise Dead
        self.calls += 1
        self.diary.append(what)
        if self.calls - 1 == self._at:
            error = self._fate()
            if isinstance(error, Dead):
                self.die()
            raise error

    def die(self) -> None:
        """Lets go of files and locks, as the system does for the dead."""
        self.dead = True
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def open(self, path: Path, flags: int) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._count(f"open {path.name}")
        elif self.dead:
            raise Dead
        fd = super().open(path, flags)
        self._open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            super().close(fd)
        elif not self.dead:
            raise OSError(9, "Bad file descriptor")

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:
        self._count("write")
        return super().write(fd, parts)

    def fsync(self, fd: int) -> None:
        self._count("fsync")

    def fsync_directory(self, path: Path) -> None:
        self._count(f"fsync {path.name}/")

    def truncate(self, fd: int, length: int) -> None:
        self._count("truncate")
        super().truncate(fd, length)

    def mkdir(self, path: Path) -> None:
        self._count(f"mkdir {path.name}")
        super().mkdir(path)

    def link(self, source: Path, target: Path) -> None:
        self._count(f"link {target.name}")
        super().link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        self._count(f"rename to {target.name}")
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._count(f"unlink {path.name}")
        super().unlink(path)


def abandon(archive: object) -> None:
    """Closes what a dead process holds besides files of the file system: its connections to SQLite."""
    archive._store.keeper._index._db.close()
    archive.ledger.close()
    archive._store._readers.clear()
