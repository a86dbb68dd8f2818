"""Verification: read everything again and say by name what is not as it was written.

Three sights of the same archive must agree: the segments byte by byte, the index (what was acknowledged), and the
ledger (what must be kept). A segment's own end may be torn by a crash; it is damage only where the index or the ledger
knows that something acknowledged was there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from csf_store.digest import Digest
from csf_store.durable import read_exact, storage_errors
from csf_store.errors import CorruptError, CsfError
from csf_store.framing import (
    SEGMENT_HEADER_SIZE,
    FooterEntry,
    FramingError,
    RecordType,
    check_segment_header,
    segment_header_is_torn,
)
from csf_store.index import Location, SegmentState
from csf_store.ledger import Ledger
from csf_store.objects import KINDS, Kind
from csf_store.recovery import Gap, scan
from csf_store.retrieve import Retrieve
from csf_store.segment import segment_id_of
from csf_store.store import Store


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
        self, store: Store, retrieve: Retrieve, ledger: Ledger, progress: Callable[[int], None] | None
    ) -> None:
        self._store = store
        self._retrieve = retrieve
        self._ledger = ledger
        self._progress = progress
        self._findings: list[Finding] = []
        self._notes: list[str] = []
        self._chunks: set[bytes] = set()
        self._segments = self._objects = self._bytes = 0

    def _report(self) -> VerifyReport:
        unique = tuple(dict.fromkeys(self._findings))
        return VerifyReport(unique, tuple(self._notes), self._segments, self._objects, self._bytes)

    def objects(self, digests: Iterable[Digest]) -> VerifyReport:
        """Decodes objects and everything they link to, and hashes each as a whole."""
        self._closure(digests, deep=True)
        return self._report()

    def everything(self, *, deep: bool, reachable_only: bool) -> VerifyReport:
        """Every byte of every segment; index against segments; ledger; completeness of what must be kept."""
        states = self._store.segments()
        valid: dict[str, set[FooterEntry]] = {}
        for name, state in sorted(states.items()):
            valid[name] = self._segment(name, state)
        self._index_against(valid)
        for lost in self._store.lost():
            self._findings.append(
                Finding("the record was there once and is gone", Digest(lost.digest), lost.segment, lost.offset)
            )
        roots = self._ledger_roots()
        every = [] if reachable_only else [Digest(raw) for raw, _ in self._store.objects()]
        self._closure([*roots, *every], deep=deep)
        if deep:
            self._orphans()
        return self._report()

    def _orphans(self) -> None:
        """Chunks that no object lists: an interrupted put left them, and the next put will build on them."""
        for digest in self._store.chunk_digests():
            if digest not in self._chunks:
                try:
                    self._bytes += self._retrieve.check_chunk(digest)
                except CsfError as error:
                    self._findings.append(Finding(str(error).removeprefix(f"{Digest(digest)}: "), Digest(digest)))

    # -- segments ----------------------------------------------------------------------------------------------------

    def _segment(self, name: str, state: SegmentState) -> set[FooterEntry]:
        path = self._store.directory / name
        if not path.exists():
            if state.end:
                self._findings.append(Finding("the segment is missing", None, name, 0))
            return set()
        segment_id = segment_id_of(name) or b""
        with storage_errors(path):
            fd = self._store.fs.open(path, os.O_RDONLY)
            try:
                size = self._store.fs.stat(fd).size
                head = read_exact(self._store.fs, fd, SEGMENT_HEADER_SIZE, 0)
                found = scan(self._store.fs, fd, segment_id, SEGMENT_HEADER_SIZE, size)
            finally:
                self._store.fs.close(fd)
        self._segments += 1
        self._bytes += size
        if self._progress:
            self._progress(size)
        try:
            check_segment_header(head, self._store.archive_id, segment_id)
        except FramingError as error:
            if state.end < SEGMENT_HEADER_SIZE and segment_header_is_torn(head, self._store.archive_id, segment_id):
                self._notes.append(f"segment {name} was begun and never written to as far as anybody was told")
                return set()
            self._findings.append(Finding(str(error), None, name, 0))
        for gap in found.gaps:
            self._gap(name, state, gap)
        if found.tail is not None:
            self._gap(name, state, found.tail)
        self._incomplete(name, found.records)
        if state.sealed and not found.sealed and found.tail is None:
            self._findings.append(Finding("the segment was sealed and its end is missing", None, name, found.end))
        return set(found.records)

    def _gap(self, name: str, state: SegmentState, gap: Gap) -> None:
        """Bytes that are no record: damage in what was promised; behind it, what a crash left of the last writes."""
        if state.sealed or gap.offset < state.end:
            self._findings.append(Finding(gap.reason, gap.digest, name, gap.offset))
        else:
            self._notes.append(
                f"segment {name} holds {gap.length} bytes of a write that was cut short at offset {gap.offset}; "
                "nobody was told it was stored"
            )

    def _incomplete(self, name: str, records: Iterable[FooterEntry]) -> None:
        for record in records:
            if record.kind in KINDS and self._store.find_object(record.digest, Kind.of(record.kind)) is None:
                self._notes.append(
                    f"segment {name} holds {Kind.of(record.kind)} {Digest(record.digest)} at offset {record.offset} "
                    "without all of its chunks and links; nobody was told it was stored"
                )

    def _index_against(self, valid: dict[str, set[FooterEntry]]) -> None:
        """Everything the index calls stored must be among what the segments were just seen to hold."""
        for digest in self._store.chunk_digests():
            self._known(digest, None, self._store.find_chunk(digest), valid)
        for digest, kind in self._store.objects():
            self._known(digest, kind, self._store.find_object(digest, kind), valid)

    def _known(
        self, digest: bytes, kind: Kind | None, where: Location | None, valid: dict[str, set[FooterEntry]]
    ) -> None:
        if where is None:
            return
        name = self._store.segment_name(where.segment)
        record_type = RecordType.OBJECT if kind else RecordType.CHUNK
        entry = FooterEntry(
            where.offset,
            where.stored,
            where.raw,
            record_type,
            kind.number if kind else 0,
            where.codec,
            digest,
            where.base,
        )
        if entry in valid.get(name, set()):
            return
        try:
            header = self._store.read(where, digest).header  # it may have been added after the segment was scanned
            if (header.type, header.kind, header.raw_length, header.codec, header.base) != (
                record_type,
                entry.kind,
                where.raw,
                where.codec,
                where.base,
            ):
                raise CorruptError("the index describes the record wrongly; delete index.sqlite, it is rebuilt")
        except CsfError as error:
            self._findings.append(
                Finding(str(error).removeprefix(f"{Digest(digest)}: "), Digest(digest), name, where.offset)
            )

    # -- objects -----------------------------------------------------------------------------------------------------

    def _ledger_roots(self) -> list[Digest]:
        """What must be kept, by the lines of the ledger alone: each is read and hashed again."""
        audit = self._ledger.audit()
        self._findings += [Finding(what) for what in audit.findings]
        self._notes += audit.notes
        moves = [move for history in audit.refs.values() for move in history]
        return [pin.digest for pin in audit.pins] + [move.target for move in moves if move.target is not None]

    def _closure(self, digests: Iterable[Digest], *, deep: bool) -> None:
        waiting = list(dict.fromkeys(digests))
        seen = set(waiting)
        while waiting:
            digest = waiting.pop()
            kinds = self._store.kinds(bytes(digest))
            if not kinds:
                self._findings.append(Finding("it is needed and is in no segment", digest))
            for kind in kinds:
                self._objects += 1
                try:
                    links = self._object(digest, kind, deep=deep)
                except CsfError as error:
                    self._findings.append(Finding(str(error).removeprefix(f"{digest}: "), digest))
                    continue
                fresh = [link for link in links if link not in seen]
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
        return found.body.links
