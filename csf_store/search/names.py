"""What to call what was found: names of pins and refs, and the places at which trees hold a blob."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Final, NamedTuple

from csf_store.digest import Digest
from csf_store.search.links import FileAt, LinkSearch
from csf_store.search.query import Place, place_name

PLACES: Final = 4
"""How many places of a blob are told."""


class _Tree(NamedTuple):
    """A tree as places tell it: its digest, its labels, and what its paths are put after."""

    digest: Digest
    labels: tuple[str, ...]
    prefix: str


class Names:
    """Labels and places of some objects. Places are spelled out when they are asked for.

    Args:
        links: where to look.
        numbers: the objects.
        files: the places of those that are blobs.
    """

    def __init__(self, links: LinkSearch, numbers: Collection[int], files: list[FileAt]) -> None:
        trees = {file.tree for file in files}
        self._labels = links.labels(trees.union(numbers))
        self._paths = links.paths({file.path for file in files})
        self._trees = {
            tree: _Tree(digest, labels := self._labels.get(tree, ()), place_name(labels, digest, ""))
            for tree, digest in links.trees(trees).items()
        }
        self._files: dict[int, FileAt] = {}
        self._more: defaultdict[int, list[FileAt]] = defaultdict(list)
        for file in files:
            if self._files.setdefault(file.blob, file) is not file:
                self._more[file.blob].append(file)

    def labels(self, number: int) -> tuple[str, ...]:
        """Names of pins and refs, in order."""
        return self._labels.get(number, ())

    def places(self, blob: int) -> tuple[tuple[Place, ...], int]:
        """The first places of a blob, named trees before others, and how many there are."""
        file = self._files.get(blob)
        if file is None:
            return (), 0
        if blob not in self._more:
            return (self._place(file),), 1
        files = sorted([file, *self._more[blob]], key=self._rank)
        return tuple(map(self._place, files[:PLACES])), len(files)

    def name(self, number: int, *, blob: bool) -> str:
        """What ``Hit.name`` says, at less cost."""
        labels = self._labels.get(number)
        if labels:
            return labels[0]
        file = self._files.get(number) if blob else None
        if file is None:
            return ""
        if number in self._more:
            file = min([file, *self._more[number]], key=self._rank)
        return self._trees[file.tree].prefix + self._paths[file.path]

    def _place(self, file: FileAt) -> Place:
        tree = self._trees[file.tree]
        return Place(tree.digest, tree.labels, self._paths[file.path])

    def _rank(self, file: FileAt) -> tuple[bool, tuple[str, ...], Digest, str]:
        tree = self._trees[file.tree]
        return (not tree.labels, tree.labels, tree.digest, self._paths[file.path])
