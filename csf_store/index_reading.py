"""Half of an index: opening it, and everything that reads. ``Index`` adds what writes; they are one object to users.

Long lists are read through connections of their own, so that they neither hold up lookups nor see half of a change.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections.abc import Collection, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from csf_store.errors import StorageError
from csf_store.framing import ZERO_DIGEST
from csf_store.index_rows import (
    SCHEMA,
    SCHEMA_VERSION,
    IndexUnusableError,
    Location,
    Lost,
    Row,
    SegmentState,
    fits,
    is_digest,
)
from csf_store.sqlite_trouble import is_kept_out

_BUSY_SECONDS: Final = 60.0


class IndexReading:
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
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('archive', ?)", (self._archive,))
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        owner = self._db.execute("SELECT value FROM meta WHERE key='archive'").fetchone()
        if version != SCHEMA_VERSION or owner != (self._archive,):
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
                if is_kept_out(error):
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
        where = Location(*row, kind)
        if fits(digest, where, crc):
            return where
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
        digests, kinds = map(itemgetter(0), rows), map(itemgetter(1), rows)
        if not all(map(is_digest, digests)) or not {int}.issuperset(map(type, kinds)):
            raise IndexUnusableError("the digest or the kind of an object is damaged")
        return rows

    def chunk_digests(self) -> list[bytes]:
        """Every chunk, in order."""
        with self._guard():
            digests = [digest for (digest,) in self._db.execute("SELECT digest FROM chunks ORDER BY digest")]
        if not all(map(is_digest, digests)):
            raise IndexUnusableError("the digest of a chunk is damaged")
        return digests

    def segments(self) -> dict[str, SegmentState]:
        """Every segment the index knows, by name."""
        with self._guard():
            rows = self._db.execute("SELECT id, name, end, size, mtime, sealed, crc FROM segments").fetchall()
        for row in rows:
            numbers = (row[0], *row[2:])
            if not isinstance(row[1], str) or not {int}.issuperset(map(type, numbers)):
                raise IndexUnusableError("the row of a segment is damaged")
            if zlib.crc32(row[1].encode()) != row[6]:
                raise IndexUnusableError("the name of a segment is damaged")
        return {row[1]: SegmentState(row[0], row[1], row[2], row[3], row[4], bool(row[5])) for row in rows}

    def lost(self) -> list[Lost]:
        """What the segments no longer hold."""
        with self._guard():
            lost = [Lost(*row) for row in self._db.execute("SELECT digest, kind, segment, offset FROM lost")]
        if not all(is_digest(each.digest) and isinstance(each.segment, str) for each in lost):
            raise IndexUnusableError("the list of what is lost is damaged")
        return lost

    def chunk_rows(self, segments: Collection[int] | None = None) -> Iterator[Row]:
        """Every chunk (of some segment rows), as of now, by place. It reads through a connection of its own."""
        sql = f"SELECT segment, offset, stored, raw, codec, base, 0, digest, crc FROM chunks {_only(segments)}"  # noqa: S608
        for *where, digest, crc in self._stream(sql + " ORDER BY segment, offset"):
            place = Location(*where)
            if not fits(digest, place, crc):
                raise IndexUnusableError(f"the row of {digest!r} is damaged")
            yield Row(digest, place, 0)

    def object_rows(self, segments: Collection[int] | None = None) -> Iterator[Row]:
        """Every object (of some segment rows), as of now, by place. It reads through a connection of its own."""
        sql = f"SELECT segment, offset, stored, raw, codec, kind, digest, crc, seen FROM objects {_only(segments)}"  # noqa: S608
        for segment, offset, stored, raw, codec, kind, digest, crc, seen in self._stream(
            sql + " ORDER BY segment, offset"
        ):
            place = Location(segment, offset, stored, raw, codec, ZERO_DIGEST, kind)
            if not isinstance(seen, int) or not fits(digest, place, crc):
                raise IndexUnusableError(f"the row of {digest!r} is damaged")
            yield Row(digest, place, seen)

    def chunk_totals(self) -> list[tuple[int, bool, int, int, int]]:
        """Codec, whether they are differences, number, raw bytes and stored bytes of chunks, summed up by SQLite."""
        sql = "SELECT codec, base != zeroblob(32) AS d, count(*), total(raw), total(stored) FROM chunks GROUP BY 1, 2"
        return [(codec, bool(d), number, int(raw), int(stored)) for codec, d, number, raw, stored in self._stream(sql)]

    def object_totals(self, small: int) -> list[tuple[int, int, int, int, int]]:
        """Kind, number, raw bytes, stored bytes of objects, and raw bytes of those of at most ``small``."""
        # total() and not sum(), which fails where sizes that somebody forged add up to more than SQLite can hold.
        sql = "SELECT kind, count(*), total(raw), total(stored), total(iif(raw <= %d, raw, 0)) FROM objects GROUP BY 1"
        return [(kind, number, *map(int, sums)) for kind, number, *sums in self._stream(sql % int(small))]

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


def _only(segments: Collection[int] | None, how: str = "IN") -> str:
    return "WHERE 1" if segments is None else f"WHERE segment {how} ({','.join(str(int(row)) for row in segments)})"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
