"""What SQLite's errors mean for a file that is a cache: the world is in the way, or the file is no good."""

from __future__ import annotations

from typing import Final

_KEPT_OUT: Final = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_PERM",
)


def is_kept_out(error: BaseException) -> bool:
    """Whether somebody else, a full disk or permissions are in the way: nothing is known against the file."""
    return _name(error).startswith(_KEPT_OUT)


def is_storage_trouble(error: BaseException) -> bool:
    """Whether it is that, or the disk failed: to throw the file away would not help."""
    return is_kept_out(error) or _name(error).startswith("SQLITE_IOERR")


def _name(error: BaseException) -> str:
    return str(getattr(error, "sqlite_errorname", ""))
