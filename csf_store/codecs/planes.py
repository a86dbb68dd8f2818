"""Tensors: one byte of a value is predictable, another is noise; so store them apart.

The sign of a float moves eight bits down, and those eight bits move up: so the top byte is the pure exponent (for bf16
and f32; for f16 exponent and three mantissa bits) and the sign leads the mantissa. Integers and 8-bit floats are taken
as they are. The bytes of one rank make up a plane, and each plane is held in the form that suits it: exponents packed
through zstd's Huffman stage, near-random bytes as they are, what is constant as one byte.

Stored form, for ``n`` values of ``width`` bytes (little-endian) and ``tail`` bytes that fill no value::

    0   1  width: 1, 2, 4 or 8
    1   1  1 if the signs are moved, else 0
    2   2  zero
    4   .  width planes, from the lowest byte up (see byte_plane)
    .   .  tail, as it is

Work goes block by block and in place, because fresh memory is what costs time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np

from csf_store.codecs.base import CodecError, Hint, Plan
from csf_store.codecs.byte_plane import HEAD, PlaneReader, PlaneWriter
from csf_store.codecs.fields import Bytes
from csf_store.codecs.plane_choice import Choice, Form, choose_form, sample_of
from csf_store.digest import Buffer

_START: Final = struct.Struct("<BBH")
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
_SIGNED: Final = frozenset({"F16", "BF16", "F32", "C64", "F64"})
_SLACK: Final = 64
_BLOCK: Final = 1 << 19
"""Bytes that are worked on at a time. Fewer would fit a smaller cache, but then the calls take the time."""

_Values: TypeAlias = np.ndarray[Any, Any]


def _split(values: _Values, writers: list[PlaneWriter], *, signed: bool) -> None:
    """Hands each byte plane of the values to its writer, lowest first."""
    width = values.itemsize
    size = min(_BLOCK // width, len(values))
    moved, signs = np.empty(size, values.dtype), np.empty(size, np.uint8)
    for start in range(0, len(values), _BLOCK // width):
        block = values[start : start + size]
        room = moved[: len(block)]
        for rank, writer in enumerate(writers):
            plane = writer.block(len(block))
            shift = 8 * rank - (signed and rank == width - 1)
            np.copyto(plane, np.right_shift(block, shift, out=room) if shift else block, casting="unsafe")
            if signed and rank == width - 2:
                sign = signs[: len(block)]
                np.copyto(sign, np.right_shift(block, 8 * width - 8, out=room), casting="unsafe")
                np.bitwise_and(sign, 0x80, out=sign)
                np.bitwise_and(plane, 0x7F, out=plane)
                np.bitwise_or(plane, sign, out=plane)
            writer.add(len(block))


def _join(planes: list[PlaneReader], values: _Values, *, signed: bool) -> None:
    """The inverse of ``_split``: into ``values``, from the planes, lowest first."""
    if signed:
        _join_signed(planes, values)
        return
    width = values.itemsize
    widened = np.empty(min(_BLOCK // width, len(values)), values.dtype)
    for start in range(0, len(values), _BLOCK // width):
        block = values[start : start + _BLOCK // width]
        room = widened[: len(block)]
        np.copyto(block, planes[0].next(len(block)))
        for rank, plane in enumerate(planes[1:], 1):
            np.copyto(room, plane.next(len(block)))
            np.left_shift(room, 8 * rank, out=room)
            np.bitwise_or(block, room, out=block)


def _join_signed(planes: list[PlaneReader], values: _Values) -> None:
    width = values.itemsize
    bits = 8 * width
    widened = np.empty(min(_BLOCK // width, len(values)), values.dtype)
    for start in range(0, len(values), _BLOCK // width):
        block = values[start : start + _BLOCK // width]
        room = widened[: len(block)]
        # Widened as a signed number, the byte that holds the sign spreads it to the top, where it belongs.
        np.copyto(block.view(f"<i{width}"), planes[-2].next(len(block)).view(np.int8))
        if width > 2:
            np.left_shift(block, bits - 16, out=block)
        np.bitwise_and(block, (1 << bits - 1) | ((1 << bits - 9) - 1), out=block)
        np.copyto(room, planes[-1].next(len(block)))
        np.multiply(room, 1 << bits - 9, out=room)  # a shift, but faster
        np.bitwise_or(block, room, out=block)
        for rank, plane in enumerate(planes[:-2]):
            if plane.constant != 0:
                np.copyto(room, plane.next(len(block)))
                if rank:
                    np.left_shift(room, 8 * rank, out=room)
                np.bitwise_or(block, room, out=block)


def _values(raw: Buffer, hint: Hint) -> _Values:
    """The whole values among some bytes, as unsigned numbers."""
    width = WIDTHS.get(hint.dtype, 1)
    return np.frombuffer(raw, UNSIGNED[width], len(raw) // width)


def _choices(values: _Values, hint: Hint) -> list[Choice]:
    """The form for each plane, lowest first."""
    sample = sample_of(values)
    planes = [np.empty(len(sample), np.uint8) for _ in range(values.itemsize)]
    keepers = [PlaneWriter(len(sample), Choice(Form.RAW, 0), plane) for plane in planes]
    _split(sample, keepers, signed=hint.dtype in _SIGNED)
    return [choose_form(plane, len(values)) for plane in planes]


class PlanesCodec:
    """Every byte plane in a form of its own."""

    number = 2
    name = "planes"

    def accepts(self, raw: Buffer, hint: Hint) -> bool:
        """Tensors that are long enough for its heads to pay."""
        return len(raw) >= 64 * WIDTHS.get(hint.dtype, len(raw))

    def plan(self, raw: Buffer, hint: Hint) -> Plan:
        """By the histograms of a sample's planes."""
        choices = _choices(_values(raw, hint), hint)
        return Plan(sum(choice.size + HEAD.size for choice in choices), partial(self._encode, raw, hint, choices))

    def encode(self, raw: Buffer, hint: Hint) -> Buffer:
        """Splits, and writes each plane."""
        return self.plan(raw, hint).encode()

    def _encode(self, raw: Buffer, hint: Hint, choices: list[Choice]) -> Buffer:
        """What stays raw goes straight to its place in the output."""
        values, signed = _values(raw, hint), hint.dtype in _SIGNED
        width, count = values.itemsize, len(values)
        out = np.empty(_START.size + HEAD.size * width + len(raw) + _SLACK * width, np.uint8)
        _START.pack_into(out.data, 0, width, signed, 0)
        at = _START.size
        placed = 0  # planes that lie in place, because all below them are raw as well
        writers: list[PlaneWriter] = []
        for rank, choice in enumerate(choices):
            room = None
            if choice.form == Form.RAW and rank == placed:
                room = out[at + HEAD.size :][:count]
                HEAD.pack_into(out.data, at, Form.RAW, 0, 0, 0, count)
                at += HEAD.size + count
                placed += 1
            writers.append(PlaneWriter(count, choice, room))
        _split(values, writers, signed=signed)
        parts = [part for writer in writers[placed:] for part in writer.record()]
        return _finish(out, at, [*parts, memoryview(raw)[count * width :]])

    def decode_into(self, stored: Buffer, out: memoryview, base: Buffer | None = None) -> None:  # noqa: ARG002
        """Opens the planes and joins them, in place."""
        view = memoryview(stored)
        if len(view) < _START.size:
            raise CodecError("planes: the head is incomplete")
        width, signed, zero = _START.unpack_from(view)
        if width not in UNSIGNED or signed > (width > 1) or zero:
            raise CodecError(f"planes: width {width} and sign {signed} can not be")
        count, tail = divmod(len(out), width)
        planes: list[PlaneReader] = []
        end = _START.size
        for _ in range(width):
            planes.append(PlaneReader(view, end, count, _BLOCK // width))
            end = planes[-1].end
        if len(view) != end + tail:
            raise CodecError(f"planes: {len(view) - end} bytes behind the planes where {tail} are expected")
        _join(planes, np.frombuffer(out, UNSIGNED[width], count), signed=bool(signed))
        out[count * width :] = view[end:]


def _finish(out: Bytes, at: int, parts: list[Buffer]) -> Buffer:
    """Puts the parts behind each other into ``out``, which has room unless the chunk had better been stored raw."""
    end = at + sum(map(len, parts))
    if end > len(out):
        return b"".join([out[:at].data, *parts])
    for part in parts:
        out[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    return out[:at].data
