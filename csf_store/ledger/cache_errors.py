"""The two ways in which a cache fails its ledger, and SQLite's many names for them. Neither ever reaches a caller."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from csf_store.sqlite_trouble import is_storage_trouble


class CacheDamagedError(Exception):
    """The cache is damaged, another archive's, or does not fit its ledger: throw it away."""


class CacheUnwritableError(Exception):
    """The cache can not be opened or written here: do without."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turns what SQLite says into one of the two."""
    try:
        yield
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        if is_storage_trouble(error):
            raise CacheUnwritableError(str(error)) from error
        raise CacheDamagedError(str(error)) from error


def remove(path: Path) -> None:
    """Deletes a cache with the files SQLite keeps beside it.

    Raises:
        CacheUnwritableError: if that is not allowed here.
    """
    try:
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise CacheUnwritableError(str(error)) from error
