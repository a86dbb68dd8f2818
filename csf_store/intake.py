"""Taking in what segments hold and the index does not know, after a crash or after a writer elsewhere.

Whatever the index lists, others build on, so nothing half may get into it. Bytes are synced before they count (their
writer may have died, or not have come to it yet), and the names they go by too. Then a difference counts only with its
base, and an object only with its chunks and links: after a power failure a later write may be there and an earlier one
not. A footer is written after what it lists was synced, so a sealed segment needs no such doubts.

``end`` of what is taken in stops at the first gap. So a segment with a hole is not written to again, and what lies
behind ``end`` was promised to nobody.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from csf_store.durable import FileStat, FileSystem, read_exact, storage_errors
from csf_store.framing import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    ZERO_DIGEST,
    FooterEntry,
    FramingError,
    RecordType,
    segment_header_is_torn,
)
from csf_store.index import Index
from csf_store.index_rows import SegmentState
from csf_store.objects import ObjectBody, unpack_object
from csf_store.recovery import scan
from csf_store.segment import read_footer, segment_id_of


class _Unseen(NamedTuple):
    """What a segment holds beyond the index; the objects' records too, where they are to be doubted."""

    state: SegmentState
    records: list[FooterEntry]
    bodies: dict[int, ObjectBody]


class Intake:
    """Reads segments into an index."""

    def __init__(self, fs: FileSystem, directory: Path, archive_id: bytes, index: Index) -> None:
        self._fs = fs
        self._directory = directory
        self._archive_id = archive_id
        self._index = index

    def take(self, names: Iterable[tuple[str, SegmentState | None, FileStat]]) -> None:
        """Takes in segments: name, what the index knows of it, and what its directory says."""
        doubtful = []
        for name, old, found in names:
            unseen, sealed = self._look(name, old, found)
            if sealed:
                self._index.add([unseen.state], [(name, record) for record in unseen.records])
            else:
                doubtful.append(unseen)
        if doubtful:
            states = [unseen.state for unseen in doubtful]
            self._index.add(states, list(self._complete(doubtful)))

    def _look(self, name: str, old: SegmentState | None, found: FileStat) -> tuple[_Unseen, bool]:
        row = old.id if old else self._index.segment_id(name)
        segment_id = segment_id_of(name) or b""
        start = max(old.end if old else 0, SEGMENT_HEADER_SIZE)
        path = self._directory / name
        with storage_errors(path):
            fd = self._fs.open(path, os.O_RDONLY)
            try:
                size = self._fs.stat(fd).size
                self._fs.fsync(fd)
                if old is None or not old.end:  # a writer gets its row before its name is durable
                    self._fs.fsync_directory(self._directory)
                    self._fs.fsync_directory(self._directory.parent)
                records, end, sealed = self._contents(fd, segment_id, start, size)
                bodies = {} if sealed else self._bodies(fd, records)
            finally:
                self._fs.close(fd)
        state = SegmentState(row, name, end, size, found.mtime_ns if size == found.size else 0, sealed)
        return _Unseen(state, records, bodies), sealed

    def _contents(self, fd: int, segment_id: bytes, start: int, size: int) -> tuple[list[FooterEntry], int, bool]:
        if start == SEGMENT_HEADER_SIZE:
            head = read_exact(self._fs, fd, SEGMENT_HEADER_SIZE, 0)
            if segment_header_is_torn(head, self._archive_id, segment_id):
                return [], 0, False
            with contextlib.suppress(FramingError):
                table = read_footer(self._fs, fd, segment_id, size)
                if table is not None:
                    return table, size, True
        found = scan(self._fs, fd, segment_id, start, size)
        end = found.gaps[0].offset if found.gaps else found.end
        return found.records, min(end, size), found.sealed and not found.gaps

    def _bodies(self, fd: int, records: Iterable[FooterEntry]) -> dict[int, ObjectBody]:
        bodies = {}
        for record in records:
            if record.type == RecordType.OBJECT:
                payload = read_exact(self._fs, fd, record.stored_length, record.offset + RECORD_HEADER_SIZE)
                with contextlib.suppress(FramingError):  # whole and not understood: reading it says why
                    bodies[record.offset] = unpack_object(payload, record.raw_length)
        return bodies

    def _complete(self, doubtful: list[_Unseen]) -> Iterable[tuple[str, FooterEntry]]:
        """The records that have everything they need, in an order in which each follows what it needs."""
        chunks: set[bytes] = set()
        objects: set[bytes] = set()
        waiting = [(unseen, record) for unseen in doubtful for record in unseen.records]
        while waiting:
            later = []
            for unseen, record in waiting:
                if self._has_all(unseen, record, chunks, objects):
                    (chunks if record.type == RecordType.CHUNK else objects).add(record.digest)
                    yield unseen.state.name, record
                else:
                    later.append((unseen, record))
            if len(later) == len(waiting):
                return
            waiting = later

    def _has_all(self, unseen: _Unseen, record: FooterEntry, chunks: set[bytes], objects: set[bytes]) -> bool:
        def has_chunk(digest: bytes) -> bool:
            return digest in chunks or self._index.chunk(digest) is not None

        if record.type == RecordType.CHUNK:
            return record.base == ZERO_DIGEST or has_chunk(record.base)
        body = unseen.bodies.get(record.offset)
        return body is None or (
            all(has_chunk(chunk.digest) for chunk in body.chunks)
            and all(bytes(link) in objects or self._index.kinds(bytes(link)) for link in body.links)
        )
