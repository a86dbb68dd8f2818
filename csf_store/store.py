"""The store: segments and their index as one thing. Records go in by digest and come out by digest.

The order that makes it safe is here. ``append`` writes to a segment whose lock this process holds; ``commit`` syncs the
segments first and tells the index second; nobody is told "stored" before ``commit`` returns. On opening, and whenever
the index proves unusable, the index is brought in line with the segments, which are the truth.

Others may take segments away while we look (garbage collection, repair). Who builds on what it found does so inside
``keeping``, where nothing is taken away. Who only reads looks again when a segment is gone: what is kept has moved.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from csf_store.digest import Buffer, Digest
from csf_store.durable import FileStat, FileSystem, storage_errors
from csf_store.errors import CorruptError, CsfError, StorageError
from csf_store.framing import RECORD_HEADER_SIZE, SEAL_AT, SEGMENT_HEADER_SIZE, FooterEntry, RecordHeader, RecordType
from csf_store.index import Index
from csf_store.index_keeper import SEGMENTS, IndexKeeper
from csf_store.index_rows import Location, Lost, SegmentState
from csf_store.keeping import Keeping
from csf_store.objects import KINDS, Kind
from csf_store.recovery import entry_of
from csf_store.segment import Record, SegmentReader, SegmentWriter

_OPEN_READERS: Final = 128
_LOOKS: Final = 4
"""How often a reader looks again for a record that moved while it looked."""

_T = TypeVar("_T")


class _SegmentGoneError(CorruptError):
    """The file of a segment is not there: collected meanwhile, or lost."""


class Store:
    """Segments plus index of one archive. Thread-safe; close it to let go of the segment being written."""

    def __init__(
        self,
        fs: FileSystem,
        root: Path,
        archive_id: bytes,
        *,
        seal_at: int = SEAL_AT,
        collected: Callable[[], frozenset[str]] | None = None,
    ) -> None:
        """``collected`` names the segments that the ledger says were taken away on purpose."""
        self.fs = fs
        self.root = root
        self.directory = root / SEGMENTS
        self.archive_id = archive_id
        self.seal_at = seal_at
        self._lock = threading.RLock()
        self._readers: OrderedDict[int, SegmentReader] = OrderedDict()
        self._writer: SegmentWriter | None = None
        self._pending: list[tuple[str, FooterEntry]] = []
        self._pending_at: dict[tuple[bytes, int], tuple[str, Location]] = {}
        self._touched: set[tuple[bytes, int]] = set()
        self._holding = False
        self._sealed: list[SegmentState] = []
        self._distrusted: set[str] = set()
        self._names: dict[int, SegmentState] = {}
        self.keeper = IndexKeeper(fs, root, archive_id, collected)
        self._epoch = self.keeper.epoch
        self._keeping = Keeping(fs, root, self.keeper.settle)

    def keeping(self) -> contextlib.AbstractContextManager[None]:
        """A block during which nothing is taken away: what was found in it stays. Blocks may nest."""
        return self._keeping.held()

    @property
    def keeping_here(self) -> bool:
        """Whether this thread is in such a block, and would wait for itself."""
        return self._keeping.held_here

    # -- finding and reading -----------------------------------------------------------------------------------------

    def find_chunk(self, digest: bytes) -> Location | None:
        """Where a chunk is, counting what this process wrote and has not committed."""
        return self._waiting(digest, 0) or self.keeper.sure(lambda index: index.chunk(digest))

    def find_object(self, digest: bytes, kind: Kind) -> Location | None:
        """Where an object is, counting what this process wrote and has not committed."""
        return self._waiting(digest, kind.number) or self.keeper.sure(lambda index: index.object(digest, kind.number))

    def _waiting(self, digest: bytes, kind: int) -> Location | None:
        if not self._pending_at:
            return None
        with self._lock:
            name, where = self._pending_at.get((digest, kind), ("", None))
            return where and where._replace(segment=self.keeper.using(lambda index: index.segment_id(name)))

    def kinds(self, digest: bytes) -> list[Kind]:
        """As which kinds a digest is known. A kind that a newer version added is passed over."""
        return [Kind.of(number) for number in self.keeper.sure(lambda index: index.kinds(digest)) if number in KINDS]

    def objects(self, first: bytes = b"", last: bytes | None = None, limit: int = -1) -> list[tuple[bytes, Kind]]:
        """Digest and kind of the objects between two digests."""
        rows = self.keeper.sure(lambda index: index.objects(first, last, limit))
        return [(digest, KINDS[number]) for digest, number in rows if number in KINDS]

    def chunk_digests(self) -> list[bytes]:
        """Every chunk the index knows."""
        return self.keeper.sure(Index.chunk_digests)

    def segments(self) -> dict[str, SegmentState]:
        """Every segment the index knows."""
        return self.keeper.sure(Index.segments)

    def lost(self) -> list[Lost]:
        """What the index knew and the segments no longer hold."""
        return self.keeper.sure(Index.lost)

    def forgive(self, needed: Callable[[bytes], bool]) -> None:
        """Strikes what nobody needs from the list of what is lost."""
        self.keeper.using(lambda index: index.forgive(needed))

    def read(self, where: Location, digest: bytes) -> Record:
        """Reads and checks the record at a location.

        Raises:
            CorruptError: naming digest, segment and offset.
        """
        return self._reading(where, digest, lambda place: self._reader(place).read(place.offset, place.stored, digest))

    def read_into(self, where: Location, digest: bytes, payload: memoryview) -> RecordHeader:
        """Fills ``payload`` with the stored bytes at a location, for readers who prove what they decode.

        Raises:
            CorruptError: naming digest, segment and offset.
        """
        return self._reading(where, digest, lambda place: self._reader(place).read_into(place.offset, payload, digest))

    def _reading(self, where: Location, digest: bytes, action: Callable[[Location], _T]) -> _T:
        """Reads; if that fails, looks the record up again, which may have moved to another segment meanwhile."""
        for _ in range(_LOOKS):
            epoch = self.keeper.epoch
            try:
                return action(where)
            except CorruptError as error:
                if isinstance(error, _SegmentGoneError):
                    self.refresh()
                moved = self._waiting(digest, where.kind) or self.keeper.using(
                    lambda index, kind=where.kind: index.object(digest, kind) if kind else index.chunk(digest)  # type: ignore[misc]
                )
                # Another form of the same chunk is no help to a reader who made room for this one.
                if moved is None or moved[2:] != where[2:] or (moved == where and epoch == self.keeper.epoch):
                    if isinstance(error, _SegmentGoneError):
                        raise CorruptError(f"{Digest(digest)}: {error}") from error
                    raise
                where = moved
        return action(where)

    def refresh(self) -> None:
        """Looks at the directory and the index file again, and forgets the files of segments that are gone."""
        self.keeper.refresh()
        with self._lock:
            self._forget_rows()

    def _forget_rows(self) -> None:
        if self._epoch != self.keeper.epoch:
            self._readers.clear()  # the same number may mean another segment now
        self._epoch = self.keeper.epoch
        self._names = {state.id: state for state in self.segments().values()}
        for row in [row for row in self._readers if row not in self._names]:
            del self._readers[row]

    def segment_name(self, row: int) -> str:
        """The file name of a segment row, for messages; an id in parentheses if it is gone."""
        with self._lock:
            self._mind_epoch()
            if row not in self._names:
                self._names |= {state.id: state for state in self.segments().values()}
            return self._names[row].name if row in self._names else f"(row {row}, gone)"

    def _mind_epoch(self) -> None:
        if self._epoch != self.keeper.epoch:
            self._forget_rows()

    def _reader(self, where: Location) -> SegmentReader:
        row = where.segment
        with self._lock:
            self._mind_epoch()
            if row in self._readers:
                self._readers.move_to_end(row)
                return self._readers[row]
            name = self.segment_name(row)
            if row not in self._names:
                raise _SegmentGoneError(f"segment row {row} is gone; run csf verify")
            try:
                reader = SegmentReader(self.fs, self.directory / name, self.archive_id, sealed=self._names[row].sealed)
            except StorageError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise _SegmentGoneError(f"segment {name} is missing; run csf verify, then csf repair") from error
                raise
            self._readers[row] = reader
            if len(self._readers) > _OPEN_READERS:
                self._readers.popitem(last=False)  # not closed: another thread may be reading; its last reference does
            return reader

    # -- writing -----------------------------------------------------------------------------------------------------

    def append(self, header: RecordHeader, payload: Buffer) -> int:
        """Writes a record; returns the bytes it took. It is not durable, and nobody else sees it, before ``commit``."""
        with self.keeping(), self._lock:
            self._hold()
            try:
                writer = self._ready_writer()
                offset = writer.append(header, payload)
                self._pending.append((writer.path.name, entry_of(header, offset)))
                kind = header.kind if header.type == RecordType.OBJECT else 0
                where = Location(0, offset, header.stored_length, header.raw_length, header.codec, header.base, kind)
                self._pending_at[header.digest, kind] = (writer.path.name, where)
                if writer.length >= self.seal_at:
                    self._seal(writer)
            except BaseException:
                self._abandon()
                raise
            return RECORD_HEADER_SIZE + len(payload)

    def touch(self, digest: bytes, kind: Kind) -> None:
        """Says that an object that is there was put again: it counts as new from the next ``commit`` on."""
        with self.keeping(), self._lock:
            self._hold()
            self._touched.add((digest, kind.number))

    def _hold(self) -> None:
        """What waits for its commit relies on what was found before: nothing may be taken away until then."""
        if not self._holding:
            self._keeping.hold_on()
            self._holding = True

    def _let_go(self) -> None:
        self._pending, self._pending_at, self._sealed, self._touched = [], {}, [], set()
        if self._holding:
            self._holding = False
            self._keeping.let_go()

    def commit(self) -> None:
        """Makes everything appended durable, then known: segments first, index second."""
        with self._lock:
            if not self._pending and not self._touched:
                return
            states = self._sealed
            try:
                if self._writer is not None and self._pending:
                    found = self._writer.sync()
                    states = [*states, self._state_of(self._writer, found, sealed=False)]
            except BaseException:
                self._abandon()
                raise
            try:
                pending, touched = self._pending, self._touched
                self._pending_at = {}
                self.keeper.using(lambda index: index.add(states, pending, touched))
            finally:
                self._let_go()
            self._names.clear()  # asked again when next needed: a segment may have been sealed

    def _state_of(self, writer: SegmentWriter, found: FileStat, *, sealed: bool) -> SegmentState:
        return SegmentState(0, writer.path.name, writer.length, found.size, found.mtime_ns, sealed)

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
        self._let_go()
        if self._writer is not None:
            self._distrusted.add(self._writer.path.name)
            self._writer.close()
            self._writer = None

    def _ready_writer(self) -> SegmentWriter:
        if self._writer is None:
            writer = self._resumed_writer() or SegmentWriter.create(self.fs, self.directory, self.archive_id)
            self._writer = writer
            self.keeper.using(lambda index: index.segment_id(writer.path.name))
        return self._writer

    def _resumed_writer(self) -> SegmentWriter | None:
        """An unsealed segment that nobody writes to and that is whole to its last byte, or None."""
        for state in self.segments().values():
            path = self.directory / state.name
            if (
                state.sealed
                or state.name in self._distrusted
                or not SEGMENT_HEADER_SIZE <= state.end < self.seal_at
                or not path.exists()
            ):
                continue
            writer = SegmentWriter.resume(self.fs, path)
            if writer is None:
                continue
            whole = False
            try:
                whole = self._whole(path, writer.length)
            finally:
                if not whole:
                    writer.close()  # and with it the lock
            if whole:
                return writer
        return None

    def _whole(self, path: Path, length: int) -> bool:
        """Whether the index accounts for every byte, now that nobody else writes."""
        with storage_errors(self.directory):
            found = self.fs.scan(self.directory).get(path.name)
        state = self.segments().get(path.name)
        if found is None or state is None:
            return False  # taken away between our look and our lock
        if length != state.end:  # its last writer added records after we looked, or left a torn tail
            self.keeper.take_in(path.name)
            state = self.segments()[path.name]
        if length != state.end or state.sealed:
            return False
        try:
            SegmentReader(self.fs, path, self.archive_id, sealed=False).close()
        except CsfError:
            return False
        return True

    # -- the end -----------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Commits, and lets go of the segment being written, so that it may be collected too."""
        with self._lock:
            self.commit()
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def close(self) -> None:
        """Commits what is waiting and lets go of files and locks."""
        with self._lock:
            try:
                self.rest()
            finally:
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
                self._readers.clear()
                self.keeper.close()
