"""One contract, every codec: what it accepts comes back bit for bit, and what it did not write it refuses."""

import random
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import plain_codecs
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csf_store.codecs import Codec, CodecError, Hint, codec, codecs, encode, needs_base
from csf_store.codecs.plane_choice import sample_of
from csf_store.codecs.planes import WIDTHS
from csf_store.codecs.registry import plan
from csf_store.safetensors_layout import DTYPE_BITS

RAW, ZSTD, PLANES, DELTA = range(4)
DTYPES = sorted(WIDTHS)
FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")
SIZES = (0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 65, 127, 129, 1000, 4095, 65536, 65537, 131071, 262147)
BASE = random.Random(0).randbytes(600_000)

every_codec = pytest.mark.parametrize("codec_", codecs().values(), ids=lambda each: each.name)
on_many = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def _decoded(codec_: Codec, stored: bytes, size: int, base: bytes = BASE) -> bytes:
    out = bytearray(b"\xa5" * size)
    codec_.decode_into(stored, memoryview(out), base[:size] if needs_base(codec_.number) else None)
    return bytes(out)


def _there_and_back(codec_: Codec, raw: bytes, dtype: str, base: bytes = BASE) -> bytes:
    """What was stored, after it proved to come back; empty where the codec does not take such bytes."""
    hint = Hint(dtype, base[: len(raw)])
    if not codec_.accepts(raw, hint):
        return b""
    stored = bytes(codec_.encode(raw, hint))
    assert _decoded(codec_, stored, len(raw), base) == raw
    return stored


def _bf16(values: np.ndarray) -> bytes:
    """Rounded to bf16, ties to even."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def _weights(count: int, seed: int) -> bytes:
    return _bf16(np.random.default_rng(seed).standard_normal(count) * 0.02)


def _tuned(raw: bytes, seed: int, noise: float = 1e-3) -> bytes:
    """After Gaussian noise, in units of the values' standard deviation."""
    values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return _bf16(values + noise * values.std() * np.random.default_rng(seed).standard_normal(len(values)))


class TestEveryCodec:
    @every_codec
    @pytest.mark.parametrize("dtype", ["", *DTYPES])
    def test_sizes_odd_and_even(self, codec_: Codec, dtype: str) -> None:
        random_ = random.Random(dtype)
        for size in SIZES:
            _there_and_back(codec_, random_.randbytes(size), dtype)

    @every_codec
    @pytest.mark.parametrize("dtype", [name for name in DTYPES if WIDTHS[name] == 2])
    def test_every_16_bit_pattern(self, codec_: Codec, dtype: str) -> None:
        raw = np.arange(1 << 16, dtype="<u2")
        shuffled = np.random.default_rng(1).permutation(raw).tobytes()
        for base in (BASE, raw.tobytes(), shuffled):
            assert _there_and_back(codec_, raw.tobytes(), dtype, base)

    @every_codec
    @pytest.mark.parametrize("dtype", [name for name in DTYPES if WIDTHS[name] == 1])
    def test_every_8_bit_pattern_beside_every_other(self, codec_: Codec, dtype: str) -> None:
        raw = np.repeat(np.arange(256, dtype=np.uint8), 256).tobytes()
        assert _there_and_back(codec_, raw, dtype, bytes(range(256)) * 256)

    @every_codec
    @pytest.mark.parametrize(("dtype", "exponent"), [("F32", 8), ("C64", 8), ("F64", 11)])
    def test_every_exponent_and_special_value_of_wide_floats(self, codec_: Codec, dtype: str, exponent: int) -> None:
        width = WIDTHS[dtype]
        low = 8 * width - 1 - exponent
        mantissas = (0, 1, (1 << low) - 1, 1 << (low - 1), 0x5A5A5A5A5A5A5A5A % (1 << low))
        patterns = [
            sign << (8 * width - 1) | field << low | mantissa
            for sign, field, mantissa in product((0, 1), range(1 << exponent), mantissas)
        ]
        patterns += [1 << bit for bit in range(8 * width)]
        raw = b"".join(value.to_bytes(width, "little") for value in patterns)
        random.Random(3).shuffle(patterns)
        other = b"".join(value.to_bytes(width, "little") for value in patterns)
        for base in (BASE, raw, other):
            assert _there_and_back(codec_, raw, dtype, base)

    @every_codec
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("raw", [bytes(100_000), b"\xff" * 100_000, b"abcdefgh" * 5001], ids=["0", "ff", "text"])
    def test_bytes_that_are_no_floats(self, codec_: Codec, dtype: str, raw: bytes) -> None:
        stored = _there_and_back(codec_, raw, dtype, raw)
        assert codec_.number == RAW or len(stored) < 600

    @every_codec
    def test_takes_any_buffer_and_leaves_it_alone(self, codec_: Codec) -> None:
        raw = _weights(5000, 1)
        writable, base = bytearray(raw), bytearray(BASE[: len(raw)])
        for buffer in (raw, writable, memoryview(writable), memoryview(raw)):
            stored = bytes(codec_.encode(buffer, Hint("BF16", memoryview(base))))
            assert _decoded(codec_, stored, len(raw)) == raw
            assert _decoded(codec_, memoryview(bytearray(stored)), len(raw)) == raw
        assert writable == raw
        assert base == BASE[: len(raw)]

    @every_codec
    def test_makes_the_same_bytes_every_time_and_in_every_thread(self, codec_: Codec) -> None:
        raw = _weights(100_000, 7)
        base = _tuned(raw, 8)
        with ThreadPoolExecutor(4) as pool:
            made = set(pool.map(lambda _: bytes(codec_.encode(raw, Hint("BF16", base))), range(8)))
            (stored,) = made
            assert set(pool.map(lambda _: _decoded(codec_, stored, len(raw), base), range(8))) == {raw}

    @every_codec
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_refuses_a_wrong_length(self, codec_: Codec, dtype: str) -> None:
        raw = _weights(1000, 2)
        stored = bytes(codec_.encode(raw, Hint(dtype, BASE[: len(raw)])))
        for size in (0, 1, len(raw) - 1, len(raw) + 1, 2 * len(raw)):
            with pytest.raises(CodecError):
                _decoded(codec_, stored, size)

    @every_codec
    @pytest.mark.parametrize("dtype", ["BF16", "F32", "I64", "U8"])
    def test_damaged_bytes_never_raise_anything_else(self, codec_: Codec, dtype: str) -> None:
        raw = _weights(3000, 3)
        base = _tuned(raw, 4)
        stored = bytes(codec_.encode(raw, Hint(dtype, base)))
        random_ = random.Random(5)
        for _ in range(400):
            bad = bytearray(stored)
            for _ in range(random_.randrange(1, 4)):
                place = random_.randrange(len(bad)) if random_.random() < 0.5 else random_.randrange(min(120, len(bad)))
                bad[place] = random_.choice([0, 1, 3, 255, random_.randrange(256)])
            cut = bytes(bad[: random_.randrange(len(bad) + 1)]) if random_.random() < 0.3 else bytes(bad)
            try:
                assert len(_decoded(codec_, cut, len(raw), base)) == len(raw)
            except CodecError:
                continue

    @every_codec
    def test_numbers_and_names_are_for_ever(self, codec_: Codec) -> None:
        assert {RAW: "raw", ZSTD: "zstd", PLANES: "planes", DELTA: "delta"}[codec_.number] == codec_.name
        assert codec(codec_.number) is codec_
        assert needs_base(codec_.number) == (codec_.number == DELTA)


def test_every_dtype_of_a_safetensors_header_has_a_width() -> None:
    assert set(WIDTHS) == set(DTYPE_BITS)
    assert all(WIDTHS[name] * 8 in (bits, 8, 32) for name, bits in DTYPE_BITS.items())


def test_an_unknown_number_is_refused() -> None:
    with pytest.raises(CodecError, match="codec 63 is unknown"):
        codec(63)


def test_a_decompression_bomb_is_refused_by_its_first_bytes() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    assert len(bomb) < 1 << 16
    with pytest.raises(CodecError, match="268435456 bytes where 4096 are expected"):
        _decoded(codec(ZSTD), bomb, 4096)


def test_a_frame_without_a_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(CodecError):
        _decoded(codec(ZSTD), frame, 100)


@pytest.mark.parametrize("tail", [b"\0", zstandard.ZstdCompressor().compress(b"more")], ids=["byte", "frame"])
def test_bytes_behind_a_frame_are_refused(tail: bytes) -> None:
    frame = zstandard.ZstdCompressor().compress(b"x" * 100)
    with pytest.raises(CodecError):
        _decoded(codec(ZSTD), frame + tail, 100)


class TestPlainReference:
    """The fast paths against one value at a time."""

    @on_many
    @given(st.data())
    def test_planes(self, data: st.DataObject) -> None:
        raw, dtype = data.draw(_chunks())
        assert plain_codecs.planes(bytes(codec(PLANES).encode(raw, Hint(dtype))), len(raw)) == raw
        _there_and_back(codec(PLANES), raw, dtype)

    @on_many
    @given(st.data())
    def test_delta(self, data: st.DataObject) -> None:
        raw, dtype = data.draw(_chunks())
        base = data.draw(_bases(raw, WIDTHS[dtype]))
        stored = bytes(codec(DELTA).encode(raw, Hint(dtype, base)))
        assert plain_codecs.delta(stored, base) == raw
        assert _decoded(codec(DELTA), stored, len(raw), base) == raw

    @pytest.mark.parametrize("count", [1 << 16, (1 << 16) + 1, 200_001])
    def test_of_many_blocks(self, count: int) -> None:
        raw = _weights(count, 9) + b"\x07"
        base = _tuned(raw[:-1], 10, 1e-2) + b"\x09"
        assert plain_codecs.planes(bytes(codec(PLANES).encode(raw, Hint("BF16"))), len(raw)) == raw
        assert plain_codecs.delta(bytes(codec(DELTA).encode(raw, Hint("BF16", base))), base) == raw
        _there_and_back(codec(PLANES), raw, "BF16")
        _there_and_back(codec(DELTA), raw, "BF16", base)


@st.composite
def _chunks(draw: st.DrawFn) -> tuple[bytes, str]:
    """Bytes of some dtype: noise, few values, runs, or a mixture; a tail more often than not."""
    dtype = draw(st.sampled_from(DTYPES))
    count = draw(st.integers(0, 400))
    seed = draw(st.integers(0, 1 << 32))
    rng = np.random.default_rng(seed)
    width = WIDTHS[dtype]
    numbers = rng.integers(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2) + rng.integers(0, 2, count, np.uint64)
    kind = draw(st.sampled_from(["noise", "few", "small", "one", "sparse"]))
    if kind == "few":
        numbers = numbers[rng.integers(0, min(count, 5), count)] if count else numbers
    elif kind == "small":
        numbers >>= np.uint64(draw(st.integers(1, 63)))
    elif kind == "one":
        numbers[:] = numbers[:1] if count else 0
    elif kind == "sparse":
        numbers[rng.random(count) < 0.97] = 0
    raw = b"".join((int(each) % (1 << 8 * width)).to_bytes(width, "little") for each in numbers)
    return raw + rng.bytes(draw(st.integers(0, width - 1))), dtype


@st.composite
def _bases(draw: st.DrawFn, raw: bytes, width: int) -> bytes:
    """As long as ``raw``: equal, a step or a flipped bit away here and there, all ones (NaN), or unrelated."""
    kind = draw(st.sampled_from(["equal", "steps", "bits", "ones", "zeros", "noise"]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    if kind == "ones":
        return b"\xff" * len(raw)
    if kind == "zeros":
        return bytes(len(raw))
    if kind == "noise":
        return rng.bytes(len(raw))
    base = bytearray(raw)
    for at in range(0, len(raw) - width + 1, width):
        value = int.from_bytes(raw[at : at + width], "little")
        if kind == "steps":
            value += int(rng.integers(-3, 4))
        elif kind == "bits" and rng.random() < 0.3:
            value ^= 1 << int(rng.integers(0, 8 * width))
        base[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(base)


class TestChoice:
    def test_weights_go_through_planes_and_reach_the_size_planned(self) -> None:
        raw = _weights(1 << 20, 4)
        number, stored = encode(raw, Hint("BF16"))
        assert number == PLANES
        assert len(stored) / len(raw) < 0.6646

    def test_what_saves_less_than_was_asked_for_stays_raw(self) -> None:
        raw = _weights(200_000, 5)
        number, stored = encode(raw, Hint("BF16"))
        share = len(stored) / len(raw)
        assert number != RAW
        assert encode(raw, Hint("BF16", worth=share - 0.05)) == (RAW, raw)
        assert encode(raw, Hint("BF16", worth=share + 0.05)) == (number, stored)

    def test_noise_stays_raw(self) -> None:
        raw = random.Random(6).randbytes(1 << 20)
        for dtype in ("", *DTYPES):
            assert encode(raw, Hint(dtype, BASE[:1] * len(raw) if dtype else None)) == (RAW, raw)

    def test_text_goes_through_zstd(self) -> None:
        assert encode(b"the same words again and again\n" * 1000, Hint())[0] == ZSTD

    def test_repeated_rows_go_through_zstd(self) -> None:
        number, stored = encode(_weights(4096, 5) * 100, Hint("BF16"))
        assert number == ZSTD
        assert len(stored) < 20_000

    def test_a_zero_tensor_ends_tiny(self) -> None:
        assert len(encode(bytes(1 << 20), Hint("BF16"))[1]) < 100

    def test_a_fine_tune_is_a_difference(self) -> None:
        base = _weights(1 << 20, 11)
        for noise, most in ((1e-3, 0.075), (3e-3, 0.155), (1e-2, 0.26), (3e-2, 0.365)):
            number, stored = encode(_tuned(base, 12, noise), Hint("BF16", base))
            assert number == DELTA
            assert len(stored) / len(base) < most

    def test_a_sparse_change_ends_tiny(self) -> None:
        base = _weights(1 << 20, 13)
        raw = bytearray(base)
        for at in random.Random(14).sample(range(len(raw)), 50):
            raw[at] ^= 1
        for kind in (bytes(raw), base):
            number, stored = encode(kind, Hint("BF16", base))
            assert number == DELTA
            assert len(stored) < 3000

    def test_an_unrelated_base_does_no_harm(self) -> None:
        raw = _weights(1 << 18, 15)
        for base in (_weights(1 << 18, 16), random.Random(17).randbytes(len(raw)), b"\xff" * len(raw)):
            assert encode(raw, Hint("BF16", base)) == encode(raw, Hint("BF16"))

    def test_without_a_base_nothing_needs_one(self) -> None:
        for dtype in ("", *DTYPES):
            assert not needs_base(encode(_weights(5000, 18), Hint(dtype))[0])

    def test_a_narrow_float_held_in_a_wide_one_costs_what_it_would_alone(self) -> None:
        narrow = np.frombuffer(_weights(1 << 18, 19), "<u2")
        wide = (narrow.astype("<u4") << 16).tobytes()
        assert len(encode(wide, Hint("F32"))[1]) < 1.001 * len(encode(narrow.tobytes(), Hint("BF16"))[1])
        base = np.frombuffer(_tuned(narrow.tobytes(), 20, 1e-2), "<u2")
        alone = len(encode(narrow.tobytes(), Hint("BF16", base.tobytes()))[1])
        assert len(encode(wide, Hint("F32", (base.astype("<u4") << 16).tobytes()))[1]) < alone + 1000

    def test_is_never_longer_than_raw(self) -> None:
        random_ = random.Random(8)
        for size, dtype in product(SIZES, ("", *DTYPES)):
            raw = random_.randbytes(size)
            assert len(encode(raw, Hint(dtype, BASE[:size] if dtype else None))[1]) <= size

    @pytest.mark.parametrize("dtype", ["U8", "BF16", "F32", "I64"])
    def test_a_sample_that_misleads_costs_little(self, dtype: str) -> None:
        """Zeros wherever a sample looks, noise everywhere else."""
        raw = bytearray(random.Random(21).randbytes(1 << 20))
        for middle in (0, len(raw) // 3, 2 * len(raw) // 3, len(raw)):
            first, last = max(0, middle - (1 << 15)), min(len(raw), middle + (1 << 15))
            raw[first:last] = bytes(last - first)
        base = bytes(len(raw))
        for codec_ in codecs().values():
            hint = Hint(dtype, base)
            assert codec_.number == RAW or codec_.plan(bytes(raw), hint).size < 0.9 * len(raw)
            assert len(_there_and_back(codec_, bytes(raw), dtype, base)) < 1.1 * len(raw)

    @pytest.mark.parametrize(("size", "values"), [(1 << 20, 16), (4 << 20, 100)], ids=["fields", "frame"])
    def test_what_turns_out_longer_than_planned_is_stored_raw(self, size: int, values: int) -> None:
        """Small numbers exactly where the sample is taken, noise everywhere else."""
        rng = np.random.default_rng(27)
        raw = rng.integers(0, 256, size, dtype=np.uint8)
        raw[sample_of(np.arange(size))] %= values
        number, planned = plan(raw.tobytes(), Hint("U8"))
        assert number == PLANES
        assert planned.size < 0.9 * size
        assert size <= len(planned.encode()) < 1.001 * size
        assert encode(raw.tobytes(), Hint("U8")) == (RAW, raw.tobytes())

    def test_what_a_plan_expects_is_near_what_comes(self) -> None:
        base = _weights(1 << 20, 22)
        for raw, hint in ((base, Hint("BF16")), (_tuned(base, 23, 1e-2), Hint("BF16", base))):
            _, planned = plan(raw, hint)
            assert planned.size == pytest.approx(len(planned.encode()), rel=0.15)


def test_only_a_chunk_with_a_base_of_its_length_can_be_a_difference() -> None:
    raw = _weights(1000, 24)
    for base in (None, b"", raw[:-2], raw + b"\0\0"):
        assert not codec(DELTA).accepts(raw, Hint("BF16", base))
        with pytest.raises(CodecError, match="no base of the same length"):
            codec(DELTA).encode(raw, Hint("BF16", base))
    stored = bytes(codec(DELTA).encode(raw, Hint("BF16", raw)))
    for base in (None, b"", raw[:-2], raw + b"\0\0"):
        with pytest.raises(CodecError, match="no base of the same length"):
            codec(DELTA).decode_into(stored, memoryview(bytearray(len(raw))), base)


def test_another_base_is_refused_where_its_exponents_differ() -> None:
    raw = _weights(1000, 25)
    base = bytearray(_tuned(raw, 26))
    stored = bytes(codec(DELTA).encode(raw, Hint("BF16", bytes(base))))
    struct.pack_into("<H", base, 0, 0x7F80)
    with pytest.raises(CodecError, match="more values of exponent 255 than are stored"):
        _decoded(codec(DELTA), stored, len(raw), bytes(base))
