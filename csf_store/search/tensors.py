"""The tensor side of a search: which blobs hold a tensor that meets all that is asked of tensors, and which one.

A layout is looked at once however many blobs share it, as numbers: the names that fit, the specs that fit. Content is
found the other way round, from its key to the blobs that hold it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from csf_store.search.catalogue_file import (
    KEY_BYTES,
    KEY_CRC,
    Catalogue,
    CatalogueUnusableError,
    check,
    checked,
    key_crc,
    shape_of,
    text_bytes,
    text_of,
)
from csf_store.search.patterns import NamePattern
from csf_store.search.query import MetadataPattern, Query, TensorHit

_HOLDERS: Final = f"""
SELECT min(position), max(position), group_concat(object), sum(crc IS NOT {KEY_CRC}) FROM keys WHERE key=?
"""  # noqa: S608
_BY_POSITION: Final = f"{_HOLDERS} GROUP BY position"
"""Slower, for keys that blobs hold at different positions."""


class Matched(NamedTuple):
    """Tensors of one blob that met the criteria: where in its layout, and the bytes of their data."""

    layout: int
    positions: tuple[int, ...]
    nbytes: int


class _Spec(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class _Layout(NamedTuple):
    names: tuple[int, ...]
    specs: tuple[int, ...]


class TensorSearch:
    """What a query asks of blobs, tried on one catalogue.

    Args:
        catalogue: where to look.
        query: what is asked.
        content: sets of content keys; the tensor must have a key of every set.
    """

    def __init__(self, catalogue: Catalogue, query: Query, content: Iterable[frozenset[bytes]]) -> None:
        self._catalogue = catalogue
        self._query = query
        self._specs = self._all_specs() if query.of_tensors else {}
        self._layouts: dict[int, _Layout] = {}
        self._fitting = self._fitting_layouts()
        self.layouts = set(self._fitting) if query.of_tensors else None
        """The layouts with tensors that fit; None where nothing is asked of tensors."""
        described = [self._having(pattern) for pattern in query.metadata]
        self.headers = set.intersection(*described) if described else None
        """The headers whose metadata fits; None where nothing is asked of it."""
        self._alike: dict[tuple[int, frozenset[int]], Matched | None] = {}
        held = [self.holding(keys) for keys in content]
        self.holders: dict[int, frozenset[int]] | None = None
        """Per blob the positions of the content asked for; None where no content is."""
        if held:
            first, *others = held
            self.holders = {
                blob: found
                for blob, positions in first.items()
                if (found := positions.intersection(*(other.get(blob, ()) for other in others)))
            }

    def _all_specs(self) -> dict[int, _Spec]:
        specs = {}
        for number, dtype, shape, nbytes in checked(self._catalogue.rows("SELECT * FROM specs")):
            specs[number] = _Spec(text_of(dtype), shape_of(shape), nbytes)
        return specs

    def _names(self, pattern: NamePattern) -> set[int]:
        fitting = set()
        for number, name, row_crc in self._catalogue.rows("SELECT id, name, crc FROM names"):
            if isinstance(name, bytes) and pattern.fits(text_of(name)):
                check(row_crc, number, name)
                fitting.add(number)
        return fitting

    def _spec_fits(self, spec: _Spec) -> bool:
        query = self._query
        return (
            (not query.dtypes or any(pattern.fits(spec.dtype) for pattern in query.dtypes))
            and (query.shape is None or query.shape.fits(spec.shape))
            and (query.tensor_size is None or query.tensor_size.fits(spec.nbytes))
        )

    def _fitting_layouts(self) -> dict[int, Matched]:
        """Per layout the positions whose name and spec fit; layouts without any are left out."""
        query = self._query
        if not query.of_tensors:
            return {}
        names = self._names(query.tensor) if query.tensor else None
        specs = {number for number, spec in self._specs.items() if self._spec_fits(spec)} if query.of_specs else None
        fitting = {}
        for number, _, pairs in checked(self._catalogue.rows("SELECT id, key, pairs, crc FROM layouts")):
            flat = struct.unpack(f"<{len(pairs) // 4}I", pairs)
            layout = _Layout(flat[0::2], flat[1::2])
            if names is not None and names.isdisjoint(layout.names):
                continue
            positions = tuple(
                position
                for position, (name, spec) in enumerate(zip(*layout, strict=True))
                if (names is None or name in names) and (specs is None or spec in specs)
            )
            if positions:
                self._layouts[number] = layout
                fitting[number] = self._matched(number, positions)
        return fitting

    def _having(self, pattern: MetadataPattern) -> set[int]:
        """The headers that have an entry of metadata."""
        having = set()
        key = text_bytes(pattern.key)
        for header, value, row_crc in self._catalogue.rows(
            "SELECT header, value, crc FROM metadata WHERE key=?", (key,)
        ):
            check(row_crc, header, key, value)
            if pattern.value is None or pattern.value.fits(text_of(value)):
                having.add(header)
        return having

    def holding(self, keys: frozenset[bytes]) -> dict[int, frozenset[int]]:
        """Per blob the positions of tensors that have one of these content keys.

        What blobs share they mostly share together: keys that the same blobs hold are taken as one.
        """
        together: dict[str, set[int]] = {}
        for key in keys:
            short = key[:KEY_BYTES]
            asked = (key_crc(short, 0, 0), short)
            rows = self._catalogue.rows(_HOLDERS, asked)
            if rows[0][0] != rows[0][1]:
                rows = self._catalogue.rows(_BY_POSITION, asked)
            for position, _, blobs, damaged in rows:
                if damaged:
                    raise CatalogueUnusableError("a row is damaged")
                if blobs is not None:
                    together.setdefault(blobs, set()).add(position)
        found: dict[int, frozenset[int]] = {}
        for blobs, positions in together.items():
            shared = frozenset(positions)
            for blob in map(int, blobs.split(",")):
                found[blob] = found[blob] | shared if blob in found else shared
        return found

    def match(self, blob: int, header: int | None, layout: int | None) -> Matched | None:
        """What of a blob meets the criteria, None if nothing does; no positions where nothing is asked of tensors."""
        if header is None or layout is None or (self.headers is not None and header not in self.headers):
            return None
        if self.layouts is None:
            return Matched(layout, (), 0)
        fitting = self._fitting.get(layout)
        if self.holders is None or fitting is None:
            return fitting
        held = self.holders.get(blob)
        if not held:
            return None
        if (layout, held) not in self._alike:
            positions = tuple(sorted(held.intersection(fitting.positions)))
            self._alike[layout, held] = self._matched(layout, positions) if positions else None
        return self._alike[layout, held]

    def _matched(self, layout: int, positions: tuple[int, ...]) -> Matched:
        specs = self._layouts[layout].specs
        return Matched(layout, positions, sum(self._specs[specs[position]].nbytes for position in positions))

    def spelled(self, matched: Matched) -> tuple[TensorHit, ...]:
        """Matched tensors by name, in the order of the file."""
        if not matched.positions:
            return ()
        layout = self._layouts[matched.layout]
        return tuple(
            TensorHit(self._name(layout.names[position]), *self._specs[layout.specs[position]])
            for position in matched.positions
        )

    def _name(self, number: int) -> str:
        ((name, row_crc),) = self._catalogue.rows("SELECT name, crc FROM names WHERE id=?", (number,))
        check(row_crc, number, name)
        return text_of(name)
