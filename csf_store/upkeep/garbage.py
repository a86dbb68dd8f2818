"""A look at every segment: what it holds that is kept, what is garbage, and whether it may be touched at all.

Segments tell by themselves what they hold (footers, or a scan of those that have none), the index says which of several
copies of a record is the one in use, and the marking says what is kept. All other bytes of records are garbage: what
nothing leads to, second copies, and what a crash left behind.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from csf_store.durable import FileStat, read_exact, storage_errors
from csf_store.errors import CorruptError
from csf_store.framing import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    ZERO_DIGEST,
    FooterEntry,
    FramingError,
    RecordType,
    check_segment_header,
    segment_header_is_torn,
)
from csf_store.index import Index
from csf_store.index_rows import Location, Row, SegmentState
from csf_store.objects import KINDS
from csf_store.recovery import scan
from csf_store.segment import read_footer, segment_id_of
from csf_store.store import Store
from csf_store.upkeep.mark import Mark, Reason

_MOST_LOCKS: Final = 256
"""Unsealed segments looked at in one go; each costs an open file."""
_NEWBORN_NS: Final = 600 * 10**9
YOUNG: Final = "written to within the grace period"
BUSY: Final = "being written to"
DAMAGED: Final = "damaged; run csf repair"
LATER: Final = "left for the next collection"


@dataclass
class _Segment:
    """One segment. ``entries`` only where its table is not read from its footer again."""

    name: str
    row: int
    size: int
    sealed: bool
    why_left: str = ""
    entries: list[FooterEntry] | None = None
    records: int = 0
    total: int = 0
    live: int = 0
    dead_objects: int = 0
    bases: set[bytes] = field(default_factory=set)
    twins: list[tuple[bytes, int]] = field(default_factory=list)

    @property
    def dead(self) -> int:
        return self.total - self.live


class Survey:
    """All segments of a store at one moment. Close it to let go of the locks that keep the unsealed ones still."""

    def __init__(self, store: Store, young_after: int) -> None:
        self._store = store
        self._fs = store.fs
        self._locks: list[int] = []
        self._segments: dict[str, _Segment] = {}
        self.bytes_by_reason: dict[Reason, int] = {}
        states = store.segments()
        with storage_errors(store.directory):
            files = self._fs.scan(store.directory)
        try:
            for name, found in files.items():
                if segment_id_of(name) is not None and name in states:
                    self._segments[name] = self._look(name, states[name], found, young_after)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the locks."""
        while self._locks:
            self._fs.close(self._locks.pop())

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look(self, name: str, state: SegmentState, found: FileStat, young_after: int) -> _Segment:
        segment_id = segment_id_of(name) or b""
        path = self._store.directory / name
        segment = _Segment(name, state.id, found.size, sealed=False)
        segment.why_left = YOUNG if found.mtime_ns >= young_after else ""
        with storage_errors(path):
            fd = self._fs.open(path, os.O_RDONLY)
            try:
                segment.sealed = self._is_sealed(fd, segment_id, found.size)
                if not segment.sealed:
                    fd = self._look_inside(fd, segment, state, found)
            finally:
                if fd >= 0:
                    self._fs.close(fd)
        return segment

    def _is_sealed(self, fd: int, segment_id: bytes, size: int) -> bool:
        try:
            check_segment_header(read_exact(self._fs, fd, SEGMENT_HEADER_SIZE, 0), self._store.archive_id, segment_id)
            return read_footer(self._fs, fd, segment_id, size) is not None
        except FramingError:
            return False

    def _look_inside(self, fd: int, segment: _Segment, state: SegmentState, found: FileStat) -> int:
        """Scans an unsealed segment. Keeps the descriptor, and so its lock, if it may go: nobody writes to it then."""
        if not segment.why_left and not self._fs.try_lock(fd):
            segment.why_left = BUSY
        segment_id = segment_id_of(segment.name) or b""
        size = segment.size = self._fs.stat(fd).size
        head = read_exact(self._fs, fd, SEGMENT_HEADER_SIZE, 0)
        result = scan(self._fs, fd, segment_id, SEGMENT_HEADER_SIZE, size)
        segment.entries = result.records
        if segment.why_left:
            return fd
        torn = segment_header_is_torn(head, self._store.archive_id, segment_id)
        gaps = [*result.gaps, *([result.tail] if result.tail else [])]
        try:
            if not torn:
                check_segment_header(head, self._store.archive_id, segment_id)
            unharmed = not state.sealed and all(gap.offset >= state.end for gap in gaps)
        except FramingError:
            unharmed = False
        if not unharmed or (torn and (state.end or result.records)):
            segment.why_left = DAMAGED
        elif not result.records and found.mtime_ns > time.time_ns() - _NEWBORN_NS:
            segment.why_left = BUSY  # just made: its writer may be about to take the lock
        elif len(self._locks) >= _MOST_LOCKS:
            segment.why_left = LATER
        else:
            self._locks.append(fd)
            return -1
        return fd

    def _table(self, segment: _Segment) -> list[FooterEntry]:
        if segment.entries is not None or not segment.sealed:
            return segment.entries or []
        path = self._store.directory / segment.name
        with storage_errors(path):
            fd = self._fs.open(path, os.O_RDONLY)
            try:
                table = read_footer(self._fs, fd, segment_id_of(segment.name) or b"", segment.size)
            except FramingError:
                table = None
            finally:
                self._fs.close(fd)
        if table is None:
            raise CorruptError(f"segment {segment.name}: its footer was damaged while we looked; run csf repair")
        return table

    def bystanders(self, store: Store) -> set[bytes]:
        """Objects in segments that will not be touched: whole or not at all, so they are kept."""
        left = [segment for segment in self._segments.values() if segment.why_left]
        rows = {segment.row for segment in left}
        known = {row.digest for row in store.keeper.using(lambda index: list(index.object_rows(rows)))}
        for segment in left:
            for entry in self._table(segment):
                if entry.type == RecordType.OBJECT and store.kinds(entry.digest):
                    known.add(entry.digest)
        return known

    # -- weighing ----------------------------------------------------------------------------------------------------

    def weigh(self, store: Store, mark: Mark) -> None:
        """Counts, in every segment, what is kept and what is garbage; notes marked chunks that are nowhere."""
        store.keeper.using(lambda index: self._weigh_with(index, mark))

    def _weigh_with(self, index: Index, mark: Mark) -> None:
        by_row = {segment.row: segment for segment in self._segments.values()}
        found = 0
        rows = heapq.merge(index.chunk_rows(), index.object_rows(), key=lambda row: row.where[:2])
        for row_id, group in groupby(rows, key=lambda row: row.where.segment):
            in_use = list(group)
            found += sum(1 for row in in_use if not row.where.kind and row.digest in mark.chunks)
            if row_id in by_row:  # else a writer elsewhere began it since we looked: it stays
                self._weigh(by_row.pop(row_id), in_use, mark)
        for segment in by_row.values():
            self._weigh(segment, (), mark)
        if found != len(mark.chunks):
            mark.miss((digest for digest in mark.chunks if index.chunk(digest) is None), "is in no segment")

    def _weigh(self, segment: _Segment, in_use: Iterable[Row], mark: Mark) -> None:
        used = {row.where.offset: row for row in in_use}
        for row in used.values():
            reason = (mark.objects if row.where.kind else mark.chunks).get(row.digest)
            if reason is not None:
                size = RECORD_HEADER_SIZE + row.where.stored
                segment.live += size
                self.bytes_by_reason[reason] = self.bytes_by_reason.get(reason, 0) + size
        if segment.why_left and not segment.sealed:
            segment.total = segment.live  # it may grow while we look
            segment.bases.update(entry.base for entry in segment.entries or () if entry.base != ZERO_DIGEST)
            return
        for entry in self._table(segment):
            self._weigh_entry(segment, entry, used.pop(entry.offset, None), mark)
        if used and not segment.why_left:
            raise CorruptError(
                f"the index lists records that segment {segment.name} does not hold, at offsets {sorted(used)[:4]}; "
                "run csf verify, then csf repair"
            )

    def _weigh_entry(self, segment: _Segment, entry: FooterEntry, used: Row | None, mark: Mark) -> None:
        segment.records += 1
        segment.total += RECORD_HEADER_SIZE + entry.stored_length
        kind = entry.kind if entry.type == RecordType.OBJECT else 0
        if entry.base != ZERO_DIGEST:
            segment.bases.add(entry.base)
        marked = entry.digest in (mark.objects if kind else mark.chunks)
        if kind and not marked:
            segment.dead_objects += 1
        if marked and used is None:
            segment.twins.append((entry.digest, kind))

    # -- choosing ----------------------------------------------------------------------------------------------------

    def choose(self, threshold: float) -> tuple[str, ...]:
        """The segments worth rewriting."""
        return tuple(
            segment.name
            for segment in self._segments.values()
            if not segment.why_left
            and (segment.dead_objects or not segment.records or segment.dead > threshold * segment.size)
        )

    def bases(self, going: Collection[str]) -> set[bytes]:
        """What the differences in segments that stay are differences to, dead ones too: they can still be found."""
        return {base for segment in self._segments.values() if segment.name not in going for base in segment.bases}

    def twins(self, going: Collection[str]) -> set[tuple[bytes, int]]:
        """Kept records (digest, kind or 0) of which the segments that go hold a copy not in use."""
        return {twin for name in going for twin in self._segments[name].twins}

    def size(self, name: str) -> int:
        """Bytes of a segment."""
        return self._segments[name].size

    def records(self, names: Collection[str]) -> int:
        """How many records segments hold."""
        return sum(self._segments[name].records for name in names)

    def dead_objects(self, names: Collection[str]) -> int:
        """How many object records that are garbage segments hold."""
        return sum(self._segments[name].dead_objects for name in names)

    def dead_bytes(self, names: Collection[str] | None = None) -> int:
        """Bytes of garbage in these segments, or in all."""
        return sum(segment.dead for segment in self._segments.values() if names is None or segment.name in names)

    def left_alone(self) -> tuple[tuple[str, str], ...]:
        """Segments that are not touched, and why."""
        return tuple((segment.name, segment.why_left) for segment in self._segments.values() if segment.why_left)


def where_in_use(store: Store, digest: bytes, kind: int) -> Location | None:
    """The copy of a record that the index goes by."""
    return store.find_object(digest, KINDS[kind]) if kind else store.find_chunk(digest)
