"""Garbage collection: what nothing leads to goes, and not a byte that anybody was promised.

Roots are pins, every target every ref ever had, and objects put within the grace period. What they reach stays, with
the bases of the differences among it. Segments are never changed: those that hold enough garbage are replaced by new
ones with what is kept of them.

1. Mark, without a lock. Choose the segments to go: all that hold a dead *object* (so no segment that stays holds one
   whose chunks are gone, not even after the index was rebuilt), and those with a large share of dead bytes.
2. Copy what is kept of them into new segments that nobody knows yet. Sync, read back.
3. Take the lock that everybody who relies on something shares, and look again at what was put, pinned or touched in the
   meantime; copy what came back to life. Publish the new segments, write the journal: the point of no return. Tell the
   index, let go of the lock.
4. Delete the old segments, enter it in the ledger, remove the journal.

A crash before the journal leaves second copies, which the next collection removes. A crash after it is finished by
whoever opens the archive next.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple

from csf_store.digest import Digest
from csf_store.errors import RefusedError
from csf_store.framing import FOOTER_ENTRY_SIZE, RECORD_HEADER_SIZE, SEGMENT_HEADER_SIZE, TRAILER_SIZE
from csf_store.index_rows import Row
from csf_store.journal import Journal, write_journal
from csf_store.keeping import COLLECT_LOCK, Waiting, alone
from csf_store.ledger.ledger import Ledger
from csf_store.objects import KINDS
from csf_store.retrieve import Retrieve
from csf_store.store import Store
from csf_store.upkeep.finishing import finish, upkeep
from csf_store.upkeep.garbage import Survey, where_in_use
from csf_store.upkeep.mark import Mark, Reason
from csf_store.upkeep.rewrite import Rewriter, clear_parts
from csf_store.upkeep.roots import Roots

GRACE: Final = 3600.0
THRESHOLD: Final = 0.1
WAIT: Final = 60.0
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much was done since the last call, and how much there is in all."""


class Options(NamedTuple):
    """How to collect.

    Attributes:
        grace: seconds for which an object is kept after it was put, and a segment left alone after it was written.
        threshold: share of dead bytes above which a segment is rewritten.
        dry_run: look and report, change nothing.
        wait: seconds to wait for others.
        accepted: objects and chunks that are lost for good and need not be found.
    """

    grace: float = GRACE
    threshold: float = THRESHOLD
    dry_run: bool = False
    wait: float = WAIT
    accepted: Collection[Digest] = ()


class Kept(NamedTuple):
    """What stays for one reason: objects reached, and bytes of records."""

    reason: Reason
    objects: int
    bytes: int


class CollectReport(NamedTuple):
    """What a collection did, or would do.

    Attributes:
        dry_run: whether nothing was changed.
        removed: segments that went.
        written: segments that came with what was kept of them; none in a dry run.
        freed: bytes the archive became (would become) smaller by.
        objects: objects that went.
        chunks: chunks that went.
        garbage: dead bytes that stay for now, because their segments hold too little of it or are left alone.
        kept: what stays, by reason.
        left_alone: segments that were not touched whatever they hold, and why.
    """

    dry_run: bool
    removed: tuple[str, ...]
    written: tuple[str, ...]
    freed: int
    objects: int
    chunks: int
    garbage: int
    kept: tuple[Kept, ...]
    left_alone: tuple[tuple[str, str], ...]


class Collect:
    """One collection."""

    def __init__(
        self,
        store: Store,
        retrieve: Retrieve,
        ledger: Ledger,
        options: Options,
        *,
        progress: Progress | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._roots = Roots(ledger)
        self._for_bases = 0
        self._epoch = 0
        self._options = options
        self._progress = progress or (lambda _what, _done, _total: None)
        self._waiting = waiting
        self._since = int((time.time() - options.grace) * 1e6)
        self._mark = Mark(
            store, retrieve, accepted=options.accepted, progress=lambda done: self._progress("mark", done, 0)
        )

    def run(self) -> CollectReport:
        """Collects.

        Raises:
            RefusedError: if something that is needed can not be followed; nothing was deleted.
            ConflictError: if others were in the way for longer than the wait.
            CorruptError: if something to keep is damaged; nothing was deleted.
        """
        if self._store.keeping_here:
            raise RefusedError("this thread keeps things from being collected; collect outside of keeping()")
        with upkeep(self._store, self._ledger, wait=self._options.wait, waiting=self._waiting):
            if not self._options.dry_run:
                clear_parts(self._store.fs, self._store.directory)
            self._store.rest()
            self._store.refresh()
            found = Survey(self._store, young_after=self._since * 1000)
            try:
                report = self._collect(found)
            finally:
                found.close()
                self._roots.close()
            if not self._options.dry_run:
                self._store.forgive(self._mark.needs)
            return report

    def _collect(self, found: Survey) -> CollectReport:
        self._mark_roots()
        self._mark.follow(found.bystanders(self._store), Reason.NEIGHBOUR)
        self._mark.check()
        self._epoch = self._store.keeper.epoch
        found.weigh(self._store, self._mark)
        self._mark.check()
        going = found.choose(self._options.threshold)
        keep = self._to_keep(going, found.bases(going))
        self._mark.check()
        self._prove_twins(found, going, keep)
        moved = sum(RECORD_HEADER_SIZE + row.where.stored for row in keep)
        if self._options.dry_run or not going:
            return self._report(found, going, len(keep), size=_sealed_size(moved, len(keep)))
        rewriter = Rewriter(self._store.fs, self._store.directory, self._store.archive_id, self._store.seal_at)
        try:
            self._copy(rewriter, keep, moved)
            rewriter.seal()
            journal = self._decide(found, going, rewriter)
        except BaseException:
            rewriter.discard()
            raise
        finish(self._store, self._ledger, journal)
        report = self._report(found, going, len(rewriter.copied), size=rewriter.size)
        return report._replace(written=journal.came)

    def _mark_roots(self) -> None:
        self._roots.read()
        self._mark.follow(self._roots.pins, Reason.PIN)
        self._mark.follow(self._roots.targets, Reason.REF)
        rows = self._store.keeper.using(lambda index: list(index.object_rows()))
        for row in rows:
            if row.where.kind not in KINDS:
                raise RefusedError(
                    f"{Digest(row.digest)} is an object of kind {row.where.kind}, which a newer version wrote; "
                    "collect garbage with that version"
                )
        self._mark.follow((row.digest for row in rows if row.seen >= self._since), Reason.RECENT)

    # -- what is kept of the segments that go ------------------------------------------------------------------------

    def _to_keep(self, going: Collection[str], bases: set[bytes]) -> list[Row]:
        """The records in segments that go which are marked, or needed by a difference that stays."""
        rows_of = {state.id for name, state in self._store.segments().items() if name in going}
        using = self._store.keeper.using
        rows = using(lambda index: [row for row in index.object_rows(rows_of) if self._mark.keeps(row)])
        chunks = using(lambda index: [row for row in index.chunk_rows(rows_of) if self._mark.keeps(row)])
        bases = bases | using(lambda index: index.bases(rows_of))
        bases.update(row.where.base for row in chunks if row.where.is_difference)
        self._for_bases = 0
        for base in bases:
            where = self._store.find_chunk(base)
            if where is None:
                self._mark.miss([base], "is the base of a difference and is in no segment")
            elif where.is_difference:
                self._mark.miss([base], "is the base of a difference and is a difference itself")
            elif base not in self._mark.chunks:
                self._for_bases += RECORD_HEADER_SIZE + where.stored
                if where.segment in rows_of:
                    rows.append(Row(base, where, 0))
        return sorted((*rows, *chunks), key=lambda row: row.where[:2])

    def _prove_twins(self, found: Survey, going: Collection[str], keep: Iterable[Row]) -> None:
        """Before a second copy of something kept is dropped, the first one is read: it may be the damaged one."""
        moving = {(row.digest, row.where.kind) for row in keep}
        for digest, kind in found.twins(going) - moving:
            where = where_in_use(self._store, digest, kind)
            if where is not None:
                self._store.read(where, digest)

    def _copy(self, rewriter: Rewriter, rows: Iterable[Row], total: int) -> None:
        by_segment: dict[int, list[Row]] = {}
        for row in rows:
            by_segment.setdefault(row.where.segment, []).append(row)
        for segment, some in by_segment.items():
            path = self._store.directory / self._store.segment_name(segment)
            rewriter.copy(path, some, lambda done: self._progress("copy", done, total))

    # -- the point of no return --------------------------------------------------------------------------------------

    def _decide(self, found: Survey, going: tuple[str, ...], rewriter: Rewriter) -> Journal:
        store = self._store
        lock = store.root / COLLECT_LOCK
        with alone(store.fs, lock, "puts are running", wait=self._options.wait, waiting=self._waiting):
            self._look_again(found, going, rewriter)
            came = rewriter.publish()
            freed = sum(found.size(name) for name in going) - rewriter.size
            journal = Journal(secrets.token_hex(16), going, came, None, found.dead_objects(going), freed)
            write_journal(store.fs, store.root, store.archive_id, journal)
            store.keeper.follow(journal)
        return journal

    def _look_again(self, found: Survey, going: tuple[str, ...], rewriter: Rewriter) -> None:
        """Nobody puts or pins now. What did so since we marked has its records copied too."""
        mark = self._mark
        self._store.refresh()
        chunks, objects = set(mark.chunks), set(mark.objects)
        self._mark_roots()
        rows_of = {state.id for name, state in self._store.segments().items() if name in going}
        rows = self._store.keeper.using(lambda index: list(index.object_rows()))
        # Every object in a segment that stays is kept whole, whoever put it and whatever its clock said.
        mark.follow((row.digest for row in rows if row.where.segment not in rows_of), Reason.NEIGHBOUR)
        fresh = mark.chunks.keys() - chunks
        mark.miss((digest for digest in fresh if not self._store.find_chunk(digest)), "is in no segment")
        if self._store.keeper.epoch != self._epoch:  # read back anew: other copies of the same may be in use now
            keep = self._to_keep(going, found.bases(going))
        else:
            keep = [
                row for row in rows if row.where.segment in rows_of and row.digest not in objects and mark.keeps(row)
            ]
            keep += self._among(rows_of, fresh | self._store.keeper.using(lambda index: index.bases(rows_of)))
        mark.check()
        late = [row for row in keep if (row.digest, row.where.kind) not in rewriter.copied]
        self._copy(rewriter, late, sum(RECORD_HEADER_SIZE + row.where.stored for row in late))
        rewriter.seal()

    def _among(self, rows_of: Collection[int], chunks: Collection[bytes]) -> list[Row]:
        """Those of these chunks that are in segments that go, with what they are differences to."""
        places = [(digest, self._store.find_chunk(digest)) for digest in chunks]
        bases = {where.base for _, where in places if where is not None and where.is_difference} - set(chunks)
        places += [(digest, self._store.find_chunk(digest)) for digest in bases]
        return [Row(digest, where, 0) for digest, where in places if where is not None and where.segment in rows_of]

    def _report(self, found: Survey, going: tuple[str, ...], kept: int, *, size: int) -> CollectReport:
        records = found.records(going)
        objects = found.dead_objects(going)
        return CollectReport(
            dry_run=self._options.dry_run,
            removed=going,
            written=(),
            freed=sum(found.size(name) for name in going) - size,
            objects=objects,
            chunks=records - kept - objects,
            garbage=found.dead_bytes() - found.dead_bytes(going),
            kept=self._kept(found),
            left_alone=found.left_alone(),
        )

    def _kept(self, found: Survey) -> tuple[Kept, ...]:
        objects = Counter(self._mark.objects.values())
        sizes = {**found.bytes_by_reason, Reason.BASE: self._for_bases}
        return tuple(Kept(reason, objects[reason], sizes.get(reason, 0)) for reason in Reason)


def _sealed_size(record_bytes: int, records: int) -> int:
    if not records:
        return 0
    return (
        SEGMENT_HEADER_SIZE + record_bytes + RECORD_HEADER_SIZE + records * FOOTER_ENTRY_SIZE + TRAILER_SIZE
    )  # of one segment; more cost a little more
