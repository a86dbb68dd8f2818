"""What to call what was found: names of pins and refs, and the places at which trees hold a blob."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Final

from csf_store.digest import Digest
from csf_store.search.links import FileAt, LinkSearch
from csf_store.search.query import Place, place_name

PLACES: Final = 4
"""How many places of a blob are told."""


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
        self._trees = links.trees(trees)
        self._ranks = {
            tree: (not self._labels.get(tree), self._labels.get(tree, ()), self._trees[tree]) for tree in trees
        }
        self._files: defaultdict[int, list[FileAt]] = defaultdict(list)
        for file in files:
            self._files[file.blob].append(file)

    def labels(self, number: int) -> tuple[str, ...]:
        """Names of pins and refs, in order."""
        return self._labels.get(number, ())

    def places(self, blob: int) -> tuple[tuple[Place, ...], int]:
        """The first places of a blob, named trees before others, and how many there are."""
        files = self._files.get(blob, [])
        first = sorted(files, key=self._rank)[:PLACES] if len(files) > 1 else files
        spelled = (Place(self._trees[file.tree], self.labels(file.tree), self._paths[file.path]) for file in first)
        return tuple(spelled), len(files)

    def _rank(self, file: FileAt) -> tuple[bool, tuple[str, ...], Digest, str]:
        return (*self._ranks[file.tree], self._paths[file.path])

    def name(self, number: int, *, blob: bool) -> str:
        """What ``Hit.name`` says, at less cost."""
        labels = self._labels.get(number)
        if labels:
            return labels[0]
        files = self._files.get(number) if blob else None
        if not files:
            return ""
        first = min(files, key=self._rank) if len(files) > 1 else files[0]
        return place_name(self.labels(first.tree), self._trees[first.tree], self._paths[first.path])
