"""Reading a segment from front to back: what is there, what is damaged, and where a torn tail begins.

The scanner hashes every payload, so what it lists is what was written. Where a record does not hold together it finds
its feet again at the next record header whose keyed checksum fits (chance hits are 2^-64), and reports the gap. Only
when nothing follows is it a *tail*: a write that was cut short, or damage to the last record; those who know what was
acknowledged (the index, the ledger) can tell, the scanner can not.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from csf_store.digest import Digest
from csf_store.durable import FileSystem, fill, read_exact, storage_errors
from csf_store.framing import (
    RECORD_HEADER_SIZE,
    RECORD_MAGIC,
    SEGMENT_HEADER_SIZE,
    TRAILER_SIZE,
    FooterEntry,
    FramingError,
    RecordHeader,
    RecordType,
    unpack_record_header,
)
from csf_store.memory import allocate
from csf_store.segment import read_footer, segment_id_of

_WINDOW: Final = 4 << 20
_AHEAD: Final = 256 << 10
"""How far to read beyond what is asked for: many small records, or the header behind a large one."""
_ROOM: Final = _WINDOW + _AHEAD
_warm = threading.local()


def _room() -> memoryview:
    """This thread's window. Whoever scans inside a scan would need a second one; nobody does."""
    if not hasattr(_warm, "room"):
        (_warm.room,) = allocate([_ROOM])
    room: memoryview = _warm.room
    return room


class Gap(NamedTuple):
    """Bytes that hold no valid record.

    Attributes:
        offset: where it begins.
        length: how many bytes.
        digest: whose record it was, where its header still says so.
        reason: what does not hold together.
    """

    offset: int
    length: int
    digest: Digest | None
    reason: str


class Scan(NamedTuple):
    """What a segment holds.

    Attributes:
        records: every valid record in order.
        end: where the last valid byte before the tail ends.
        gaps: damage with valid records after it.
        tail: bytes at the end that hold no valid record, if any.
        sealed: whether a valid footer and trailer end the file.
    """

    records: list[FooterEntry]
    end: int
    gaps: list[Gap]
    tail: Gap | None
    sealed: bool


def entry_of(header: RecordHeader, offset: int) -> FooterEntry:
    """The table-of-contents line of a record."""
    return FooterEntry(
        offset,
        header.stored_length,
        header.raw_length,
        header.type,
        header.kind,
        header.codec,
        header.digest,
        header.base,
    )


class _Scanner:
    """Looks at a segment through one window of memory that is filled again and again: fresh memory costs more time."""

    def __init__(self, fs: FileSystem, fd: int, segment_id: bytes, size: int) -> None:
        self._fs, self._fd, self._id, self._size = fs, fd, segment_id, size
        self._room = _room()
        self._at = self._end = 0

    def _seen(self, offset: int, length: int) -> memoryview:
        """These bytes of the file, at most a window; fewer where the file ends."""
        if not self._at <= offset <= offset + length <= self._end:
            room, left = self._room, max(0, self._end - offset) if offset >= self._at else 0
            room[:left] = room[self._end - self._at - left : self._end - self._at]
            want = max(left, min(length + _AHEAD, len(room), self._size - offset))
            self._end = offset + left + fill(self._fs, self._fd, [room[left:want]], offset + left)
            self._at = offset
        start = offset - self._at
        return self._room[start : min(start + length, self._end - self._at)]

    def header(self, offset: int) -> RecordHeader:
        header = unpack_record_header(self._id, bytes(self._seen(offset, RECORD_HEADER_SIZE)))
        if offset + RECORD_HEADER_SIZE + header.stored_length > self._size:
            raise FramingError("the segment ends inside the record")
        return header

    def payload_holds(self, header: RecordHeader, offset: int) -> bool:
        at, end = offset + RECORD_HEADER_SIZE, offset + RECORD_HEADER_SIZE + header.stored_length
        hasher = blake3()
        while at < end:
            data = self._seen(at, min(_WINDOW, end - at))
            if not data:
                return False
            hasher.update(data)
            at += len(data)
        return hasher.digest() == header.stored_hash

    def next_record(self, offset: int) -> int | None:
        """The first offset after ``offset`` where a valid record header stands."""
        at = offset + 1
        while at < self._size:
            window = bytes(self._seen(at, _WINDOW))
            found = window.find(RECORD_MAGIC)
            while found >= 0:
                try:
                    self.header(at + found)
                except FramingError:
                    found = window.find(RECORD_MAGIC, found + 1)
                else:
                    return at + found
            if len(window) < _WINDOW:
                return None
            at += len(window) - len(RECORD_MAGIC) + 1
        return None

    def footer_ends_here(self, header: RecordHeader, offset: int, records: list[FooterEntry]) -> bool:
        end = offset + RECORD_HEADER_SIZE + header.stored_length + TRAILER_SIZE
        if end != self._size:
            return False
        try:
            table = read_footer(self._fs, self._fd, self._id, self._size)
        except FramingError:
            return False
        return table is not None and set(records) <= set(table)  # what is damaged before it is missing in between


def scan(fs: FileSystem, fd: int, segment_id: bytes, start: int, size: int) -> Scan:
    """Reads the records of an open segment from ``start`` (a record boundary) up to ``size``."""
    scanner = _Scanner(fs, fd, segment_id, size)
    records: list[FooterEntry] = []
    gaps: list[Gap] = []
    at = end = start
    while at < size:
        digest = None
        try:
            header = scanner.header(at)
            after = at + RECORD_HEADER_SIZE + header.stored_length
            if header.type == RecordType.FOOTER:
                if scanner.footer_ends_here(header, at, records):
                    return Scan(records, size, gaps, None, sealed=True)
                raise FramingError("the footer or the trailer is damaged")
            digest = Digest(header.digest)
            if not scanner.payload_holds(header, at):
                raise FramingError("the stored bytes are damaged")
        except FramingError as error:
            following = scanner.next_record(at)
            gap = Gap(at, (following or size) - at, digest, str(error))
            if following is None:
                return Scan(records, end, gaps, gap, sealed=False)
            gaps.append(gap)
            at = following
        else:
            records.append(entry_of(header, at))
            at = end = after
    return Scan(records, end, gaps, None, sealed=False)


class Looked(NamedTuple):
    """A segment file, read from front to back: its size, its first bytes, and what it holds."""

    size: int
    head: bytes
    scan: Scan


def look(fs: FileSystem, path: Path, segment_id: bytes | None = None) -> Looked | None:
    """Reads a segment file, keyed with the id its name states or with another; None if it is not there."""
    segment_id = segment_id or segment_id_of(path.name) or b""
    try:
        fd = fs.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        with storage_errors(path):
            raise
    try:
        with storage_errors(path):
            size = fs.stat(fd).size
            head = read_exact(fs, fd, SEGMENT_HEADER_SIZE, 0)
            return Looked(size, head, scan(fs, fd, segment_id, SEGMENT_HEADER_SIZE, size))
    finally:
        fs.close(fd)
