"""Comparison of checkpoints against plain references: whole tensors, decoded by torch and compared in one piece."""

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_maker import fine_tuned, make_safetensors, weights
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from csf_store import (
    Archive,
    Change,
    Comparison,
    CorruptError,
    Digest,
    InvalidInputError,
    Kind,
    NamePattern,
    NotFoundError,
    TensorDifference,
    TreeEntry,
    compare,
    measure,
)
from csf_store.cli import main
from csf_store.framing import CHUNK_SIZE
from csf_store.retrieve import OpenObject
from csf_store.safetensors_layout import DTYPE_BITS
from csf_store.search.tensor_values import Distance, decode_values, distance

Tensors = dict[str, tuple[str, list[int], bytes]]
MEASURED = sorted(set(DTYPE_BITS) - {"F6_E2M3", "F6_E3M2"})
TORCH = {
    "BOOL": torch.uint8, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.open(tmp_path / "archive", create=True) as opened:
        yield opened


def blob(archive: Archive, tensors: Tensors, metadata: dict[str, str] | None = None) -> Digest:
    return archive.put_bytes(make_safetensors(tensors, metadata)).digest


def tree(archive: Archive, files: dict[str, Tensors | bytes]) -> Digest:
    entries = []
    for path, content in files.items():
        stored = archive.put_bytes(content if isinstance(content, bytes) else make_safetensors(content))
        entries.append(TreeEntry(path, stored.digest, stored.size))
    return archive.put_tree_entries(entries).digest


def changes(comparison: Comparison) -> dict[str, Change]:
    return {each.name: each.change for each in comparison.tensors}


def measured(archive: Archive, before: Digest, after: Digest) -> dict[str, TensorDifference]:
    return {each.name: each for each in measure(archive, compare(archive, before, after))}


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TORCH)
def test_every_bit_pattern_decodes_as_torch_decodes_it(dtype: str) -> None:
    width = DTYPE_BITS[dtype] // 8
    data = bytes(range(256)) if width == 1 else np.arange(1 << 16, dtype="<u2").tobytes()
    if width > 2:
        data += random.Random(1).randbytes(1 << 14)
    expected = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(TORCH[dtype]).to(torch.float64).numpy()
    with np.errstate(invalid="ignore"):
        found = decode_values(dtype, data)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found[expected == 0]), np.signbit(expected[expected == 0]))


def test_four_bit_floats_and_unsigned_and_complex_numbers_decode() -> None:
    halves = [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # OCP microscaling formats, E2M1
    both = [*halves, *(-value for value in halves)]
    assert decode_values("F4", bytes([0x10, 0x7F, 0x98])).tolist() == [both[c] for c in (0, 1, 15, 7, 8, 9)]
    assert decode_values("U16", b"\xff\xff").tolist() == [65535]
    assert decode_values("U32", b"\xff" * 4).tolist() == [2**32 - 1]
    assert decode_values("U64", b"\xff" * 8).tolist() == [2.0**64]
    assert decode_values("C64", np.array([1 + 2j], "<c8").tobytes()).tolist() == [1, 2]


def plain(dtype: str, before: bytes, after: bytes) -> tuple[float, float, int, int, int]:
    """Relative norm, largest difference, values, changed, of them not finite: with exact arithmetic, value by value."""

    def codes(data: bytes) -> list[int]:
        if DTYPE_BITS[dtype] == 4:
            return [half for byte in data for half in (byte & 15, byte >> 4)]
        width = 4 if dtype == "C64" else DTYPE_BITS[dtype] // 8
        return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]

    def values(data: bytes) -> list[float | int]:
        if dtype in ("I64", "U64"):
            return np.frombuffer(data, "<i8" if dtype == "I64" else "<u8").tolist()
        with np.errstate(invalid="ignore"):
            return decode_values(dtype, data).tolist()

    first, second = values(before), values(after)
    differing = [x != y for x, y in zip(codes(before), codes(after), strict=True)]
    moves: list[Fraction] = []
    lost = 0
    for x, y, differs in zip(first, second, differing, strict=True):
        if differs and math.isfinite(x) and math.isfinite(y):
            moves.append(Fraction(y) - Fraction(x))
            if abs(moves[-1]) > Fraction(sys.float_info.max):
                moves.pop()
                lost += 1
        elif differs:
            lost += 1
    norm = sum((move * move for move in moves), Fraction(0))
    of_first = sum((Fraction(x) ** 2 for x in first if math.isfinite(x)), Fraction(0))
    relative = (root(norm / of_first) if of_first else math.inf) if norm else 0.0
    largest = float(max(map(abs, moves), default=Fraction(0)))
    return relative, largest, len(first), sum(differing), lost


def root(square: Fraction) -> float:
    with localcontext() as context:
        context.prec = 60
        context.Emax, context.Emin = 999_999, -999_999
        value = (Decimal(square.numerator) / Decimal(square.denominator)).sqrt()
        return float(value) if value < Decimal(sys.float_info.max) else math.inf


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    dtype = draw(st.sampled_from(MEASURED))
    unit = max(1, DTYPE_BITS[dtype] // 8)
    count = draw(st.integers(0, 12))
    before = bytearray(draw(st.binary(min_size=unit * count, max_size=unit * count)))
    after = bytearray(before)
    for _ in range(draw(st.integers(0, 4)) if before else 0):
        after[draw(st.integers(0, len(after) - 1))] = draw(st.integers(0, 255))
    return dtype, bytes(before), bytes(after)


def agrees(found: Distance, expected: tuple[float, float, int, int, int]) -> None:
    relative, largest, values, changed, lost = expected
    assert (found.values, found.changed, found.not_finite) == (values, changed, lost)
    assert found.largest == pytest.approx(largest, rel=1e-12, abs=0)
    if relative < 1e290 or not math.isfinite(relative):
        assert found.relative == pytest.approx(relative, rel=1e-9, abs=1e-300)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(pairs())
def test_distances_are_those_of_exact_arithmetic(pair: tuple[str, bytes, bytes]) -> None:
    dtype, before, after = pair
    agrees(distance(dtype, before, after), plain(dtype, before, after))
    same = distance(dtype, before, None)
    assert (same.changed, same.relative, same.largest) == (0, 0.0, 0.0)
    assert same.before == distance(dtype, before, before).before


@pytest.mark.parametrize("scale", [1e308, 1e-310, 1.0])
def test_huge_and_tiny_values_stay_in_range(scale: float) -> None:
    before, after = np.array([1.0, -1.0, 0.5] * 99) * scale, np.array([1.0, -0.5, 0.5] * 99) * scale
    found = distance("F64", before.astype("<f8").tobytes(), after.astype("<f8").tobytes())
    assert found.relative == pytest.approx(0.5 / 1.5, rel=1e-6)
    assert found.largest == pytest.approx(0.5 * scale, rel=1e-6)


def test_integers_that_float64_can_not_tell_apart_differ_by_one() -> None:
    for dtype, kind in (("I64", "<i8"), ("U64", "<u8")):
        before, after = np.array([1 << 60, 5], kind), np.array([(1 << 60) + 1, 5], kind)
        found = distance(dtype, before.tobytes(), after.tobytes())
        assert (found.changed, found.largest, found.norm) == (1, 1.0, 1.0)
    low, high = np.array([-(2**63)], "<i8"), np.array([2**63 - 1], "<i8")
    assert distance("I64", low.tobytes(), high.tobytes()).largest == 2.0**64


def test_nan_and_infinity_are_counted_apart() -> None:
    before = np.array([np.nan, 1.0, np.inf, 2.0, -np.inf, 0.0], "<f4")
    after = np.array([np.nan, np.nan, np.inf, 3.0, 1.0, -0.0], "<f4")
    found = distance("F32", before.tobytes(), after.tobytes())
    assert (found.values, found.changed, found.not_finite) == (6, 4, 2)
    assert (found.largest, found.norm, found.relative) == (1.0, 1.0, 1 / math.sqrt(5))
    signalling = (0x7F800001).to_bytes(4, "little")
    assert distance("F32", signalling, bytes(4)).not_finite == 1


def test_real_and_complex_numbers_are_told_apart_by_their_imaginary_part() -> None:
    real, both = np.array([1, 2], "<f4").tobytes(), np.array([1 + 0j, 2 + 3j], "<c8").tobytes()
    for found, norm in (
        (distance("F32", real, both, after_dtype="C64"), math.sqrt(5)),
        (distance("C64", both, real, after_dtype="F32"), math.sqrt(14)),
    ):
        assert (found.values, found.changed, found.largest) == (4, 1, 3.0)
        assert found.relative == pytest.approx(3 / norm)


def test_stretches_add_up_to_the_whole() -> None:
    draw = np.random.default_rng(3)
    before, after = draw.standard_normal((2, 1000)) * 10.0 ** draw.integers(-200, 200, (2, 1000))
    whole = distance("F64", before.tobytes(), after.tobytes())
    summed = Distance()
    for start in range(0, 1000, 130):
        summed += distance("F64", before[start : start + 130].tobytes(), after[start : start + 130].tobytes())
    assert summed[:4] == whole[:4]
    assert (summed.norm, summed.relative) == pytest.approx((whole.norm, whole.relative), rel=1e-12)


# -- what became of each tensor --------------------------------------------------------------------------------------


@st.composite
def checkpoints(draw: st.DrawFn) -> Tensors:
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6))
    tensors: Tensors = {}
    for name in names:
        dtype = draw(st.sampled_from(sorted(DTYPE_BITS)))
        shape = draw(st.sampled_from([[], [0], [8], [2, 4], [4, 0], [24], [1]]))
        bits = DTYPE_BITS[dtype] * math.prod(shape)
        if bits % 8 == 0:
            tensors[name] = (dtype, shape, bytes([draw(st.integers(0, 2))]) * (bits // 8))
    return tensors


def expected_changes(before: Tensors, after: Tensors) -> dict[str, Change]:
    found = {}
    arrived = [name for name in after if name not in before and after[name][2]]
    for name, (dtype, shape, data) in before.items():
        if name in after:
            other = after[name]
            if other == (dtype, shape, data):
                found[name] = Change.SAME
            elif other[1] != shape:
                found[name] = Change.RESHAPED
            else:
                found[name] = Change.RETYPED if other[0] != dtype else Change.CHANGED
            continue
        twin = next((other for other in arrived if after[other] == (dtype, shape, data)), None)
        if twin is None:
            found[name] = Change.REMOVED
        else:
            arrived.remove(twin)
            found[twin] = Change.RENAMED
    return {**{name: Change.ADDED for name in after if name not in before and name not in found}, **found}


def in_file_order(tensors: Tensors) -> Tensors:
    """As a reader sees them: tensors of no bytes sort before what begins where they do."""
    starts, at = {}, 0
    for name, (_, _, data) in tensors.items():
        starts[name] = (at, at + len(data))
        at += len(data)
    return dict(sorted(tensors.items(), key=lambda item: starts[item[0]]))


def test_changes_are_those_of_a_plain_comparison(archive: Archive) -> None:
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(checkpoints(), checkpoints())
    def agree(before: Tensors, after: Tensors) -> None:
        old, new = blob(archive, before), blob(archive, after)
        comparison = compare(archive, old, new)
        expected = expected_changes(in_file_order(before), in_file_order(after))
        assert changes(comparison) == expected
        assert comparison.same == (set(expected.values()) <= {Change.SAME})
        for each in measure(archive, comparison):
            if each.change == Change.CHANGED and each.before and each.before.info.dtype in MEASURED:
                assert each.distance is not None
                agrees(each.distance, plain(before[each.name][0], before[each.name][2], after[each.name][2]))
            elif each.change != Change.RETYPED:
                assert each.distance is None

    agree()


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "F8_E4M3", "I8", "F4"])
def test_large_tensors_are_measured_as_in_one_piece(archive: Archive, dtype: str) -> None:
    draw = random.Random(9)
    size = 2 * CHUNK_SIZE + CHUNK_SIZE // 2 + 8
    before = bytearray(draw.randbytes(size))
    after = bytearray(before)
    for place in (5, CHUNK_SIZE - 1, 2 * CHUNK_SIZE + 3):  # the second chunk stays the same
        after[place] ^= 1
    shape = [size * 8 // DTYPE_BITS[dtype]]
    old = blob(archive, {"x": ("U8", [3], b"abc"), "w": (dtype, shape, bytes(before))})
    new = blob(archive, {"w": (dtype, shape, bytes(after))}, {"shifted": "yes"})
    found = measured(archive, old, new)["w"].distance
    with np.errstate(invalid="ignore"):
        first, second = (decode_values(dtype, bytes(side)) for side in (before, after))
    moved = first != second
    sound = moved & np.isfinite(first) & np.isfinite(second)
    kept = first[np.isfinite(first)]
    assert found is not None
    assert found.values == shape[0]
    assert found.changed == 3
    assert found.largest == np.abs(second[sound] - first[sound]).max()
    if dtype != "F64":  # its random bits have squares beyond float64
        relative = np.linalg.norm(second[sound] - first[sound]) / np.linalg.norm(kept)
        assert found.relative == pytest.approx(relative, rel=1e-9)


def test_a_chunk_that_both_sides_share_is_read_once_and_same_tensors_never(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = random.Random(4).randbytes(3 * CHUNK_SIZE)
    other = large[: 2 * CHUNK_SIZE] + bytes(CHUNK_SIZE)
    old = blob(archive, {"w": ("U8", [len(large)], large), "same": ("U8", [CHUNK_SIZE], large[:CHUNK_SIZE])})
    new = blob(archive, {"same": ("U8", [CHUNK_SIZE], large[:CHUNK_SIZE]), "w": ("U8", [len(other)], other)})
    read: list[tuple[Digest, int]] = []
    read_range: Callable[[OpenObject, int, memoryview], None] = archive.read_range

    def counted(found: OpenObject, start: int, out: memoryview) -> None:
        read.append((found.digest, len(out)))
        read_range(found, start, out)

    monkeypatch.setattr(archive, "read_range", counted)
    comparison = compare(archive, old, new)
    assert read == []
    done: list[int] = []
    list(measure(archive, comparison, progress=done.append))
    assert sorted(read) == sorted([(old, CHUNK_SIZE)] * 3 + [(new, CHUNK_SIZE)])
    assert sum(done) == comparison.bytes_to_measure == len(large)


def test_a_conversion_is_measured_value_by_value(archive: Archive) -> None:
    values = torch.randn(700_000, 3, generator=torch.Generator().manual_seed(1))
    raw = values.numpy().tobytes()
    half = values.bfloat16()
    old = blob(archive, {"w": ("F32", [700_000, 3], raw)})
    new = blob(archive, {"w": ("BF16", [700_000, 3], half.view(torch.uint8).numpy().tobytes())})
    for first, second, start, end in ((old, new, values, half), (new, old, half, values)):
        each = measured(archive, first, second)["w"]
        assert each.change == Change.RETYPED
        assert each.distance is not None
        a, b = start.double().flatten(), end.double().flatten()
        assert each.distance.relative == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-9)
        assert each.distance.changed == int((a != b).sum())


def test_a_resharded_checkpoint_is_the_same(archive: Archive) -> None:
    tensors: Tensors = {f"layer.{n}": ("BF16", [16, 16], weights(16, 16, n)) for n in range(6)}
    names = list(tensors)
    whole = tree(archive, {"model.safetensors": tensors, "config.json": b"{}"})
    shards = tree(
        archive,
        {
            "a.safetensors": {name: tensors[name] for name in reversed(names[3:])},
            "b.safetensors": {name: tensors[name] for name in names[:3]},
            "config.json": b"{}",
        },
    )
    comparison = compare(archive, whole, shards)
    assert comparison.same
    assert set(changes(comparison)) == set(names)


def test_names_that_stand_for_several_tensors_go_with_their_paths(archive: Archive) -> None:
    one, two = ("U8", [1], b"1"), ("U8", [1], b"2")
    old = tree(archive, {"a.safetensors": {"w": one, "v": one}, "b.safetensors": {"w": one}})
    new = tree(archive, {"a.safetensors": {"w": one}, "b.safetensors": {"w": two, "v": one}})
    found = changes(compare(archive, old, new))
    assert found == {
        "a.safetensors:w": Change.SAME,
        "b.safetensors:w": Change.CHANGED,
        "v": Change.SAME,
    }


def test_tensors_of_no_bytes_are_not_taken_for_each_other(archive: Archive) -> None:
    old, new = blob(archive, {"a": ("U8", [0], b"")}), blob(archive, {"b": ("U8", [0], b"")})
    assert changes(compare(archive, old, new)) == {"a": Change.REMOVED, "b": Change.ADDED}


def test_files_and_metadata_are_compared_too(archive: Archive) -> None:
    old = tree(archive, {"kept": b"1", "changed": b"2", "old name": b"3", "gone": b"4"})
    new = tree(archive, {"kept": b"1", "changed": b"-", "new name": b"3", "arrived": b"5"})
    comparison = compare(archive, old, new)
    assert [(file.path, file.old_path, file.change) for file in comparison.files] == [
        ("arrived", "arrived", Change.ADDED),
        ("changed", "changed", Change.CHANGED),
        ("gone", "gone", Change.REMOVED),
        ("kept", "kept", Change.SAME),
        ("new name", "old name", Change.RENAMED),
    ]
    one: Tensors = {"w": ("U8", [1], b"1")}
    first, second = blob(archive, one, {"a": "1", "b": "1"}), blob(archive, one, {"b": "2", "c": "3"})
    found = compare(archive, first, second)
    assert [(each.key, each.change) for each in found.metadata] == [
        ("a", Change.REMOVED),
        ("b", Change.CHANGED),
        ("c", Change.ADDED),
    ]
    assert not found.same
    assert compare(archive, first, second, pattern=NamePattern("w")).same  # then of tensors alone
    assert compare(archive, old, old).same


def test_a_plain_file_is_a_file_without_a_path(archive: Archive) -> None:
    first, second = archive.put_bytes(b"one").digest, archive.put_bytes(b"two").digest
    (file,) = compare(archive, first, second).files
    assert (file.change, file.path, file.before, file.after) == (Change.CHANGED, "", first, second)
    assert compare(archive, first, first).same


def test_what_is_neither_tree_nor_blob_is_refused(archive: Archive) -> None:
    manifest = archive.put_bytes(b"{}", kind=Kind.MANIFEST).digest
    with pytest.raises(InvalidInputError, match="is a manifest"):
        compare(archive, manifest, manifest)
    with pytest.raises(NotFoundError):
        compare(archive, Digest.of(b"not here"), manifest)


def test_a_damaged_chunk_is_an_error_and_no_number(archive: Archive, tmp_path: Path) -> None:
    raw = weights(1024, 512, 1)
    old = blob(archive, {"w": ("BF16", [1024, 512], raw)})
    new = blob(archive, {"w": ("BF16", [1024, 512], fine_tuned(raw, 2))})
    archive.close()
    (segment,) = (archive.path / "segments").iterdir()
    content = bytearray(segment.read_bytes())
    content[len(content) // 3] ^= 1
    segment.write_bytes(content)
    with Archive.open(archive.path) as damaged:
        comparison = compare(damaged, old, new)  # needs no data
        assert changes(comparison) == {"w": Change.CHANGED}
        with pytest.raises(CorruptError):
            list(measure(damaged, comparison))


def test_memory_does_not_depend_on_the_tensor(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from csf_store import Archive, Digest, compare, measure
with Archive.open(sys.argv[1]) as archive:
    before, after = (Digest.parse(text) for text in sys.argv[2:4])
    comparison = compare(archive, before, after)
    list(measure(archive, comparison._replace(tensors=comparison.tensors[:1])))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    list(measure(archive, comparison))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""
    size = 160 << 20
    block = random.Random(8).randbytes(1 << 20)
    large = block * (size >> 20)  # few chunks to store, as many to read
    with Archive.open(tmp_path / "archive", create=True) as archive:
        small = block * 24
        digests = []
        for tail in (b"\\0", b"\\1"):
            tensors: Tensors = {
                "warm": ("U8", [len(small)], small[:-1] + tail[-1:]),
                "w": ("U8", [size], bytes([tail[-1] & 1]) + large[1:]),
            }
            digests.append(str(blob(archive, tensors)))
    command = [sys.executable, "-c", code, str(tmp_path / "archive"), *digests]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(outcome.stdout) * 1024 < size // 2


# -- the command -----------------------------------------------------------------------------------------------------


def csf(archive: Archive, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["--archive", str(archive.path), *map(str, arguments)])


def lines(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def pair(archive: Archive) -> tuple[Digest, Digest]:
    raw = weights(64, 64, 1)
    same = ("F32", [2], bytes(8))
    old = tree(
        archive,
        {
            "m.safetensors": {
                "same": same,
                "moved": ("BF16", [64, 64], raw),
                "old": ("U8", [3], b"abc"),
                "zero": ("F32", [1], bytes(4)),
            },
            "config.json": b"{}",
        },
    )
    new = tree(
        archive,
        {
            "m.safetensors": {
                "new": ("U8", [3], b"abc"),
                "same": same,
                "moved": ("BF16", [64, 64], fine_tuned(raw, 5, 0.1)),
                "zero": ("F32", [1], np.float32(2).tobytes()),
            },
            "config.json": b"{ }",
        },
    )
    archive.pin(old, kind=Kind.TREE, name="base")
    archive.pin(new, kind=Kind.TREE, name="tuned")
    return old, new


def test_the_command_prints_what_differs_and_exits_like_diff(archive: Archive, pair: tuple[Digest, Digest]) -> None:
    result = csf(archive, "diff", "base", "tuned", "--json")
    assert result.exit_code == 1
    *found, summary = lines(result)
    assert [(each["what"], each.get("name", each.get("path")), each["change"]) for each in found] == [
        ("tensor", "moved", "changed"),
        ("tensor", "new", "renamed"),
        ("tensor", "zero", "changed"),
        ("file", "config.json", "changed"),
    ]
    moved, renamed, zero = found[:3]
    assert 0.05 < float(str(moved["relative"])) < 0.15
    assert moved["values"] == 64 * 64
    assert renamed["before"]["name"] == "old"  # type: ignore[index]
    assert (zero["relative"], zero["norm"], zero["fraction"]) == (None, 2.0, 1.0)  # infinite, which JSON can not say
    assert summary["same"] is False
    assert summary["tensors"] == {
        "same": 1, "changed": 2, "retyped": 0, "reshaped": 0, "renamed": 1, "added": 0, "removed": 0,
    }  # fmt: skip
    assert csf(archive, "diff", "base", "base").exit_code == 0
    assert csf(archive, "diff", "base", pair[1], "same").exit_code == 0
    every = lines(csf(archive, "diff", "base", "tuned", "--all", "--fast", "--json"))
    assert {each.get("name") for each in every} >= {"same", "moved", "new", "zero"}
    assert all("relative" not in each for each in every)


def test_the_summary_alone_reads_no_tensor(
    archive: Archive, pair: tuple[Digest, Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Archive, "read_range", None)
    for flag in ("--stat", "--fast"):
        result = csf(archive, "diff", "base", "tuned", flag)
        assert result.exit_code == 1, result.output
        assert result.stdout.splitlines()[-1].startswith("tensors: 1 same, 2 changed, 1 renamed")
    assert len(csf(archive, "diff", "base", "tuned", "--stat").stdout.splitlines()) == 1


def test_trouble_is_told_from_a_difference(archive: Archive, pair: tuple[Digest, Digest]) -> None:
    assert csf(archive, "diff", "base", "nobody").exit_code == 5
    assert csf(archive, "diff", "base", "tuned", "-E", "(").exit_code == 2
    text = csf(archive, "diff", "base", "tuned").stdout
    assert "was old" in text
    assert "of its norm" in text
