"""One byte plane: the same byte of many values, held in the form that suits it.

Codecs for tensors split values into byte planes, and what a plane is like differs: all zero, near-random, a few
exponents, mostly zero. So a plane is a record of its own::

    0   1  form: 0 constant, 1 raw, 2 frame, 3 fields
    1   1  low: the constant's value, or what a field of zero stands for; otherwise zero
    2   1  bits of a field: 0, 1, 2 or 4; otherwise zero
    3   1  zero
    4   4  length of what follows, u32

    constant   nothing
    raw        the bytes
    frame      one zstd frame of them
    fields     0  4  length of the zstd frame, u32; 0 for fields of no bits
               4  4  number of exceptions, u32; at most an eighth of all
               8  4  number of gap bytes, u32; 0 if there are no exceptions
              12  .  one zstd frame of the packed fields, the last byte filled with zero bits
               .  .  if there are exceptions, their gaps and then their values, each a plane of form 0, 1 or 2

A field means ``low`` plus itself, modulo 256, unless its place is an exception's: then it means nothing. A gap byte
below 255 says how many values lie between one exception and the next; 255 says that many do and the next byte goes on.

The writer chooses by a sample (``plane_choice``). Both sides take a plane block by block, so that it stays
in the cache.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from csf_store.codecs.base import CodecError
from csf_store.codecs.fields import FIELD_BITS, Bytes, pack, packed_size, unpack
from csf_store.codecs.plane_choice import Choice, Form, choose_form, sample_of
from csf_store.codecs.zstd import Effort, compress_frame, decompress_frame
from csf_store.digest import Buffer

HEAD: Final = struct.Struct("<BBBBI")
_FIELDS: Final = struct.Struct("<III")
_BLOCK: Final = 1 << 16
_SKIP: Final = 255
"""A gap byte that says the gap goes on."""

_Places = npt.NDArray[np.intp]


class PlaneWriter:
    """Makes the record of a plane of ``count`` bytes that arrives in blocks.

    Args:
        count: how many there will be.
        choice: the form to write.
        room: where to keep the bytes of a raw plane; its own memory by default.
    """

    def __init__(self, count: int, choice: Choice, room: Bytes | None = None) -> None:
        self._choice = choice
        self._at = 0
        self._places: list[_Places] = []
        self._values: list[Bytes] = []
        size = packed_size(count, choice.bits) if choice.form == Form.FIELDS else count
        self._held: Bytes = np.empty(size, np.uint8) if room is None else room
        self._block: Bytes = np.empty(0, np.uint8)

    def block(self, count: int) -> Bytes:
        """Where to put the next ``count`` bytes before ``add``. All blocks but the last: multiples of 8 long."""
        if self._choice.form != Form.FIELDS:
            return self._held[self._at : self._at + count]
        if len(self._block) < count:
            self._block = np.zeros(-(-count // 8) * 8, np.uint8)
        return self._block[:count]

    def add(self, count: int) -> None:
        """Takes the bytes that were put into ``block(count)``."""
        start, self._at = self._at, self._at + count
        if self._choice.form != Form.FIELDS:
            return
        bits = self._choice.bits
        fields = self._block[: -(-count // 8) * 8]
        fields[count:] = self._choice.low
        if self._choice.low:
            np.subtract(fields, self._choice.low, out=fields)
        self._set_apart(fields, start)
        first, last = start * bits // 8, packed_size(self._at, bits)
        if len(fields) * bits == 8 * (last - first):
            if bits:
                pack(fields, bits, self._held[first:last])
            return
        packed = np.empty(len(fields) * bits // 8, np.uint8)
        pack(fields, bits, packed)
        self._held[first:last] = packed[: last - first]

    def _set_apart(self, fields: Bytes, start: int) -> None:
        """Notes what does not fit the fields, and puts the filler there. Eight bytes at a time: few have any."""
        _, _, low, bits, filler, _ = self._choice
        words = fields.view(np.uint64)
        mask = (0x100 - (1 << bits)) * 0x0101010101010101
        suspects = np.flatnonzero((np.bitwise_and(words, mask) if bits else words) != 0)
        if not len(suspects):
            return
        rows, columns = np.nonzero(fields.reshape(-1, 8)[suspects] >= 1 << bits)
        where = 8 * suspects[rows] + columns
        values = fields[where]
        self._values.append(np.add(values, low, out=values))
        fields[where] = filler
        self._places.append(np.add(where, start, out=where))

    def record(self) -> list[Buffer]:
        """The record, in parts to be joined."""
        form, _, low, bits, _, effort = self._choice
        if form == Form.RAW:
            return [HEAD.pack(form, 0, 0, 0, len(self._held)), self._held.data]
        if form == Form.FRAME:
            frame = compress_frame(self._held.data, effort)
            return [HEAD.pack(form, 0, 0, 0, len(frame)), frame]
        if not (bits or self._places):
            return [HEAD.pack(Form.CONSTANT, low, 0, 0, 0)]
        exceptions, gaps = sum(map(len, self._values)), 0
        if exceptions > most_exceptions(self._at):
            return self._misjudged()
        frame = compress_frame(self._held.data, effort) if bits else b""
        parts: list[Buffer] = []
        if exceptions:
            values, between = np.concatenate(self._values), _gaps(np.concatenate(self._places))
            gaps = len(between)
            parts = [*_nested(between), *_nested(values)]
        body: list[Buffer] = [_FIELDS.pack(len(frame), exceptions, gaps), frame, *parts]
        return [HEAD.pack(form, low, bits, 0, sum(map(len, body))), *body]

    def _misjudged(self) -> list[Buffer]:
        """The record of a plane of which the sample told nothing."""
        _, _, low, bits, _, _ = self._choice
        fields = np.zeros(-(-self._at // 8) * 8, np.uint8)
        if bits:
            whole = np.zeros(packed_size(len(fields), bits), np.uint8)
            whole[: len(self._held)] = self._held
            unpack(whole, bits, fields)
        plane = np.add(fields, low, out=fields)[: self._at]
        for places, values in zip(self._places, self._values, strict=True):
            plane[places] = values
        return _framed(plane, Effort.MATCHES)


def most_exceptions(count: int) -> int:
    """How many exceptions a plane of ``count`` bytes may have: what a reader keeps of them is larger than they are."""
    return count // 8


def write_plane(plane: Bytes, choice: Choice | None = None) -> list[Buffer]:
    """The record of a plane that lies in one piece, in parts to be joined."""
    choice = choice or choose_form(sample_of(plane), len(plane))
    if choice.form != Form.FIELDS:
        return PlaneWriter(len(plane), choice, plane).record()
    writer = PlaneWriter(len(plane), choice)
    for start in range(0, len(plane), _BLOCK):
        block = plane[start : start + _BLOCK]
        np.copyto(writer.block(len(block)), block)
        writer.add(len(block))
    return writer.record()


def _nested(plane: Bytes) -> list[Buffer]:
    """The record of what belongs to exceptions."""
    return _framed(plane, Effort.HUFFMAN)


def _framed(plane: Bytes, effort: Effort) -> list[Buffer]:
    """The record of a plane as a frame, or raw where that is no longer."""
    frame = compress_frame(plane.data, effort)
    form, body = (Form.FRAME, frame) if len(frame) < len(plane) else (Form.RAW, plane.data)
    return [HEAD.pack(form, 0, 0, 0, len(body)), body]


def _gaps(places: _Places) -> Bytes:
    """The gap bytes of exceptions."""
    between = np.diff(places, prepend=-1) - 1
    skips = between // _SKIP
    gaps = np.full(len(places) + int(skips.sum()), _SKIP, np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = between % _SKIP
    return gaps


def _places(gaps: Bytes, count: int, exceptions: int) -> _Places:
    """Where the exceptions are, by their gap bytes.

    Raises:
        CodecError: if they are not as many, or not all among ``count`` values.
    """
    ends = gaps != _SKIP
    if np.count_nonzero(ends) == exceptions and ends[-1]:
        places: _Places = np.cumsum(gaps, dtype=np.intp)[ends]
        np.add(places, np.arange(exceptions), out=places)
        if places[-1] < count:
            return places
    raise CodecError(f"a plane's {exceptions} exceptions do not lie among its {count} values")


class PlaneReader:
    """Reads a record of ``count`` values from ``view`` at ``at``; ``end`` is where the next thing begins.

    Args:
        view: the stored bytes.
        at: where the record begins.
        count: how many values the plane has.
        block: how many are asked for at a time, at most; a multiple of 8.
        nested: whether this must not be a plane of fields.

    Raises:
        CodecError: if there is no such record. Nothing longer than ``count`` is allocated.
    """

    def __init__(self, view: memoryview, at: int, count: int, block: int = _BLOCK, *, nested: bool = False) -> None:
        if len(view) - at < HEAD.size:
            raise CodecError("a plane's head is incomplete")
        form, self._low, self._bits, zero, length = HEAD.unpack_from(view, at)
        self.end = at + HEAD.size + length
        if form > Form.FIELDS - nested or zero or self.end > len(view):
            raise CodecError(f"a plane of form {form} and {length} bytes can not be")
        self._form = Form(form)
        if self._bits not in (FIELD_BITS if self._form == Form.FIELDS else (0,)):
            raise CodecError(f"a plane of form {form} and {self._bits} bits can not be")
        if self._low and self._form in (Form.RAW, Form.FRAME):
            raise CodecError(f"a plane of form {form} and a lowest value can not be")
        self._count = count
        self._block = min(block, -(-count // 8) * 8)
        self._at = 0
        self._where: _Places | None = None
        self._data = self._open(view[at + HEAD.size : self.end])
        self._out = np.empty(self._block if self._bits or self._where is not None else 0, np.uint8)

    def _open(self, body: memoryview) -> Bytes:
        if self._form == Form.CONSTANT:
            if len(body):
                raise CodecError("a constant plane has bytes")
            return np.full(self._block, self._low, np.uint8)
        if self._form == Form.RAW:
            if len(body) != self._count:
                raise CodecError(f"a raw plane of {len(body)} bytes where {self._count} are expected")
            return np.frombuffer(body, np.uint8)
        if self._form == Form.FRAME:
            return np.frombuffer(decompress_frame(body, self._count), np.uint8)
        return self._open_fields(body)

    def _open_fields(self, body: memoryview) -> Bytes:
        if len(body) < _FIELDS.size:
            raise CodecError("a plane's fields have no head")
        length, exceptions, gaps = _FIELDS.unpack_from(body)
        end = _FIELDS.size + length
        most = most_exceptions(self._count)
        if end > len(body) or exceptions > most or gaps > most + self._count // _SKIP:
            raise CodecError("a plane's fields do not fit its record")
        if bool(gaps) != bool(exceptions):
            raise CodecError("a plane has gaps but no exceptions, or exceptions but no gaps")
        if bool(length) != bool(self._bits):
            raise CodecError("a plane's fields have no bits but bytes, or bits but no bytes")
        size = packed_size(self._count, self._bits)
        fields = decompress_frame(body[_FIELDS.size : end], size) if self._bits else b""
        if exceptions:
            between = PlaneReader(body, end, gaps, nested=True)
            values = PlaneReader(body, between.end, exceptions, nested=True)
            end = values.end
            self._where = _places(between.all(), self._count, exceptions)
            self._others = values.all()
        if end != len(body):
            raise CodecError("a plane's fields have bytes behind them")
        return np.frombuffer(fields, np.uint8)

    @property
    def constant(self) -> int | None:
        """The value of all, if they were stored as one."""
        return self._low if self._form == Form.CONSTANT else None

    def all(self) -> Bytes:
        """Every value, for what is small."""
        out = np.empty(self._count, np.uint8)
        for start in range(0, self._count, self._block):
            out[start : start + self._block] = self.next(min(self._block, self._count - start))
        return out

    def next(self, count: int) -> Bytes:
        """The next ``count`` values, good until the next call: a block of them, or fewer if they are the last."""
        start, self._at = self._at, self._at + count
        if self._form == Form.CONSTANT:
            return self._data[:count]
        if self._form != Form.FIELDS:
            return self._data[start : start + count]
        if self._bits:
            packed = self._data[start * self._bits // 8 : packed_size(start + count, self._bits)]
            unpack(packed, self._bits, self._out[: len(packed) * 8 // self._bits])
            if self._low:
                np.add(self._out, self._low, out=self._out)
        else:
            self._out.fill(self._low)
        if self._where is not None:
            first, last = np.searchsorted(self._where, (start, start + count))
            self._out[self._where[first:last] - start] = self._others[first:last]
        return self._out[:count]
