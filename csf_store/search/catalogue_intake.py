"""Bringing the catalogue up to date: one pass over what the index lists, and a look at what is new in it.

Objects are taken in by batches, each a transaction, so that a pass that is cut short is not lost. An object that is
damaged is left out and looked at again the next time, because a repair may bring it back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from csf_store.digest import Digest
from csf_store.errors import CorruptError, NotFoundError
from csf_store.objects import Kind
from csf_store.safetensors_layout import TensorInfo
from csf_store.search.catalogue_file import (
    KEY_BYTES,
    Catalogue,
    CatalogueUnusableError,
    crc,
    key_crc,
    shape_bytes,
    text_bytes,
)
from csf_store.search.facts import Header, ObjectFacts, Observer

if TYPE_CHECKING:
    from csf_store.archive import Archive

METADATA_LIMIT: Final = 64 << 10
"""Letters kept of a metadata value; some trainers put whole logs there."""
NO_PATH: Final = 0
PIN: Final = 1
REF: Final = 2
_BATCH: Final = 256
_REMEMBERED: Final = 500_000
_MANY: Final = 1000


def catch_up(catalogue: Catalogue, archive: Archive, progress: Callable[[int], None] | None) -> tuple[Digest, ...]:
    """Takes in what is new, strikes out what is gone; returns the digests of what could not be looked at.

    Raises:
        CatalogueUnusableError: if the catalogue is damaged, or holds mostly what is gone.
        CorruptError: if the ledger is damaged.
    """
    listing = archive.listing()
    digests, kinds = map(itemgetter(0), listing), map(itemgetter(1), listing)
    stamp = blake3(b"".join(digests) + ",".join(kinds).encode())
    unreadable: list[Digest] = []
    if catalogue.meta("listing") != stamp.hexdigest():
        listed = {(digest, kind.number) for digest, kind in listing}
        known = catalogue.rows("SELECT digest, kind, id FROM objects")
        _forget(catalogue, [(row[2], row[1]) for row in known if row[:2] not in listed], len(listed))
        intake = _Intake(catalogue)
        fresh = sorted(listed.difference(row[:2] for row in known))
        facts = _look(Observer(archive), fresh, unreadable, progress)
        while batch := list(islice(facts, _BATCH)):
            intake.take(batch)
        if not unreadable:
            catalogue.run("INSERT OR REPLACE INTO meta VALUES ('listing', ?)", (stamp.hexdigest(),))
    _take_labels(catalogue, archive)
    return tuple(unreadable)


def _look(
    observer: Observer, fresh: list[tuple[bytes, int]], unreadable: list[Digest], progress: Callable[[int], None] | None
) -> Iterator[ObjectFacts]:
    for digest, number in fresh:
        try:
            yield observer.facts(digest, Kind.of(number))
        except NotFoundError:
            pass  # collected since it was listed
        except CorruptError:
            unreadable.append(Digest(digest))
        if progress:
            progress(1)


def _forget(catalogue: Catalogue, gone: list[tuple[int, int]], listed: int) -> None:
    """Strikes objects out. What else is known of their digests stays true, and serves if they come back."""
    if not gone:
        return
    forgotten = int(catalogue.meta("forgotten") or 0) + len(gone)
    if forgotten > max(listed, _MANY):
        raise CatalogueUnusableError("it holds mostly what is gone")
    with catalogue.transaction():
        catalogue.run_many("DELETE FROM objects WHERE id=? AND kind=?", gone)
        catalogue.run("INSERT OR REPLACE INTO meta VALUES ('forgotten', ?)", (str(forgotten),))


def _take_labels(catalogue: Catalogue, archive: Archive) -> None:
    """Copies pins and refs from the ledger, if it changed: it only grows, so size and time tell."""
    found = archive.fs.scan(archive.path).get(archive.ledger.path.name)
    stamp = f"{found.size} {found.mtime_ns}" if found else ""
    if catalogue.meta("ledger") == stamp:
        return
    labels = {(pin.digest, PIN, pin.name) for pin in archive.pins() if pin.name is not None}
    labels |= {(target, REF, ref) for ref, moves in archive.ledger.refs().items() if (target := moves[-1].target)}
    with catalogue.transaction():
        catalogue.run("DELETE FROM labels")
        digests = _Numbers(catalogue, "digests", "digest")
        rows = []
        for digest, source, name in labels:
            row = (digests.of(bytes(digest)), source, text_bytes(name))
            rows.append((*row, crc(*row)))
        catalogue.run_many("INSERT INTO labels VALUES (?,?,?,?)", rows)
        catalogue.run("INSERT OR REPLACE INTO meta VALUES ('ledger', ?)", (stamp,))


class _Numbers:
    """A table of distinct values: gives each its number, a new one to what is new. For the one who holds the lock.

    Args:
        catalogue: where the table is.
        table: its name.
        unique: the column, or the columns with commas, by which a value is found again; they come first.
        sealed: whether rows end in a CRC.
    """

    def __init__(self, catalogue: Catalogue, table: str, unique: str, *, sealed: bool = False) -> None:
        self._catalogue = catalogue
        self._table = table
        self._width = unique.count(",") + 1
        self._sealed = sealed
        self._find = f"SELECT id FROM {table} WHERE ({unique}) = ({','.join('?' * self._width)})"  # noqa: S608
        self._next = int(catalogue.rows(f"SELECT coalesce(max(id), 0) + 1 FROM {table}")[0][0])  # noqa: S608
        self._known: dict[tuple[bytes | int, ...], int] = {}

    def of(self, *values: bytes | int) -> int:
        """The number of a value, which is put in if it is new."""
        unique = values[: self._width]
        number = self._known.get(unique)
        if number is None:
            rows = self._catalogue.rows(self._find, unique)
            number = self._remember(unique, int(rows[0][0]) if rows else self._add(values))
        return number

    def _add(self, values: tuple[bytes | int, ...]) -> int:
        number = self._next
        row = (number, *values)
        full = (*row, crc(*row)) if self._sealed else row
        self._catalogue.run(f"INSERT INTO {self._table} VALUES ({','.join('?' * len(full))})", full)  # noqa: S608
        self._next += 1
        return number

    def _remember(self, unique: tuple[bytes | int, ...], number: int) -> int:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[unique] = number
        return number


class _Intake:
    """Writes facts into the catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._digests = _Numbers(catalogue, "digests", "digest")
        self._names = _Numbers(catalogue, "names", "name", sealed=True)
        self._specs = _Numbers(catalogue, "specs", "dtype, shape", sealed=True)
        self._layouts = _Numbers(catalogue, "layouts", "key", sealed=True)
        self._headers = _Numbers(catalogue, "headers", "key", sealed=True)
        self._paths = _Numbers(catalogue, "paths", "path", sealed=True)
        self._known: dict[bytes, tuple[int, int]] = {}

    def take(self, batch: list[ObjectFacts]) -> None:
        """Takes in a batch, or nothing of it."""
        objects, keys, links = [], [], []
        chunks: list[tuple[bytes | int, ...]] = []
        with self._catalogue.transaction():
            for facts in batch:
                number = self._digests.of(facts.digest)
                header, layout = self._header(facts.header) if facts.header else (None, None)
                row = (number, facts.kind.number, facts.size, int(facts.aligned), header, layout, facts.digest)
                objects.append((*row, crc(*row)))
                for position, key in enumerate(facts.keys):
                    short = key[:KEY_BYTES]
                    keys.append((short, number, position, key_crc(short, number, position)))
                chunks.extend(_sealed(chunk[:KEY_BYTES], number) for chunk in facts.chunks)
                for target, path in facts.links:
                    at = NO_PATH if path is None else self._paths.of(text_bytes(path))
                    links.append(_sealed(self._digests.of(target), number, at))
            # In the order of the keys, so that the tree grows page by page.
            self._catalogue.run_many("INSERT OR REPLACE INTO keys VALUES (?,?,?,?)", sorted(keys))
            self._catalogue.run_many("INSERT OR REPLACE INTO chunks VALUES (?,?,?)", sorted(chunks))
            self._catalogue.run_many("INSERT OR REPLACE INTO links VALUES (?,?,?,?)", links)
            self._catalogue.run_many("INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?,?,?,?)", objects)

    def _header(self, header: Header) -> tuple[int, int]:
        """The numbers of a header and of its layout."""
        known = self._known.get(header.key)
        if known is not None:
            return known
        pairs = [number for tensor in header.content.tensors.values() for number in self._pair(tensor)]
        packed = struct.pack(f"<{len(pairs)}I", *pairs)
        layout = self._layouts.of(blake3(packed).digest(), packed)
        number = self._headers.of(header.key)
        rows = [
            _sealed(number, text_bytes(key), text_bytes(value[:METADATA_LIMIT]))
            for key, value in header.content.metadata.items()
        ]
        self._catalogue.run_many("INSERT OR REPLACE INTO metadata VALUES (?,?,?,?)", rows)
        self._known[header.key] = number, layout
        return number, layout

    def _pair(self, tensor: TensorInfo) -> tuple[int, int]:
        spec = self._specs.of(tensor.dtype.encode(), shape_bytes(tensor.shape), tensor.nbytes)
        return self._names.of(text_bytes(tensor.name)), spec


def _sealed(*row: bytes | int) -> tuple[bytes | int, ...]:
    return (*row, crc(*row))
