"""The ledger: append-only JSON lines, the only truth for pins and refs.

Every line is RFC 8785 JSON with ``event``, ``seq``, ``time``, ``prev`` and the event's own fields. ``prev`` is the RFC
9162 leaf hash of the line before, so an altered line is found where it is, and the leaf hashes make a Merkle tree whose
root stands for the whole. Times are RFC 3339 UTC with microseconds and never decrease; the sequence number gives the
order.

One append lock (``flock`` on ``ledger.lock``) orders writers across processes. Readers wait for no lock. A last line
without a newline was cut short by a crash; the next writer completes it if it is whole, and moves it aside to
``ledger.torn-*`` if it is not.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import rfc8785

from csf_store.digest import Digest
from csf_store.durable import FileSystem
from csf_store.errors import ConflictError, InvalidInputError
from csf_store.ledger.line import JSON, MAX_LINE, RESERVED, TIME, LedgerEntry, is_event
from csf_store.ledger.reading import LedgerReading
from csf_store.ledger.state import Pin, RefMove, check_event
from csf_store.ledger.view import GENESIS_EVENT


class Ledger(LedgerReading):
    """The ledger of one archive. Thread-safe."""

    def __init__(self, fs: FileSystem, root: Path, archive_id: bytes) -> None:
        super().__init__(fs, root, archive_id)
        self._parts = fs, root, archive_id
        self._writing = threading.Lock()
        self._writer: int | None = None

    def another(self) -> Ledger:
        """The same ledger, opened once more: for whoever must not wait for a thread that has this one locked."""
        return Ledger(*self._parts)

    def append(self, event: str, **fields: JSON) -> LedgerEntry:
        """Appends one event; durable when this returns."""
        with self.locked() as transaction:
            return transaction.append(event, **fields)

    @contextlib.contextmanager
    def locked(self) -> Iterator[LedgerTransaction]:
        """Read, decide, append, with nobody in between: what compare-and-swap is built on.

        Lines are written and made durable together when the block ends; if it raises, none is.
        """
        if self._writer == threading.get_ident():
            raise ConflictError("the ledger is locked by this thread already; append to that transaction")
        with self._writing:
            self._writer = threading.get_ident()
            try:
                # First the lock that others may hold for long, then the one that our readers want.
                with self._view.lock.waiting(), self._mutex:
                    self._view.settle()
                    self._view.recover()
                    yield from self._transact()
            finally:
                self._writer = None

    def _transact(self) -> Iterator[LedgerTransaction]:
        view = self._view
        transaction = LedgerTransaction(self)
        try:
            view.begin()
            if not view.head.size:
                self._draft(GENESIS_EVENT, {"archive": self._archive, "format": 1})
            yield transaction
            written = None
            if view.drafts:
                written = view.file.append(view.written.end, [line + b"\n" for line, _ in view.drafts])
        except BaseException:
            view.rollback()
            raise
        finally:
            transaction.over = True
        if written is None:
            view.rollback()
        else:
            view.commit(written)

    def _draft(self, event: str, fields: Mapping[str, JSON]) -> LedgerEntry:
        """Makes the next line and takes it into the view; the transaction writes it."""
        if not event or RESERVED & fields.keys():
            raise InvalidInputError(f"event {event!r}: it needs a name, and may not set {sorted(RESERVED)} itself")
        check_event(event, fields)
        head = self._view.head
        now = max(datetime.now(UTC).strftime(TIME), head.time)
        try:
            line = rfc8785.dumps({**fields, "event": event, "seq": head.size, "time": now, "prev": head.leaf.hex()})
        except rfc8785.CanonicalizationError as error:
            raise InvalidInputError(f"event {event!r} can not be written as canonical JSON: {error}") from error
        if not is_event(line):
            raise InvalidInputError(f"event {event!r} has a number beyond 2^53, which JSON readers disagree about")
        if len(line) >= MAX_LINE:
            raise InvalidInputError(f"event {event!r} takes {len(line)} bytes; store its content and name its digest")
        return self._view.draft(line)


class LedgerTransaction:
    """The ledger while its append lock is held: reads see the lines drafted here.

    Attributes:
        over: whether its block has ended.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.over = False

    def append(self, event: str, **fields: JSON) -> LedgerEntry:
        """Drafts one event; it is written when the block ends.

        Raises:
            ConflictError: if the block has ended.
        """
        if self.over:
            raise ConflictError(f"event {event!r}: the ledger is not locked any more; append within the block")
        return self._ledger._draft(event, fields)

    @property
    def size(self) -> int:
        """How many events there are, drafts included."""
        return self._ledger.size

    def refs(self) -> Mapping[str, Sequence[RefMove]]:
        """Every ref with its moves, drafts included."""
        return self._ledger.refs()

    def ref(self, name: str) -> Sequence[RefMove]:
        """All moves of one ref, drafts included."""
        return self._ledger.ref(name)

    def pins(self) -> tuple[Pin, ...]:
        """What is pinned, drafts included."""
        return self._ledger.pins()

    def has_pin(self, digest: Digest) -> bool:
        """Whether a digest is pinned, whatever as, drafts included."""
        return self._ledger.has_pin(digest)
