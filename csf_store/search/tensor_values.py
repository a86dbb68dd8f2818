"""How far apart the values of two tensors are, from their bytes, in float64, a stretch at a time.

A stretch is a few MiB of each side. What is kept of it is small and adds up: sums of squares (scaled, so that neither
huge nor tiny float64 values leave the range), the largest difference, counts. Whether a value changed is told by its
bits; how far, by its number. Where a changed value is NaN or infinite on either side there is no distance: such values
are counted and stay out of the norms.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from csf_store.digest import Buffer
from csf_store.safetensors_layout import DTYPE_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _Floats = NDArray[np.float64]

_BLOCK: Final = 1 << 17
"""Values handled at once: their float64 temporaries stay in the processor's cache."""
_NATIVE: Final = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<f4",
}  # fmt: skip
_WIDE_INTEGERS: Final = ("U64", "I64")
_BFLOAT16: Final = "BF16"
_COMPLEX: Final = "C64"


class SmallFloat(NamedTuple):
    """A float format of up to 8 bits.

    Attributes:
        exponent: bits of it.
        mantissa: bits of it.
        bias: of the exponent.
        nans: the codes (sign bit aside, where there is one) that are NaN.
        infinity: the code that is, if one is.
        signed: whether there is a sign bit.
        unsigned_zero: whether the code of minus zero is NaN.
    """

    exponent: int
    mantissa: int
    bias: int
    nans: tuple[int, ...] = ()
    infinity: int | None = None
    unsigned_zero: bool = False


_SMALL: Final = {
    "F8_E5M2": SmallFloat(5, 2, 15, (0x7D, 0x7E, 0x7F), 0x7C),
    "F8_E4M3": SmallFloat(4, 3, 7, (0x7F,)),
    "F8_E5M2FNUZ": SmallFloat(5, 2, 16, unsigned_zero=True),
    "F8_E4M3FNUZ": SmallFloat(4, 3, 8, unsigned_zero=True),
    "F4": SmallFloat(2, 1, 1),
}
_SCALE: Final = "F8_E8M0"


@cache
def _table(dtype: str) -> _Floats:
    """What each code of a small format stands for."""
    if dtype == _SCALE:
        return np.array([math.ldexp(1.0, code - 127) for code in range(255)] + [math.nan])
    form = _SMALL[dtype]
    low = 1 << (form.exponent + form.mantissa)
    values = []
    for code in range(2 * low):
        size = code % low
        if size in form.nans or (form.unsigned_zero and code == low):
            value = math.nan
        elif size == form.infinity:
            value = math.inf
        else:
            exponent, fraction = divmod(size, 1 << form.mantissa)
            mantissa = fraction + (1 << form.mantissa if exponent else 0)
            value = math.ldexp(mantissa, max(exponent, 1) - form.bias - form.mantissa)
        values.append(-value if code >= low else value)
    return np.array(values)


def decode_values(dtype: str, data: Buffer) -> _Floats:
    """The values of some bytes as float64; of complex numbers, real and imaginary parts in turn.

    64-bit integers beyond 2**53 are rounded.
    """
    if dtype == _BFLOAT16:
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    if dtype in _NATIVE:
        return np.frombuffer(data, _NATIVE[dtype]).astype(np.float64)
    codes = np.frombuffer(data, np.uint8)
    if DTYPE_BITS[dtype] == 4:  # two to a byte; which is first does not matter where both sides agree
        codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
    values: _Floats = _table(dtype)[codes]
    return values


class _Square(NamedTuple):
    """A sum of squares as ``scale**2 * total``, which never leaves the range of float64."""

    scale: float = 0.0
    total: float = 0.0

    @classmethod
    def of(cls, values: _Floats) -> _Square:
        """Of finite values."""
        scale = float(np.abs(values).max(initial=0.0))
        if scale == 0.0:
            return cls()
        scaled = values / scale
        return cls(scale, float(np.dot(scaled, scaled)))

    def __add__(self, other: object) -> _Square:
        if not isinstance(other, _Square):
            return NotImplemented
        large, small = (self, other) if self.scale >= other.scale else (other, self)
        if large.scale == 0.0:
            return large
        return _Square(large.scale, large.total + small.total * (small.scale / large.scale) ** 2)

    @property
    def root(self) -> float:
        """The norm."""
        return self.scale * math.sqrt(self.total)


class Distance(NamedTuple):
    """What adds up over the stretches of two tensors.

    Attributes:
        values: how many there are; of complex numbers, each part counts.
        changed: how many have other bits.
        not_finite: how many of the changed are NaN or infinite on either side.
        largest: the largest absolute difference, 0 without one.
        difference: sum of squares of the differences.
        before: sum of squares of the finite values of the first.
    """

    values: int = 0
    changed: int = 0
    not_finite: int = 0
    largest: float = 0.0
    difference: _Square = _Square()
    before: _Square = _Square()

    def __add__(self, other: object) -> Distance:
        if not isinstance(other, Distance):
            return NotImplemented
        return Distance(
            self.values + other.values,
            self.changed + other.changed,
            self.not_finite + other.not_finite,
            max(self.largest, other.largest),
            self.difference + other.difference,
            self.before + other.before,
        )

    @property
    def norm(self) -> float:
        """``||B - A||``."""
        return self.difference.root

    @property
    def relative(self) -> float:
        """``||B - A|| / ||A||``; infinite if only A is zero."""
        if self.difference.total == 0.0:
            return 0.0
        if self.before.total == 0.0:
            return math.inf
        scales = self.difference.scale / self.before.scale  # the norms themselves may be beyond float64
        return scales * math.sqrt(self.difference.total / self.before.total)

    @property
    def fraction(self) -> float:
        """The part of the values that changed."""
        return self.changed / self.values if self.values else 0.0


def distance(dtype: str, before: Buffer, after: Buffer | None, *, after_dtype: str | None = None) -> Distance:
    """How far some values moved.

    Args:
        dtype: of the bytes before.
        before: whole values.
        after: as many values; None says that they are the same bytes.
        after_dtype: if it is another; a value then changed if its number did.
    """
    after_dtype = after_dtype or dtype
    count = len(before) * 8 // DTYPE_BITS[dtype]
    total = Distance()
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        old = _stretch(dtype, before, start, size)
        new = None if after is None else _stretch(after_dtype, after, start, size)
        # Signalling NaNs, overflow to infinity and vanishing squares are all foreseen.
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            total += _block(dtype, old, after_dtype, new)
    return total._replace(values=count * (2 if _COMPLEX in (dtype, after_dtype) else 1))


def _stretch(dtype: str, data: Buffer, start: int, size: int) -> memoryview:
    bits = DTYPE_BITS[dtype]
    return memoryview(data)[start * bits // 8 : -(-(start + size) * bits // 8)]


def _block(dtype: str, old: memoryview, after_dtype: str, new: memoryview | None) -> Distance:
    values = decode_values(dtype, old)
    finite = np.isfinite(values)
    before = _Square.of(values if finite.all() else values[finite])
    if new is None or (dtype == after_dtype and old == new):
        return Distance(before=before)
    if dtype == after_dtype:
        changed = _codes(dtype, old) != _codes(dtype, new)
        moved = _integer_moves(dtype, old, new, changed) if dtype in _WIDE_INTEGERS else None
    else:
        moved = None
    if moved is None:
        after = decode_values(after_dtype, new)
        if dtype != after_dtype:
            if _COMPLEX in (dtype, after_dtype):
                values, after = _in_parts(dtype, values), _in_parts(after_dtype, after)
            changed = (values != after) & ~(np.isnan(values) & np.isnan(after))
        moved = after[changed] - values[changed]
    sound = np.isfinite(moved)
    distances = moved if sound.all() else moved[sound]
    largest = float(np.abs(distances).max(initial=0.0))
    count = int(np.count_nonzero(changed))
    return Distance(0, count, len(moved) - len(distances), largest, _Square.of(distances), before)


def _in_parts(dtype: str, values: _Floats) -> _Floats:
    """Real and imaginary parts in turn, also of numbers that have no imaginary part."""
    return values if dtype == _COMPLEX else np.stack([values, np.zeros_like(values)], axis=1).reshape(-1)


def _codes(dtype: str, data: memoryview) -> NDArray[Any]:
    """The bits of every value, as numbers."""
    if DTYPE_BITS[dtype] == 4:
        codes = np.frombuffer(data, np.uint8)
        return np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
    width = 4 if dtype == _COMPLEX else DTYPE_BITS[dtype] // 8
    return np.frombuffer(data, f"<u{width}")


def _integer_moves(dtype: str, old: memoryview, new: memoryview, changed: NDArray[np.bool_]) -> _Floats:
    """Distances of 64-bit integers: taken as integers, because float64 would round close ones to the same number."""
    before, after = (np.frombuffer(side, _NATIVE[dtype])[changed] for side in (old, new))
    upwards = after > before
    low = np.where(upwards, before, after).view(np.uint64)
    high = np.where(upwards, after, before).view(np.uint64)
    return (high - low).astype(np.float64)  # wraps around, so it is right for signed ones too
