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

import json
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from csf_store.digest import Digest
from csf_store.ledger.cache_errors import CacheDamagedError, translated
from csf_store.ledger.head import LineBatch
from csf_store.ledger.state import Pin, RefMove
from csf_store.ledger.tables import LedgerTables, Totals, add_up

_PIN: Final = "SELECT seq, digest, kind, name, time, checksum FROM pins"
_REF: Final = "SELECT ref, moves, moves_sum, checksum FROM refs"
_MOVE: Final = "SELECT seq, ref, time, target, fields, checksum FROM moves"


class Lost(NamedTuple):
    """A ledger that there once was: how many lines, the leaf of the last, which pins all before it, and the root."""

    size: int
    leaf: bytes
    root: bytes


class LedgerCache(LedgerTables):
    """What is in the tables; the caller sees to it that one thread uses it at a time.

    Args:
        path: its file; None for tables in memory.
        archive: the archive's id in hex.
    """

    # -- writing -----------------------------------------------------------------------------------------------------

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
        totals = totals._replace(pins=totals.pins + len(rows), pins_sum=add_up(rows, totals.pins_sum))
        for ref, moves in batch.state.refs.items():
            totals = self._move(ref, moves, totals)
        self._working = batch.head, totals

    def _move(self, ref: str, moves: Sequence[RefMove], totals: Totals) -> Totals:
        rows = []
        for move in moves:
            target = bytes(move.target) if move.target else None
            row = (move.seq, ref, move.time, target, json.dumps(move.fields))
            rows.append((*row, self._checksum("move", *row)))
        with translated():
            self._db.executemany("INSERT INTO moves VALUES (?,?,?,?,?,?)", rows)
            old = self._db.execute(f"{_REF} WHERE ref=?", (ref,)).fetchone()
            count, total = old[1:3] if old else (0, 0)
            tip = (ref, count + len(rows), add_up(rows, total))
            new = (*tip, self._checksum("ref", *tip))
            self._db.execute("INSERT OR REPLACE INTO refs VALUES (?,?,?,?)", new)
        changed = [old, new] if old else [new]
        return totals._replace(refs=totals.refs + (not old), refs_sum=add_up(changed, totals.refs_sum))

    def _unpin(self, digests: set[Digest], totals: Totals) -> Totals:
        for digest in digests:
            with translated():
                rows = self._db.execute(f"{_PIN} WHERE digest=?", (bytes(digest),)).fetchall()
                self._db.execute("DELETE FROM pins WHERE digest=?", (bytes(digest),))
            for row in rows:
                self._checked("pin", row)
            totals = totals._replace(pins=totals.pins - len(rows), pins_sum=add_up(rows, totals.pins_sum))
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

    def _refs(self, totals: Totals) -> dict[str, tuple[int, int]]:
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
