"""One byte plane: the same byte of many values, held in the form that suits it.

Codecs for tensors split values into byte planes, and what a plane is like differs: all zero, near-random, a few
exponents, mostly zero. So a plane is a record of its own::

    0   1  form: 0 constant, 1 raw, 2 frame, 3 fields of 4 bits, 4 of 2 bits, 5 of 1 bit
    1   1  low: the constant's value, or what a field of zero stands for; otherwise zero
    2   2  zero
    4   4  length of what follows, u32

    constant   nothing
    raw        the bytes
    frame      one zstd frame of them
    fields     0  4  number of exceptions, u32
               4  4  length of the zstd frame, u32
               8  .  one zstd frame of the packed fields, the last byte filled with zero bits
               .  .  the exceptions, as a record of form 0, 1 or 2; nothing if there are none

A field whose bits are all ones is an exception; the others mean ``low`` plus the field, modulo 256. The writer chooses
by a sample (``plane_choice``). A reader gets a plane piece by piece, so that what works on it stays in the cache.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from csf_store.codecs.base import CodecError
from csf_store.codecs.fields import Bytes, pack, packed_size, unpack
from csf_store.codecs.plane_choice import Choice, Form, choose_form
from csf_store.codecs.zstd import compress_frame, decompress_frame
from csf_store.digest import Buffer

_HEAD: Final = struct.Struct("<BBHI")
_FIELDS: Final = struct.Struct("<II")
BLOCK: Final = 1 << 16
"""Values that are worked on at a time: they and what is made of them fit a core's own cache."""


class _Packed(NamedTuple):
    fields: Bytes
    exceptions: Bytes


def write_plane(plane: Bytes, choice: Choice | None = None) -> list[Buffer]:
    """The record of a plane, in parts to be joined."""
    form, low, effort = choice or choose_form(plane)
    if form == Form.CONSTANT:
        return [_HEAD.pack(form, low, 0, 0)]
    if form == Form.RAW:
        return [_HEAD.pack(form, 0, 0, len(plane)), plane.data]
    if form == Form.FRAME:
        frame = compress_frame(plane.data, effort)
        return [_HEAD.pack(form, 0, 0, len(frame)), frame]
    packed = _pack(plane, low, form.bits)
    frame = compress_frame(packed.fields.data, effort)
    exceptions = (
        write_plane(packed.exceptions, choose_form(packed.exceptions, nested=True)) if len(packed.exceptions) else []
    )
    body = [_FIELDS.pack(len(packed.exceptions), len(frame)), frame, *exceptions]
    return [_HEAD.pack(form, low, 0, sum(map(len, body))), *body]


def _pack(plane: Bytes, low: int, bits: int) -> _Packed:
    count = len(plane)
    limit = (1 << bits) - 1
    packed = np.empty(packed_size(count, bits), np.uint8)
    exceptions: list[Bytes] = []
    fields = np.empty(min(BLOCK, -(-count // 8) * 8), np.uint8)
    for start in range(0, count, BLOCK):
        block = plane[start : start + BLOCK]
        here = fields[: len(block)]
        np.subtract(block, low, out=here)
        outside = np.flatnonzero(here >= limit)
        if len(outside):
            exceptions.append(block[outside])
            np.minimum(here, limit, out=here)
        whole = fields[: -(-len(block) // 8) * 8]
        whole[len(block) :] = 0
        out = packed[start * bits // 8 : packed_size(start + len(block), bits)]
        if len(whole) * bits == 8 * len(out):
            pack(whole, bits, out)
        else:
            last = np.empty(len(whole) * bits // 8, np.uint8)
            pack(whole, bits, last)
            out[:] = last[: len(out)]
    return _Packed(packed, np.concatenate(exceptions) if exceptions else np.empty(0, np.uint8))


class PlaneReader:
    """Reads a record of ``count`` values from ``view`` at ``at``; ``end`` is where the next thing begins.

    Raises:
        CodecError: if there is no such record. Nothing longer than ``count`` is allocated.
    """

    def __init__(self, view: memoryview, at: int, count: int, *, nested: bool = False) -> None:
        if len(view) - at < _HEAD.size:
            raise CodecError("a plane's head is incomplete")
        number, self._low, zero, length = _HEAD.unpack_from(view, at)
        self.end = at + _HEAD.size + length
        if number not in _FORMS or zero or self.end > len(view):
            raise CodecError(f"a plane of form {number} and {length} bytes can not be")
        self._form = _FORMS[number]
        self._left = count
        self._at = 0
        self._exceptions: Bytes | None = None
        self._used = 0
        body = view[at + _HEAD.size : self.end]
        if self._form in (Form.RAW, Form.FRAME) and self._low:
            raise CodecError("a plane without a lowest value has one")
        if self._form.bits and nested:
            raise CodecError("exceptions have exceptions")
        self._data = self._open(body, count)

    def _open(self, body: memoryview, count: int) -> Bytes:
        if self._form == Form.CONSTANT:
            if len(body):
                raise CodecError("a constant plane has bytes")
            return np.full(min(BLOCK, count), self._low, np.uint8)
        if self._form == Form.RAW:
            if len(body) != count:
                raise CodecError(f"a raw plane of {len(body)} bytes where {count} are expected")
            return np.frombuffer(body, np.uint8)
        if self._form == Form.FRAME:
            return np.frombuffer(decompress_frame(body, count), np.uint8)
        if len(body) < _FIELDS.size:
            raise CodecError("a plane's fields have no head")
        exceptions, length = _FIELDS.unpack_from(body)
        end = _FIELDS.size + length
        if exceptions > count or end > len(body):
            raise CodecError("a plane's fields do not fit its record")
        fields = decompress_frame(body[_FIELDS.size : end], packed_size(count, self._form.bits))
        if exceptions:
            others = PlaneReader(body, end, exceptions, nested=True)
            end = others.end
            self._exceptions = others.all(exceptions)
        if end != len(body):
            raise CodecError("a plane's fields have bytes behind them")
        return np.frombuffer(fields, np.uint8)

    @property
    def constant(self) -> int | None:
        """The value of all, if they were stored as one."""
        return self._low if self._form == Form.CONSTANT else None

    def all(self, count: int) -> Bytes:
        """Every value, for what is small."""
        out = np.empty(count, np.uint8)
        for start in range(0, count, BLOCK):
            out[start : start + BLOCK] = self.next(min(BLOCK, count - start))
        return out

    def next(self, count: int) -> Bytes:
        """The next ``count`` values, good until the next call: ``BLOCK`` of them, or fewer if they are the last."""
        start = self._at
        self._at += count
        self._left -= count
        if self._form == Form.CONSTANT:
            return self._data[:count]
        if not self._form.bits:
            return self._data[start : start + count]
        return self._unpack(start, count)

    def _unpack(self, start: int, count: int) -> Bytes:
        bits = self._form.bits
        packed = self._data[start * bits // 8 : packed_size(start + count, bits)]
        values = np.empty(len(packed) * 8 // bits, np.uint8)
        unpack(packed, bits, values)
        values = values[:count]
        others = self._exceptions
        where = np.flatnonzero(values == (1 << bits) - 1)
        if self._low:
            np.add(values, self._low, out=values)
        if len(where):
            last = self._used + len(where)
            if others is None or last > len(others):
                raise CodecError("a plane has more exceptions than it says")
            values[where] = others[self._used : last]
            self._used = last
        if not self._left and others is not None and self._used != len(others):
            raise CodecError("a plane has fewer exceptions than it says")
        return values


_FORMS: Final = {int(form): form for form in Form}
