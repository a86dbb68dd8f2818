"""Tensors: one byte of a value is predictable, another is noise; so store them apart.

Each float is rotated left by one bit. The sign moves to the bottom, next to the mantissa, and the top byte becomes the
pure exponent (for bf16 and f32; for f16 exponent and three mantissa bits). Integers and 8-bit floats are taken as they
are. The bytes of one rank make up a plane, and each plane is held in the form that suits it: exponents in packed fields
through zstd's Huffman stage, near-random bytes as they are, what is constant as one byte.

Stored form, for ``n`` values of ``width`` bytes (little-endian) and ``tail`` bytes that fill no value::

    0   1  width: 1, 2, 4 or 8
    1   1  1 if the values are rotated, else 0
    2   2  zero
    4   .  width planes, from the highest byte down (see byte_plane)
    .   .  tail, as it is

Work goes block by block and in place, because fresh memory is what costs time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from csf_store.codecs.base import CodecError, Hint
from csf_store.codecs.byte_plane import BLOCK, PlaneReader, write_plane
from csf_store.codecs.fields import Bytes
from csf_store.digest import Buffer

_HEAD: Final = struct.Struct("<BBH")
UNSIGNED: Final[dict[int, np.dtype[np.unsignedinteger[Any]]]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}

WIDTHS: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "F4": 1, "F6_E2M3": 1, "F6_E3M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "C64": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per value of every dtype; values of less than a byte are taken by the byte, complex ones by their parts."""
_ROTATED: Final = frozenset({"F16", "BF16", "F32", "C64", "F64"})


def _split(values: np.ndarray[Any, Any], *, rotate: bool) -> list[Bytes]:
    """The byte planes of the values, highest first."""
    width, count = values.itemsize, len(values)
    planes = [np.empty(count, np.uint8) for _ in range(width)]
    turned = np.empty(min(BLOCK, count), values.dtype)
    sign = np.empty_like(turned)
    for start in range(0, count, BLOCK):
        block = values[start : start + BLOCK]
        turn, low = turned[: len(block)], sign[: len(block)]
        if rotate:
            np.left_shift(block, 1, out=turn)
            np.right_shift(block, 8 * width - 1, out=low)
            np.bitwise_or(turn, low, out=turn)
        else:
            turn = block
        for rank, plane in enumerate(planes):
            np.right_shift(turn, 8 * (width - 1 - rank), out=low)
            np.copyto(plane[start : start + BLOCK], low, casting="unsafe")
    return planes


def _join(planes: list[PlaneReader], values: np.ndarray[Any, Any], *, rotated: bool) -> None:
    """The inverse of ``_split``, into ``values``."""
    width, count = values.itemsize, len(values)
    turned = np.empty(min(BLOCK, count), values.dtype)
    widened = np.empty_like(turned)
    for start in range(0, count, BLOCK):
        block = values[start : start + BLOCK]
        turn, low = turned[: len(block)], widened[: len(block)]
        np.copyto(turn, planes[0].next(len(block)))
        for plane in planes[1:]:
            np.left_shift(turn, 8, out=turn)
            np.copyto(low, plane.next(len(block)))
            np.bitwise_or(turn, low, out=turn)
        if rotated:
            np.right_shift(turn, 1, out=block)
            np.left_shift(turn, 8 * width - 1, out=turn)
            np.bitwise_or(block, turn, out=block)
        else:
            np.copyto(block, turn)


class PlanesCodec:
    """Every byte plane in a form of its own."""

    number = 2
    name = "planes"

    def accepts(self, raw: Buffer, hint: Hint) -> bool:
        """Tensors that are long enough for its heads to pay."""
        return len(raw) >= 64 * WIDTHS.get(hint.dtype, len(raw))

    def encode(self, raw: Buffer, hint: Hint) -> Buffer:
        """Splits, and writes each plane."""
        width = WIDTHS.get(hint.dtype, 1)
        rotate = hint.dtype in _ROTATED
        count = len(raw) // width
        values = np.frombuffer(raw, UNSIGNED[width], count)
        parts: list[Buffer] = [_HEAD.pack(width, rotate, 0)]
        for plane in [values] if width == 1 else _split(values, rotate=rotate):
            parts += write_plane(plane)
        return b"".join([*parts, memoryview(raw)[count * width :]])

    def decode_into(self, stored: Buffer, out: memoryview, base: Buffer | None = None) -> None:  # noqa: ARG002
        """Opens the planes and joins them, in place."""
        view = memoryview(stored)
        if len(view) < _HEAD.size:
            raise CodecError("planes: the head is incomplete")
        width, rotated, zero = _HEAD.unpack_from(view)
        if width not in UNSIGNED or rotated > 1 or zero:
            raise CodecError(f"planes: width {width} and rotation {rotated} can not be")
        count, tail = divmod(len(out), width)
        planes: list[PlaneReader] = []
        end = _HEAD.size
        for _ in range(width):
            planes.append(PlaneReader(view, end, count))
            end = planes[-1].end
        if len(view) != end + tail:
            raise CodecError(f"planes: {len(view) - end} bytes behind the planes where {tail} are expected")
        _join(planes, np.frombuffer(out, UNSIGNED[width], count), rotated=bool(rotated))
        out[count * width :] = view[end:]
