"""Asking the catalogue: opened, brought up to date, asked, and thrown away and built again where it proves unusable.

It is brought up to date before every question: what the index lists and the catalogue does not know is looked at once
(see ``facts``), and what the index no longer lists is struck out. So it needs no notice from those who put and collect.

Where it can not be written (a read-only or a full disk) it is built in memory, for the one question. One lock,
``catalogue.lock``, orders those who open, fill and throw away, so that no work is done twice and no file is taken from
under those who ask, who hold a share of it.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from csf_store.digest import Digest
from csf_store.durable import FileSystem
from csf_store.errors import CorruptError
from csf_store.search.catalogue_file import Catalogue, CatalogueUnusableError, CatalogueUnwritableError
from csf_store.search.catalogue_intake import catch_up

if TYPE_CHECKING:
    from csf_store.archive import Archive

CATALOGUE: Final = "catalogue.sqlite"
LOCK: Final = "catalogue.lock"

_NONSENSE: Final = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, struct.error)
"""What a damaged page leads to before a CRC is looked at: a number that is text, a row that is missing. If it was not
the file but this program, a catalogue built in memory fails in the same way, and then it is not caught.
"""

_T = TypeVar("_T")
_Question: TypeAlias = Callable[[Catalogue, tuple[Digest, ...]], _T]


def with_catalogue(archive: Archive, ask: _Question[_T], progress: Callable[[int], None] | None = None) -> _T:
    """Brings the catalogue up to date and asks it. One that proves unusable is thrown away, rebuilt and asked again.

    Args:
        archive: whose.
        ask: the question; it also gets the digests of objects that could not be looked at because they are damaged.
        progress: called with the number of objects just looked at.

    Raises:
        CorruptError: if the catalogue is damaged again as soon as it is built, or the ledger is.
    """
    try:
        for _ in range(2):
            inode = _inode(archive.path / CATALOGUE)
            try:
                return _ask_on_disk(archive, ask, progress)
            except CatalogueUnusableError:
                _discard(archive, inode)
    except CatalogueUnwritableError:
        pass
    catalogue = Catalogue(None, archive.id)
    try:
        return ask(catalogue, catch_up(catalogue, archive, progress))
    except (CatalogueUnusableError, CatalogueUnwritableError) as error:
        raise CorruptError(f"{archive.path / CATALOGUE}: {error}, even in memory; check this machine") from error
    finally:
        catalogue.close()


def _ask_on_disk(archive: Archive, ask: _Question[_T], progress: Callable[[int], None] | None) -> _T:
    with _locked(archive.fs, archive.path / LOCK) as fd:
        catalogue = Catalogue(archive.path / CATALOGUE, archive.id)
        try:
            unreadable = catch_up(catalogue, archive, progress)
            # From here on others may ask too, but nobody may take the file from under us.
            with _lock_trouble():
                archive.fs.lock_shared(fd)
            return ask(catalogue, unreadable)
        except _NONSENSE as error:
            raise CatalogueUnusableError(f"it holds nonsense: {error}") from error
        finally:
            catalogue.close()


def _inode(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_ino
    return 0


@contextlib.contextmanager
def _locked(fs: FileSystem, path: Path) -> Iterator[int]:
    with _lock_trouble():
        fd = fs.open(path, os.O_RDWR | os.O_CREAT)
    try:
        with _lock_trouble():
            fs.lock(fd)
        yield fd
    finally:
        fs.close(fd)


@contextlib.contextmanager
def _lock_trouble() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CatalogueUnwritableError(str(error)) from error


def _discard(archive: Archive, inode: int) -> None:
    """Throws the file away, unless somebody put another in its place."""
    path = archive.path / CATALOGUE
    with _locked(archive.fs, archive.path / LOCK), _lock_trouble():
        if _inode(path) == inode or not inode:
            for suffix in ("", "-wal", "-shm", "-journal"):
                archive.fs.unlink(path.with_name(path.name + suffix))
