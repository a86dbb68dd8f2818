"""The fixed-size structures of a segment: header, record header, footer entry, trailer. ``FORMAT.md`` is the table.

Three rules make damage visible wherever it strikes. Every structure ends in a checksum over all its other bytes, keyed
with the segment id, so that bytes of one segment embedded in another (an archive inside an archive) are never taken for
its own. Reserved bytes must be zero. And every length is checked against a limit here, before anybody allocates.
All numbers are little-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from blake3 import blake3

from csf_store.digest import DIGEST_SIZE, Buffer

FORMAT_VERSION: Final = 1
CHUNK_SIZE: Final = 4 << 20
"""The most raw bytes in a chunk, and the stride at which files and tensors are cut."""
MAX_OBJECT_PAYLOAD: Final = 128 << 20
"""The longest object record: a chunk list of about 3.7 million chunks."""
MAX_FOOTER: Final = 1 << 30
SEAL_AT: Final = 256 << 20
"""A segment that has reached this size is sealed."""
ID_SIZE: Final = 16
ZERO_DIGEST: Final = bytes(DIGEST_SIZE)
RAW_CODEC: Final = 0
"""The codec that stores bytes as they are: what it stored hashes to its address, and is read where it belongs."""

SEGMENT_MAGIC: Final = b"\x89CSFSEG\n"
RECORD_MAGIC: Final = b"\x89CSR"
TRAILER_MAGIC: Final = b"\x89CSFEND\n"

_SEGMENT: Final = struct.Struct("<8sHHI16s16s16s")
_RECORD: Final = struct.Struct("<4sBBBBQQ32s32s32s8s")
_ENTRY: Final = struct.Struct("<QQQBBBBI32s32s")
_TRAILER: Final = struct.Struct("<8sQQQ16s16s")
SEGMENT_HEADER_SIZE: Final = _SEGMENT.size
RECORD_HEADER_SIZE: Final = _RECORD.size
FOOTER_ENTRY_SIZE: Final = _ENTRY.size
TRAILER_SIZE: Final = _TRAILER.size
_RECORD_CHECKSUM: Final = 8
_CHECKSUM: Final = 16


class RecordType(IntEnum):
    """What a record holds."""

    CHUNK = 1
    OBJECT = 2
    FOOTER = 3


_STORED_LIMIT: Final = {
    RecordType.CHUNK: CHUNK_SIZE,
    RecordType.OBJECT: MAX_OBJECT_PAYLOAD,
    RecordType.FOOTER: MAX_FOOTER,
}
_RAW_LIMIT: Final = {RecordType.CHUNK: CHUNK_SIZE, RecordType.OBJECT: 1 << 62, RecordType.FOOTER: MAX_FOOTER}


_IN_FOOTER: Final = {1: RecordType.CHUNK, 2: RecordType.OBJECT}


class FramingError(Exception):
    """A structure does not hold together; the caller knows the segment and the offset and says so."""


class RecordHeader(NamedTuple):
    """What stands before every payload.

    Attributes:
        type: chunk, object or footer.
        codec: how the payload (of an object: its inline content) is encoded.
        kind: the object's kind number, 0 for the others.
        raw_length: bytes of the chunk or of the object's content, decoded.
        stored_length: bytes of the payload that follows.
        digest: BLAKE3 of the raw bytes: the address.
        stored_hash: BLAKE3 of the payload as stored.
        base: the chunk that a delta is against; zeros without one.
    """

    type: RecordType
    codec: int
    kind: int
    raw_length: int
    stored_length: int
    digest: bytes
    stored_hash: bytes
    base: bytes = ZERO_DIGEST


class FooterEntry(NamedTuple):
    """One line of a sealed segment's own table of contents."""

    offset: int
    stored_length: int
    raw_length: int
    type: RecordType
    kind: int
    codec: int
    digest: bytes
    base: bytes = ZERO_DIGEST


class Trailer(NamedTuple):
    """The last bytes of a sealed segment."""

    footer_offset: int
    records: int
    size: int


def _checksum(segment_id: bytes, body: Buffer, size: int) -> bytes:
    return blake3(segment_id + bytes(body)).digest(length=size)


def pack_segment_header(archive_id: bytes, segment_id: bytes) -> bytes:
    """The first bytes of a segment."""
    body = _SEGMENT.pack(
        SEGMENT_MAGIC, FORMAT_VERSION, SEGMENT_HEADER_SIZE, 0, archive_id, segment_id, bytes(_CHECKSUM)
    )[:-_CHECKSUM]
    return body + _checksum(segment_id, body, _CHECKSUM)


def segment_header_is_torn(data: bytes, archive_id: bytes, segment_id: bytes) -> bool:
    """Whether these are the first bytes of a segment that was begun and whose header did not all reach the disk."""
    whole = pack_segment_header(archive_id, segment_id)
    return data != whole and whole.startswith(data.rstrip(b"\0"))


def check_segment_header(data: bytes, archive_id: bytes, segment_id: bytes) -> None:
    """Compares a segment's first bytes with what they must be, to the last bit.

    Raises:
        FramingError: saying what differs.
    """
    if data == pack_segment_header(archive_id, segment_id):
        return
    if len(data) < SEGMENT_HEADER_SIZE:
        raise FramingError("the segment header is incomplete")
    magic, version, _, _, found_archive, found_segment, _ = _SEGMENT.unpack(data)
    if _checksum(found_segment, data[:-_CHECKSUM], _CHECKSUM) != data[-_CHECKSUM:] or magic != SEGMENT_MAGIC:
        raise FramingError("the segment header is damaged")
    if version != FORMAT_VERSION:
        raise FramingError(f"segment format version {version} is not {FORMAT_VERSION}")
    if found_archive != archive_id:
        raise FramingError(f"the segment belongs to archive {found_archive.hex()}")
    raise FramingError(f"the segment is {found_segment.hex()} under another name")


def segment_id_in(data: bytes, archive_id: bytes) -> bytes | None:
    """The segment id that a sound segment header of this archive states, or None if these bytes are none."""
    if len(data) != SEGMENT_HEADER_SIZE:
        return None
    segment_id: bytes = _SEGMENT.unpack(data)[5]
    return segment_id if data == pack_segment_header(archive_id, segment_id) else None


def is_foreign(data: bytes, archive_id: bytes) -> bool:
    """Whether these bytes are the sound segment header of another archive."""
    if len(data) != SEGMENT_HEADER_SIZE:
        return False
    stated: bytes = _SEGMENT.unpack(data)[4]
    return stated != archive_id and segment_id_in(data, stated) is not None


def pack_record_header(segment_id: bytes, header: RecordHeader) -> bytes:
    """The bytes of a record header."""
    body = _RECORD.pack(
        RECORD_MAGIC,
        header.type,
        header.codec,
        header.kind,
        0,
        header.raw_length,
        header.stored_length,
        header.digest,
        header.stored_hash,
        header.base,
        bytes(_RECORD_CHECKSUM),
    )[:-_RECORD_CHECKSUM]
    return body + _checksum(segment_id, body, _RECORD_CHECKSUM)


def unpack_record_header(segment_id: bytes, data: bytes) -> RecordHeader:
    """Reads a record header and checks it: checksum, reserved bytes, limits.

    Raises:
        FramingError: saying what is wrong.
    """
    if len(data) != RECORD_HEADER_SIZE:
        raise FramingError("the record header is incomplete")
    if data[:4] != RECORD_MAGIC:
        raise FramingError("there is no record here")
    if _checksum(segment_id, data[:-_RECORD_CHECKSUM], _RECORD_CHECKSUM) != data[-_RECORD_CHECKSUM:]:
        raise FramingError("the record header is damaged")
    _, kind_of_record, codec, kind, reserved, raw, stored, digest, stored_hash, base, _ = _RECORD.unpack(data)
    try:
        record_type = RecordType(kind_of_record)
    except ValueError:
        raise FramingError(f"unknown record type {kind_of_record}") from None
    if reserved or stored > _STORED_LIMIT[record_type] or raw > _RAW_LIMIT[record_type]:
        raise FramingError(f"impossible lengths: {raw} bytes in {stored}")
    if base != ZERO_DIGEST and record_type != RecordType.CHUNK:
        raise FramingError("only a chunk can be a difference")
    return RecordHeader(record_type, codec, kind, raw, stored, digest, stored_hash, base)


def pack_footer_entry(entry: FooterEntry) -> bytes:
    """The bytes of one line of the table of contents."""
    return _ENTRY.pack(
        entry.offset,
        entry.stored_length,
        entry.raw_length,
        entry.type,
        entry.kind,
        entry.codec,
        0,
        0,
        entry.digest,
        entry.base,
    )


def unpack_footer(table: bytes, size: int) -> list[FooterEntry]:
    """Reads a table of contents of a segment of ``size`` bytes.

    Raises:
        FramingError: if an entry points outside, or is of no known type.
    """
    if len(table) % FOOTER_ENTRY_SIZE:
        raise FramingError("the footer is not a whole number of entries")
    entries = []
    for offset, stored, raw, record_type, kind, codec, flags, reserved, digest, base in _ENTRY.iter_unpack(table):
        known = _IN_FOOTER.get(record_type)
        if known is None or flags or reserved:
            raise FramingError("the footer holds an entry of no known type")
        if offset + RECORD_HEADER_SIZE + stored > size:
            raise FramingError("the footer points outside its segment")
        if stored > _STORED_LIMIT[record_type] or raw > _RAW_LIMIT[record_type]:
            raise FramingError(f"the footer holds impossible lengths: {raw} bytes in {stored}")
        if base != ZERO_DIGEST and record_type != RecordType.CHUNK:
            raise FramingError("the footer calls something a difference that is no chunk")
        entries.append(FooterEntry(offset, stored, raw, known, kind, codec, digest, base))
    return entries


def pack_trailer(segment_id: bytes, trailer: Trailer) -> bytes:
    """The last bytes of a sealed segment."""
    body = _TRAILER.pack(TRAILER_MAGIC, *trailer, segment_id, bytes(_CHECKSUM))[:-_CHECKSUM]
    return body + _checksum(segment_id, body, _CHECKSUM)


def unpack_trailer(segment_id: bytes, data: bytes) -> Trailer:
    """Reads the last bytes of a sealed segment.

    Raises:
        FramingError: if they are no trailer of this segment.
    """
    if len(data) != TRAILER_SIZE or data[:8] != TRAILER_MAGIC:
        raise FramingError("there is no trailer")
    if _checksum(segment_id, data[:-_CHECKSUM], _CHECKSUM) != data[-_CHECKSUM:]:
        raise FramingError("the trailer is damaged")
    _, footer_offset, records, size, found, _ = _TRAILER.unpack(data)
    if found != segment_id or footer_offset + RECORD_HEADER_SIZE + TRAILER_SIZE > size:
        raise FramingError("the trailer does not fit its segment")
    return Trailer(footer_offset, records, size)
