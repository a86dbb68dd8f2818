"""The link side of a search: what needs what, what is called what, and where trees hold a blob."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final, NamedTuple

from csf_store.digest import Digest
from csf_store.objects import Kind
from csf_store.search.catalogue_file import OBJECT_COLUMNS, Catalogue, check, checked, text_of
from csf_store.search.catalogue_intake import NO_PATH
from csf_store.search.patterns import NamePattern

_FEW: Final = 1000


class FileAt(NamedTuple):
    """A tree's file: which blob, which tree, which path, as numbers of the catalogue."""

    blob: int
    tree: int
    path: int


class LinkSearch:
    """Links and labels of one catalogue. What is gone neither needs nor names anything any more."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._present = set(map(itemgetter(0), catalogue.rows("SELECT id FROM objects")))

    def number(self, digest: bytes) -> int | None:
        """The number of a digest that is there."""
        rows = self._catalogue.rows("SELECT id FROM digests WHERE digest=?", (digest,))
        return int(rows[0][0]) if rows and rows[0][0] in self._present else None

    # -- what needs what ---------------------------------------------------------------------------------------------

    def above(self, numbers: Iterable[int]) -> set[int]:
        """What needs these, however far below; these themselves only if something of them needs them."""
        return self._closure(numbers, "target", lambda link: link.tree)

    def below(self, numbers: Iterable[int]) -> set[int]:
        """What these need, however far below, and these themselves."""
        roots = self._present.intersection(numbers)
        return roots | self._closure(roots, "object", lambda link: link.blob)

    def _closure(self, numbers: Iterable[int], column: str, end: Callable[[FileAt], int]) -> set[int]:
        found: set[int] = set()
        frontier = set(numbers)
        while frontier:
            ends = {end(link) for link in self._links(column, frontier)}
            frontier = (ends & self._present) - found
            found |= frontier
        return found

    # -- files of trees ----------------------------------------------------------------------------------------------

    def files(self, pattern: NamePattern, blobs: set[int] | None, trees: set[int] | None) -> list[FileAt]:
        """The files of trees at paths that fit: of these blobs and in these trees, or of and in any."""
        fitting = set()
        for number, path, row_crc in self._catalogue.rows("SELECT id, path, crc FROM paths"):
            if isinstance(path, bytes) and pattern.fits(text_of(path)):
                check(row_crc, number, path)
                fitting.add(number)
        if trees is not None and len(trees) <= _FEW:
            links = self._links("object", trees)
        elif blobs is not None and len(blobs) <= _FEW:
            links = self._links("target", blobs)
        else:
            links = self._links("path", fitting)
        return [
            link
            for link in links
            if link.path in fitting and (trees is None or link.tree in trees) and (blobs is None or link.blob in blobs)
        ]

    def files_of(self, blobs: set[int]) -> list[FileAt]:
        """Where trees hold these blobs."""
        return [link for link in self._links("target", blobs) if link.path != NO_PATH]

    def _links(self, column: str, numbers: set[int]) -> list[FileAt]:
        rows = checked(self._catalogue.among("target, object, path, crc", "links", column, numbers))
        return [link for link in map(FileAt._make, rows) if link.tree in self._present]

    def paths(self, numbers: set[int]) -> dict[int, str]:
        """Paths spelled out."""
        rows = checked(self._catalogue.among("id, path, crc", "paths", "id", numbers))
        return {number: text_of(path) for number, path in rows}

    def trees(self, numbers: set[int]) -> dict[int, Digest]:
        """The digests of trees."""
        rows = checked(self._catalogue.among(OBJECT_COLUMNS, "objects", "id", numbers))
        return {row[0]: Digest(row[6]) for row in rows if row[1] == Kind.TREE.number}

    # -- names -------------------------------------------------------------------------------------------------------

    def labelled(self, pattern: NamePattern, source: int) -> set[int]:
        """What a pin or a ref of a fitting name names."""
        rows = self._catalogue.rows("SELECT digest, name, crc FROM labels WHERE source=?", (source,))
        found = set()
        for number, name, row_crc in rows:
            if isinstance(name, bytes) and pattern.fits(text_of(name)):
                check(row_crc, number, source, name)
                found.add(number)
        return found

    def labels(self, numbers: set[int]) -> dict[int, tuple[str, ...]]:
        """The names of pins and refs, each in order and once."""
        found: dict[int, set[str]] = {}
        rows = checked(self._catalogue.among("digest, source, name, crc", "labels", "digest", numbers))
        for number, _, name in rows:
            found.setdefault(number, set()).add(text_of(name))
        return {number: tuple(sorted(names)) for number, names in found.items()}
