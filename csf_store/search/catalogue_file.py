"""The catalogue's file: what the archive holds, arranged for finding. A cache in SQLite, never the truth.

What repeats is kept once. Checkpoints of one model share tensor names, specs (dtype and shape) and whole **layouts**
(which tensors, in which order): a blob's row names a header, the header's row a layout, and the layout lists pairs of
name and spec. A name pattern is therefore tried on the distinct names alone. What can not repeat is small: one row of
about 28 bytes per tensor leads from the first half of its content key to its blob.

Every row carries a CRC of itself, as in the index, because SQLite does not notice a flipped bit. A row that does not
fit it, a file that SQLite can not read, another archive's and another version's are all one: unusable. So a damaged
catalogue may overlook something, but never says what is not so. The numbers of digests have no CRC of their own: an
object's row covers its digest too.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from operator import itemgetter, ne
from pathlib import Path
from typing import Any, Final, TypeAlias

from csf_store.sqlite_trouble import is_storage_trouble

KEY_BYTES: Final = 16
"""Bytes kept of a content key or a chunk digest."""
OBJECT_COLUMNS: Final = "id, kind, size, aligned, header, layout, digest, crc"
"""Of the table of objects; the CRC is of those before it."""
_LISTED: Final = 1000
"""Up to this many rows are looked up one by one; for more, a table is read through."""
_VERSION: Final = 2
_MARSHAL: Final = 2  # fast, and the same bytes for the same bytes and numbers (not for text, which may be interned)
_BUSY_SECONDS: Final = 60.0
_CACHE_KIB: Final = 64 << 10
_SCHEMA: Final = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE names(id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL);
CREATE TABLE specs(
  id INTEGER PRIMARY KEY, dtype BLOB NOT NULL, shape BLOB NOT NULL, nbytes INTEGER NOT NULL, crc INTEGER NOT NULL,
  UNIQUE(dtype, shape));
CREATE TABLE layouts(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, pairs BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE headers(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL);
CREATE TABLE metadata(
  header INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, crc INTEGER NOT NULL,
  PRIMARY KEY(key, header)) WITHOUT ROWID;
CREATE TABLE digests(id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE);
CREATE TABLE objects(
  id INTEGER NOT NULL, kind INTEGER NOT NULL, size INTEGER NOT NULL, aligned INTEGER NOT NULL, header INTEGER,
  layout INTEGER, digest BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY(id, kind)) WITHOUT ROWID;
CREATE INDEX objects_by_header ON objects(header);
CREATE TABLE keys(
  key BLOB NOT NULL, object INTEGER NOT NULL, position INTEGER NOT NULL, crc INTEGER NOT NULL,
  PRIMARY KEY(key, object, position)) WITHOUT ROWID;
CREATE TABLE chunks(
  key BLOB NOT NULL, object INTEGER NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY(key, object)) WITHOUT ROWID;
CREATE TABLE paths(id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL);
CREATE TABLE links(
  target INTEGER NOT NULL, object INTEGER NOT NULL, path INTEGER NOT NULL, crc INTEGER NOT NULL,
  PRIMARY KEY(target, object, path)) WITHOUT ROWID;
CREATE INDEX links_by_object ON links(object);
CREATE INDEX links_by_path ON links(path);
CREATE TABLE labels(
  digest INTEGER NOT NULL, source INTEGER NOT NULL, name BLOB NOT NULL, crc INTEGER NOT NULL,
  PRIMARY KEY(digest, source, name)) WITHOUT ROWID;
"""

_OBJECT_FACTOR: Final = 2654435761
_POSITION_FACTOR: Final = 2246822519
KEY_CRC: Final = f"((? + object * {_OBJECT_FACTOR} + position * {_POSITION_FACTOR}) & {0xFFFFFFFF})"
"""``key_crc`` of a row of keys, for SQLite; its parameter is ``key_crc(key, 0, 0)``."""

_Value: TypeAlias = bytes | int | str | None
_VALUES: Final = itemgetter(slice(-1))
_LAST: Final = itemgetter(-1)


class CatalogueUnusableError(Exception):
    """The catalogue is damaged, or another archive's or version's: throw it away and build it again.

    ``inode`` says which file it was: somebody else may have built another meanwhile.
    """

    inode: int = 0


class CatalogueUnwritableError(Exception):
    """There is no writing where the catalogue should be: do without the file."""


def crc(*values: bytes | int | None) -> int:
    """What a row of these values carries to be told from a damaged one."""
    return zlib.crc32(marshal.dumps(values, _MARSHAL))


def check(row_crc: int, *values: bytes | int | None) -> None:
    """Compares a row with its CRC.

    Raises:
        CatalogueUnusableError: if it is damaged.
    """
    if zlib.crc32(marshal.dumps(values, _MARSHAL)) != row_crc:
        raise CatalogueUnusableError("a row is damaged")


def checked(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows whose last column is the CRC of the others, without it. Every row of every answer comes this way.

    Raises:
        CatalogueUnusableError: if one is damaged.
    """
    rows = list(rows)
    found = list(map(_VALUES, rows))
    if any(map(ne, map(zlib.crc32, map(marshal.dumps, found, repeat(_MARSHAL))), map(_LAST, rows))):
        raise CatalogueUnusableError("a row is damaged")
    return found


def key_crc(key: bytes, number: int, position: int) -> int:
    """What a row of keys carries instead; SQLite itself checks it (``KEY_CRC``), as such rows come in great numbers.

    The factors are odd: another object or another position alone never has the same check.
    """
    return (zlib.crc32(key) + number * _OBJECT_FACTOR + position * _POSITION_FACTOR) & 0xFFFFFFFF


def text_bytes(text: str) -> bytes:
    """A name as it is kept. Names in headers may be what no UTF-8 text holds, such as half a surrogate pair."""
    return text.encode("utf-8", "surrogatepass")


def text_of(data: bytes) -> str:
    """A name as it was."""
    return data.decode("utf-8", "surrogatepass")


def shape_bytes(shape: tuple[int, ...]) -> bytes:
    """A shape as it is kept; empty for a scalar."""
    return b"x".join(b"%d" % dimension for dimension in shape)


def shape_of(data: bytes) -> tuple[int, ...]:
    """A shape as it was."""
    return tuple(map(int, data.split(b"x"))) if data else ()


class Catalogue:
    """One open connection, for one thread. Without a path it is in memory."""

    def __init__(self, path: Path | None, archive_id: bytes) -> None:
        self._archive = archive_id.hex()
        with _sqlite_errors():
            self._db = sqlite3.connect(path or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            with _sqlite_errors():
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        if self.rows("PRAGMA user_version") == [(0,)]:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    self.run(statement)
                self.run("INSERT INTO meta VALUES ('archive', ?)", (self._archive,))
                self.run(f"PRAGMA user_version={_VERSION}")
        version, owner = self.rows("PRAGMA user_version"), self.meta("archive")
        if version != [(_VERSION,)] or owner != self._archive:
            raise CatalogueUnusableError(f"it belongs to archive {owner}, version {version}")

    def rows(self, sql: str, values: Sequence[_Value] = ()) -> list[tuple[Any, ...]]:
        """All rows a statement gives."""
        with _sqlite_errors():
            return self._db.execute(sql, values).fetchall()

    def among(
        self,
        columns: str,
        table: str,
        column: str,
        numbers: set[int],
        *,
        where: str = "1",
        values: Sequence[_Value] = (),
    ) -> list[tuple[Any, ...]]:
        """The rows of a table whose column, one of those selected, holds one of these numbers."""
        query = f"SELECT {columns} FROM {table} WHERE {where}"  # noqa: S608
        if len(numbers) <= _LISTED:
            query = f"{query} AND {column} IN (SELECT value FROM json_each(?))"  # noqa: S608
            return self.rows(query, (*values, json.dumps(list(numbers))))
        place = columns.split(", ").index(column)
        return [row for row in self.rows(query, values) if row[place] in numbers]

    def run(self, sql: str, values: Sequence[_Value] = ()) -> int:
        """Runs a statement; returns the number of the row it inserted, if it did."""
        with _sqlite_errors():
            return self._db.execute(sql, values).lastrowid or 0

    def run_many(self, sql: str, values: Sequence[Sequence[_Value]]) -> None:
        """Runs a statement once for each row of values."""
        with _sqlite_errors():
            self._db.executemany(sql, values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            raise

    def meta(self, key: str) -> str | None:
        """A value kept under a key."""
        found = self.rows("SELECT value FROM meta WHERE key=?", (key,))
        return str(found[0][0]) if found else None

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()


@contextlib.contextmanager
def _sqlite_errors() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        if is_storage_trouble(error):
            raise CatalogueUnwritableError(str(error)) from error
        raise CatalogueUnusableError(str(error)) from error
