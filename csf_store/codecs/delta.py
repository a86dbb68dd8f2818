"""A tensor as the difference to a base it was trained from: most values moved by nothing or by a few units.

Both sides are mapped to integers that keep the order of the floats, so a small step is a small number whatever the
exponent. How many units a step makes depends on the exponent: the same noise moves a large weight by nothing and a
small one by hundreds. So the differences are grouped by the exponent of the *base's* value, which the reader knows as
well: that costs no bytes, and each group is a plane or two of its own with its own code table.

Stored form, for ``n`` values of ``width`` bytes (little-endian) and ``tail`` bytes that fill no value::

    0   1  width: 1, 2, 4 or 8
    1   1  bits below the exponent
    2   1  bits of the exponent; 0 for integers, which are not mapped and all in one group
    3   1  shift: how many low bits are zero in every value of chunk and base
    4   2  number of groups, u16
    6   2  zero
    8   8  each group, ascending: exponent, u16; 1 if it begins a segment, else 0, u16; number of values, u32
    .   .  each segment: width planes of its differences, from the lowest byte up (see byte_plane)
    .   .  tail, as it is

A value is shifted right by ``shift``, its sign with it; a negative one then gets all its bits but the sign flipped. The
difference wraps, and is zigzagged: 0, -1, 1, -2 become 0, 1, 2, 3. Within a group values keep their order.

The sort is what costs time. It runs in blocks that stay in the cache, as a radix sort of single bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from csf_store.codecs.base import CodecError, Hint, Plan
from csf_store.codecs.byte_plane import HEAD, PlaneReader, write_plane
from csf_store.codecs.plane_choice import Choice, Form, sample_of
from csf_store.codecs.planes import UNSIGNED, WIDTHS
from csf_store.codecs.steps import LAYOUTS, Layout, Sorted, Values, flip, ordered, sort, spare_bits, unzigzag, zigzag
from csf_store.digest import Buffer

_HEAD: Final = struct.Struct("<BBBBHH")
_GROUP: Final = struct.Struct("<HHI")
_SEGMENT: Final = 4096
"""Values a segment has at least, where there are so many: below that, its heads outweigh what they say."""
_SAMPLE_SEGMENT: Final = 512
_TABLE: Final = 24
"""Bytes that a segment's frames take for their heads and code tables, roughly."""
_MAX_EXPONENT: Final = 11
BLOCK: Final = 1 << 16
"""Values that are sorted at a time: they, their keys and their places stay in a core's own cache."""


class _Group(NamedTuple):
    """Values whose base has one exponent."""

    exponent: int
    begins: bool
    size: int


def _segments(counts: Mapping[int, int], least: int) -> list[_Group]:
    """Groups, cut into segments of ``least`` values or more: a short group shares its neighbour's planes."""
    groups: list[_Group] = []
    filled = least
    left = sum(counts.values())
    for exponent in sorted(counts):
        begins = not groups or (filled >= least and left >= least)
        filled = counts[exponent] + (0 if begins else filled)
        left -= counts[exponent]
        groups.append(_Group(exponent, begins, counts[exponent]))
    return groups


def _runs(groups: list[_Group]) -> Iterator[list[_Group]]:
    run: list[_Group] = []
    for group in groups:
        if group.begins and run:
            yield run
            run = []
        run.append(group)
    if run:
        yield run


class _Differences(NamedTuple):
    """The numbers of a chunk: by the base's exponent, in pieces that follow each other."""

    layout: Layout
    groups: list[_Group]
    pieces: dict[int, list[Values]]


def _differences(values: Values, base: Values, dtype: str, least: int) -> _Differences:
    width = values.itemsize
    layout = LAYOUTS.get(dtype, Layout(width, 0, 0))._replace(shift=spare_bits(values, base))
    moved = np.empty_like(values)
    pieces: dict[int, list[Values]] = {}
    for start in range(0, len(values), BLOCK):
        theirs = base[start : start + BLOCK]
        steps = ordered(values[start : start + BLOCK], layout)
        np.subtract(steps, ordered(theirs, layout), out=steps)
        _gather(zigzag(steps), theirs, layout, moved[start : start + BLOCK], pieces)
    groups = _segments({exponent: sum(map(len, parts)) for exponent, parts in pieces.items()}, least)
    return _Differences(layout, groups, pieces)


def _write(found: _Differences) -> list[Buffer]:
    """Everything that is stored but the tail, in parts to be joined."""
    stored: list[Buffer] = [_HEAD.pack(*found.layout, len(found.groups), 0)]
    stored += [_GROUP.pack(*group) for group in found.groups]
    for run in _runs(found.groups):
        stored += _write_numbers(np.concatenate([piece for group in run for piece in found.pieces[group.exponent]]))
    return stored


class DeltaCodec:
    """Differences to a base, grouped by the base's exponents."""

    number = 3
    name = "delta"

    def accepts(self, raw: Buffer, hint: Hint) -> bool:
        """Tensors with a base of the same length."""
        width = WIDTHS.get(hint.dtype, 0)
        return width > 0 and hint.base is not None and len(hint.base) == len(raw) >= 64 * width

    def plan(self, raw: Buffer, hint: Hint) -> Plan:
        """By encoding a sample: the same places of both, and segments as much smaller as the sample is."""
        dtype = UNSIGNED[WIDTHS.get(hint.dtype, 1)]
        count = len(raw) // dtype.itemsize
        sample = sample_of(np.frombuffer(raw, dtype, count))
        base = sample_of(np.frombuffer(hint.base or b"", dtype, count))
        scale = count / max(1, len(sample))
        found = _differences(sample, base, hint.dtype, max(_SAMPLE_SEGMENT, int(_SEGMENT / scale)))
        heads = sum(group.begins for group in found.groups) * (dtype.itemsize * HEAD.size + _TABLE)
        size = sum(map(len, _write(found))) - heads
        return Plan(size * scale + heads, partial(self.encode, raw, hint))

    def encode(self, raw: Buffer, hint: Hint) -> Buffer:
        """Sorts, takes differences, and writes the planes of each segment."""
        dtype = UNSIGNED[WIDTHS.get(hint.dtype, 1)]
        count = len(raw) // dtype.itemsize
        if hint.base is None or len(hint.base) != len(raw):
            raise CodecError("delta: there is no base of the same length")
        values, base = (np.frombuffer(each, dtype, count) for each in (raw, hint.base))
        tail = memoryview(raw)[count * dtype.itemsize :]
        return b"".join([*_write(_differences(values, base, hint.dtype, _SEGMENT)), tail])

    def decode_into(self, stored: Buffer, out: memoryview, base: Buffer | None = None) -> None:
        """Decodes the segments, redoes the sort, and adds the base."""
        if base is None or len(base) != len(out):
            raise CodecError("delta: there is no base of the same length")
        view = memoryview(stored)
        if len(view) < _HEAD.size:
            raise CodecError("delta: the head is incomplete")
        width, mantissa, exponent, shift, number, zero = _HEAD.unpack_from(view)
        if width not in UNSIGNED or zero or shift >= 8 * width or exponent > _MAX_EXPONENT:
            raise CodecError(f"delta: width {width}, shift {shift}, exponent of {exponent} bits can not be")
        if mantissa + exponent != (8 * width - 1 if exponent else 0):
            raise CodecError(f"delta: {mantissa} bits below an exponent of {exponent} can not be")
        layout = Layout(width, mantissa, exponent, shift)
        count, tail = divmod(len(out), width)
        groups = _read_groups(view, number, count, exponent)
        numbers, end = _read_numbers(view, _HEAD.size + _GROUP.size * number, groups, layout, count)
        if len(view) != end + tail:
            raise CodecError(f"delta: {len(view) - end} bytes behind the planes where {tail} are expected")
        values = np.frombuffer(out, UNSIGNED[width], count)
        _add(numbers, groups, np.frombuffer(base, UNSIGNED[width], count), layout, values)
        out[count * width :] = view[end:]


def _gather(numbers: Values, base: Values, layout: Layout, moved: Values, pieces: dict[int, list[Values]]) -> None:
    """Puts a block's numbers in order, into ``moved``, and notes which are those of each group."""
    if not layout.exponent:
        np.copyto(moved, numbers)
        pieces.setdefault(0, []).append(moved)
        return
    order = sort(base, layout)
    np.take(numbers, order.places, out=moved, mode="clip")
    for index, (first, last) in enumerate(pairwise(order.bounds), order.first):
        if first < last:
            pieces.setdefault(index, []).append(moved[first:last])


def _write_numbers(numbers: Values) -> list[Buffer]:
    """The planes of a segment."""
    largest = int(numbers.max())
    parts: list[Buffer] = []
    plane = np.empty(len(numbers), np.uint8)
    for rank in range(numbers.itemsize):
        if largest >> 8 * rank:
            np.copyto(plane, np.right_shift(numbers, 8 * rank) if rank else numbers, casting="unsafe")
            parts += [bytes(part) for part in write_plane(plane)]  # the room is used again
        else:
            parts += write_plane(plane, Choice(Form.CONSTANT, 0))
    return parts


def _read_groups(view: memoryview, number: int, count: int, bits: int) -> list[_Group]:
    if _HEAD.size + _GROUP.size * number > len(view):
        raise CodecError(f"delta: there are no {number} groups")
    groups: list[_Group] = []
    last = -1
    for index in range(number):
        exponent, begins, size = _GROUP.unpack_from(view, _HEAD.size + _GROUP.size * index)
        if not last < exponent < 1 << bits or begins > 1 or not size or (not index and not begins):
            raise CodecError(f"delta: group {index} can not be")
        last = exponent
        groups.append(_Group(exponent, bool(begins), size))
    if sum(group.size for group in groups) != count:
        raise CodecError(f"delta: the groups do not have {count} values")
    return groups


def _read_numbers(view: memoryview, at: int, groups: list[_Group], layout: Layout, count: int) -> tuple[Values, int]:
    """The numbers of all segments, one after the other, and where the stored ones end."""
    numbers = np.empty(count, UNSIGNED[layout.width])
    start = 0
    for run in _runs(groups):
        size = sum(group.size for group in run)
        planes: list[PlaneReader] = []
        for _ in range(layout.width):
            planes.append(PlaneReader(view, at, size, BLOCK))
            at = planes[-1].end
        _join_planes(planes, numbers[start : start + size])
        start += size
    return numbers, at


def _join_planes(planes: list[PlaneReader], numbers: Values) -> None:
    widened = np.empty(min(BLOCK, len(numbers)), numbers.dtype)
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        room = widened[: len(block)]
        np.copyto(block, planes[0].next(len(block)))
        for rank, plane in enumerate(planes[1:], 1):
            if plane.constant != 0:
                np.copyto(room, plane.next(len(block)))
                np.left_shift(room, 8 * rank, out=room)
                np.bitwise_or(block, room, out=block)


def _add(numbers: Values, groups: list[_Group], base: Values, layout: Layout, values: Values) -> None:
    """Puts the numbers back in place, block by block, and adds them to the base."""
    cursors: dict[int, int] = {}
    ends: dict[int, int] = {}
    at = 0
    for group in groups:
        cursors[group.exponent] = at
        at += group.size
        ends[group.exponent] = at
    sorted_numbers, placed = (np.empty(min(BLOCK, len(values)), numbers.dtype) for _ in range(2))
    for start in range(0, len(values), BLOCK):
        theirs = base[start : start + BLOCK]
        here = numbers[start : start + BLOCK]
        if layout.exponent:
            order = sort(theirs, layout)
            _collect(numbers, order, cursors, ends, sorted_numbers)
            here = placed[: len(theirs)]
            here[order.places] = sorted_numbers[: len(theirs)]
        steps = unzigzag(here)
        np.add(steps, ordered(theirs, layout), out=steps)
        if layout.exponent:
            flip(steps, layout)
        np.left_shift(steps, layout.shift, out=values[start : start + BLOCK].view(steps.dtype))


def _collect(numbers: Values, order: Sorted, cursors: dict[int, int], ends: dict[int, int], out: Values) -> None:
    """The numbers of a block, in its order, from the groups they are stored in."""
    for exponent, (first, last) in enumerate(pairwise(order.bounds), order.first):
        if first == last:
            continue
        start = cursors.get(exponent, 0)
        end = start + last - first
        if end > ends.get(exponent, -1):
            raise CodecError(f"delta: the base has more values of exponent {exponent} than are stored")
        out[first:last] = numbers[start:end]
        cursors[exponent] = end
