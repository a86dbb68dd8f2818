"""The note that makes taking segments away all or nothing: ``collecting.json``.

Whoever takes segments away (garbage collection, repair) first puts what is worth keeping into new ones. Then it writes
this note: which segments go and which came for them. The note is the point of no return. From then on the listed
segments count as gone, whatever the index says and whether their files are still there or not; whoever finds the note
of a process that died finishes its job. Before the note the new segments are just second copies.

The note carries a hash of itself. A damaged one is not obeyed: it names files to delete.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

import rfc8785

from csf_store.digest import Digest
from csf_store.durable import FileSystem, read_exact, storage_errors, write_all
from csf_store.errors import CorruptError
from csf_store.segment import segment_id_of

JOURNAL: Final = "collecting.json"
QUARANTINE: Final = "quarantine"
_NEW: Final = "collecting.json.new"
_VERSION: Final = 1
_LIMIT: Final = 64 << 20
_ID: Final = re.compile(r"[0-9a-f]{32}")
_INTO: Final = re.compile(QUARANTINE + r"/[0-9A-Za-z.-]{1,64}")


class Journal(NamedTuple):
    """What is being done.

    Attributes:
        id: of this run, so that it is entered in the ledger once.
        gone: file names of the segments that no longer count.
        came: file names of the sealed segments that hold what was kept of them.
        into: a directory in the archive where the gone ones are moved to; None to delete them.
        objects: objects dropped.
        freed: bytes that the archive becomes smaller by.
    """

    id: str
    gone: tuple[str, ...]
    came: tuple[str, ...]
    into: str | None
    objects: int
    freed: int


def read_journal(fs: FileSystem, root: Path, archive_id: bytes) -> Journal | None:
    """The note, if there is one.

    Raises:
        CorruptError: if it is damaged, or another archive's.
    """
    path = root / JOURNAL
    try:
        fd = fs.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        with storage_errors(path):
            raise
    try:
        with storage_errors(path):
            data = read_exact(fs, fd, min(fs.stat(fd).size, _LIMIT), 0)
    finally:
        fs.close(fd)
    try:
        return _parsed(data, archive_id)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{path} is damaged ({error}), so it is not followed; run csf repair") from error


def _parsed(data: bytes, archive_id: bytes) -> Journal:
    document = json.loads(data)
    stated = document.pop("blake3")
    if rfc8785.dumps({**document, "blake3": stated}) != data or _hash(document) != stated:
        raise ValueError("it does not hash to what it says")
    if document["v"] != _VERSION or document["archive"] != archive_id.hex():
        raise ValueError("it is another archive's, or of another version")
    journal = Journal(
        document["id"],
        tuple(document["gone"]),
        tuple(document["came"]),
        document["into"],
        document["objects"],
        document["freed"],
    )
    if not _ID.fullmatch(journal.id) or not (journal.into is None or _INTO.fullmatch(journal.into)):
        raise ValueError("it names an impossible place")
    if not all(segment_id_of(name) for name in (*journal.gone, *journal.came)):
        raise ValueError("it names something that is no segment")
    return journal


def _hash(document: dict[str, rfc8785._impl._Value]) -> str:
    return Digest.of(rfc8785.dumps(document)).hex


def write_journal(fs: FileSystem, root: Path, archive_id: bytes, journal: Journal) -> None:
    """Writes the note, durable and whole or not at all. The caller holds the upkeep lock; there is no note now."""
    document: dict[str, rfc8785._impl._Value] = {
        "archive": archive_id.hex(),
        "came": list(journal.came),
        "freed": journal.freed,
        "gone": list(journal.gone),
        "id": journal.id,
        "into": journal.into,
        "objects": journal.objects,
        "v": _VERSION,
    }
    document["blake3"] = _hash(document)
    temporary = root / _NEW
    with storage_errors(root / JOURNAL):
        fd = fs.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(fs, fd, [rfc8785.dumps(document)])
            fs.fsync(fd)
        finally:
            fs.close(fd)
        fs.replace(temporary, root / JOURNAL)
        fs.fsync_directory(root)


def remove_journal(fs: FileSystem, root: Path) -> None:
    """The job is done."""
    with storage_errors(root / JOURNAL):
        fs.unlink(root / JOURNAL)
        fs.fsync_directory(root)
