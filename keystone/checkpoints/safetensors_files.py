"""Safetensors files on disk: what is in them, and their tensors in blocks.

The `safetensors` library checks a header (offsets without holes, to the last byte); the data is then read with plain
positioned reads, so that a file of any size costs a block of memory and not a mapping of all of it.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from keystone.checkpoints.sources import BLOCK_BYTES, FLOATS, SourceTensor
from keystone.errors import CheckpointError, InvalidInputError


def read_file(path: Path) -> list[SourceTensor]:
    """Every tensor of a file, none of them read.

    Raises:
        CheckpointError: it is truncated or malformed.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            document = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not a sound safetensors file: {error}; fetch it again") from error
    document.pop("__metadata__", None)
    tensors = []
    for name, entry in document.items():
        begin, end = entry["data_offsets"]
        blocks = partial(_file_blocks, path, 8 + length + begin, end - begin)
        tensors.append(SourceTensor(name, entry["dtype"], tuple(entry["shape"]), blocks, path.name))
    return tensors


def _file_blocks(path: Path, start: int, length: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(BLOCK_BYTES, length)))
    with path.open("rb", buffering=0) as file:
        for at in range(start, start + length, BLOCK_BYTES):
            view = buffer[: min(BLOCK_BYTES, start + length - at)]
            got = 0
            while got < len(view):
                count = os.preadv(file.fileno(), [view[got:]], at + got)
                if not count:
                    raise CheckpointError(f"{path.name} became shorter while it was read; import it when it rests")
                got += count
            yield view


def converted(tensor: SourceTensor, dtype: str) -> SourceTensor:
    """The same tensor in another float dtype, block by block.

    Raises:
        InvalidInputError: (while its blocks are read) a value that the other dtype cannot hold.
    """
    if tensor.dtype == dtype or tensor.dtype not in FLOATS:
        return tensor
    return SourceTensor(
        tensor.name, dtype, tensor.shape, partial(_converted, tensor, dtype), tensor.file, stored=tensor.dtype
    )


def _converted(tensor: SourceTensor, dtype: str) -> Iterator[memoryview]:
    for block in tensor.blocks():
        yield pack(unpack(block, tensor.dtype), dtype, tensor.name)


def unpack(block: memoryview, dtype: str) -> NDArray[np.float32]:
    """Values as fp32 from the bytes of a float dtype."""
    match dtype:
        case "F32":
            return np.frombuffer(block, "<f4")
        case "F16":
            return np.frombuffer(block, "<f2").astype(np.float32)
        case "BF16":
            return (np.frombuffer(block, "<u2").astype(np.uint32) << 16).view(np.float32)
    raise InvalidInputError(f"{dtype} is no float dtype that is read here; {', '.join(FLOATS)} are")


def pack(values: NDArray[np.float32], dtype: str, name: str) -> memoryview:
    """The bytes of fp32 values in a float dtype, rounded to nearest, ties to even.

    Raises:
        InvalidInputError: a finite value does not fit the dtype; the tensor is named.
    """
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    match dtype:
        case "F32":
            return values.data.cast("B")
        case "F16":
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if not np.array_equal(np.isfinite(half), np.isfinite(values)):
                raise InvalidInputError(f"tensor {name} holds values beyond 65504, which float16 cannot; use bfloat16")
            return half.data.cast("B")
        case "BF16":
            bits = values.view(np.uint32)
            rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
            if not np.isfinite(values).all():
                special = ~np.isfinite(values)
                rounded[special] = (bits[special] >> 16).astype(np.uint16) | np.isnan(values[special]).astype(
                    np.uint16
                ) * 0x40
            return rounded.data.cast("B")
    raise InvalidInputError(f"{dtype} is no float dtype that is written here; {', '.join(FLOATS)} are")
