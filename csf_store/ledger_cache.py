"""What the ledger adds up to, in SQLite: a cache, so that opening costs the same with ten lines and a million.

It holds the head (see ``LedgerHead``), where every line starts, the nodes of the Merkle tree, the pins, and the moves
of the refs. ``ledger.jsonl`` is the only truth; this file may be deleted at any time and may be wrong:

- Pins, moves and the head carry a keyed checksum, because SQLite does not notice a flipped bit. The head also carries
  count and sum of the checksums of all pins and moves, so that one that is missing or too many shows when they are
  read.
- Lines and nodes carry none: a line that is read is hashed, a proof that is made is checked.

Whatever does not fit is a ``CacheDamagedError``: throw it away and read the ledger again. The same tables in memory
serve where nothing can be written (``CacheUnwritableError``).

``lost`` remembers heads that the ledger once had and does not lead to any more. Only this cache can know that lines
were cut off the end of a ledger: what is left is a perfectly good shorter one.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from blake3 import blake3

from csf_store.digest import Digest
from csf_store.ledger_cache_errors import CacheDamagedError, translated
from csf_store.ledger_head import EMPTY_HEAD, LedgerHead, LineBatch
from csf_store.ledger_state import Pin, RefMove
from csf_store.merkle import HASH_SIZE, Frontier

_VERSION: Final = 1
_BUSY_SECONDS: Final = 5.0
_SCHEMA: Final = """
CREATE TABLE head(
  id INTEGER PRIMARY KEY CHECK(id=1), size INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
  leaf BLOB NOT NULL, time TEXT NOT NULL, subtrees BLOB NOT NULL, mtime INTEGER NOT NULL, pins INTEGER NOT NULL,
  pins_sum INTEGER NOT NULL, refs INTEGER NOT NULL, refs_sum INTEGER NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE lines(seq INTEGER PRIMARY KEY, start INTEGER NOT NULL, leaf BLOB NOT NULL);
CREATE TABLE nodes(level INTEGER, position INTEGER, hash BLOB NOT NULL, PRIMARY KEY(level, position)) WITHOUT ROWID;
CREATE TABLE pins(
  seq INTEGER PRIMARY KEY, digest BLOB NOT NULL, kind TEXT NOT NULL, name TEXT, time TEXT NOT NULL,
  checksum INTEGER NOT NULL);
CREATE INDEX pins_of ON pins(digest, kind, name);
CREATE TABLE moves(
  seq INTEGER PRIMARY KEY, ref TEXT NOT NULL, time TEXT NOT NULL, target BLOB, fields TEXT NOT NULL,
  checksum INTEGER NOT NULL);
CREATE INDEX moves_of ON moves(ref, seq);
CREATE TABLE refs(
  ref TEXT PRIMARY KEY, moves INTEGER NOT NULL, moves_sum INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE lost(
  size INTEGER, leaf BLOB, root BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY(size, leaf)) WITHOUT ROWID
"""
_PIN: Final = "SELECT seq, digest, kind, name, time, checksum FROM pins"
_REF: Final = "SELECT ref, moves, moves_sum, checksum FROM refs"
_MOVE: Final = "SELECT seq, ref, time, target, fields, checksum FROM moves"
_Row: TypeAlias = tuple[int | str | bytes | None, ...]


class Lost(NamedTuple):
    """A ledger that there once was: how many lines, the leaf of the last, which pins all before it, and the root."""

    size: int
    leaf: bytes
    root: bytes


class _Totals(NamedTuple):
    """Count and sum of checksums of all pins and all refs."""

    pins: int = 0
    pins_sum: int = 0
    refs: int = 0
    refs_sum: int = 0


class LedgerCache:
    """One open connection; the caller sees to it that one thread uses it at a time.

    Args:
        path: its file; None for tables in memory.
        archive: the archive's id in hex.
    """

    def __init__(self, path: Path | None, archive: str) -> None:
        self.path = path
        self._key = blake3(f"csf ledger cache {archive}".encode()).digest()
        self._working: tuple[LedgerHead, _Totals] | None = None
        with translated():
            self._db = sqlite3.connect(
                path or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with translated():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        if not self._db.execute("PRAGMA user_version").fetchone()[0]:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={_VERSION}")
            self._db.execute("COMMIT")
        self._db.execute("PRAGMA synchronous=NORMAL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            raise CacheDamagedError(f"its version is {version}")

    def __del__(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()

    def _checksum(self, *values: int | str | bytes | None) -> int:
        return int.from_bytes(blake3(repr(values).encode(), key=self._key).digest(8), "little", signed=True)

    # -- the head ----------------------------------------------------------------------------------------------------

    def head(self) -> tuple[LedgerHead, int]:
        """How far the cache is, and the ledger's modification time (ns) when it got there."""
        if self._working is not None:
            return self._working[0], 0
        head, mtime, _ = self._stored()
        return head, mtime

    def _stored(self) -> tuple[LedgerHead, int, _Totals]:
        with translated():
            row = self._db.execute(
                "SELECT size, start, end, leaf, time, subtrees, mtime, pins, pins_sum, refs, refs_sum, checksum "
                "FROM head"
            ).fetchone()
        if row is None:
            return EMPTY_HEAD, 0, _Totals()
        if self._checksum("head", *row[:-1]) != row[-1]:
            raise CacheDamagedError("its head does not fit its checksum")
        size, start, end, leaf, time, subtrees, mtime, *totals = row[:-1]
        hashes = tuple(subtrees[at : at + HASH_SIZE] for at in range(0, len(subtrees), HASH_SIZE))
        try:
            Frontier(size, hashes)
        except ValueError as error:
            raise CacheDamagedError(str(error)) from error
        return LedgerHead(size, start, end, leaf, time, hashes), mtime, _Totals(*totals)

    # -- writing -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begins a change; until ``commit`` only this connection sees it."""
        with translated():
            self._db.execute("BEGIN IMMEDIATE")
        try:
            head, _, totals = self._stored()
        except BaseException:
            self.rollback()
            raise
        self._working = head, totals

    def rollback(self) -> None:
        """Forgets the change."""
        self._working = None
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def commit(self, mtime: int) -> None:
        """Keeps the change. ``mtime`` is the ledger's modification time (ns) with these lines in it."""
        head, totals = self._change()
        row = (*head[:5], b"".join(head.subtrees), mtime, *totals)
        with translated():
            self._db.execute(
                "INSERT OR REPLACE INTO head VALUES (1,?,?,?,?,?,?,?,?,?,?,?,?)", (*row, self._checksum("head", *row))
            )
            self._db.execute("COMMIT")
        self._working = None

    def _change(self) -> tuple[LedgerHead, _Totals]:
        if self._working is None:
            raise CacheDamagedError("no change was begun")
        return self._working

    def clear(self) -> None:
        """Within a change: forgets everything but what was lost."""
        with translated():
            for table in ("lines", "nodes", "pins", "moves", "refs"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
        self._working = EMPTY_HEAD, _Totals()

    def absorb(self, batch: LineBatch) -> None:
        """Within a change: takes in lines that follow the head."""
        head, totals = self._change()
        if head != batch.first:
            raise CacheDamagedError("its head moved")
        with translated():
            for table in ("lines", "pins", "moves"):  # what a torn copy of this file may hold beyond its head
                self._db.execute(f"DELETE FROM {table} WHERE seq >= ?", (head.size,))  # noqa: S608
        totals = self._unpin(batch.state.cleared, totals)
        pins = [(pin.seq, bytes(pin.digest), pin.kind, pin.name, pin.time) for pin in batch.state.pinned()]
        with translated():
            self._db.executemany("INSERT INTO lines VALUES (?,?,?)", batch.lines)
            self._db.executemany("INSERT OR REPLACE INTO nodes VALUES (?,?,?)", batch.nodes)
            self._db.executemany(  # of several pins of one kind and name the first counts
                "INSERT INTO pins SELECT ?1,?2,?3,?4,?5,?6 "
                "WHERE NOT EXISTS (SELECT 1 FROM pins WHERE digest=?2 AND kind=?3 AND name IS ?4)",
                [(*row, self._checksum("pin", *row)) for row in pins],
            )
            rows = self._db.execute("SELECT checksum FROM pins WHERE seq >= ?", (head.size,)).fetchall()
        totals = totals._replace(pins=totals.pins + len(rows), pins_sum=_sum(rows, totals.pins_sum))
        for ref, moves in batch.state.refs.items():
            totals = self._move(ref, moves, totals)
        self._working = batch.head, totals

    def _move(self, ref: str, moves: Sequence[RefMove], totals: _Totals) -> _Totals:
        rows = []
        for move in moves:
            target = bytes(move.target) if move.target else None
            row = (move.seq, ref, move.time, target, json.dumps(move.fields))
            rows.append((*row, self._checksum("move", *row)))
        with translated():
            self._db.executemany("INSERT INTO moves VALUES (?,?,?,?,?,?)", rows)
            old = self._db.execute(f"{_REF} WHERE ref=?", (ref,)).fetchone()
            count, total = old[1:3] if old else (0, 0)
            new = (ref, count + len(rows), _sum(rows, total))
            new = (*new, self._checksum("ref", *new))
            self._db.execute("INSERT OR REPLACE INTO refs VALUES (?,?,?,?)", new)
        changed = [old, new] if old else [new]
        return totals._replace(refs=totals.refs + (not old), refs_sum=_sum(changed, totals.refs_sum))

    def _unpin(self, digests: set[Digest], totals: _Totals) -> _Totals:
        for digest in digests:
            with translated():
                rows = self._db.execute(f"{_PIN} WHERE digest=?", (bytes(digest),)).fetchall()
                self._db.execute("DELETE FROM pins WHERE digest=?", (bytes(digest),))
            for row in rows:
                self._checked("pin", row)
            totals = totals._replace(pins=totals.pins - len(rows), pins_sum=_sum(rows, totals.pins_sum))
        return totals

    def lose(self, lost: Iterable[Lost]) -> None:
        """Within a change: remembers what the ledger once was; all of it, what was remembered before is forgotten."""
        with translated():
            self._db.execute("DELETE FROM lost")
            self._db.executemany(
                "INSERT OR REPLACE INTO lost VALUES (?,?,?,?)",
                [(*each, self._checksum("lost", *each)) for each in lost],
            )

    # -- reading -----------------------------------------------------------------------------------------------------

    def _checked(self, what: str, row: _Row) -> None:
        if self._checksum(what, *row[:-1]) != row[-1]:
            raise CacheDamagedError(f"the row of a {what} does not fit its checksum")

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[tuple[LedgerHead, _Totals]]:
        """One state for several reads, whatever other processes write meanwhile."""
        if self._working is not None:
            yield self._working
            return
        with translated():
            self._db.execute("BEGIN")
        try:
            head, _, totals = self._stored()
            yield head, totals
        finally:
            self.rollback()

    def pin(self, digest: Digest, kind: str, name: str | None) -> Pin | None:
        """The pin of a digest as that kind and under that name, if there is one."""
        with translated():
            row = self._db.execute(
                f"{_PIN} WHERE digest=? AND kind=? AND name IS ?", (bytes(digest), kind, name)
            ).fetchone()
        return self._as_pin(row) if row else None

    def pins_of(self, digest: Digest) -> tuple[Pin, ...]:
        """The pins of one digest: those that are found, for nothing tells whether they are all."""
        with translated():
            rows = self._db.execute(f"{_PIN} WHERE digest=? ORDER BY seq", (bytes(digest),)).fetchall()
        return tuple(self._as_pin(row) for row in rows)

    def pins(self) -> tuple[Pin, ...]:
        """Every pin, in the order of pinning."""
        with self._snapshot() as (_, totals), translated():
            rows = self._db.execute(f"{_PIN} ORDER BY seq").fetchall()
        found = tuple(self._as_pin(row) for row in rows)
        self._complete("pin", rows, totals.pins, totals.pins_sum)
        return found

    def moves(self) -> dict[str, tuple[RefMove, ...]]:
        """Every ref with all its moves."""
        with self._snapshot() as (_, totals), translated():
            refs = self._refs(totals)
            rows = self._db.execute(f"{_MOVE} ORDER BY seq").fetchall()
        found: dict[str, list[tuple[int, str, str, bytes | None, str, int]]] = {}
        for row in rows:
            found.setdefault(row[1], []).append(row)
        if found.keys() - refs.keys():
            raise CacheDamagedError("it holds moves of a ref it does not know")
        return {ref: self._history(found.get(ref, []), *refs[ref]) for ref in found.keys() | refs.keys()}

    def moves_of(self, ref: str) -> tuple[RefMove, ...]:
        """All moves of one ref; it reads the list of refs, which is short, to know that it has all."""
        with self._snapshot() as (_, totals), translated():
            refs = self._refs(totals)
            rows = self._db.execute(f"{_MOVE} WHERE ref=? ORDER BY seq", (ref,)).fetchall()
        return self._history(rows, *refs.get(ref, (0, 0)))

    def _refs(self, totals: _Totals) -> dict[str, tuple[int, int]]:
        rows = self._db.execute(_REF).fetchall()
        for row in rows:
            self._checked("ref", row)
        self._complete("ref", rows, totals.refs, totals.refs_sum)
        return {row[0]: (row[1], row[2]) for row in rows}

    def _history(
        self, rows: Sequence[tuple[int, str, str, bytes | None, str, int]], count: int, total: int
    ) -> tuple[RefMove, ...]:
        found = tuple(self._as_move(row) for row in rows)
        self._complete("move", rows, count, total)
        return found

    def _complete(self, what: str, rows: Sequence[_Row], count: int, total: int) -> None:
        if (len(rows), _sum(rows, 0)) != (count, total):
            raise CacheDamagedError(f"it holds {len(rows)} rows of a {what}, and not the {count} it should")

    def _as_pin(self, row: tuple[int, bytes, str, str | None, str, int]) -> Pin:
        self._checked("pin", row)
        return Pin(Digest(row[1]), row[2], row[3], row[0], row[4])

    def _as_move(self, row: tuple[int, str, str, bytes | None, str, int]) -> RefMove:
        self._checked("move", row)
        return RefMove(row[0], row[2], Digest(row[3]) if row[3] is not None else None, json.loads(row[4]))

    def line(self, seq: int) -> tuple[int, int, bytes]:
        """Offset, end (its newline included) and leaf hash of a line below the head."""
        head, _ = self.head()
        with translated():
            rows = self._db.execute("SELECT start, leaf FROM lines WHERE seq BETWEEN ? AND ?+1", (seq, seq)).fetchall()
        ends = rows[1][0] if seq + 1 < head.size and len(rows) == 2 else head.end
        if not rows or not (isinstance(rows[0][0], int) and isinstance(ends, int)):
            raise CacheDamagedError(f"it does not know line {seq}")
        return rows[0][0], ends, rows[0][1]

    def node(self, level: int, position: int) -> bytes:
        """A node of the Merkle tree, as ``merkle.NodeReader`` has it."""
        with translated():
            if level:
                query, key = "SELECT hash FROM nodes WHERE level=? AND position=?", (level, position)
                row = self._db.execute(query, key).fetchone()
            else:
                row = self._db.execute("SELECT leaf FROM lines WHERE seq=?", (position,)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise CacheDamagedError(f"it lacks node {level}/{position}")
        found: bytes = row[0]
        return found

    def lost(self) -> tuple[Lost, ...]:
        """What the ledger once was and does not lead to any more."""
        with translated():
            rows = self._db.execute("SELECT size, leaf, root, checksum FROM lost ORDER BY size, leaf").fetchall()
        for row in rows:
            self._checked("lost", row)
        return tuple(Lost(*row[:-1]) for row in rows)


def _sum(rows: Sequence[_Row], start: int) -> int:
    """The checksums in the last column added to ``start``, without carry; adding one again takes it away."""
    for row in rows:
        start ^= row[-1] if isinstance(row[-1], int) else 0
    return start
