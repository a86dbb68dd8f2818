"""The index: digest -> segment, offset, length. A cache in SQLite; deleting it at any time loses nothing.

Lookups go through B-trees, so opening costs the same with a million chunks as with ten. Every row carries a CRC of
itself, because SQLite does not notice a flipped bit. A row that does not fit its CRC, an index of another archive and
a file that SQLite can not read are all the same: ``IndexUnusableError``, and the store rebuilds it.

``objects.seen`` says when an object was last put (microseconds since 1970): what was put lately is not garbage yet,
even if nothing points to it.

``lost`` remembers records that the index knew and the segments no longer hold, so that a segment cut short or removed
is reported instead of forgotten.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from csf_store.framing import RECORD_HEADER_SIZE, FooterEntry
from csf_store.index_reading import IndexReading
from csf_store.index_rows import SegmentState, now, rows_of

_ADD_CHUNK: Final = """
INSERT INTO chunks VALUES (?,?,?,?,?,?,?,?) ON CONFLICT(digest) DO UPDATE SET
  segment=excluded.segment, offset=excluded.offset, stored=excluded.stored, raw=excluded.raw, codec=excluded.codec,
  base=excluded.base, crc=excluded.crc
WHERE chunks.base != zeroblob(32) AND excluded.base = zeroblob(32)
"""
"""The first record of a chunk is the one to know, but one that stands alone is better than a difference: others may be
differences to it, and a base must be no difference itself."""
_MOVE_CHUNK: Final = """
INSERT INTO chunks VALUES (?,?,?,?,?,?,?,?) ON CONFLICT(digest) DO UPDATE SET
  segment=excluded.segment, offset=excluded.offset, stored=excluded.stored, raw=excluded.raw, codec=excluded.codec,
  base=excluded.base, crc=excluded.crc
WHERE chunks.segment IN (SELECT id FROM going) OR (chunks.base != zeroblob(32) AND excluded.base = zeroblob(32))
"""
_MOVE_OBJECT: Final = """
INSERT INTO objects VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT(digest, kind) DO UPDATE SET
  segment=excluded.segment, offset=excluded.offset, stored=excluded.stored, raw=excluded.raw, codec=excluded.codec,
  crc=excluded.crc
WHERE objects.segment IN (SELECT id FROM going)
"""


class Index(IndexReading):
    """The index of an archive."""

    def segment_id(self, name: str) -> int:
        """The row number of a segment, made if it has none."""
        with self._guard():
            self._db.execute(
                "INSERT OR IGNORE INTO segments(name, end, size, mtime, sealed, crc) VALUES (?,0,0,0,0,?)",
                (name, zlib.crc32(name.encode())),
            )
            found: int = self._db.execute("SELECT id FROM segments WHERE name=?", (name,)).fetchone()[0]
        return found

    def add(
        self,
        states: Iterable[SegmentState],
        records: Iterable[tuple[str, FooterEntry]],
        touched: Iterable[tuple[bytes, int]] = (),
    ) -> None:
        """Takes in durable records (segment name, entry) and what is now known of their segments, in one transaction.

        Segments go by name here, not by row: the index may have been rebuilt since the records were written.

        Args:
            states: of the segments that hold the records.
            records: segment name, entry.
            touched: objects (digest, kind) that were put again and count as seen now.
        """
        states = list(states)
        rows = {state.name: self.segment_id(state.name) for state in states}
        chunks, objects = rows_of(rows, records)
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            self._touch(touched)
            self._db.executemany(_ADD_CHUNK, chunks)
            self._db.executemany("INSERT OR IGNORE INTO objects VALUES (?,?,?,?,?,?,?,?,?)", objects)
            self._db.executemany("DELETE FROM lost WHERE digest=? AND kind=0", [(row[0],) for row in chunks])
            self._db.executemany("DELETE FROM lost WHERE digest=? AND kind=?", [row[:2] for row in objects])
            self._set_states(states)
            self._db.execute("COMMIT")

    def _touch(self, objects: Iterable[tuple[bytes, int]]) -> None:
        at = now()
        self._db.executemany(
            "UPDATE objects SET seen=max(seen, ?) WHERE digest=? AND kind=?",
            [(at, digest, kind) for digest, kind in objects],
        )

    def replace(
        self,
        gone: Iterable[str],
        states: Iterable[SegmentState],
        records: Iterable[tuple[str, FooterEntry]],
    ) -> None:
        """Forgets segments and takes in those that came for them, in one transaction that is durable when this returns.

        What was known of a record that moved stays known, such as when its object was seen.
        """
        states = list(states)
        rows = {state.name: self.segment_id(state.name) for state in states}
        chunks, objects = rows_of(rows, records)
        with self._guard():
            self._db.execute("PRAGMA synchronous=FULL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._mark_going(gone)
                self._db.executemany(_MOVE_CHUNK, chunks)
                self._db.executemany(_MOVE_OBJECT, objects)
                for table in ("chunks", "objects"):
                    self._db.execute(f"DELETE FROM {table} WHERE segment IN (SELECT id FROM going)")  # noqa: S608
                self._db.execute("DELETE FROM segments WHERE id IN (SELECT id FROM going)")
                self._db.executemany("DELETE FROM lost WHERE digest=? AND kind=0", [(row[0],) for row in chunks])
                self._db.executemany("DELETE FROM lost WHERE digest=? AND kind=?", [row[:2] for row in objects])
                self._set_states(states)
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._db.execute("PRAGMA synchronous=NORMAL")

    def _mark_going(self, names: Iterable[str]) -> None:
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS going(id INTEGER PRIMARY KEY)")
        self._db.execute("DELETE FROM going")
        self._db.executemany(
            "INSERT OR IGNORE INTO going SELECT id FROM segments WHERE name=?", [(name,) for name in names]
        )

    def _set_states(self, states: Iterable[SegmentState]) -> None:
        self._db.executemany(
            "UPDATE segments SET end=max(end, ?), size=?, mtime=?, sealed=max(sealed, ?) WHERE name=?",
            [(state.end, state.size, state.mtime, int(state.sealed), state.name) for state in states],
        )

    def forget(self, names: Iterable[str]) -> None:
        """Forgets segments that were taken away on purpose, and what they held."""
        self.replace(names, (), ())

    def forgive(self, needed: Callable[[bytes], bool]) -> None:
        """Strikes what nobody needs from the list of what is lost."""
        with self._guard():
            rows = self._db.execute("SELECT digest, kind FROM lost").fetchall()
            self._db.executemany(
                "DELETE FROM lost WHERE digest=? AND kind=?", [row for row in rows if not needed(row[0])]
            )

    def lose(self, segment: SegmentState, size: int) -> None:
        """Moves every record of a segment that lies beyond its present size to the list of what is lost."""
        beyond = f"segment=? AND offset + stored + {RECORD_HEADER_SIZE} > ?"
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            for table, kind in (("chunks", "0"), ("objects", "kind")):
                self._db.execute(
                    f"INSERT OR IGNORE INTO lost SELECT digest, {kind}, ?, offset FROM {table} WHERE {beyond}",  # noqa: S608
                    (segment.name, segment.id, size),
                )
                self._db.execute(f"DELETE FROM {table} WHERE {beyond}", (segment.id, size))  # noqa: S608
            ends = "SELECT offset + stored AS at FROM chunks WHERE segment=:id UNION ALL "
            ends += "SELECT offset + stored FROM objects WHERE segment=:id"
            self._db.execute(
                f"UPDATE segments SET size=:size, sealed=0, end=coalesce((SELECT max(at) FROM ({ends})) + :head, 0) "  # noqa: S608
                "WHERE id=:id",
                {"id": segment.id, "size": size, "head": RECORD_HEADER_SIZE},
            )
            self._db.execute("COMMIT")


def remove(path: Path) -> None:
    """Deletes an index with the files SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
