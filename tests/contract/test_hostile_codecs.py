"""Stored bytes are a claim: a codec fills what it was given or raises CodecError, and takes little memory."""

import random
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard

from csf_store.codecs import CodecError, Hint, codec

PLANES, DELTA = 2, 3
N = 4096
NIBBLES = np.full(N // 2, 0x21, np.uint8).tobytes()


def _frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def _plane(
    form: int, body: bytes = b"", *, low: int = 0, bits: int = 0, zero: int = 0, length: int | None = None
) -> bytes:
    return struct.pack("<BBBBI", form, low, bits, zero, len(body) if length is None else length) + body


def _fields(frame: bytes, gaps: bytes = b"", others: bytes = b"", *, x: int = 0, g: int = 0, length: int = -1) -> bytes:
    return struct.pack("<III", len(frame) if length < 0 else length, x, g) + frame + gaps + others


def _exceptions(gaps: bytes, others: bytes) -> bytes:
    """Fields of four bits with exceptions at these gaps."""
    x = len(others)
    return _plane(3, _fields(_frame(NIBBLES), _plane(1, gaps), _plane(1, others), x=x, g=len(gaps)), bits=4)


def _decode_plane(record: bytes, size: int = N) -> bytes:
    out = bytearray(size)
    codec(PLANES).decode_into(b"\x01\x00\x00\x00" + record, memoryview(out))
    return bytes(out)


GOOD = {
    "constant": _plane(0, low=7),
    "raw": _plane(1, bytes(N)),
    "frame": _plane(2, _frame(bytes(N))),
    "fields": _plane(3, _fields(_frame(NIBBLES)), bits=4, low=250),
    "exceptions": _exceptions(b"\x00\x05\xff\x03", b"abc"),
    "last": _exceptions(b"\xff" * 16 + bytes([N - 1 - 16 * 255]), b"z"),
}

BAD = {
    "nothing": b"",
    "half a head": _plane(0)[:7],
    "an unknown form": _plane(4),
    "a zero that is none": _plane(0, zero=1),
    "longer than the chunk": _plane(1, bytes(N), length=N + 1),
    "a constant with a body": _plane(0, b"x"),
    "a constant with bits": _plane(0, bits=4),
    "raw with a lowest value": _plane(1, bytes(N), low=1),
    "raw with bits": _plane(1, bytes(N), bits=1),
    "raw, too short": _plane(1, bytes(N - 1)),
    "raw, too long": _plane(1, bytes(N + 1)),
    "a frame with a lowest value": _plane(2, _frame(bytes(N)), low=1),
    "a frame of another size": _plane(2, _frame(bytes(N + 1))),
    "a frame that is none": _plane(2, b"not a frame at all"),
    "a frame and more": _plane(2, _frame(bytes(N)) + b"x"),
    "two frames": _plane(2, _frame(bytes(N)) + _frame(b"")),
    "half a frame": _plane(2, _frame(random.Random(1).randbytes(N))[: N // 2]),
    "a bomb": _plane(2, _frame(bytes(1 << 26))),
    "fields of three bits": _plane(3, _fields(_frame(NIBBLES)), bits=3),
    "fields of eight bits": _plane(3, _fields(_frame(bytes(N))), bits=8),
    "fields without a head": _plane(3, bytes(11), bits=4),
    "fields of another size": _plane(3, _fields(_frame(NIBBLES + b"\0")), bits=4),
    "fields that end behind the record": _plane(3, _fields(_frame(NIBBLES), length=1 << 20), bits=4),
    "fields of no bits with a frame": _plane(3, _fields(_frame(b""))),
    "fields of bits without a frame": _plane(3, _fields(b""), bits=4),
    "bytes behind the fields": _plane(3, _fields(_frame(NIBBLES)) + b"x", bits=4),
    "gaps without exceptions": _plane(3, _fields(_frame(NIBBLES), _plane(1, b"\x01"), g=1), bits=4),
    "exceptions without gaps": _plane(3, _fields(_frame(NIBBLES), _plane(1), _plane(1, b"a"), x=1), bits=4),
    "too many exceptions": _exceptions(bytes(N // 8 + 1), bytes(N // 8 + 1)),
    "too many gaps": _exceptions(b"\xff" * (N // 8 + N // 255) + b"\x00", b"a"),
    "fewer gaps than exceptions": _exceptions(b"\x01\xff", b"ab"),
    "more gaps than exceptions": _exceptions(b"\x01\x01", b"a"),
    "gaps that do not end": _exceptions(b"\x01\xff", b"a"),
    "a place behind the end": _exceptions(b"\xff" * 16 + bytes([N - 16 * 255]), b"z"),
    "fields among the exceptions": _plane(
        3, _fields(_frame(NIBBLES), _plane(1, b"\x01"), _plane(3, _fields(b"")), x=1, g=1), bits=4
    ),
    "fields among the gaps": _plane(
        3, _fields(_frame(NIBBLES), _plane(3, _fields(b"")), _plane(1, b"a"), x=1, g=1), bits=4
    ),
}  # fmt: skip


class TestPlaneRecords:
    @pytest.mark.parametrize("name", GOOD)
    def test_sound_ones_made_by_hand_are_read(self, name: str) -> None:
        content = _decode_plane(GOOD[name])
        expected = {
            "constant": b"\x07" * N,
            "fields": bytes([251, 252]) * (N // 2),
            "raw": bytes(N),
            "frame": bytes(N),
            "exceptions": b"a\x02\x01\x02\x01\x02b" + (b"\x02\x01" * N)[:258] + b"c" + (b"\x02\x01" * N)[259 : N - 7],
            "last": b"\x01\x02" * (N // 2 - 1) + b"\x01z",
        }[name]
        assert content == expected

    @pytest.mark.parametrize("name", BAD)
    def test_others_are_refused(self, name: str) -> None:
        with pytest.raises(CodecError):
            _decode_plane(BAD[name])

    @pytest.mark.parametrize("name", GOOD)
    def test_nothing_may_follow_or_lack(self, name: str) -> None:
        for bad in (GOOD[name] + b"x", GOOD[name][:-1]):
            with pytest.raises(CodecError):
                _decode_plane(bad)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("longer than the chunk", "can not be"),
            ("fields that end behind the record", "do not fit"),
            ("too many gaps", "do not fit"),
            ("too many exceptions", "do not fit"),
        ],
    )
    def test_lengths_are_refused_before_they_are_used(self, name: str, says: str) -> None:
        with pytest.raises(CodecError, match=says):
            _decode_plane(BAD[name])

    def test_half_a_head_is_refused(self) -> None:
        for number, size in ((PLANES, 4), (DELTA, 8)):
            for length in range(size):
                with pytest.raises(CodecError, match="head is incomplete"):
                    codec(number).decode_into(b"\x01" * length, memoryview(bytearray(N)), bytes(N))

    @pytest.mark.parametrize("head", ["00000000", "03000000", "02020000", "01010000", "02000100", "020000"])
    def test_heads_that_can_not_be_are_refused(self, head: str) -> None:
        with pytest.raises(CodecError):
            codec(PLANES).decode_into(bytes.fromhex(head) + _plane(0) + _plane(0), memoryview(bytearray(N)))


def _delta(head: tuple[int, ...], groups: list[tuple[int, int, int]], planes: bytes = _plane(0) * 2) -> bytes:
    return struct.pack("<BBBBHH", *head) + b"".join(struct.pack("<HHI", *group) for group in groups) + planes


BASE = np.repeat(np.array([0x3F80, 0x3F00], "<u2"), N // 4).tobytes()
"""bf16: as many ones, exponent 127, as halves, exponent 126."""
TWO = [(126, 1, N // 4), (127, 0, N // 4)]
BAD_DELTAS = {
    "nothing": b"",
    "half a head": _delta((2, 7, 8, 0, 2, 0), [], b"")[:7],
    "a width of three": _delta((3, 7, 8, 0, 2, 0), TWO),
    "integers of three bytes": _delta((3, 0, 0, 0, 1, 0), [(0, 1, N // 3)], _plane(0) * 3 + b"\0"),
    "no width": _delta((0, 7, 8, 0, 2, 0), TWO),
    "a zero that is none": _delta((2, 7, 8, 0, 2, 1), TWO),
    "a shift of all bits": _delta((2, 7, 8, 16, 2, 0), TWO),
    "bits that do not add up": _delta((2, 8, 8, 0, 2, 0), TWO),
    "a mantissa without an exponent": _delta((2, 7, 0, 0, 1, 0), [(0, 1, N // 2)]),
    "an exponent of twelve bits": _delta((8, 51, 12, 0, 1, 0), [(0, 1, N // 8)], _plane(0) * 8),
    "more groups than exponents": _delta((2, 7, 8, 0, 257, 0), [(0, 1, 1)] * 257),
    "groups behind the end": _delta((2, 7, 8, 0, 200, 0), TWO),
    "no groups": _delta((2, 7, 8, 0, 0, 0), [], b""),
    "descending groups": _delta((2, 7, 8, 0, 2, 0), [(127, 1, N // 4), (126, 0, N // 4)]),
    "a group twice": _delta((2, 7, 8, 0, 2, 0), [(126, 1, N // 4), (126, 0, N // 4)]),
    "an exponent that can not be": _delta((2, 7, 8, 0, 2, 0), [(126, 1, N // 4), (256, 0, N // 4)]),
    "an empty group": _delta((2, 7, 8, 0, 3, 0), [(125, 1, 0), *TWO]),
    "a first group that begins nothing": _delta((2, 7, 8, 0, 2, 0), [(126, 0, N // 4), (127, 0, N // 4)]),
    "a beginning of two": _delta((2, 7, 8, 0, 2, 0), [(126, 2, N // 4), (127, 0, N // 4)]),
    "too few values": _delta((2, 7, 8, 0, 2, 0), [(126, 1, N // 4), (127, 0, N // 4 - 1)]),
    "too many values": _delta((2, 7, 8, 0, 2, 0), [(126, 1, N // 4), (127, 0, 0xFFFFFFFF)]),
    "other sizes than the base's": _delta((2, 7, 8, 0, 2, 0), [(126, 1, N // 4 - 1), (127, 0, N // 4 + 1)]),
    "other exponents than the base's": _delta((2, 7, 8, 0, 2, 0), [(125, 1, N // 4), (127, 0, N // 4)]),
    "a plane too few": _delta((2, 7, 8, 0, 2, 0), TWO, _plane(0)),
    "a plane too many": _delta((2, 7, 8, 0, 2, 0), TWO, _plane(0) * 3),
    "a segment without planes": _delta((2, 7, 8, 0, 2, 0), [(126, 1, N // 4), (127, 1, N // 4)]),
    "a plane of another size": _delta((2, 7, 8, 0, 2, 0), TWO, _plane(0) + _plane(1, bytes(N))),
}


class TestDelta:
    def test_one_made_by_hand_is_read(self) -> None:
        out = bytearray(N)
        planes = _plane(0, low=2) + _plane(0)  # one step up, everywhere
        codec(DELTA).decode_into(_delta((2, 7, 8, 0, 2, 0), TWO, planes), memoryview(out), BASE)
        assert out == np.repeat(np.array([0x3F81, 0x3F01], "<u2"), N // 4).tobytes()

    @pytest.mark.parametrize("name", BAD_DELTAS)
    def test_others_are_refused(self, name: str) -> None:
        with pytest.raises(CodecError):
            codec(DELTA).decode_into(BAD_DELTAS[name], memoryview(bytearray(N)), BASE)

    @pytest.mark.parametrize(
        ("name", "says"),
        [("an exponent that can not be", "group 1 can not be"), ("an empty group", "group 0 can not be")],
    )
    def test_groups_are_refused_before_they_are_used(self, name: str, says: str) -> None:
        with pytest.raises(CodecError, match=says):
            codec(DELTA).decode_into(BAD_DELTAS[name], memoryview(bytearray(N)), BASE)

    def test_an_exponent_of_twelve_bits_is_refused_though_all_else_fits(self) -> None:
        stored = _delta((8, 51, 12, 0, 1, 0), [(0, 1, N // 8)], _plane(0) * 8)
        with pytest.raises(CodecError, match="12 bits can not be"):
            codec(DELTA).decode_into(stored, memoryview(bytearray(N)), bytes(N))


class TestMemory:
    """Nothing that stored bytes say makes a decoder take more than a small multiple of the chunk."""

    @staticmethod
    def _peak(number: int, stored: bytes, size: int, base: bytes | None) -> int:
        out = memoryview(bytearray(size))
        tracemalloc.start()
        try:
            codec(number).decode_into(stored, out, base)
        except CodecError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak

    @pytest.mark.parametrize("size", [1 << 12, 1 << 20])
    def test_claims_of_exceptions_gaps_and_groups(self, size: int) -> None:
        most, gaps = size // 8, size // 8 + size // 255
        hostile = [
            _plane(3, _fields(b"", _plane(2, _frame(bytes(most))), _plane(0), x=most, g=most)),
            _plane(3, _fields(b"", _plane(2, _frame(b"\xff" * gaps)), _plane(0), x=most, g=gaps)),
            _plane(3, _fields(b"", _plane(0), _plane(0), x=size - 1, g=size - 1)),
            _plane(3, _fields(b"", _plane(0, low=1), _plane(0), x=1, g=0xFFFFFFFF)),
            _plane(3, _fields(b"", _plane(0), _plane(0), x=0xFFFFFFFF, g=0xFFFFFFFF)),
            _plane(3, _fields(b"", length=0xFFFFFFFF), bits=4),
            _plane(2, _frame(bytes(1 << 26))),
            _plane(2, b"", length=0xFFFFFFFF),
        ]
        for record in hostile:
            assert self._peak(PLANES, b"\x01\x00\x00\x00" + record, size, None) < 6 * size + (1 << 18)
            stored = _delta((1, 0, 0, 0, 1, 0), [(0, 1, size)], record)
            assert self._peak(DELTA, stored, size, bytes(size)) < 8 * size + (1 << 20)
        for count in (1 << 16, 0xFFFFFFFF):
            stored = _delta((1, 0, 0, 0, 1, 0), [(0, 1, count)], _plane(0))
            assert self._peak(DELTA, stored, size, bytes(size)) < (1 << 18)

    @pytest.mark.parametrize("dtype", ["U8", "F8_E4M3", "BF16", "F32", "F64"])
    def test_honest_chunks(self, dtype: str) -> None:
        raw = np.random.default_rng(1).standard_normal(1 << 17).tobytes()
        for number, base in ((PLANES, None), (DELTA, raw[8:] + raw[:8])):
            stored = bytes(codec(number).encode(raw, Hint(dtype, base)))
            assert self._peak(number, stored, len(raw), base) < 6 * len(raw)


def test_noise_is_refused_by_every_codec_or_fills_what_it_was_given() -> None:
    random_ = random.Random(6)
    for number in (0, 1, 2, 3):
        for _ in range(1500):
            size = random_.randrange(0, 200)
            stored = bytes([random_.choice([1, 2, 4, 8]), random_.choice([0, 1, 7]), random_.choice([0, 8]), 0])
            stored += bytes(random_.choice([0, 0, 0, 1, 2, 3, 8, 255]) for _ in range(random_.randrange(200)))
            out = bytearray(size)
            try:
                codec(number).decode_into(stored, memoryview(out), bytes(size))
            except CodecError:
                continue
            assert len(out) == size
