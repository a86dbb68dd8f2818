"""What makes a directory an archive: the ``csf.json`` marker, written last and whole, with the archive's random id.

The id is in every segment header, in the index and in the ledger's first line, so that files of two archives can not be
mixed up unnoticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Final

import rfc8785

from csf_store.durable import FileSystem, read_exact, storage_errors, write_new
from csf_store.errors import CorruptError, InvalidInputError, NotFoundError
from csf_store.framing import FORMAT_VERSION, ID_SIZE
from csf_store.index_keeper import SEGMENTS
from csf_store.ledger.view import LEDGER

MARKER: Final = "csf.json"
_MARKER_LIMIT: Final = 4096


def default_archive_path() -> Path:
    """Where the archive is when nobody says: ``keystone/archive`` in the user's data directory."""
    from platformdirs import user_data_path  # noqa: PLC0415 - not needed for --help

    return user_data_path("keystone", appauthor=False) / "archive"


def make_archive(fs: FileSystem, path: Path) -> bool:
    """Makes the directories and the marker; False if another process was first."""
    with storage_errors(path):
        if path.exists() and (not path.is_dir() or any(not _ours(each.name) for each in path.iterdir())):
            raise InvalidInputError(f"{path} is not empty and not an archive; choose another directory")
        _make_durable_directories(fs, path.absolute())
        marker: dict[str, str | int] = {
            "format": "csf",
            "version": FORMAT_VERSION,
            "archive": secrets.token_hex(ID_SIZE),
        }
        return write_new(fs, path / MARKER, rfc8785.dumps(marker) + b"\n")


def _make_durable_directories(fs: FileSystem, path: Path) -> None:
    """One after the other, each name durable before the next: whoever dies between leaves one in doubt, the last."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    last = missing[-1].parent if missing else path
    with contextlib.suppress(PermissionError):
        fs.fsync_directory(last.parent)
    for each in reversed(missing):
        fs.mkdir(each)
        fs.fsync_directory(each.parent)
    fs.mkdir(path / SEGMENTS)
    fs.fsync_directory(path)


def _ours(name: str) -> bool:
    return name in (SEGMENTS, MARKER) or (name.startswith(f".{MARKER}.") and name.endswith(".tmp"))


def read_marker(fs: FileSystem, path: Path) -> bytes:
    """The id of the archive in a directory.

    Raises:
        NotFoundError: if it is no archive.
        CorruptError: if its marker can not be read.
    """
    marker = path / MARKER
    if not marker.exists():
        raise NotFoundError(f"{path} is not a CSF archive; run csf init there, or name another with --archive")
    with storage_errors(marker):
        fd = fs.open(marker, os.O_RDONLY)
        try:
            data = read_exact(fs, fd, _MARKER_LIMIT, 0)
        finally:
            fs.close(fd)
        if not (path / LEDGER).exists():
            fs.fsync_directory(path)  # its maker may have died before the name was durable; the first line comes later
    try:
        document = json.loads(data)
        if document["format"] != "csf" or type(document["version"]) is not int:
            raise ValueError("its format is not csf")
        archive = bytes.fromhex(document["archive"])
        if len(archive) != ID_SIZE:
            raise ValueError(f"its archive id has {len(archive)} bytes")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(
            f"{marker}: {error}; every segment header holds the archive id to restore it from"
        ) from error
    if document["version"] != FORMAT_VERSION:
        raise InvalidInputError(f"{path} has format version {document['version']}; this program reads {FORMAT_VERSION}")
    return archive
