"""Floats as integers in order, and small steps as small numbers: the arithmetic of differences.

A float's bits are a sign and a magnitude; flipping what lies below a set sign makes them a signed integer in the order
of the floats. Two floats that are near then have a small difference, even across a power of two or across zero.
``zigzag`` turns small steps either way into small numbers.

Each is a few passes of numpy over a block that stays in the cache, so none of them makes an array more than it must.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from csf_store.codecs.plane_choice import sample_of
from csf_store.codecs.planes import UNSIGNED

Values: TypeAlias = np.ndarray[Any, Any]
"""Signed or unsigned integers of the width of a value."""
Places = npt.NDArray[np.intp]

_SIGNED: Final = {width: np.dtype(f"<i{width}") for width in UNSIGNED}


class Layout(NamedTuple):
    """How wide a value is, bits below its exponent, bits of that, and low bits that are zero in all values."""

    width: int
    mantissa: int
    exponent: int
    shift: int = 0


LAYOUTS: Final[Mapping[str, Layout]] = {
    "F8_E4M3": Layout(1, 3, 4),
    "F8_E4M3FNUZ": Layout(1, 3, 4),
    "F8_E5M2": Layout(1, 2, 5),
    "F8_E5M2FNUZ": Layout(1, 2, 5),
    "F16": Layout(2, 10, 5),
    "BF16": Layout(2, 7, 8),
    "F32": Layout(4, 23, 8),
    "C64": Layout(4, 23, 8),
    "F64": Layout(8, 52, 11),
}


class Sorted(NamedTuple):
    """A block's places in the order of its base's exponents; exponent ``first + i`` has those from ``bounds[i]`` on."""

    places: Places
    first: int
    bounds: list[int]


def _exponents(base: Values, layout: Layout) -> npt.NDArray[Any]:
    """The exponent field of each value, in as few bytes as hold it."""
    moved = np.right_shift(base, layout.mantissa)
    if layout.exponent not in (8, 0):
        np.bitwise_and(moved, (1 << layout.exponent) - 1, out=moved)
    return moved.astype(np.uint8 if layout.exponent <= 8 else np.uint16)


def sort(base: Values, layout: Layout) -> Sorted:
    """The stable sort of a block. Both sides do it, so the order takes no bytes."""
    keys = _exponents(base, layout)
    places = np.argsort(keys, kind="stable")
    first, last = int(keys[places[0]]), int(keys[places[-1]])
    wanted = np.arange(first, last + 1, dtype=keys.dtype)
    bounds = np.searchsorted(keys, wanted, sorter=places).tolist()
    return Sorted(places, first, [*bounds, len(places)])


def ordered(values: Values, layout: Layout) -> Values:
    """Signed integers in the order of the floats; a copy."""
    signed: Values = np.right_shift(values.view(_SIGNED[layout.width]), layout.shift)
    if layout.exponent:
        flip(signed, layout)
    return signed


def flip(signed: Values, layout: Layout) -> None:
    """Turns bits into order and order into bits, in place: it is its own inverse."""
    bits = 8 * layout.width
    flips = np.right_shift(signed, bits - 1)
    np.bitwise_and(flips, (1 << (bits - 1 - layout.shift)) - 1, out=flips)
    np.bitwise_xor(signed, flips, out=signed)


def zigzag(steps: Values) -> Values:
    """Signed steps as unsigned numbers, small for small steps; destroys ``steps``."""
    signs = np.right_shift(steps, 8 * steps.itemsize - 1)
    np.left_shift(steps, 1, out=steps)
    np.bitwise_xor(steps, signs, out=steps)
    return steps.view(UNSIGNED[steps.itemsize])


def unzigzag(numbers: Values) -> Values:
    """The inverse of ``zigzag``; destroys ``numbers``."""
    signs = np.bitwise_and(numbers, 1).view(_SIGNED[numbers.itemsize])
    np.negative(signs, out=signs)
    np.right_shift(numbers, 1, out=numbers)
    steps: Values = numbers.view(signs.dtype)
    np.bitwise_xor(steps, signs, out=steps)
    return steps


def spare_bits(values: Values, base: Values) -> int:
    """How many low bits are zero in all of both: what is left where a wide float holds numbers of a narrow one."""
    used = 0
    for each in (sample_of(values), sample_of(base), values, base):  # the samples first: they nearly always settle it
        used |= int(np.bitwise_or.reduce(each))
        if used & 1:
            return 0
    return (used & -used).bit_length() - 1 if used else 0
