"""Planes and delta decoded from the words of FORMAT.md, one value at a time and without the codecs' help."""

import struct
from itertools import pairwise

import zstandard


def _frame(body: bytes, size: int) -> bytes:
    content = zstandard.ZstdDecompressor().decompress(body, max_output_size=size + 1)
    assert len(content) == size == zstandard.get_frame_parameters(body).content_size
    return content


def plane(data: bytes, at: int, n: int) -> tuple[bytes, int]:
    """The bytes of a plane's record, and where it ends."""
    form, low, bits, zero, length = struct.unpack_from("<BBBBI", data, at)
    body = data[at + 8 : at + 8 + length]
    end = at + 8 + length
    assert zero == 0
    assert len(body) == length
    if form == 0:
        assert (bits, body) == (0, b"")
        return bytes([low]) * n, end
    if form in (1, 2):
        assert (low, bits) == (0, 0)
        content = body if form == 1 else _frame(body, n)
        assert len(content) == n
        return content, end
    assert form == 3
    return _fields(body, n, low, bits), end


def _fields(body: bytes, n: int, low: int, bits: int) -> bytes:
    length, exceptions, gaps = struct.unpack_from("<III", body)
    content = bytearray([low]) * n
    if bits:
        packed = _frame(body[12 : 12 + length], -(-n * bits // 8))
        for place in range(n):
            field = packed[place * bits // 8] >> (place * bits % 8) & ((1 << bits) - 1)
            content[place] = (low + field) % 256
        assert packed[-1] >> ((n * bits - 1) % 8 + 1) == 0
    at = 12 + length
    if exceptions:
        between, at = plane(body, at, gaps)
        values, at = plane(body, at, exceptions)
        place, number = -1, 0
        for byte in between:
            place += byte
            if byte < 255:
                place += 1
                content[place] = values[number]
                number += 1
        assert number == exceptions
    assert at == len(body)
    return bytes(content)


def _numbers(data: bytes, at: int, n: int, width: int) -> tuple[list[int], int]:
    numbers = [0] * n
    for rank in range(width):
        content, at = plane(data, at, n)
        for place, byte in enumerate(content):
            numbers[place] |= byte << 8 * rank
    return numbers, at


def planes(stored: bytes, size: int) -> bytes:
    """The raw bytes of a chunk of codec 2."""
    width, moved, zero = struct.unpack_from("<BBH", stored)
    assert zero == 0
    numbers, at = _numbers(stored, 4, size // width, width)
    raw = b""
    low = 8 * width - 9
    for number in numbers:
        value = number
        if moved:
            mantissa, sign, top = number % (1 << low), number >> low & 1, number >> (low + 1)
            value = mantissa | top << low | sign << (8 * width - 1)
        raw += value.to_bytes(width, "little")
    return raw + stored[at:]


def delta(stored: bytes, base: bytes) -> bytes:
    """The raw bytes of a chunk of codec 3."""
    width, m, e, shift, groups, zero = struct.unpack_from("<BBBBHH", stored)
    assert zero == 0
    bits = 8 * width
    flip = (1 << (bits - 1 - shift)) - 1 if e else 0
    values = [int.from_bytes(base[at : at + width], "little") for at in range(0, len(base) - len(base) % width, width)]
    places: dict[int, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value >> m & ((1 << e) - 1), []).append(place)
    table = [struct.unpack_from("<HHI", stored, 8 + 8 * number) for number in range(groups)]
    assert [(exponent, size) for exponent, _, size in table] == [(key, len(places[key])) for key in sorted(places)]
    starts = [number for number, group in enumerate(table) if group[1]] + [groups]
    assert starts[0] == 0
    at, numbers = 8 + 8 * groups, []
    for first, last in pairwise(starts):
        segment, at = _numbers(stored, at, sum(group[2] for group in table[first:last]), width)
        numbers += segment
    order = [place for key in sorted(places) for place in places[key]]
    raw = bytearray(len(values) * width)
    for place, number in zip(order, numbers, strict=True):
        step = -((number + 1) // 2) if number % 2 else number // 2
        mapped = _signed(values[place], bits) >> shift
        mapped = (mapped ^ flip if mapped < 0 else mapped) + step
        mapped = _signed(mapped % (1 << bits), bits)
        value = (mapped ^ flip if mapped < 0 else mapped) << shift
        raw[place * width : place * width + width] = (value % (1 << bits)).to_bytes(width, "little")
    return bytes(raw) + stored[at:]


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
