"""Shards that are made while they are read: the same bytes as a file, in little memory."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save_file

from csf_store import Archive
from keystone.checkpoints.names import parameter_count
from keystone.checkpoints.safetensors_files import converted, pack, read_file, unpack
from keystone.checkpoints.sources import SourceTensor
from keystone.checkpoints.streaming import Placed, StreamedShard, shards
from keystone.errors import CheckpointError, InvalidInputError

CODES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def placed(name: str, tensor: torch.Tensor, *, step: int = 7) -> Placed:
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    code = next(code for code, dtype in CODES.items() if dtype == tensor.dtype)

    def blocks() -> Iterator[memoryview]:
        for at in range(0, len(data), step):
            yield memoryview(data[at : at + step])

    return Placed(name, SourceTensor(name, code, tuple(tensor.shape), blocks, "a test"))


@given(step=st.integers(1, 40), reads=st.lists(st.integers(1, 50), max_size=40))
def test_a_made_shard_is_a_safetensors_file(step: int, reads: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "half": torch.randn(3, 5, generator=generator).to(torch.bfloat16),
        "wide": torch.randn(4, 2, generator=generator),
        "other": torch.randn(7, generator=generator).to(torch.float16),
    }
    shard = StreamedShard("x.safetensors", [placed(name, tensor, step=step) for name, tensor in tensors.items()])
    data = b""
    for length in [*reads, shard.size]:
        data += bytes(shard.read(len(data), min(length, shard.size - len(data))))
    found = load(data)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_it_is_read_once_and_in_order() -> None:
    shard = StreamedShard("x.safetensors", [placed("a", torch.ones(64))])
    head = shard.size - 256
    shard.read(0, head)
    shard.read(0, head)  # a header may be looked at again
    shard.read(head, 100)
    for offset in (head, head + 200):
        with pytest.raises(CheckpointError, match="out of order"):
            shard.read(offset, 10)


@pytest.mark.parametrize("rows", [3, 5])
def test_a_tensor_of_another_size_than_it_says_is_refused(rows: int, tmp_path: Path) -> None:
    right = placed("a", torch.ones(4, 8))
    wrong = Placed("a", SourceTensor("a", "F32", (rows, 8), right.tensor.blocks, "a test"))
    with Archive.create(tmp_path / "archive") as archive, pytest.raises(CheckpointError, match="tensor a"):
        archive.put_source(StreamedShard("x.safetensors", [wrong, placed("b", torch.ones(2))]))


def test_shards_stay_below_their_limit() -> None:
    tensors = [placed(f"t{index}", torch.ones(100)) for index in range(7)] + [placed("large", torch.ones(1000))]
    made = shards(tensors, limit=1000)
    assert [[each.name for each in shard.tensors] for shard in made] == [
        ["t0", "t1"], ["t2", "t3"], ["t4", "t5"], ["t6"], ["large"],
    ]  # fmt: skip
    assert str(made[1].path) == "model-00002-of-00005.safetensors"
    assert [str(shard.path) for shard in shards(tensors)] == ["model.safetensors"]


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=20))
def test_values_are_rounded_as_torch_rounds_them(values: list[float]) -> None:
    wide = np.array(values, dtype=np.float32)
    ours = unpack(pack(wide, "BF16", "x"), "BF16")
    theirs = torch.from_numpy(wide).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(ours, theirs)
    finite = wide[np.isfinite(wide) & (np.abs(wide) <= 65504)]
    if len(finite):
        np.testing.assert_array_equal(unpack(pack(finite, "F16", "x"), "F16"), finite.astype(np.float16))


def test_what_half_precision_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match=r"tensor w\.x"):
        pack(np.array([1.0, 1e5], dtype=np.float32), "F16", "w.x")


def test_an_import_holds_a_few_blocks_whatever_the_size(tmp_path: Path) -> None:
    """256 MB are made and stored; what Python and numpy hold meanwhile stays far below one of the two tensors."""
    count = 32 << 20
    header = {
        name: {"dtype": "BF16", "shape": [count], "data_offsets": [index * 2 * count, (index + 1) * 2 * count]}
        for index, name in enumerate("ab")
    }
    text = json.dumps(header).encode()
    path = tmp_path / "zeros.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * count)  # a sparse file: no disk, all zeros
    tensors = [converted(tensor, "F32") for tensor in read_file(path)]
    assert parameter_count({tensor.name: tensor.shape for tensor in tensors}) == 2 * count
    with Archive.create(tmp_path / "archive") as archive:
        tracemalloc.start()
        try:
            stored = archive.put_source(StreamedShard("x.safetensors", [Placed(t.name, t) for t in tensors]))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert stored.size > 8 * count
    assert peak < 100 << 20


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    (tensor,) = read_file(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="shorter"):
        list(tensor.blocks())
