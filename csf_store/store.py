"""The store: segments and their index as one thing. Records go in by digest and come out by digest.

The order that makes it safe is here. ``append`` writes to a segment whose lock this process holds; ``commit`` syncs the
segments first and tells the index second; nobody is told "stored" before ``commit`` returns. On opening, and whenever
the index proves unusable, the index is brought in line with the segments, which are the truth.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from csf_store.digest import Buffer
from csf_store.durable import FileStat, FileSystem, storage_errors
from csf_store.errors import CorruptError, CsfError
from csf_store.framing import (
    RECORD_HEADER_SIZE,
    SEAL_AT,
    SEGMENT_HEADER_SIZE,
    FooterEntry,
    RecordHeader,
    RecordType,
)
from csf_store.index import Index, IndexUnusableError, Location, Lost, SegmentState, remove
from csf_store.intake import Intake
from csf_store.objects import KINDS, Kind
from csf_store.recovery import entry_of
from csf_store.segment import Record, SegmentReader, SegmentWriter, segment_id_of

SEGMENTS: Final = "segments"
INDEX: Final = "index.sqlite"
INDEX_LOCK: Final = "index.lock"
_OPEN_READERS: Final = 128

_T = TypeVar("_T")


class Store:
    """Segments plus index of one archive. Thread-safe; close it to let go of the segment being written."""

    def __init__(self, fs: FileSystem, root: Path, archive_id: bytes, *, seal_at: int = SEAL_AT) -> None:
        self.fs = fs
        self.directory = root / SEGMENTS
        self.archive_id = archive_id
        self._root = root
        self._seal_at = seal_at
        self._lock = threading.RLock()
        self._readers: OrderedDict[int, SegmentReader] = OrderedDict()
        self._writer: SegmentWriter | None = None
        self._writer_row = 0
        self._pending: list[tuple[str, FooterEntry]] = []
        self._pending_at: dict[tuple[bytes, int], Location] = {}
        self._sealed: list[SegmentState] = []
        self._distrusted: set[str] = set()
        self._index = self._open_index()
        self.names: dict[int, SegmentState] = {}
        try:
            self._using_index(self._reconcile)
        except BaseException:
            self._index.close()
            raise

    # -- the index ---------------------------------------------------------------------------------------------------

    def _open_index(self) -> Index:
        path = self._root / INDEX
        # Under the lock: SQLite does not wait its turn when several processes make one database at once.
        with self._index_lock():
            try:
                return Index(path, self.archive_id)
            except IndexUnusableError:
                remove(path)
                return Index(path, self.archive_id)

    @contextlib.contextmanager
    def _index_lock(self) -> Iterator[None]:
        path = self._root / INDEX_LOCK
        with storage_errors(path):
            fd = self.fs.open(path, os.O_RDWR | os.O_CREAT)
        try:
            with storage_errors(path):
                self.fs.lock(fd)
            yield
        finally:
            self.fs.close(fd)

    def _using_index(self, action: Callable[[Index], _T]) -> _T:
        """Runs ``action``; an index that proves unusable is thrown away, rebuilt, and asked once more."""
        index = self._index
        try:
            return action(index)
        except IndexUnusableError:
            self._rebuild_index(index)
            try:
                return action(self._index)
            except IndexUnusableError as error:
                raise CorruptError(
                    f"{self._root / INDEX}: {error}, even after a rebuild; check the device, then delete the file"
                ) from error

    def _rebuild_index(self, unusable: Index) -> None:
        """Throws an index away and reads it back from the segments, unless another thread did so meanwhile."""
        with self._lock, self._index_lock():
            if self._index is not unusable:
                return
            self._index.close()
            remove(self._root / INDEX)
            self._index = Index(self._root / INDEX, self.archive_id)
            self._drop_readers()
            self._reconcile(self._index)
            if self._writer is not None:
                self._writer_row = self._index.segment_id(self._writer.path.name)

    def _reconcile(self, index: Index) -> None:
        """Compares what the index knows of each segment with the file, and reads what it does not know."""
        with storage_errors(self.directory):
            files = self.fs.scan(self.directory)
        known = index.segments()
        for name, state in known.items():
            size = files[name].size if name in files else 0
            if size < state.end:
                index.lose(state, size)
        known = index.segments()
        unseen = []
        for name, found in files.items():
            old = known.get(name)
            if segment_id_of(name) is not None and (
                old is None or (old.end != found.size and (old.size, old.mtime) != found)
            ):
                unseen.append((name, old, found))
        self._intake(index).take(unseen)
        self.names = {state.id: state for state in index.segments().values()}

    def _intake(self, index: Index) -> Intake:
        return Intake(self.fs, self.directory, self.archive_id, index)

    # -- finding and reading -----------------------------------------------------------------------------------------

    def find_chunk(self, digest: bytes) -> Location | None:
        """Where a chunk is, counting what this process wrote and has not committed."""
        with self._lock:
            waiting = self._pending_at.get((digest, 0))
        return waiting or self._using_index(lambda index: index.chunk(digest))

    def find_object(self, digest: bytes, kind: Kind) -> Location | None:
        """Where an object is, counting what this process wrote and has not committed."""
        with self._lock:
            waiting = self._pending_at.get((digest, kind.number))
        return waiting or self._using_index(lambda index: index.object(digest, kind.number))

    def kinds(self, digest: bytes) -> list[Kind]:
        """As which kinds a digest is known. A kind that a newer version added is passed over."""
        return [Kind.of(number) for number in self._using_index(lambda index: index.kinds(digest)) if number in KINDS]

    def objects(self, first: bytes = b"", last: bytes | None = None, limit: int = -1) -> list[tuple[bytes, Kind]]:
        """Digest and kind of the objects between two digests."""
        rows = self._using_index(lambda index: index.objects(first, last, limit))
        return [(digest, Kind.of(number)) for digest, number in rows if number in KINDS]

    def chunk_digests(self) -> list[bytes]:
        """Every chunk the index knows."""
        return self._using_index(lambda index: index.chunk_digests())

    def segments(self) -> dict[str, SegmentState]:
        """Every segment the index knows."""
        return self._using_index(lambda index: index.segments())

    def lost(self) -> list[Lost]:
        """What the index knew and the segments no longer hold."""
        return self._using_index(lambda index: index.lost())

    def read(self, where: Location, digest: bytes) -> Record:
        """Reads and checks the record at a location.

        Raises:
            CorruptError: naming digest, segment and offset.
        """
        return self._reader(where.segment).read(where.offset, where.stored, digest)

    def read_into(self, where: Location, digest: bytes, payload: memoryview) -> RecordHeader:
        """Fills ``payload`` with the stored bytes at a location, for readers who prove what they decode.

        Raises:
            CorruptError: naming digest, segment and offset.
        """
        return self._reader(where.segment).read_into(where.offset, payload, digest)

    def segment_name(self, row: int) -> str:
        """The file name of a segment row."""
        with self._lock:
            if row not in self.names:
                self.names = {state.id: state for state in self.segments().values()}
            if row not in self.names:
                raise CorruptError(f"{self._root / INDEX}: names a segment {row} it does not list; delete the file")
            return self.names[row].name

    def _reader(self, row: int) -> SegmentReader:
        with self._lock:
            if row in self._readers:
                self._readers.move_to_end(row)
                return self._readers[row]
            name = self.segment_name(row)
            reader = SegmentReader(self.fs, self.directory / name, self.archive_id, sealed=self.names[row].sealed)
            self._readers[row] = reader
            if len(self._readers) > _OPEN_READERS:
                self._readers.popitem(last=False)  # not closed: another thread may be reading; its last reference does
            return reader

    # -- writing -----------------------------------------------------------------------------------------------------

    def append(self, header: RecordHeader, payload: Buffer) -> int:
        """Writes a record; returns the bytes it took. It is not durable, and nobody else sees it, before ``commit``."""
        with self._lock:
            try:
                writer = self._ready_writer()
                offset = writer.append(header, payload)
                self._pending.append((writer.path.name, entry_of(header, offset)))
                where = Location(
                    self._writer_row, offset, header.stored_length, header.raw_length, header.codec, header.base
                )
                self._pending_at[header.digest, header.kind if header.type == RecordType.OBJECT else 0] = where
                if writer.length >= self._seal_at:
                    self._seal(writer)
            except BaseException:
                self._abandon()
                raise
            return RECORD_HEADER_SIZE + len(payload)

    def commit(self) -> None:
        """Makes everything appended durable, then known: segments first, index second."""
        with self._lock:
            if not self._pending:
                return
            states = self._sealed
            try:
                if self._writer is not None:
                    found = self._writer.sync()
                    states = [*states, self._state_of(self._writer, found, sealed=False)]
            except BaseException:
                self._abandon()
                raise
            pending = self._pending
            self._pending, self._pending_at, self._sealed = [], {}, []
            self._using_index(lambda index: index.add(states, pending))
            self.names.clear()  # asked again when next needed: a segment may have been sealed

    def _state_of(self, writer: SegmentWriter, found: FileStat, *, sealed: bool) -> SegmentState:
        return SegmentState(self._writer_row, writer.path.name, writer.length, found.size, found.mtime_ns, sealed)

    def _seal(self, writer: SegmentWriter) -> None:
        """Ends a full segment. A damaged one stays unsealed: its sound records, ours among them, are still good."""
        try:
            state = self._state_of(writer, writer.seal(), sealed=True)
        except CorruptError:
            state = self._state_of(writer, writer.sync(), sealed=False)
        self._sealed.append(state)
        writer.close()
        self._writer = None

    def _abandon(self) -> None:
        """After a failed write nobody knows what reached the disk: leave the segment as it is and forget the rest.

        It is not written to again either: after a failed sync the system may call lost pages clean, and the next sync
        would succeed without having written them.
        """
        self._pending, self._pending_at, self._sealed = [], {}, []
        if self._writer is not None:
            self._distrusted.add(self._writer.path.name)
            self._writer.close()
            self._writer = None

    def _ready_writer(self) -> SegmentWriter:
        if self._writer is None:
            self._writer = self._resumed_writer() or SegmentWriter.create(self.fs, self.directory, self.archive_id)
            self._writer_row = self._using_index(lambda index: index.segment_id(self._writer_name()))
        return self._writer

    def _writer_name(self) -> str:
        return self._writer.path.name if self._writer else ""

    def _resumed_writer(self) -> SegmentWriter | None:
        """An unsealed segment that nobody writes to and that is whole to its last byte, or None."""
        for state in self.segments().values():
            path = self.directory / state.name
            if (
                state.sealed
                or state.name in self._distrusted
                or not SEGMENT_HEADER_SIZE <= state.end < self._seal_at
                or not path.exists()
            ):
                continue
            writer = SegmentWriter.resume(self.fs, path)
            if writer is None:
                continue
            if self._whole(path, writer.length):
                return writer
            writer.close()
        return None

    def _whole(self, path: Path, length: int) -> bool:
        """Whether the index accounts for every byte, now that nobody else writes."""
        found = self.fs.scan(self.directory)[path.name]
        state = self.segments()[path.name]
        if length != state.end:  # its last writer added records after we looked, or left a torn tail
            self._using_index(lambda index: self._intake(index).take([(path.name, state, found)]))
            state = self.segments()[path.name]
        if length != state.end or state.sealed:
            return False
        try:
            SegmentReader(self.fs, path, self.archive_id, sealed=False).close()
        except CsfError:
            return False
        return True

    # -- the end -----------------------------------------------------------------------------------------------------

    def _drop_readers(self) -> None:
        self._readers.clear()

    def close(self) -> None:
        """Commits what is waiting and lets go of files and locks."""
        with self._lock:
            try:
                self.commit()
            finally:
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
                self._drop_readers()
                self._index.close()
