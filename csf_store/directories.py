"""Looking at a directory before it is put: every file listed, every reason to refuse found, nothing written yet."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from csf_store.durable import storage_errors
from csf_store.errors import InvalidInputError, NotFoundError
from csf_store.ingest import FileSource, plan_file
from csf_store.trees import check_path


class Found(NamedTuple):
    """A file to put: its path in the tree, where it is, whether its owner may execute it, its size now."""

    path: str
    source: Path
    executable: bool
    size: int


def check_regular(path: Path) -> None:
    """Refuses what is no file (a link to one is followed).

    Raises:
        NotFoundError: if it is not there.
        InvalidInputError: if it is something else.
    """
    if not path.exists():
        raise NotFoundError(f"{path} does not exist; check the path")
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a regular file; csf put takes files and directories")


def check_file(path: Path, *, allow_pickle: bool) -> int:
    """Checks a file as a put would; returns its size.

    Raises:
        NotFoundError: if it is not there.
        InvalidInputError: if it is malformed, or no regular file.
        PickleRefusedError: if it is a pickle and that was not asked for.
    """
    check_regular(path)
    with FileSource(path) as source:
        plan_file(source, allow_pickle=allow_pickle)
        return source.size


def list_directory(directory: Path, *, allow_pickle: bool) -> list[Found]:
    """The files of a directory in the order of a tree, each checked as a put would.

    Raises:
        InvalidInputError: naming what can not be put. Links are refused by name: what they point to may be outside, and
            another machine would not have it.
    """
    if not directory.is_dir():
        raise NotFoundError(f"{directory} is not a directory; check the path")
    found: list[Found] = []
    _walk(directory, "", found)
    found.sort(key=lambda file: file.path.encode())
    for file in found:
        with FileSource(file.source) as source:
            plan_file(source, allow_pickle=allow_pickle)
    return found


def _walk(directory: Path, prefix: str, found: list[Found]) -> None:
    with storage_errors(directory), os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise InvalidInputError(f"{entry.path} is a symbolic link; replace it by the file it points to")
            check_path(path)
            if stat.S_ISDIR(status.st_mode):
                _walk(Path(entry.path), path + "/", found)
            elif stat.S_ISREG(status.st_mode):
                found.append(Found(path, Path(entry.path), bool(status.st_mode & stat.S_IXUSR), status.st_size))
            else:
                raise InvalidInputError(f"{entry.path} is neither a file nor a directory; remove it from what you put")
