"""Verification: read everything again and say by name what is not as it was written.

Three sights of the same archive must agree: the segments byte by byte, the index (what was acknowledged), and the
ledger (what must be kept). A segment's own end may be torn by a crash; it is damage only where the index or the ledger
knows that something acknowledged was there.

Segments are read on all cores. Nothing is locked meanwhile: what was collected while we looked is no finding.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from csf_store.digest import Digest
from csf_store.errors import CorruptError, CsfError
from csf_store.framing import FooterEntry, FramingError, RecordType, check_segment_header, segment_header_is_torn
from csf_store.index import Index
from csf_store.index_rows import Row, SegmentState
from csf_store.journal import read_journal
from csf_store.ledger.ledger import Ledger
from csf_store.objects import KINDS, Kind
from csf_store.pipeline import Pipeline
from csf_store.recovery import Gap, Looked, look
from csf_store.retrieve import Retrieve
from csf_store.segment import segment_id_of
from csf_store.store import Store

_ROUNDS: Final = 4
"""How often segments are looked at that came while we looked at the others."""


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        what: a sentence.
        digest: whose bytes, if known.
        segment: file name, if it is about one.
        offset: where in it.
    """

    what: str
    digest: Digest | None = None
    segment: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = f"segment {self.segment} at offset {self.offset}: " if self.segment else ""
        return f"{f'{self.digest}: ' if self.digest else ''}{place}{self.what}"


class VerifyReport(NamedTuple):
    """The result of a verification.

    Attributes:
        findings: what is wrong.
        notes: what is unusual but harmless, such as a torn tail nobody was told about.
        segments: segments read.
        objects: objects looked at.
        bytes: bytes read.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    segments: int
    objects: int
    bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class Check:
    """One verification run."""

    def __init__(
        self,
        store: Store,
        retrieve: Retrieve,
        ledger: Ledger,
        pipeline: Pipeline,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._store = store
        self._retrieve = retrieve
        self._ledger = ledger
        self._pipeline = pipeline
        self._progress = progress
        self._decoded: Callable[[int], None] | None = None
        self._findings: list[Finding] = []
        self._notes: list[str] = []
        self._chunks: set[bytes] = set()
        self._bases: dict[bytes, tuple[bytes, int]] = {}
        self._half: list[tuple[str, FooterEntry]] = []
        self._segments = self._objects = self._bytes = 0

    def _report(self) -> VerifyReport:
        unique = tuple(dict.fromkeys(self._findings))
        return VerifyReport(unique, tuple(self._notes), self._segments, self._objects, self._bytes)

    def objects(self, digests: Iterable[Digest], *, follow: bool = True) -> VerifyReport:
        """Decodes objects, and unless told not to everything they link to, and hashes each as a whole."""
        self._decoded = self._progress
        self._closure(list(digests), deep=True, follow=follow)
        return self._report()

    def everything(self, *, deep: bool, reachable_only: bool) -> VerifyReport:
        """Every byte of every segment; index against segments; ledger; completeness of what must be kept."""
        try:
            read_journal(self._store.fs, self._store.root, self._store.archive_id)
        except CorruptError as error:
            self._findings.append(Finding(str(error)))
        looked_at: set[str] = set()
        for _ in range(_ROUNDS):
            states = {name: state for name, state in self._store.segments().items() if name not in looked_at}
            if not states:
                break
            looked_at.update(states)
            self._store.keeper.using(lambda index, states=states: self._compare(index, states))  # type: ignore[misc]
        self._incomplete()
        self._differences()
        for lost in self._store.lost():
            self._findings.append(
                Finding("the record was there once and is gone", Digest(lost.digest), lost.segment, lost.offset)
            )
        self._everything_kept(deep=deep, reachable_only=reachable_only)
        if deep:
            self._orphans()
        return self._report()

    def _everything_kept(self, *, deep: bool, reachable_only: bool) -> None:
        """Whether objects are complete. Findings made while segments were collected are made again to be sure."""
        before = self._findings
        for _ in range(_ROUNDS):
            there = self._store.segments().keys()
            self._findings = []
            roots = self._ledger_roots()
            every = [] if reachable_only else [Digest(raw) for raw, _ in self._store.objects()]
            self._closure(roots, deep=deep, every=every)
            if not self._findings or there <= self._store.segments().keys():
                break
        self._findings = before + self._findings

    def _orphans(self) -> None:
        """Chunks that no object lists: an interrupted put left them, and the next put will build on them."""
        for digest in self._store.chunk_digests():
            if digest not in self._chunks:
                try:
                    self._bytes += self._retrieve.check_chunk(digest)
                except CsfError as error:
                    if self._store.find_chunk(digest) is not None:  # else it was collected just now
                        self._findings.append(Finding(str(error).removeprefix(f"{Digest(digest)}: "), Digest(digest)))

    # -- segments ----------------------------------------------------------------------------------------------------

    def _compare(self, index: Index, states: Mapping[str, SegmentState]) -> None:
        """Reads segments, on all cores, and holds what the index lists of each against what it was seen to hold."""
        rows = _by_segment(index)
        row_id, listed = next(rows, (-1, []))
        for state, looked in self._pipeline.ordered(self._look, sorted(states.values())):
            while 0 <= row_id < state.id:
                row_id, listed = next(rows, (-1, []))
            self._segment(state, looked, listed if row_id == state.id else [])

    def _look(self, state: SegmentState) -> tuple[SegmentState, Looked | None]:
        looked = look(self._store.fs, self._store.directory / state.name)
        if looked is not None and self._progress:
            self._progress(looked.size)
        return state, looked

    def _segment(self, state: SegmentState, looked: Looked | None, rows: Iterable[Row]) -> None:
        name = state.name
        if looked is None:
            self._store.refresh()
            if state.end and name in self._store.segments():  # else it was collected while we looked
                self._findings.append(Finding("the segment is missing", None, name, 0))
            return
        found, segment_id = looked.scan, segment_id_of(name) or b""
        self._segments += 1
        self._bytes += looked.size
        try:
            check_segment_header(looked.head, self._store.archive_id, segment_id)
        except FramingError as error:
            if not state.end and segment_header_is_torn(looked.head, self._store.archive_id, segment_id):
                self._notes.append(f"segment {name} was begun and never written to as far as anybody was told")
                return
            self._findings.append(Finding(str(error), None, name, 0))
        for gap in [*found.gaps, *([found.tail] if found.tail else [])]:
            self._gap(name, state, gap)
        if state.sealed and not found.sealed and found.tail is None:
            self._findings.append(Finding("the segment was sealed and its end is missing", None, name, found.end))
        self._rows(name, {entry.offset: entry for entry in found.records}, rows)
        self._half += [
            (name, record)
            for record in found.records
            if record.kind in KINDS and self._store.find_object(record.digest, Kind.of(record.kind)) is None
        ]

    def _gap(self, name: str, state: SegmentState, gap: Gap) -> None:
        """Bytes that are no record: damage in what was promised; behind it, what a crash left of the last writes."""
        if state.sealed or gap.offset < state.end:
            self._findings.append(Finding(gap.reason, gap.digest, name, gap.offset))
        else:
            self._notes.append(
                f"segment {name} holds {gap.length} bytes of a write that was cut short at offset {gap.offset}; "
                "nobody was told it was stored"
            )

    def _incomplete(self) -> None:
        """Objects in segments that the index does not list, unless they were collected just now."""
        there = self._store.segments() if self._half else {}
        self._notes += [
            f"segment {name} holds {Kind.of(record.kind)} {Digest(record.digest)} at offset {record.offset} "
            "without all of its chunks and links; nobody was told it was stored"
            for name, record in self._half
            if name in there and self._store.find_object(record.digest, Kind.of(record.kind)) is None
        ]

    def _rows(self, name: str, valid: Mapping[int, FooterEntry], rows: Iterable[Row]) -> None:
        """Everything the index calls stored must be among what the segment was just seen to hold."""
        for row in rows:
            where = row.where
            if where.is_difference:
                self._bases.setdefault(where.base, (row.digest, where.raw))
            kind = RecordType.OBJECT if where.kind else RecordType.CHUNK
            expected = FooterEntry(
                where.offset, where.stored, where.raw, kind, where.kind, where.codec, row.digest, where.base
            )
            if valid.get(where.offset) != expected:
                self._read_again(name, row, expected)

    def _read_again(self, name: str, row: Row, expected: FooterEntry) -> None:
        try:
            header = self._store.read(row.where, row.digest).header  # it may have been added, or moved, meanwhile
            if (header.type, header.kind, header.raw_length, header.codec, header.base) != (
                expected.type,
                expected.kind,
                expected.raw_length,
                expected.codec,
                expected.base,
            ):
                raise CorruptError("the index describes the record wrongly; delete index.sqlite, it is rebuilt")
        except CsfError as error:
            if name in self._store.segments():
                what = str(error).removeprefix(f"{Digest(row.digest)}: ")
                self._findings.append(Finding(what, Digest(row.digest), name, row.where.offset))

    def _differences(self) -> None:
        """What chunks are differences to must be there, stand alone, and be as long."""
        for base, (digest, length) in self._bases.items():
            where = self._store.find_chunk(base)
            if where is None:
                what = "is in no segment"
            elif where.is_difference:
                what = "is a difference itself"
            elif where.raw != length:
                what = f"has {where.raw} bytes, not {length}"
            else:
                continue
            if self._store.find_chunk(digest) is not None:  # else both were collected just now
                self._findings.append(
                    Finding(f"it is a difference to chunk {Digest(base)}, which {what}", Digest(digest))
                )

    # -- objects -----------------------------------------------------------------------------------------------------

    def _ledger_roots(self) -> list[Digest]:
        """What must be kept, by the lines of the ledger alone: each is read and hashed again."""
        audit = self._ledger.audit()
        self._findings += [Finding(what) for what in audit.findings]
        self._notes += [note for note in audit.notes if note not in self._notes]
        moves = [move for history in audit.refs.values() for move in history]
        return [pin.digest for pin in audit.pins] + [move.target for move in moves if move.target is not None]

    def _closure(
        self, roots: Sequence[Digest], *, deep: bool, every: Sequence[Digest] = (), follow: bool = True
    ) -> None:
        """Follows ``roots``, which must be there, and ``every`` object that was there when it was listed."""
        waiting = list(dict.fromkeys([*every, *roots]))
        seen, optional = set(waiting), set(every) - set(roots)
        while waiting:
            digest = waiting.pop()
            kinds = self._store.kinds(bytes(digest))
            if not kinds and digest not in optional:
                self._findings.append(Finding("it is needed and is in no segment", digest))
            for kind in kinds:
                self._objects += 1
                try:
                    links = self._object(digest, kind, deep=deep)
                except CsfError as error:
                    self._findings.append(Finding(str(error).removeprefix(f"{digest}: "), digest))
                    continue
                fresh = [link for link in links if follow and link not in seen]
                seen.update(fresh)
                waiting.extend(fresh)

    def _object(self, digest: Digest, kind: Kind, *, deep: bool) -> tuple[Digest, ...]:
        found = self._retrieve.open(digest, kind)
        self._chunks.update(chunk.digest for chunk in found.body.chunks)
        for chunk in found.body.chunks:
            where = self._store.find_chunk(chunk.digest)
            if where is None or where.raw != chunk.length:
                what = "is in no segment" if where is None else f"has {where.raw} bytes, not {chunk.length}"
                self._findings.append(Finding(f"its chunk {Digest(chunk.digest)} {what}", digest))
        if deep:
            for piece in self._retrieve.content(found):
                self._bytes += len(piece)
                if self._decoded:
                    self._decoded(len(piece))
        return found.body.links


def _by_segment(index: Index) -> Iterator[tuple[int, list[Row]]]:
    """What the index lists, segment row by segment row."""
    rows = heapq.merge(index.chunk_rows(), index.object_rows(), key=lambda row: row.where[:2])
    for row_id, group in groupby(rows, key=lambda row: row.where.segment):
        yield row_id, list(group)
