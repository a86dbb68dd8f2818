"""Seeded choices that come out the same on every Python.

`random.Random` promises a stable `getrandbits`, and nothing about `choice` or `shuffle`. Everything here is built on
that one call, so that a seed names the same tasks on Python 3.11, 3.12, 3.13 and later. Seeds are derived by hashing,
so neighbouring seeds are unrelated and one draw never depends on how many choices another one made.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from blake3 import blake3

T = TypeVar("T")


class Dice:
    """A stream of choices named by `path`, for instance `Dice("basics", 7, "list_filter", 12)`."""

    def __init__(self, *path: str | int) -> None:
        text = "\x1f".join(f"{type(part).__name__}:{part}" for part in path)
        seed = int.from_bytes(blake3(text.encode()).digest(), "big")
        self._bits = random.Random(seed).getrandbits  # noqa: S311 - not a secret

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound), by rejection."""
        width = bound.bit_length()
        value = self._bits(width)
        while value >= bound:
            value = self._bits(width)
        return value

    def between(self, low: int, high: int) -> int:
        """A uniform integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, uniformly."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different positions of `options`, in random order."""
        pool = list(options)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]
