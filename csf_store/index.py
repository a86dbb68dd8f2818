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

import contextlib
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from csf_store.digest import DIGEST_SIZE
from csf_store.errors import StorageError
from csf_store.framing import RECORD_HEADER_SIZE, ZERO_DIGEST, FooterEntry, RecordType

_SCHEMA_VERSION: Final = 3
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
    """Where a record is.

    Attributes:
        segment: row of its segment.
        offset: of the record header.
        stored: bytes of the payload.
        raw: bytes it decodes to.
        codec: how it is encoded.
        base: the chunk it is a difference to; zeros without one.
        kind: number of the object's kind; 0 for a chunk.
    """

    segment: int
    offset: int
    stored: int
    raw: int
    codec: int
    base: bytes = ZERO_DIGEST
    kind: int = 0

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


class Row(NamedTuple):
    """A row of the chunks or of the objects, checked. ``seen`` is 0 for a chunk."""

    digest: bytes
    where: Location
    seen: int


def _crc(digest: bytes, where: Location) -> int:
    return zlib.crc32(_CRC.pack(digest, where.kind, *where[:6]))


class Index:
    """One open connection. Safe to use from several threads; several processes may hold one each."""

    def __init__(self, path: Path, archive_id: bytes) -> None:
        self._lock = threading.RLock()
        self._path = path
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
                self._identity = _identity(path)
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

    def is_current(self) -> bool:
        """Whether the file at its path is still the one that is open: it may have been deleted or replaced."""
        return self._identity is not None and _identity(self._path) == self._identity

    def chunk(self, digest: bytes) -> Location | None:
        """Where a chunk is."""
        with self._guard():
            row = self._db.execute(
                "SELECT segment, offset, stored, raw, codec, base, crc FROM chunks WHERE digest=?", (digest,)
            ).fetchone()
        return self._checked(digest, 0, row[:6], row[6]) if row else None

    def object(self, digest: bytes, kind: int) -> Location | None:
        """Where an object of that kind is."""
        with self._guard():
            row = self._db.execute(
                "SELECT segment, offset, stored, raw, codec, ?, crc FROM objects WHERE digest=? AND kind=?",
                (ZERO_DIGEST, digest, kind),
            ).fetchone()
        return self._checked(digest, kind, row[:6], row[6]) if row else None

    def _checked(self, digest: bytes, kind: int, row: tuple[int, int, int, int, int, bytes], crc: int) -> Location:
        try:
            where = Location(*row, kind)
            if _crc(digest, where) == crc:
                return where
        except (TypeError, struct.error):
            pass
        raise IndexUnusableError(f"the row of {digest!r} is damaged")

    def kinds(self, digest: bytes) -> list[int]:
        """As which kinds a digest is known."""
        with self._guard():
            rows = self._db.execute("SELECT kind FROM objects WHERE digest=? ORDER BY kind", (digest,)).fetchall()
        return [kind for (kind,) in rows]

    def objects(self, first: bytes = b"", last: bytes | None = None, limit: int = -1) -> list[tuple[bytes, int]]:
        """Digest and kind of the objects between two digests (inclusive), in order."""
        with self._guard():
            rows = self._db.execute(
                "SELECT digest, kind FROM objects WHERE digest >= ? AND digest <= ? ORDER BY digest, kind LIMIT ?",
                (first, last if last is not None else b"\xff" * 33, limit),
            ).fetchall()
        if not all(_is_digest(digest) and isinstance(kind, int) for digest, kind in rows):
            raise IndexUnusableError("the digest or the kind of an object is damaged")
        return rows

    def chunk_digests(self) -> list[bytes]:
        """Every chunk, in order."""
        with self._guard():
            digests = [digest for (digest,) in self._db.execute("SELECT digest FROM chunks ORDER BY digest")]
        if not all(map(_is_digest, digests)):
            raise IndexUnusableError("the digest of a chunk is damaged")
        return digests

    def segments(self) -> dict[str, SegmentState]:
        """Every segment the index knows, by name."""
        with self._guard():
            rows = self._db.execute("SELECT id, name, end, size, mtime, sealed, crc FROM segments").fetchall()
        for row in rows:
            numbers = (row[0], *row[2:])
            if not isinstance(row[1], str) or not all(isinstance(number, int) for number in numbers):
                raise IndexUnusableError("the row of a segment is damaged")
            if zlib.crc32(row[1].encode()) != row[6]:
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
        chunks, objects = _rows(rows, records)
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
        now = _now()
        self._db.executemany(
            "UPDATE objects SET seen=max(seen, ?) WHERE digest=? AND kind=?",
            [(now, digest, kind) for digest, kind in objects],
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
        chunks, objects = _rows(rows, records)
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

    def chunk_rows(self, segments: Collection[int] | None = None) -> Iterator[Row]:
        """Every chunk (of some segment rows), as of now, by place. It reads through a connection of its own."""
        sql = f"SELECT digest, segment, offset, stored, raw, codec, base, crc FROM chunks {_only(segments)}"  # noqa: S608
        for row in self._stream(sql + " ORDER BY segment, offset"):
            yield Row(row[0], self._checked(row[0], 0, row[1:7], row[7]), 0)

    def object_rows(self, segments: Collection[int] | None = None) -> Iterator[Row]:
        """Every object (of some segment rows), as of now, by place. It reads through a connection of its own."""
        sql = f"SELECT digest, kind, segment, offset, stored, raw, codec, crc, seen FROM objects {_only(segments)}"  # noqa: S608
        for row in self._stream(sql + " ORDER BY segment, offset"):
            where = self._checked(row[0], row[1], (*row[2:7], ZERO_DIGEST), row[7])
            if not isinstance(row[8], int):
                raise IndexUnusableError(f"the row of {row[0].hex()} is damaged")
            yield Row(row[0], where, row[8])

    def bases(self, outside: Collection[int]) -> set[bytes]:
        """The bases of all differences that are not in these segment rows."""
        sql = f"SELECT DISTINCT base FROM chunks {_only(outside, 'NOT IN')} AND base != zeroblob(32)"  # noqa: S608
        return {base for (base,) in self._stream(sql)}

    def _stream(self, sql: str) -> Iterator[Any]:
        try:
            db = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise IndexUnusableError(str(error)) from error
        try:
            yield from db.execute(sql)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise IndexUnusableError(str(error)) from error
        finally:
            db.close()

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
            lost = [Lost(*row) for row in self._db.execute("SELECT digest, kind, segment, offset FROM lost")]
        if not all(_is_digest(each.digest) and isinstance(each.segment, str) for each in lost):
            raise IndexUnusableError("the list of what is lost is damaged")
        return lost


def _is_digest(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == DIGEST_SIZE


def _now() -> int:
    return time.time_ns() // 1000


def _only(segments: Collection[int] | None, how: str = "IN") -> str:
    return "WHERE 1" if segments is None else f"WHERE segment {how} ({','.join(str(int(row)) for row in segments)})"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _rows(rows: Mapping[str, int], records: Iterable[tuple[str, FooterEntry]]) -> tuple[list[Any], list[Any]]:
    """Rows of the chunks and of the objects table."""
    chunks, objects, now = [], [], _now()
    for name, entry in records:
        kind = 0 if entry.type == RecordType.CHUNK else entry.kind
        where = Location(rows[name], entry.offset, entry.stored_length, entry.raw_length, entry.codec, entry.base, kind)
        crc = _crc(entry.digest, where)
        if entry.type == RecordType.CHUNK:
            chunks.append((entry.digest, *where[:6], crc))
        else:
            objects.append((entry.digest, kind, *where[:5], crc, now))
    return chunks, objects


def remove(path: Path) -> None:
    """Deletes an index with the files SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
