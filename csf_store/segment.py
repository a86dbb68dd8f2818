"""Segments: append-only files of records. One writer at a time, held by ``flock``; any number of readers.

A reader trusts nothing it did not check: the segment header when it opens the file, the footer too when the segment is
sealed, and of every record the header's checksum and the hash of the stored bytes. A writer that failed once refuses
further use, because nobody knows what reached the disk.
"""

from __future__ import annotations

import os
import secrets
import weakref
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from csf_store.digest import Buffer, Digest
from csf_store.durable import HASTE, FileStat, FileSystem, fill, read_exact, storage_errors, write_all
from csf_store.errors import CorruptError, StorageError
from csf_store.framing import (
    FOOTER_ENTRY_SIZE,
    ID_SIZE,
    MAX_FOOTER,
    RAW_CODEC,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    TRAILER_SIZE,
    ZERO_DIGEST,
    FooterEntry,
    FramingError,
    RecordHeader,
    RecordType,
    Trailer,
    check_segment_header,
    pack_footer_entry,
    pack_record_header,
    pack_segment_header,
    pack_trailer,
    unpack_footer,
    unpack_record_header,
    unpack_trailer,
)
from csf_store.objects import Kind

SUFFIX: Final = ".csfs"
PART: Final = ".part"
"""Added to the name of a segment that nobody shall know yet: it is no segment before it is renamed."""


def segment_id_of(name: str) -> bytes | None:
    """The id a segment's file name states, or None for a file that is no segment."""
    stem = name.removesuffix(SUFFIX)
    if stem == name or len(stem) != 2 * ID_SIZE:
        return None
    try:
        return bytes.fromhex(stem)
    except ValueError:
        return None


def stored_hash(payload: Buffer) -> bytes:
    """BLAKE3 of bytes as they are stored."""
    return blake3(payload).digest()


class Record(NamedTuple):
    """A record read back and checked."""

    header: RecordHeader
    payload: memoryview


def read_footer(fs: FileSystem, fd: int, segment_id: bytes, size: int) -> list[FooterEntry] | None:
    """The table of contents of a sealed segment, or None if the segment does not end in a trailer.

    Raises:
        FramingError: if there is a trailer but what it points to is damaged.
    """
    table = footer_table(fs, fd, segment_id, size)
    return None if table is None else unpack_footer(table, size - TRAILER_SIZE - len(table) - RECORD_HEADER_SIZE)


def footer_table(fs: FileSystem, fd: int, segment_id: bytes, size: int) -> bytes | None:
    """The bytes of a sealed segment's table of contents, hashed and not yet read entry by entry, or None.

    Raises:
        FramingError: if there is a trailer but what it points to is damaged.
    """
    tail = read_exact(fs, fd, TRAILER_SIZE, max(0, size - TRAILER_SIZE))
    try:
        trailer = unpack_trailer(segment_id, tail)
    except FramingError:
        return None
    table_at = trailer.footer_offset + RECORD_HEADER_SIZE
    header = unpack_record_header(segment_id, read_exact(fs, fd, RECORD_HEADER_SIZE, trailer.footer_offset))
    if (
        header.type != RecordType.FOOTER
        or header.stored_length > MAX_FOOTER
        or table_at + header.stored_length + TRAILER_SIZE != size
        or trailer.size != size
        or trailer.records * FOOTER_ENTRY_SIZE != header.stored_length
    ):
        raise FramingError("the footer does not fit its trailer")
    table = read_exact(fs, fd, header.stored_length, table_at)
    if stored_hash(table) != header.stored_hash or header.digest != header.stored_hash:
        raise FramingError("the footer is damaged")
    return table


class SegmentReader:
    """Random access to the records of one segment."""

    def __init__(self, fs: FileSystem, path: Path, archive_id: bytes, *, sealed: bool) -> None:
        self.path = path
        self._fs = fs
        self._id = segment_id_of(path.name) or b""
        with storage_errors(path):
            self._fd = fs.open(path, os.O_RDONLY)
        # Readers are shared between threads and dropped from a cache, so the last reference closes the file.
        self._finalizer = weakref.finalize(self, fs.close, self._fd)
        try:
            self._check(archive_id, sealed=sealed)
        except BaseException:
            self._finalizer()
            raise

    def _check(self, archive_id: bytes, *, sealed: bool) -> None:
        with storage_errors(self.path):
            head = read_exact(self._fs, self._fd, SEGMENT_HEADER_SIZE, 0)
            size = self._fs.stat(self._fd).size
        try:
            check_segment_header(head, archive_id, self._id)
        except FramingError as error:
            raise damage(self.path, 0, str(error)) from error
        if not sealed:
            return
        try:
            with storage_errors(self.path):
                footer = footer_table(self._fs, self._fd, self._id, size)
            if footer is None:
                raise FramingError("the trailer of a sealed segment is damaged")
        except FramingError as error:
            raise damage(self.path, size - TRAILER_SIZE, str(error)) from error

    def read(self, offset: int, stored_length: int, digest: bytes) -> Record:
        """Reads the record of ``digest`` at ``offset``; its header and stored bytes are checked.

        Raises:
            CorruptError: naming digest, segment and offset.
        """
        with storage_errors(self.path):
            data = read_exact(self._fs, self._fd, RECORD_HEADER_SIZE + stored_length, offset)
        try:
            header = unpack_record_header(self._id, data[:RECORD_HEADER_SIZE])
            payload = memoryview(data)[RECORD_HEADER_SIZE:]
            if header.digest != digest or header.stored_length != stored_length:
                raise FramingError("the record is another one than the index says")
            if len(payload) != stored_length:
                raise FramingError("the segment ends inside the record")
            if stored_hash(payload) != header.stored_hash:
                raise FramingError("the stored bytes are damaged")
        except FramingError as error:
            raise damage(self.path, offset, str(error), Digest(digest)) from error
        return Record(header, payload)

    def read_into(self, offset: int, payload: memoryview, digest: bytes) -> RecordHeader:
        """Fills ``payload`` with the stored bytes of the record of ``digest`` at ``offset``; gives its checked header.

        The stored bytes are not hashed here: this is for readers who prove what they decode.

        Raises:
            CorruptError: naming digest, segment and offset.
        """
        head = bytearray(RECORD_HEADER_SIZE)
        with storage_errors(self.path):
            got = fill(self._fs, self._fd, [memoryview(head), payload], offset)
        try:
            header = unpack_record_header(self._id, bytes(head))
            if header.digest != digest or header.stored_length != len(payload):
                raise FramingError("the record is another one than the index says")
            if got != RECORD_HEADER_SIZE + len(payload):
                raise FramingError("the segment ends inside the record")
        except FramingError as error:
            raise damage(self.path, offset, str(error), Digest(digest)) from error
        return header

    def close(self) -> None:
        """Lets go of the file."""
        self._finalizer()


def damage(path: Path, offset: int, what: str, digest: Digest | None = None) -> CorruptError:
    """The error for damage at a place: digest if known, segment, offset."""
    whose = f"{digest}: " if digest else ""
    return CorruptError(
        f"{whose}segment {path.name} at offset {offset}: {what}; run csf verify to see what is hurt, and put it again"
    )


class SegmentWriter:
    """Appends records to a segment whose lock it holds until ``close``."""

    def __init__(self, fs: FileSystem, path: Path, fd: int, length: int, *, new: bool) -> None:
        self.path = path
        self.length = length
        self.closed = False
        self._fs = fs
        self._id = segment_id_of(path.name.removesuffix(PART)) or b""
        self._fd = fd
        self._new = new
        self._dirty = new
        self._failed = False

    @classmethod
    def create(cls, fs: FileSystem, directory: Path, archive_id: bytes, *, ending: str = "") -> SegmentWriter:
        """Begins a segment with a fresh random id; ``PART`` as its ending keeps it to who writes it."""
        segment_id = secrets.token_bytes(ID_SIZE)
        path = directory / (segment_id.hex() + SUFFIX + ending)
        with storage_errors(path):
            fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND)
            try:
                if not fs.try_lock(fd):
                    raise StorageError(f"{path}: a segment just made is locked already; try again")
                length = write_all(fs, fd, [pack_segment_header(archive_id, segment_id)])
            except BaseException:
                fs.close(fd)
                raise
        return cls(fs, path, fd, length, new=True)

    @classmethod
    def resume(cls, fs: FileSystem, path: Path) -> SegmentWriter | None:
        """Takes over an unsealed segment, or None if another writer holds it. The caller checks that it is whole."""
        with storage_errors(path):
            fd = fs.open(path, os.O_RDWR | os.O_APPEND)
            try:
                if fs.try_lock(fd):
                    return cls(fs, path, fd, fs.stat(fd).size, new=False)
            except BaseException:
                fs.close(fd)
                raise
            fs.close(fd)
        return None

    def append(self, header: RecordHeader, payload: Buffer) -> int:
        """Writes one record; returns its offset. Nothing is durable before ``sync``."""
        return self._write([pack_record_header(self._id, header), payload])

    def _write(self, parts: list[Buffer]) -> int:
        if self._failed:
            raise StorageError(f"{self.path}: an earlier write failed; open the archive again")
        offset = self.length
        self._failed = True
        with storage_errors(self.path):
            self.length += write_all(self._fs, self._fd, parts)
            if self.length - offset >= HASTE:
                self._fs.hasten(self._fd, offset, self.length - offset)
        self._failed = False
        self._dirty = True
        return offset

    def sync(self) -> FileStat:
        """Makes everything written so far durable, the file's name included."""
        with storage_errors(self.path):
            if self._failed:
                raise StorageError(f"{self.path}: an earlier write failed; open the archive again")
            if self._dirty:
                self._failed = True
                self._fs.fsync(self._fd)
                if self._new:
                    self._fs.fsync_directory(self.path.parent)
                    self._fs.fsync_directory(self.path.parent.parent)  # who made the archive may have died before that
                self._failed = self._new = self._dirty = False
            return self._fs.stat(self._fd)

    def seal(self) -> FileStat:
        """Reads the segment's headers back, writes them as the table of contents, and makes the whole durable.

        What the footer lists is durable before the footer is written: a footer that is there vouches for every record.
        """
        self.sync()
        table = bytearray()
        records = 0
        offset = SEGMENT_HEADER_SIZE
        while offset < self.length:
            try:
                with storage_errors(self.path):
                    data = read_exact(self._fs, self._fd, RECORD_HEADER_SIZE, offset)
                head = unpack_record_header(self._id, data)
            except FramingError as error:
                raise damage(self.path, offset, str(error)) from error
            table += pack_footer_entry(
                FooterEntry(
                    offset,
                    head.stored_length,
                    head.raw_length,
                    head.type,
                    head.kind,
                    head.codec,
                    head.digest,
                    head.base,
                )
            )
            records += 1
            offset += RECORD_HEADER_SIZE + head.stored_length
        digest = stored_hash(table)
        footer = RecordHeader(RecordType.FOOTER, 0, 0, len(table), len(table), digest, digest)
        size = self.length + RECORD_HEADER_SIZE + len(table) + TRAILER_SIZE
        trailer = pack_trailer(self._id, Trailer(self.length, records, size))
        self._write([pack_record_header(self._id, footer), table, trailer])
        return self.sync()

    def close(self) -> None:
        """Gives up the lock."""
        if not self.closed:
            self.closed = True
            self._fs.close(self._fd)


def chunk_header(digest: bytes, codec: int, raw_length: int, stored: Buffer, base: bytes = ZERO_DIGEST) -> RecordHeader:
    """The header of a chunk record; ``base`` is the chunk it is a difference to."""
    whole = digest if codec == RAW_CODEC else stored_hash(stored)
    return RecordHeader(RecordType.CHUNK, codec, 0, raw_length, len(stored), digest, whole, base)


def object_header(digest: Digest, kind: Kind, codec: int, size: int, payload: Buffer) -> RecordHeader:
    """The header of an object record."""
    return RecordHeader(RecordType.OBJECT, codec, kind.number, size, len(payload), bytes(digest), stored_hash(payload))
