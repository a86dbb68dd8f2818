"""Writing what was got: under a temporary name beside its place, synced, and renamed only when the last byte is proven.

A reader of the output sees the whole file or none, whatever fails and whenever the power does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from csf_store.digest import Buffer
from csf_store.durable import HASTE, FileSystem, storage_errors, temporary_beside, write_all
from csf_store.errors import ConflictError, InvalidInputError
from csf_store.trees import Tree, TreeEntry, check_path

_EXECUTE = 0o111


def _refuse(out: Path) -> ConflictError:
    return ConflictError(f"{out} exists; choose another output, or allow overwriting with --force")


def _write_synced(fs: FileSystem, path: Path, pieces: Iterable[Buffer]) -> None:
    fd = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        written = 0
        for piece in pieces:
            length = write_all(fs, fd, [piece])
            if length >= HASTE:
                fs.hasten(fd, written, length)
            written += length
        fs.fsync(fd)
    finally:
        fs.close(fd)


def write_file(fs: FileSystem, out: Path, content: Callable[[], Iterable[Buffer]], *, overwrite: bool) -> None:
    """Writes a file whose content proves itself by ending without an error.

    Raises:
        ConflictError: if ``out`` exists and may not be overwritten.
    """
    if not out.absolute().parent.is_dir():
        raise InvalidInputError(f"{out.parent} is not a directory; make it first")
    if out.is_dir() or (os.path.lexists(out) and not overwrite):
        raise _refuse(out)
    temporary = temporary_beside(out)
    with storage_errors(out):
        try:
            _write_synced(fs, temporary, content())
            if overwrite:
                fs.replace(temporary, out)
            else:
                try:
                    fs.link(temporary, out)  # unlike a rename, this fails if somebody was faster
                except FileExistsError:
                    raise _refuse(out) from None
        finally:
            fs.unlink(temporary)
        fs.fsync_directory(out.absolute().parent)


def write_tree(
    fs: FileSystem,
    out: Path,
    tree: Tree,
    content: Callable[[TreeEntry], Iterable[Buffer]],
    *,
    overwrite: bool,
    progress: Callable[[int], None] | None,
) -> None:
    """Writes a directory.

    Raises:
        ConflictError: if ``out`` is there, not an empty directory, and may not be overwritten.
    """
    if not out.absolute().parent.is_dir():
        raise InvalidInputError(f"{out.parent} is not a directory; make it first")
    occupied = os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))
    if occupied and not overwrite:
        raise _refuse(out)
    temporary = temporary_beside(out)
    with storage_errors(out):
        try:
            fs.mkdir(temporary)
            for entry in tree.entries:
                _write_entry(fs, temporary, entry, content(entry))
                if progress:
                    progress(entry.size)
            for directory, _, _ in os.walk(temporary, topdown=False):
                fs.fsync_directory(Path(directory))
            _swap_in(fs, temporary, out, occupied=occupied)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fs.fsync_directory(out.absolute().parent)


def _write_entry(fs: FileSystem, root: Path, entry: TreeEntry, pieces: Iterable[Buffer]) -> None:
    check_path(entry.path)  # proven by the tree's form already; a path that leaves the output is worth a second look
    target = root / entry.path
    fs.mkdir(target.parent)
    _write_synced(fs, target, pieces)
    if entry.executable:
        mode = target.stat().st_mode
        target.chmod(mode | (_EXECUTE & (mode >> 2)))


def _swap_in(fs: FileSystem, temporary: Path, out: Path, *, occupied: bool) -> None:
    if not occupied:
        try:
            fs.replace(temporary, out)
        except OSError as error:
            if out.exists():
                raise _refuse(out) from error
            raise
        return
    aside = temporary_beside(out)
    fs.replace(out, aside)
    try:
        fs.replace(temporary, out)
    except BaseException:
        fs.replace(aside, out)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        fs.unlink(aside)
