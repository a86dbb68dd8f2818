"""The index: digest -> segment, offset, length. A cache in SQLite; deleting it at any time loses nothing.

Lookups go through B-trees, so opening costs the same with a million chunks as with ten. Every row carries a CRC of
itself, because SQLite does not notice a flipped bit. A row that does not fit its CRC, an index of another archive and
a file that SQLite can not read are all the same: ``IndexUnusableError``, and the store rebuilds it.

``lost`` remembers records that the index knew and the segments no longer hold, so that a segment cut short or removed
is reported instead of forgotten.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from csf_store.errors import StorageError
from csf_store.framing import RECORD_HEADER_SIZE, ZERO_DIGEST, FooterEntry, RecordType

_SCHEMA_VERSION: Final = 2
_BUSY_SECONDS: Final = 60.0
_SCHEMA: Final = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE segments(
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, end INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime INTEGER NOT NULL, sealed INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE chunks(
  digest BLOB PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL,
  raw INTEGER NOT NULL, codec INTEGER NOT NULL, base BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE objects(
  digest BLOB NOT NULL, kind INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
  stored INTEGER NOT NULL, raw INTEGER NOT NULL, codec INTEGER NOT NULL, crc INTEGER NOT NULL, seen INTEGER NOT NULL,
  PRIMARY KEY(digest, kind)) WITHOUT ROWID;
CREATE TABLE lost(
  digest BLOB NOT NULL, kind INTEGER NOT NULL, segment TEXT NOT NULL, offset INTEGER NOT NULL,
  PRIMARY KEY(digest, kind)) WITHOUT ROWID;
"""
_ADD_CHUNK: Final = """
INSERT INTO chunks VALUES (?,?,?,?,?,?,?,?) ON CONFLICT(digest) DO UPDATE SET
  segment=excluded.segment, offset=excluded.offset, stored=excluded.stored, raw=excluded.raw, codec=excluded.codec,
  base=excluded.base, crc=excluded.crc
WHERE chunks.base != zeroblob(32) AND excluded.base = zeroblob(32)
"""
"""The first record of a chunk is the one to know, but one that stands alone is better than a difference: others may be
differences to it, and a base must be no difference itself."""
_STORAGE_TROUBLE: Final = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_PERM",
)
_CRC: Final = struct.Struct("<32sBQQQQB32s")


class IndexUnusableError(Exception):
    """The index is damaged, or another archive's: throw it away and build it again."""


class Location(NamedTuple):
    """Where a record is: segment row, offset, stored and raw length, codec, and the chunk it is a difference to."""

    segment: int
    offset: int
    stored: int
    raw: int
    codec: int
    base: bytes = ZERO_DIGEST

    @property
    def is_difference(self) -> bool:
        """Whether another chunk is needed to decode it."""
        return self.base != ZERO_DIGEST


class SegmentState(NamedTuple):
    """What the index knows of a segment.

    Attributes:
        id: row number that locations refer to.
        name: file name.
        end: where the last indexed record ends.
        size: file size when last looked at.
        mtime: modification time (ns) when last looked at.
        sealed: whether it has its footer.
    """

    id: int
    name: str
    end: int
    size: int
    mtime: int
    sealed: bool


class Lost(NamedTuple):
    """A record the index knew that is in no segment any more. ``kind`` is 0 for a chunk."""

    digest: bytes
    kind: int
    segment: str
    offset: int


def _crc(digest: bytes, kind: int, where: Location) -> int:
    return zlib.crc32(_CRC.pack(digest, kind, *where))


class Index:
    """One open connection. Safe to use from several threads; several processes may hold one each."""

    def __init__(self, path: Path, archive_id: bytes) -> None:
        self._lock = threading.RLock()
        self._archive = archive_id.hex()
        try:
            self._db = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
            )
        except sqlite3.Error as error:
            raise IndexUnusableError(str(error)) from error
        try:
            with self._guard():
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
            self._db.execute("BEGIN IMMEDIATE")
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('archive', ?)", (self._archive,))
                self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        owner = self._db.execute("SELECT value FROM meta WHERE key='archive'").fetchone()
        if version != _SCHEMA_VERSION or owner != (self._archive,):
            raise IndexUnusableError(f"it belongs to archive {owner}, schema {version}")

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, UnicodeDecodeError) as error:
                with contextlib.suppress(sqlite3.Error):
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                if getattr(error, "sqlite_errorname", "").startswith(_STORAGE_TROUBLE):
                    raise StorageError(
                        f"the index can not be written ({error}); free space or check permissions, then try again"
                    ) from error
                raise IndexUnusableError(str(error)) from error

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._db.close()

    def chunk(self, digest: bytes) -> Location | None:
        """Where a chunk is."""
        with self._guard():
            row = self._db.execute(
                "SELECT segment, offset, stored, raw, codec, base, crc FROM chunks WHERE digest=?", (digest,)
            ).fetchone()
        return self._checked(digest, 0, row) if row else None

    def object(self, digest: bytes, kind: int) -> Location | None:
        """Where an object of that kind is."""
        with self._guard():
            row = self._db.execute(
                "SELECT segment, offset, stored, raw, codec, ?, crc FROM objects WHERE digest=? AND kind=?",
                (ZERO_DIGEST, digest, kind),
            ).fetchone()
        return self._checked(digest, kind, row) if row else None

    def _checked(self, digest: bytes, kind: int, row: tuple[int, int, int, int, int, bytes, int]) -> Location:
        try:
            where = Location(*row[:6])
            if _crc(digest, kind, where) == row[6]:
                return where
        except (TypeError, struct.error):
            pass
        raise IndexUnusableError(f"the row of {digest.hex()} is damaged")

    def kinds(self, digest: bytes) -> list[int]:
        """As which kinds a digest is known."""
        with self._guard():
            rows = self._db.execute("SELECT kind FROM objects WHERE digest=? ORDER BY kind", (digest,)).fetchall()
        return [kind for (kind,) in rows]

    def objects(self, first: bytes = b"", last: bytes | None = None, limit: int = -1) -> list[tuple[bytes, int]]:
        """Digest and kind of the objects between two digests (inclusive), in order."""
        with self._guard():
            return self._db.execute(
                "SELECT digest, kind FROM objects WHERE digest >= ? AND digest <= ? ORDER BY digest, kind LIMIT ?",
                (first, last if last is not None else b"\xff" * 33, limit),
            ).fetchall()

    def chunk_digests(self) -> list[bytes]:
        """Every chunk, in order."""
        with self._guard():
            return [digest for (digest,) in self._db.execute("SELECT digest FROM chunks ORDER BY digest")]

    def segments(self) -> dict[str, SegmentState]:
        """Every segment the index knows, by name."""
        with self._guard():
            rows = self._db.execute("SELECT id, name, end, size, mtime, sealed, crc FROM segments").fetchall()
            if any(zlib.crc32(row[1].encode()) != row[6] for row in rows):
                raise IndexUnusableError("the name of a segment is damaged")
        return {row[1]: SegmentState(row[0], row[1], row[2], row[3], row[4], bool(row[5])) for row in rows}

    def segment_id(self, name: str) -> int:
        """The row number of a segment, made if it has none."""
        with self._guard():
            self._db.execute(
                "INSERT OR IGNORE INTO segments(name, end, size, mtime, sealed, crc) VALUES (?,0,0,0,0,?)",
                (name, zlib.crc32(name.encode())),
            )
            found: int = self._db.execute("SELECT id FROM segments WHERE name=?", (name,)).fetchone()[0]
        return found

    def add(self, states: Iterable[SegmentState], records: Iterable[tuple[str, FooterEntry]]) -> None:
        """Takes in durable records (segment name, entry) and what is now known of their segments, in one transaction.

        Segments go by name here, not by row: the index may have been rebuilt since the records were written.
        """
        chunks, objects, now = [], [], int(time.time())
        states = list(states)
        rows = {state.name: self.segment_id(state.name) for state in states}
        for name, entry in records:
            where = Location(rows[name], entry.offset, entry.stored_length, entry.raw_length, entry.codec, entry.base)
            if entry.type == RecordType.CHUNK:
                chunks.append((entry.digest, *where, _crc(entry.digest, 0, where)))
            else:
                objects.append((entry.digest, entry.kind, *where[:5], _crc(entry.digest, entry.kind, where), now))
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(_ADD_CHUNK, chunks)
            self._db.executemany("INSERT OR IGNORE INTO objects VALUES (?,?,?,?,?,?,?,?,?)", objects)
            self._db.executemany("DELETE FROM lost WHERE digest=? AND kind=0", [(row[0],) for row in chunks])
            self._db.executemany("DELETE FROM lost WHERE digest=? AND kind=?", [row[:2] for row in objects])
            self._db.executemany(
                "UPDATE segments SET end=max(end, ?), size=?, mtime=?, sealed=max(sealed, ?) WHERE name=?",
                [(state.end, state.size, state.mtime, int(state.sealed), state.name) for state in states],
            )
            self._db.execute("COMMIT")

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

    def lost(self) -> list[Lost]:
        """What the segments no longer hold."""
        with self._guard():
            return [Lost(*row) for row in self._db.execute("SELECT digest, kind, segment, offset FROM lost")]


def remove(path: Path) -> None:
    """Deletes an index with the files SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
