"""The tables of the ledger's cache: the connection, the head, and how a change of them is made or dropped."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from blake3 import blake3

from csf_store.ledger.cache_errors import CacheDamagedError, translated
from csf_store.ledger.head import EMPTY_HEAD, LedgerHead
from csf_store.ledger.merkle import HASH_SIZE, Frontier

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
Row: TypeAlias = tuple[int | str | bytes | None, ...]
"""Columns, the last of which is the checksum of the others."""


class Totals(NamedTuple):
    """Count and sum of checksums of all pins and all refs."""

    pins: int = 0
    pins_sum: int = 0
    refs: int = 0
    refs_sum: int = 0


class LedgerTables:
    """One open connection; the caller sees to it that one thread uses it at a time.

    Args:
        path: its file; None for tables in memory.
        archive: the archive's id in hex.
    """

    def __init__(self, path: Path | None, archive: str) -> None:
        self.path = path
        self._key = blake3(f"csf ledger cache {archive}".encode()).digest()
        self._working: tuple[LedgerHead, Totals] | None = None
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

    def _stored(self) -> tuple[LedgerHead, int, Totals]:
        with translated():
            row = self._db.execute(
                "SELECT size, start, end, leaf, time, subtrees, mtime, pins, pins_sum, refs, refs_sum, checksum "
                "FROM head"
            ).fetchone()
        if row is None:
            return EMPTY_HEAD, 0, Totals()
        if self._checksum("head", *row[:-1]) != row[-1]:
            raise CacheDamagedError("its head does not fit its checksum")
        size, start, end, leaf, time, subtrees, mtime, *totals = row[:-1]
        hashes = tuple(subtrees[at : at + HASH_SIZE] for at in range(0, len(subtrees), HASH_SIZE))
        try:
            Frontier(size, hashes)
        except ValueError as error:
            raise CacheDamagedError(str(error)) from error
        return LedgerHead(size, start, end, leaf, time, hashes), mtime, Totals(*totals)

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

    def _change(self) -> tuple[LedgerHead, Totals]:
        if self._working is None:
            raise CacheDamagedError("no change was begun")
        return self._working

    def clear(self) -> None:
        """Within a change: forgets everything but what was lost."""
        with translated():
            for table in ("lines", "nodes", "pins", "moves", "refs"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
        self._working = EMPTY_HEAD, Totals()

    # -- checking ----------------------------------------------------------------------------------------------------

    def _checked(self, what: str, row: Row) -> None:
        if self._checksum(what, *row[:-1]) != row[-1]:
            raise CacheDamagedError(f"the row of a {what} does not fit its checksum")

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[tuple[LedgerHead, Totals]]:
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

    def _complete(self, what: str, rows: Sequence[Row], count: int, total: int) -> None:
        if (len(rows), add_up(rows, 0)) != (count, total):
            raise CacheDamagedError(f"it holds {len(rows)} rows of a {what}, and not the {count} it should")


def add_up(rows: Sequence[Row], start: int) -> int:
    """The checksums in the last column added to ``start``, without carry; adding one again takes it away."""
    for row in rows:
        start ^= row[-1] if isinstance(row[-1], int) else 0
    return start
