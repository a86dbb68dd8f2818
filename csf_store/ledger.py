"""The ledger: append-only JSON lines, the only truth for pins and refs.

Every line is RFC 8785 JSON with ``event``, ``seq``, ``time``, ``prev`` and the event's own fields. ``prev`` is the RFC
9162 leaf hash of the line before, so an altered line is found where it is, and the leaf hashes make a Merkle tree whose
root stands for the whole. Times are RFC 3339 UTC with microseconds and never decrease; the sequence number gives the
order.

One append lock (``flock`` on ``ledger.lock``) orders writers across processes. Readers take no lock: a line counts when
its newline is there. A last line without one was cut short by a crash; the next writer completes it if it is whole, and
moves it aside to ``ledger.torn-*`` if it is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import rfc8785

from csf_store.digest import Digest
from csf_store.durable import FileSystem, read_exact, storage_errors, write_all
from csf_store.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError
from csf_store.ledger_line import JSON, MAX_LINE, RESERVED, TIME, LedgerEntry, parse_line
from csf_store.ledger_state import LedgerState, Pin, RefMove, check_event
from csf_store.merkle import HASH_SIZE, Frontier, leaf_hash

LEDGER: Final = "ledger.jsonl"
LOCK: Final = "ledger.lock"
GENESIS_EVENT: Final = "archive.created"
_READ: Final = 4 << 20


class Ledger:
    """The ledger of one archive. Thread-safe."""

    def __init__(self, fs: FileSystem, root: Path, archive_id: bytes) -> None:
        self.path = root / LEDGER
        self._fs = fs
        self._lock_path = root / LOCK
        self._archive = archive_id.hex()
        self._mutex = threading.RLock()
        self._transaction: LedgerTransaction | None = None
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self._starts: list[int] = []
        self._last = LedgerEntry(-1, "", "", {}, bytes(HASH_SIZE))
        self._tree = Frontier()
        self._state = LedgerState()

    # -- reading -----------------------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Reads the complete lines that were added since the last look."""
        if self._transaction is not None:
            return
        try:
            fd = self._fs.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            if self._starts:
                raise CorruptError(f"{self.path} has vanished; restore it from a backup") from None
            return
        except OSError:
            with storage_errors(self.path):
                raise
        try:
            with storage_errors(self.path):
                size = self._fs.stat(fd).size
                if size < self._offset:
                    raise CorruptError(f"{self.path} became shorter: lines were removed; restore it from a backup")
                self._read_lines(fd, size)
        finally:
            self._fs.close(fd)

    def _read_lines(self, fd: int, size: int) -> None:
        rest = b""
        at = self._offset
        while at < size:
            data = read_exact(self._fs, fd, min(_READ, size - at), at)
            if not data:
                break
            at += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> LedgerEntry:
        entry = parse_line(line, len(self._starts), self._last.leaf, self._last.time)
        self._state.apply(entry.seq, entry.time, entry.event, entry.fields)
        self._starts.append(self._offset)
        self._offset += len(line) + 1
        self._tree.add(entry.leaf)
        self._last = entry
        return entry

    @property
    def size(self) -> int:
        """How many events there are."""
        with self._mutex:
            self._catch_up()
            return len(self._starts)

    def root(self) -> bytes:
        """The RFC 9162 root over all lines."""
        with self._mutex:
            self._catch_up()
            return self._tree.root()

    def entries(self, start: int = 0) -> Iterator[LedgerEntry]:
        """Every event from number ``start`` on, as of now."""
        with self._mutex:
            self._catch_up()
            size, end = len(self._starts), self._offset
            if not 0 <= start < size:
                return
            at = self._starts[start]
        previous = self.entry(start - 1) if start else LedgerEntry(-1, "", "", {}, bytes(HASH_SIZE))
        with storage_errors(self.path):
            data = self._read_span(at, end)
        for seq, line in enumerate(data.split(b"\n")[:-1], start):
            previous = parse_line(line, seq, previous.leaf, previous.time)
            yield previous

    def _read_span(self, start: int, end: int) -> bytes:
        fd = self._fs.open(self.path, os.O_RDONLY)
        try:
            return read_exact(self._fs, fd, end - start, start)
        finally:
            self._fs.close(fd)

    def entry(self, seq: int) -> LedgerEntry:
        """One event by its number.

        Raises:
            NotFoundError: if there is no such line.
        """
        with self._mutex:
            self._catch_up()
            if not 0 <= seq < len(self._starts):
                raise NotFoundError(f"the ledger has {len(self._starts)} events, none of number {seq}; see csf log")
            end = self._starts[seq + 1] if seq + 1 < len(self._starts) else self._offset
            with storage_errors(self.path):
                line = self._read_span(self._starts[seq], end).rstrip(b"\n")
        document = json.loads(line)
        return parse_line(line, seq, bytes.fromhex(document["prev"]), "")

    def refs(self) -> Mapping[str, Sequence[RefMove]]:
        """Every ref ever set, with all its moves in order."""
        with self._mutex:
            self._catch_up()
            return {name: tuple(moves) for name, moves in self._state.refs.items()}

    def pins(self) -> tuple[Pin, ...]:
        """What is pinned now, in the order of pinning."""
        with self._mutex:
            self._catch_up()
            return tuple(pin for pins in self._state.pins.values() for pin in pins.values())

    def is_pinned(self, digest: Digest, kind: str, name: str | None) -> bool:
        """Whether a digest is pinned now, as that kind and under that name."""
        with self._mutex:
            self._catch_up()
            return (kind, name) in self._state.pins.get(digest, {})

    # -- writing -----------------------------------------------------------------------------------------------------

    def append(self, event: str, **fields: JSON) -> LedgerEntry:
        """Appends one event; durable when this returns."""
        with self.locked() as transaction:
            return transaction.append(event, **fields)

    @contextlib.contextmanager
    def locked(self) -> Iterator[LedgerTransaction]:
        """Read, decide, append, with nobody in between: what compare-and-swap is built on.

        Lines are written and made durable together when the block ends; if it raises, none is.
        """
        with self._mutex:
            if self._transaction is not None:
                raise ConflictError("the ledger is locked by this thread already; append to that transaction")
            with storage_errors(self._lock_path):
                lock = self._fs.open(self._lock_path, os.O_RDWR | os.O_CREAT)
            try:
                with storage_errors(self._lock_path):
                    self._fs.lock(lock)
                self._catch_up()
                self._recover()
                yield from self._transact()
            finally:
                self._fs.close(lock)

    def _transact(self) -> Iterator[LedgerTransaction]:
        start = self._offset
        transaction = LedgerTransaction(self)
        self._transaction = transaction
        try:
            if not self._starts:
                transaction.append(GENESIS_EVENT, archive=self._archive, format=1)
            yield transaction
            self._write(start, transaction.lines)
        except BaseException:
            self._forget()
            raise
        finally:
            self._transaction = None

    def _write(self, start: int, lines: list[bytes]) -> None:
        if not lines:
            return
        with storage_errors(self.path):
            fd = self._fs.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                try:
                    write_all(self._fs, fd, lines)
                    self._fs.fsync(fd)
                except BaseException:
                    # Nobody was told: take the half-written lines back. If even that fails, the next writer will.
                    with contextlib.suppress(OSError):
                        self._fs.truncate(fd, start)
                    raise
                if start == 0:
                    self._fs.fsync_directory(self.path.parent)
            finally:
                self._fs.close(fd)

    def _recover(self) -> None:
        """Under the lock: deals with a last line that has no newline."""
        if not self.path.exists():
            return
        with storage_errors(self.path):
            fd = self._fs.open(self.path, os.O_RDWR | os.O_APPEND)
            try:
                size = self._fs.stat(fd).size
                if size == self._offset:
                    return
                torn = read_exact(self._fs, fd, size - self._offset, self._offset)
                try:
                    parse_line(torn, len(self._starts), self._last.leaf, self._last.time)
                except CorruptError:
                    self._set_aside(torn)
                    self._fs.truncate(fd, self._offset)
                    self._fs.fsync(fd)
                else:
                    write_all(self._fs, fd, [b"\n"])
                    self._fs.fsync(fd)
            finally:
                self._fs.close(fd)
        self._catch_up()

    def _set_aside(self, torn: bytes) -> None:
        path = self.path.with_name(f"ledger.torn-{self._offset}-{leaf_hash(torn).hex()[:8]}")
        fd = self._fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(self._fs, fd, [torn])
            self._fs.fsync(fd)
        finally:
            self._fs.close(fd)
        self._fs.fsync_directory(path.parent)

    def _draft(self, event: str, fields: Mapping[str, JSON]) -> tuple[bytes, LedgerEntry]:
        """Makes the next line and takes it into the state; the transaction writes it."""
        if not event or RESERVED & fields.keys():
            raise InvalidInputError(f"event {event!r}: it needs a name, and may not set {sorted(RESERVED)} itself")
        check_event(event, fields)
        now = max(datetime.now(UTC).strftime(TIME), self._last.time)
        try:
            line = rfc8785.dumps(
                {**fields, "event": event, "seq": len(self._starts), "time": now, "prev": self._last.leaf.hex()}
            )
        except rfc8785.CanonicalizationError as error:
            raise InvalidInputError(f"event {event!r} can not be written as canonical JSON: {error}") from error
        if len(line) >= MAX_LINE:
            raise InvalidInputError(f"event {event!r} takes {len(line)} bytes; store its content and name its digest")
        return line + b"\n", self._take(line)


class LedgerTransaction:
    """The ledger while its append lock is held: reads see the lines drafted here."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.lines: list[bytes] = []

    def append(self, event: str, **fields: JSON) -> LedgerEntry:
        """Drafts one event; it is written when the block ends."""
        line, entry = self._ledger._draft(event, fields)
        self.lines.append(line)
        return entry

    @property
    def size(self) -> int:
        """How many events there are, drafts included."""
        return self._ledger.size

    def refs(self) -> Mapping[str, Sequence[RefMove]]:
        """Every ref with its moves, drafts included."""
        return self._ledger.refs()

    def pins(self) -> tuple[Pin, ...]:
        """What is pinned, drafts included."""
        return self._ledger.pins()
