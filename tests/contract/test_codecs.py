"""One contract, every codec: what it accepts comes back bit for bit, and what it did not write it refuses."""

import math
import random
import struct
from itertools import product

import numpy as np
import pytest
import zstandard

from csf_store.codecs import Codec, CodecError, Hint, codec, codecs, encode, needs_base

BASE = random.Random(0).randbytes(600_000)
DTYPES = {0: "", 1: "F8_E4M3", 2: "BF16", 4: "F32", 8: "F64"}
SIZES = (0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 65, 127, 129, 1000, 4095, 65536, 65537, 131071, 262147)

every_codec = pytest.mark.parametrize("codec_", codecs().values(), ids=lambda each: each.name)


def _hint(dtype: str, raw: bytes) -> Hint:
    return Hint(dtype, BASE[: len(raw)])


def _decoded(codec_: Codec, stored: bytes, size: int) -> bytes:
    out = bytearray(b"\xa5" * size)
    codec_.decode_into(stored, memoryview(out), BASE[:size] if needs_base(codec_.number) else None)
    return bytes(out)


def _weights(count: int, seed: int) -> bytes:
    """Realistic bf16: normal values, upper half of their f32 bits."""
    values = np.random.default_rng(seed).standard_normal(count).astype("<f4") * np.float32(0.02)
    return (values.view("<u4") >> 16).astype("<u2").tobytes()


class TestEveryCodec:
    @every_codec
    @pytest.mark.parametrize("width", DTYPES)
    def test_sizes_odd_and_even(self, codec_: Codec, width: int) -> None:
        random_ = random.Random(width)
        for size in SIZES:
            raw = random_.randbytes(size)
            if codec_.accepts(raw, _hint(DTYPES[width], raw)):
                assert _decoded(codec_, bytes(codec_.encode(raw, _hint(DTYPES[width], raw))), size) == raw

    @every_codec
    def test_every_16_bit_pattern(self, codec_: Codec) -> None:
        raw = np.arange(1 << 16, dtype="<u2").tobytes()
        assert _decoded(codec_, bytes(codec_.encode(raw, _hint("BF16", raw))), len(raw)) == raw

    @every_codec
    def test_every_8_bit_pattern(self, codec_: Codec) -> None:
        raw = bytes(range(256)) * 3
        assert _decoded(codec_, bytes(codec_.encode(raw, _hint("F8_E4M3", raw))), len(raw)) == raw

    @every_codec
    @pytest.mark.parametrize("width", [4, 8])
    def test_every_exponent_and_special_value_of_wide_floats(self, codec_: Codec, width: int) -> None:
        code, integer = {4: ("<f", "<I"), 8: ("<d", "<Q")}[width]
        specials = [struct.pack(code, value) for value in (0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.5)]
        bits = 8 * width
        patterns = [struct.pack(integer, 1 << bit) for bit in range(bits)]
        patterns += [struct.pack(integer, ((1 << bits) - 1) ^ (1 << bit)) for bit in range(bits)]
        raw = b"".join(specials + patterns)
        assert _decoded(codec_, bytes(codec_.encode(raw, _hint(DTYPES[width], raw))), len(raw)) == raw

    @every_codec
    @pytest.mark.parametrize("raw", [bytes(100_000), b"\xff" * 100_000, b"abcdefgh" * 5000], ids=["0", "ff", "text"])
    def test_repetitive_bytes(self, codec_: Codec, raw: bytes) -> None:
        assert _decoded(codec_, bytes(codec_.encode(raw, _hint("BF16", raw))), len(raw)) == raw

    @every_codec
    def test_takes_any_buffer_and_leaves_it_alone(self, codec_: Codec) -> None:
        raw = _weights(5000, 1)
        writable = bytearray(raw)
        for buffer in (raw, writable, memoryview(writable)):
            assert _decoded(codec_, bytes(codec_.encode(buffer, _hint("BF16", buffer))), len(raw)) == raw
        assert writable == raw

    @every_codec
    def test_refuses_a_wrong_length(self, codec_: Codec) -> None:
        raw = _weights(1000, 2)
        stored = bytes(codec_.encode(raw, _hint("BF16", raw)))
        for size in (0, 1, len(raw) - 1, len(raw) + 1, 2 * len(raw)):
            with pytest.raises(CodecError):
                _decoded(codec_, stored, size)

    @every_codec
    def test_damaged_bytes_never_raise_anything_else(self, codec_: Codec) -> None:
        raw = _weights(500, 3)
        stored = bytes(codec_.encode(raw, _hint("BF16", raw)))
        random_ = random.Random(5)
        for _ in range(600):
            bad = bytearray(stored)
            for _ in range(random_.randrange(1, 4)):
                bad[random_.randrange(len(bad))] ^= 1 << random_.randrange(8)
            cut = bytes(bad[: random_.randrange(len(bad) + 1)]) if random_.random() < 0.3 else bytes(bad)
            out = bytearray(len(raw))
            try:
                codec_.decode_into(cut, memoryview(out), BASE[: len(raw)] if needs_base(codec_.number) else None)
            except CodecError:
                continue
            assert len(out) == len(raw)

    @every_codec
    def test_numbers_and_names_are_for_ever(self, codec_: Codec) -> None:
        assert {0: "raw", 1: "zstd", 2: "planes", 3: "delta"}[codec_.number] == codec_.name
        assert codec(codec_.number) is codec_


def test_an_unknown_number_is_refused() -> None:
    with pytest.raises(CodecError, match="codec 63 is unknown"):
        codec(63)


def test_a_decompression_bomb_is_refused_by_its_first_bytes() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    assert len(bomb) < 1 << 16
    with pytest.raises(CodecError, match="268435456 bytes where 4096 are expected"):
        _decoded(codec(1), bomb, 4096)


def test_a_frame_without_a_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(CodecError):
        _decoded(codec(1), frame, 100)


class TestChoice:
    def test_weights_go_through_planes_and_reach_the_size_planned(self) -> None:
        raw = _weights(1 << 20, 4)
        number, stored = encode(raw, Hint("BF16"))
        assert number == codec(2).number
        assert len(stored) / len(raw) < 0.67

    def test_noise_stays_raw(self) -> None:
        raw = random.Random(6).randbytes(1 << 20)
        assert encode(raw, Hint()) == (0, raw)

    def test_text_goes_through_zstd(self) -> None:
        assert encode(b"the same words again and again\n" * 1000, Hint())[0] == codec(1).number

    def test_a_zero_tensor_ends_tiny(self) -> None:
        _, stored = encode(bytes(1 << 20), Hint("BF16"))
        assert len(stored) < 100

    def test_is_never_longer_than_raw(self) -> None:
        random_ = random.Random(8)
        for size, width in product(SIZES, DTYPES):
            raw = random_.randbytes(size)
            assert len(encode(raw, Hint(DTYPES[width]))[1]) <= size
