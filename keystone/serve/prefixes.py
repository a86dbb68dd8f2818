"""Beginnings that several prompts share are computed once.

A loop cache can only go back to a snapshot: its windows and saved rows are gone otherwise. Prompts are run in chunks
that end at multiples of one size, and a snapshot is kept at each, so any two prompts that begin alike share all whole
chunks of their common beginning. A prompt that starts from a snapshot computes exactly what it would have computed
alone: the same chunks, the same numbers.
"""

from collections import OrderedDict
from dataclasses import dataclass

from keystone.model import KeystoneCache

Variant = tuple[str, ...]
"""Which adapters are on, by name, in order; empty for the bare base. Keys and values depend on them."""


@dataclass
class _Held:
    variant: Variant
    ids: tuple[int, ...]
    cache: KeystoneCache
    nbytes: int


class PrefixStore:
    """Caches of prompts that were computed, the least recently used thrown out first.

    Args:
        budget: the most bytes to hold; 0 holds nothing.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._next = 0
        self.nbytes = 0

    def find(self, variant: Variant, ids: tuple[int, ...]) -> KeystoneCache | None:
        """A cache of its own that holds the longest known beginning of a prompt, or None.

        At least one token is left to compute: the logits after the prompt are not kept.
        """
        best: tuple[int, int] | None = None
        for key, held in self._held.items():
            if held.variant != variant:
                continue
            for length in reversed(held.cache.snapshots):
                if best is not None and length <= best[0]:
                    break
                if length < len(ids) and held.ids[:length] == ids[:length]:
                    best = (length, key)
                    break
        if best is None:
            return None
        self._held.move_to_end(best[1])
        return self._held[best[1]].cache.fork(best[0])

    def add(self, variant: Variant, ids: tuple[int, ...], cache: KeystoneCache) -> None:
        """Keep a prompt's cache, which nobody else changes from now on; beginnings of it that were held go."""
        if not cache.snapshots:
            return
        reach = cache.snapshots[-1]
        for key, held in list(self._held.items()):
            if held.variant == variant:
                mine = held.cache.snapshots[-1]
                if mine >= reach and held.ids[:reach] == ids[:reach]:
                    return
                if mine < reach and ids[:mine] == held.ids[:mine]:
                    self._drop(key)
        nbytes = cache.nbytes()
        if nbytes > self._budget:
            return
        self._held[self._next] = _Held(variant, ids, cache, nbytes)
        self._next += 1
        self.nbytes += nbytes
        while self.nbytes > self._budget:
            self._drop(next(iter(self._held)))

    def forget(self, variant: Variant) -> None:
        """Drop what a set of adapters left."""
        for key, held in list(self._held.items()):
            if held.variant == variant:
                self._drop(key)

    def _drop(self, key: int) -> None:
        self.nbytes -= self._held.pop(key).nbytes
