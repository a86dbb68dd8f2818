"""Several small numbers in one byte: what makes Huffman coding of a skewed plane both shorter and faster.

A Huffman code spends at least one bit on a symbol, and a decoder's time goes by symbols. Exponents take 2.7 bits each
and most differences are 0, 1 or 2: with two, four or eight of them packed into one byte, a byte is one symbol, so the
bound drops to a half, a quarter or an eighth of a bit, and there are as many times fewer symbols.

The first number lies in the lowest bits of its byte.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class _Width(NamedTuple):
    """How fields of some bits are gathered: the word of 8 // bits values, and each step's shift and mask."""

    word: np.dtype[np.unsignedinteger[Any]]
    steps: tuple[tuple[int, int], ...]


_WIDTHS: Final = {
    4: _Width(np.dtype("<u2"), ((4, 0x0F0F),)),
    2: _Width(np.dtype("<u4"), ((6, 0x03030303), (12, 0x000F000F))),
    1: _Width(np.dtype("<u8"), ((7, 0x0101010101010101), (14, 0x0003000300030003), (28, 0x0000000F0000000F))),
}
FIELD_BITS: Final = (0, 1, 2, 4)
"""What fields may have. Of no bits: all are zero, and only what is exceptional is stored."""


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` fields take."""
    return (count * bits + 7) // 8


def pack(fields: Bytes, bits: int, out: Bytes) -> None:
    """Gathers fields into ``out``. They are below ``2 ** bits``, a multiple of ``8 // bits`` of them, and destroyed."""
    width = _WIDTHS[bits]
    words = fields.view(width.word)
    shifted = np.empty_like(words)
    for shift, _ in width.steps:
        np.right_shift(words, shift, out=shifted)
        np.bitwise_or(words, shifted, out=words)
    np.copyto(out, words, casting="unsafe")


def unpack(packed: Bytes, bits: int, out: Bytes) -> None:
    """The inverse of ``pack``; ``out`` is ``8 // bits`` times as long as ``packed``."""
    width = _WIDTHS[bits]
    words = out.view(width.word)
    shifted = np.empty_like(words)
    np.copyto(words, packed)
    for shift, mask in reversed(width.steps):
        np.left_shift(words, shift, out=shifted)
        np.bitwise_or(words, shifted, out=words)
        np.bitwise_and(words, mask, out=words)
