"""Which form a byte plane is best held in, from a sample and a little arithmetic.

A histogram of the sample tells what Huffman coding will make of each form, closely enough to rank them: encoding the
sample in every form would tell no more, because the code tables, small beside a plane, are large beside a sample. Only
what a histogram can not see, repetition, is tried out.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from csf_store.codecs.fields import Bytes
from csf_store.codecs.zstd import Effort, compress_frame

_SAMPLE: Final = 4096
_SMALL: Final = 48
"""Below that, a frame's own head costs more than it saves."""
_WORTH: Final = 0.985
_EXCEPTIONAL: Final = 0.06
"""The largest share of exceptions worth their time: each is found and placed one by one."""
_TABLE: Final = 24
"""Bytes of a frame's heads and code table, roughly."""


class Form(IntEnum):
    """How a plane is stored; the numbers are in the format."""

    CONSTANT = 0
    RAW = 1
    FRAME = 2
    NIBBLES = 3
    QUARTERS = 4
    BITS = 5

    @property
    def bits(self) -> int:
        """Bits of a field; 0 where there are none."""
        return _FIELD_BITS[self]


_FIELD_BITS: Final = (0, 0, 0, 4, 2, 1)


class Choice(NamedTuple):
    """A form, its ``low`` value, and how its frame is to be made."""

    form: Form
    low: int = 0
    effort: Effort = Effort.HUFFMAN


_Floats = npt.NDArray[np.float64]


def _entropy(shares: _Floats) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum())


def huffman_bits(entropy: float, top: float) -> float:
    """Bits a symbol costs in a Huffman code, from the entropy and the largest share.

    A symbol of a large share gets one bit whatever it deserves; the rest is coded behind the other bit.
    """
    if top < 0.4:
        return entropy + 0.03
    rest = 1 - top
    if rest <= 0:
        return 1.0
    own = -top * float(np.log2(top)) - rest * float(np.log2(rest))
    return 1 + (entropy - own) + 0.03 * rest


def _field_bits(shares: _Floats, low: int, bits: int) -> float:
    """Bits a value costs in fields that begin at ``low``, its share of the exceptions included."""
    inside = shares[low : low + (1 << bits) - 1]
    outside = max(0.0, 1 - float(inside.sum()))
    each = 8 // bits
    entropy = _entropy(np.append(inside, outside))
    top = max(float(inside.max()), outside)
    others = np.concatenate([shares[:low], shares[low + (1 << bits) - 1 :]])
    exceptional = max(outside, _entropy(others) + (outside * float(np.log2(outside)) if outside > 0 else 0.0))
    return huffman_bits(each * entropy, top**each) / each + exceptional


def _window(shares: _Floats, bits: int) -> tuple[int, float]:
    """Where fields should begin so that they hold most, and the share they then do not hold."""
    size = (1 << bits) - 1
    sums = np.concatenate([[0.0], np.cumsum(shares)])
    inside = sums[size:] - sums[:-size]
    low = int(np.argmax(inside))
    return low, 1 - float(inside[low])


def _sample(plane: Bytes) -> Bytes:
    if len(plane) <= 2 * _SAMPLE:
        return plane
    middle = len(plane) // 2
    return np.concatenate([plane[:_SAMPLE], plane[middle : middle + _SAMPLE]])


def choose_form(plane: Bytes, *, nested: bool = False) -> Choice:
    """The form for a plane; ``nested`` rules out fields."""
    count = len(plane)
    sample = _sample(plane)
    if len(sample) and (sample == sample[0]).all() and (plane == sample[0]).all():
        return Choice(Form.CONSTANT, int(sample[0]))
    if count < _SMALL:
        return Choice(Form.RAW)
    shares = np.bincount(sample, minlength=256) / len(sample)
    costs = {Choice(Form.FRAME): huffman_bits(_entropy(shares), float(shares.max()))}
    if not nested:
        for form in (Form.NIBBLES, Form.QUARTERS, Form.BITS):
            low, outside = _window(shares, form.bits)
            if outside <= _EXCEPTIONAL:
                costs[Choice(form, low)] = _field_bits(shares, low, form.bits)
    best = min(costs, key=lambda choice: costs[choice])
    size = costs[best] * len(sample) / 8
    matched = len(compress_frame(sample.data, Effort.MATCHES)) - _TABLE
    if matched < 0.9 * size:
        best, size = Choice(Form.FRAME, 0, Effort.MATCHES), matched
    saved = size * count / len(sample) + _TABLE
    return best if saved < _WORTH * count else Choice(Form.RAW)
