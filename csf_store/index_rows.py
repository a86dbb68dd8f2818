"""What the index is made of: tables, rows, and the checks of rows. ``index_reading`` and ``index`` work with them."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from csf_store.digest import DIGEST_SIZE
from csf_store.framing import ZERO_DIGEST, FooterEntry, RecordType

SCHEMA_VERSION: Final = 3
SCHEMA: Final = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE segments(
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, end INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime INTEGER NOT NULL, sealed INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE chunks(
  digest BLOB PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL,
  raw INTEGER NOT NULL, codec INTEGER NOT NULL, base BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE objects(
  digest BLOB NOT NULL, kind INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
  stored INTEGER NOT NULL, raw INTEGER NOT NULL, codec INTEGER NOT NULL, crc INTEGER NOT NULL, seen INTEGER NOT NULL,
  PRIMARY KEY(digest, kind)) WITHOUT ROWID;
CREATE TABLE lost(
  digest BLOB NOT NULL, kind INTEGER NOT NULL, segment TEXT NOT NULL, offset INTEGER NOT NULL,
  PRIMARY KEY(digest, kind)) WITHOUT ROWID;
"""
_CRC: Final = struct.Struct("<32sBQQQQB32s")


class IndexUnusableError(Exception):
    """The index is damaged, or another archive's: throw it away and build it again."""


class Location(NamedTuple):
    """Where a record is.

    Attributes:
        segment: row of its segment.
        offset: of the record header.
        stored: bytes of the payload.
        raw: bytes it decodes to.
        codec: how it is encoded.
        base: the chunk it is a difference to; zeros without one.
        kind: number of the object's kind; 0 for a chunk.
    """

    segment: int
    offset: int
    stored: int
    raw: int
    codec: int
    base: bytes = ZERO_DIGEST
    kind: int = 0

    @property
    def is_difference(self) -> bool:
        """Whether another chunk is needed to decode it."""
        return self.base != ZERO_DIGEST


class SegmentState(NamedTuple):
    """What the index knows of a segment.

    Attributes:
        id: row number that locations refer to.
        name: file name.
        end: where the last indexed record ends.
        size: file size when last looked at.
        mtime: modification time (ns) when last looked at.
        sealed: whether it has its footer.
    """

    id: int
    name: str
    end: int
    size: int
    mtime: int
    sealed: bool


class Lost(NamedTuple):
    """A record the index knew that is in no segment any more. ``kind`` is 0 for a chunk."""

    digest: bytes
    kind: int
    segment: str
    offset: int


class Row(NamedTuple):
    """A row of the chunks or of the objects, checked. ``seen`` is 0 for a chunk."""

    digest: bytes
    where: Location
    seen: int


def crc_of(digest: bytes, where: Location) -> int:
    """The checksum of a row."""
    segment, offset, stored, raw, codec, base, kind = where
    return zlib.crc32(_CRC.pack(digest, kind, segment, offset, stored, raw, codec, base))


def fits(digest: bytes, where: Location, crc: int) -> bool:
    """Whether a row is as it was written. SQLite gives out whatever a damaged file says, of any type."""
    try:
        return crc_of(digest, where) == crc and len(digest) == DIGEST_SIZE
    except (TypeError, struct.error):
        return False


def is_digest(value: object) -> bool:
    """Whether a value read from a row can be a digest."""
    return isinstance(value, bytes) and len(value) == DIGEST_SIZE


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def rows_of(rows: Mapping[str, int], records: Iterable[tuple[str, FooterEntry]]) -> tuple[list[Any], list[Any]]:
    """Rows of the chunks and of the objects table."""
    chunks, objects, at = [], [], now()
    for name, entry in records:
        kind = 0 if entry.type == RecordType.CHUNK else entry.kind
        where = Location(rows[name], entry.offset, entry.stored_length, entry.raw_length, entry.codec, entry.base, kind)
        crc = crc_of(entry.digest, where)
        if entry.type == RecordType.CHUNK:
            chunks.append((entry.digest, *where[:6], crc))
        else:
            objects.append((entry.digest, kind, *where[:5], crc, at))
    return chunks, objects
