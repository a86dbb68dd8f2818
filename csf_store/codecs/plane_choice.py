"""Which form a byte plane is best held in, from a sample and a little arithmetic.

A histogram of the sample tells what Huffman coding will make of each form, closely enough to rank them: encoding the
sample in every form would tell no more, because the code tables, small beside a plane, are large beside a sample. Only
what a histogram can not see, repetition, is tried out.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from math import log2
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from csf_store.codecs.fields import FIELD_BITS, Bytes
from csf_store.codecs.zstd import Effort, compress_frame

SAMPLE: Final = 8192
"""Values that are enough to choose by."""
_PIECES: Final = 4
_SMALL: Final = 48
"""Below that, a frame's own head costs more than it saves."""
_WORTH: Final = 0.985
_EXCEPTIONAL: Final = 0.06
"""The largest share of exceptions worth their time: each is found and placed one by one."""
_HEADS: Final = 24
"""Bytes of a frame's heads and code table, roughly."""
_REPEATS: Final = 0.5
"""Matches are worth trying where they alone, with nothing coded, take less than the Huffman code divided by this."""
_LOSS: Final = 0.03
"""Bits a symbol that a Huffman code wastes where no symbol is frequent."""

_Array = TypeVar("_Array", bound=np.ndarray[Any, Any])


class Form(IntEnum):
    """How a plane is stored; the numbers are in the format."""

    CONSTANT = 0
    RAW = 1
    FRAME = 2
    FIELDS = 3


class Choice(NamedTuple):
    """A form and what it needs.

    Attributes:
        form: how the plane is to be stored.
        size: bytes it will take, roughly.
        low: the constant's value, or what a field of zero stands for.
        bits: of a field.
        filler: the field that costs least, to stand where an exception is.
        effort: how the frame is made.
    """

    form: Form
    size: float
    low: int = 0
    bits: int = 0
    filler: int = 0
    effort: Effort = Effort.HUFFMAN


def sample_of(values: _Array, size: int = SAMPLE) -> _Array:
    """A few stretches of an array, from its beginning to its end; or all of a short one."""
    if len(values) <= size:
        return values
    piece = size // _PIECES
    stride = (len(values) - piece) // (_PIECES - 1)
    return np.concatenate([values[start : start + piece] for start in range(0, _PIECES * stride, stride)])  # type: ignore[return-value]


@cache
def _products() -> npt.NDArray[np.float64]:
    """``c * log2(c)`` of every count a sample can have."""
    counts = np.arange(SAMPLE + 1, dtype=np.float64)
    return counts * np.log2(np.maximum(counts, 1))


class _Histogram:
    """How often each byte occurs, summed up so that the entropy of any window of bytes is one subtraction."""

    def __init__(self, sample: Bytes) -> None:
        counts = np.bincount(sample, minlength=256)
        self.counts = counts
        self.total = len(sample)
        self._sums = np.concatenate([[0], np.cumsum(counts)])
        self._products = np.concatenate([[0], np.cumsum(_products()[counts])])

    def inside(self, low: int, size: int) -> int:
        """How many bytes are from ``low`` on, below ``low + size``."""
        return int(self._sums[low + size] - self._sums[low])

    def entropy(self, low: int = 0, size: int = 256) -> float:
        """Bits a byte of that window carries."""
        count = self.inside(low, size)
        products = float(self._products[low + size] - self._products[low])
        return log2(count) - products / count if count else 0.0

    def entropy_outside(self, low: int, size: int) -> float:
        """Bits a byte out of that window carries."""
        count = self.total - self.inside(low, size)
        products = float(self._products[-1] - self._products[low + size] + self._products[low])
        return log2(count) - products / count if count else 0.0

    def window(self, size: int) -> int:
        """Where the window of that size begins that holds most."""
        return int(np.argmax(self._sums[size:] - self._sums[:-size]))


def _huffman_bits(entropy: float, top: float) -> float:
    """Bits a symbol costs in a Huffman code, from the entropy and the largest share.

    A symbol of a large share gets one bit whatever it deserves; the rest is coded behind the other bit.
    """
    if top < 0.4:
        return entropy + _LOSS
    rest = 1 - top
    if rest <= 0:
        return 1.0
    own = -top * log2(top) - rest * log2(rest)
    return max(1.0, 1 + entropy - own + _LOSS * rest)


def _fields(seen: _Histogram, bits: int) -> tuple[float, Choice] | None:
    """Bits a value costs in fields, its share of the exceptions included; None where those are too many."""
    size = 1 << bits
    low = seen.window(size)
    outside = 1 - seen.inside(low, size) / seen.total
    if outside > _EXCEPTIONAL:
        return None
    filler = int(np.argmax(seen.counts[low : low + size]))
    cost = 0.0
    if bits:
        each = 8 // bits
        top = outside + int(seen.counts[low + filler]) / seen.total
        cost = _huffman_bits(each * seen.entropy(low, size), min(1.0, top) ** each) / each
    if outside > 0:
        places = -log2(outside) + 2
        cost += outside * (places + max(1.0, seen.entropy_outside(low, size)))
    return cost, Choice(Form.FIELDS, 0, low, bits, filler)


def choose_form(sample: Bytes, count: int) -> Choice:
    """The form for a plane of ``count`` bytes by a sample of it, at most ``SAMPLE`` bytes."""
    raw = Choice(Form.RAW, count)
    if count < _SMALL:
        return raw
    seen = _Histogram(sample)
    cost = _huffman_bits(seen.entropy(), int(seen.counts.max()) / seen.total)
    best = Choice(Form.FRAME, 0)
    for bits in FIELD_BITS:
        found = _fields(seen, bits)
        if found and found[0] < cost:
            cost, best = found
    size = cost * count / 8 + _HEADS
    if _REPEATS * len(compress_frame(sample.data, Effort.PROBE)) < cost * len(sample) / 8:
        matched = (len(compress_frame(sample.data, Effort.MATCHES)) - _HEADS) * count / len(sample) + _HEADS
        if matched < 0.9 * size:
            size, best = matched, Choice(Form.FRAME, 0, effort=Effort.MATCHES)
    return best._replace(size=size) if size < _WORTH * count else raw
