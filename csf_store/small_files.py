"""Small files outside of archives: keys, states, lists of hashes. Whole and durable, or as they were before.

Whoever keeps such a file writes it through these two, so that a crash, a full disk or two writers at once leave no file
that is half one thing and half another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from csf_store.durable import OsFileSystem, temporary_beside


def replace_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Makes ``data`` what ``path`` holds, durably; of two that do so at once, one has the last word.

    Args:
        path: in a directory that exists.
        data: all of the file.
        private: whether nobody but the owner may read it.

    Raises:
        OSError: the file system said no; what was there is there still.
    """
    with _written_beside(path, data, private=private) as fresh:
        fresh.replace(path)


def create_file(path: Path, data: bytes, *, private: bool = False) -> bool:
    """Creates ``path`` with ``data``, durably, unless there is such a file already.

    Args:
        path: in a directory that exists.
        data: all of the file.
        private: whether nobody but the owner may read it.

    Returns:
        False if somebody else was first; what they wrote is left alone.

    Raises:
        OSError: the file system said no; there is no file then.
    """
    with _written_beside(path, data, private=private) as fresh:
        try:
            os.link(fresh, path)
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes, *, private: bool) -> Iterator[Path]:
    """A synced file in the same directory, to be given its name; that name is durable when the block is left."""
    fresh = temporary_beside(path)
    mode = 0o600 if private else 0o666
    try:
        with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)
    OsFileSystem().fsync_directory(path.parent)
