"""Float tensors: the exponent is predictable, the rest is noise; so store the two apart.

Each value is rotated left by one bit. The sign moves to the bottom, next to the mantissa, and the top byte becomes the
pure exponent (for bf16 and f32; for f16 exponent and three mantissa bits; an 8-bit float is all top byte). The top
bytes of all values form one plane that goes through zstd held to its Huffman stage: its matcher finds nothing in
exponents and costs most of the time. The other planes are near-random and are stored as they are.

Stored form, for ``n`` values of ``width`` bytes (little-endian) and ``tail`` bytes that fill no value::

    0   1  width: 1, 2, 4 or 8
    1   3  zero
    4   4  length of the zstd frame, u32
    8   .  zstd frame of the n top bytes of the rotated values
    .   n  each lower byte plane, from the second-highest down; width - 1 of them
    .   .  tail, as it is

Work goes block by block and in place, because fresh memory is what costs time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from csf_store.codecs.base import CodecError, Hint
from csf_store.codecs.zstd import compress_frame, decompress_frame
from csf_store.digest import Buffer

_HEAD: Final = struct.Struct("<B3sI")
_BLOCK: Final = 1 << 18
"""Values per block. Smaller ones would fit a smaller cache, but the calls, not the loops, then take the time."""
_UNSIGNED: Final[dict[int, np.dtype[np.unsignedinteger[Any]]]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}

_WIDTHS: Final[Mapping[str, int]] = {
    "F8_E5M2": 1, "F8_E4M3": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "C64": 4,
}  # fmt: skip
"""Bytes per value of the dtypes it is for."""

_Bytes = npt.NDArray[np.uint8]


@cache
def _huffman_only() -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST,
        window_log=17,
        hash_log=6,
        min_match=7,
        target_length=0,
        chain_log=6,
        search_log=1,
        write_content_size=True,
        write_checksum=False,
    )


def _split(raw: Buffer, width: int, count: int) -> list[_Bytes]:
    """The byte planes of the rotated values, highest first."""
    values = np.frombuffer(raw, dtype=_UNSIGNED[width], count=count)
    planes = [np.empty(count, np.uint8) for _ in range(width)]
    turned = np.empty(min(_BLOCK, count), values.dtype)
    sign = np.empty_like(turned)
    for start in range(0, count, _BLOCK):
        block = values[start : start + _BLOCK]
        turn, low = turned[: len(block)], sign[: len(block)]
        np.left_shift(block, 1, out=turn)
        np.right_shift(block, 8 * width - 1, out=low)
        np.bitwise_or(turn, low, out=turn)
        for plane in reversed(planes):
            np.copyto(plane[start : start + _BLOCK], turn, casting="unsafe")
            if plane is not planes[0]:
                np.right_shift(turn, 8, out=turn)
    return planes


def _join(planes: list[_Bytes], out: memoryview, width: int, count: int) -> None:
    """The inverse of ``_split``, into ``out``."""
    values = np.frombuffer(out, dtype=_UNSIGNED[width], count=count)
    turned = np.empty(min(_BLOCK, count), values.dtype)
    widened = np.empty_like(turned)
    for start in range(0, count, _BLOCK):
        block = values[start : start + _BLOCK]
        turn, low = turned[: len(block)], widened[: len(block)]
        np.copyto(turn, planes[0][start : start + _BLOCK])
        for plane in planes[1:]:
            np.left_shift(turn, 8, out=turn)
            np.copyto(low, plane[start : start + _BLOCK])
            np.bitwise_or(turn, low, out=turn)
        np.right_shift(turn, 1, out=block)
        np.left_shift(turn, 8 * width - 1, out=turn)
        np.bitwise_or(block, turn, out=block)


class PlanesCodec:
    """Exponent plane through Huffman, the rest raw."""

    number = 2
    name = "planes"

    def accepts(self, raw: Buffer, hint: Hint) -> bool:
        """Floats of a width it knows."""
        return len(raw) >= 64 * _WIDTHS.get(hint.dtype, len(raw))

    def encode(self, raw: Buffer, hint: Hint) -> Buffer:
        """Splits and compresses the top plane."""
        width = _WIDTHS.get(hint.dtype, 1)
        count = len(raw) // width
        planes = _split(raw, width, count)
        top = compress_frame(planes[0].data, _huffman_only())
        tail = memoryview(raw)[count * width :]
        return b"".join([_HEAD.pack(width, bytes(3), len(top)), top, *(plane.data for plane in planes[1:]), tail])

    def decode_into(self, stored: Buffer, out: memoryview, base: Buffer | None = None) -> None:  # noqa: ARG002
        """Decompresses the top plane and joins, in place."""
        view = memoryview(stored)
        if len(view) < _HEAD.size:
            raise CodecError("planes: the head is incomplete")
        width, zero, length = _HEAD.unpack_from(view)
        if width not in _UNSIGNED or any(zero):
            raise CodecError(f"planes: width {width} is none of 1, 2, 4, 8")
        count, tail = divmod(len(out), width)
        if len(view) != _HEAD.size + length + count * (width - 1) + tail:
            raise CodecError(f"planes: {len(view)} stored bytes do not make {len(out)}")
        low = _HEAD.size + length
        top = decompress_frame(view[_HEAD.size : low], count)
        planes = [np.frombuffer(top, np.uint8)]
        planes += [np.frombuffer(view, np.uint8, count, low + count * index) for index in range(width - 1)]
        _join(planes, out, width, count)
        out[count * width :] = view[len(view) - tail :]
