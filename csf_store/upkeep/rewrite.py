"""Moving records to new segments, byte for byte: what is kept of segments that go.

A record's header is written anew, because its checksum is keyed with the segment's id; the stored bytes are copied, and
hashed on the way, so damage never moves along unnoticed. The new segments go by names that are no segment's until they
are sealed, synced, read back and found to hold exactly what they should. Until then a crash leaves nothing that counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from csf_store.digest import Digest
from csf_store.durable import FileSystem, fill, storage_errors
from csf_store.errors import CorruptError
from csf_store.framing import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    FooterEntry,
    FramingError,
    RecordHeader,
    RecordType,
    unpack_record_header,
)
from csf_store.index_rows import Row
from csf_store.recovery import entry_of, scan
from csf_store.segment import PART, SegmentWriter, damage, segment_id_of, stored_hash

_ROOM: Final = 8 << 20


class Rewriter:
    """New segments in the making. Seal and publish them, or discard them."""

    def __init__(self, fs: FileSystem, directory: Path, archive_id: bytes, seal_at: int) -> None:
        self._fs = fs
        self._directory = directory
        self._archive_id = archive_id
        self._seal_at = seal_at
        self._writer: SegmentWriter | None = None
        self._entries: list[FooterEntry] = []
        self._made: list[Path] = []
        self._room = bytearray(_ROOM)
        self.copied: set[tuple[bytes, int]] = set()
        """Digest and kind (0 for a chunk) of every record here."""
        self.size = 0
        """Bytes of the sealed segments."""

    def copy(
        self,
        path: Path,
        rows: Iterable[Row],
        progress: Callable[[int], None] | None = None,
        *,
        segment_id: bytes | None = None,
    ) -> None:
        """Copies records out of a segment, keyed with the id its name states, or with another.

        Raises:
            CorruptError: if one is damaged; then nothing of this can be used.
        """
        segment_id = segment_id or segment_id_of(path.name) or b""
        with storage_errors(path):
            fd = self._fs.open(path, os.O_RDONLY)
        try:
            for row in rows:
                header, payload = self._read(fd, path, segment_id, row)
                self.add(header, payload)
                if progress:
                    progress(RECORD_HEADER_SIZE + len(payload))
        finally:
            self._fs.close(fd)

    def _read(self, fd: int, path: Path, segment_id: bytes, row: Row) -> tuple[RecordHeader, memoryview]:
        where = row.where
        size = RECORD_HEADER_SIZE + where.stored
        if size > len(self._room):
            self._room = bytearray(size)
        data = memoryview(self._room)[:size]
        with storage_errors(path):
            got = fill(self._fs, fd, [data], where.offset)
        try:
            header = unpack_record_header(segment_id, bytes(data[: min(got, RECORD_HEADER_SIZE)]))
            expected = RecordType.OBJECT if where.kind else RecordType.CHUNK
            if got != size or (header.type, header.kind, header.digest, header.stored_length, header.base) != (
                expected,
                where.kind,
                row.digest,
                where.stored,
                where.base,
            ):
                raise FramingError("the record is another one than the index says")
            if stored_hash(data[RECORD_HEADER_SIZE:]) != header.stored_hash:
                raise FramingError("the stored bytes are damaged")
        except FramingError as error:
            raise damage(path, where.offset, str(error), Digest(row.digest)) from error
        return header, data[RECORD_HEADER_SIZE:]

    def add(self, header: RecordHeader, payload: memoryview) -> None:
        """Writes one record whose payload was checked."""
        if self._writer is None:
            self._writer = SegmentWriter.create(self._fs, self._directory, self._archive_id, ending=PART)
            self._made.append(self._writer.path)
        offset = self._writer.append(header, payload)
        self._entries.append(entry_of(header, offset))
        self.copied.add((header.digest, header.kind))
        if self._writer.length >= self._seal_at:
            self.seal()

    def seal(self) -> None:
        """Ends the segment being written, reads it back, and compares."""
        if self._writer is None:
            return
        writer, entries = self._writer, self._entries
        self._writer, self._entries = None, []
        try:
            self.size += writer.seal().size
        finally:
            writer.close()
        segment_id = segment_id_of(writer.path.name.removesuffix(PART)) or b""
        with storage_errors(writer.path):
            fd = self._fs.open(writer.path, os.O_RDONLY)
            try:
                found = scan(self._fs, fd, segment_id, SEGMENT_HEADER_SIZE, self._fs.stat(fd).size)
            finally:
                self._fs.close(fd)
        if not found.sealed or found.records != entries:
            raise CorruptError(f"{writer.path} does not hold what was just written to it; check the device and memory")

    def publish(self) -> tuple[str, ...]:
        """Gives the sealed segments their names, durably: from now on they count. Returns the names."""
        self.seal()
        names = []
        with storage_errors(self._directory):
            for path in self._made:
                named = path.with_name(path.name.removesuffix(PART))
                self._fs.replace(path, named)
                names.append(named.name)
            self._made.clear()
            if names:
                self._fs.fsync_directory(self._directory)
        return tuple(names)

    def discard(self) -> None:
        """Deletes what was not published."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        with storage_errors(self._directory):
            for path in self._made:
                self._fs.unlink(path)
        self._made.clear()


def clear_parts(fs: FileSystem, directory: Path) -> None:
    """Deletes what somebody who died left in the making. The caller holds the upkeep lock: nobody is at it now."""
    with storage_errors(directory):
        for name in fs.scan(directory):
            if name.endswith(PART) and segment_id_of(name.removesuffix(PART)):
                fs.unlink(directory / name)
