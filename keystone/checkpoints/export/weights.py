"""Weights on their way out, one tensor at a time.

A file whose tensors keep their names, values and dtype is copied byte for byte. Any other is written anew: a header
made from what is known of the tensors, then each tensor, read, changed and written before the next is looked at. A blob
that is read in parts is proven as a whole first, since a chunk list alone is only a claim.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from csf_store import Archive, CorruptError, Digest
from keystone.checkpoints.export.source import FLOAT_DTYPES, ExportSource, StoredTensor
from keystone.checkpoints.export.writing import ExportDirectory, Sink
from keystone.errors import RefusedError

Progress: TypeAlias = Callable[[int], None]
Change: TypeAlias = Callable[[str, Tensor], Tensor]
"""(name, tensor as stored) -> tensor to write; given nothing to change it returns what it got."""

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class OutTensor:
    """One tensor of a file to write: its name there, its dtype there, and where it comes from."""

    name: str
    dtype: str
    stored: StoredTensor

    @property
    def nbytes(self) -> int:
        """Bytes it will take."""
        return self.stored.info.nbytes // _ITEM_BYTES[self.stored.info.dtype] * _ITEM_BYTES[self.dtype]

    @property
    def unchanged(self) -> bool:
        """Whether name and dtype are those it is stored with."""
        return self.name == self.stored.stored_name and self.dtype == self.stored.info.dtype


@dataclass(frozen=True)
class WeightsPlan:
    """How the weights of a source are to be written.

    Attributes:
        source: where they come from.
        dtype: safetensors code of the dtype to write, or None to leave each as stored.
        changed: names of the tensors whose values a `Change` touches.
    """

    source: ExportSource
    dtype: str | None = None
    changed: frozenset[str] = frozenset()

    def shards(self) -> list[tuple[str, list[OutTensor]]]:
        """The files to write: path in the export, and tensors in order."""
        count = len(self.source.shards)
        planned = []
        for number, shard in enumerate(self.source.shards, start=1):
            path = SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            tensors = [tensor for tensor in self.source.tensors.values() if tensor.shard.path == shard.path]
            planned.append((path, [OutTensor(each.name, self.dtype or each.info.dtype, each) for each in tensors]))
        return planned

    def write(self, directory: ExportDirectory, change: Change | None, progress: Progress | None) -> int:
        """Write every file, and an index where there are several.

        Returns:
            How many files came out byte for byte as they are stored.
        """
        copied = 0
        index: dict[str, str] = {}
        for (path, tensors), shard in zip(self.shards(), self.source.shards, strict=True):
            index.update({tensor.name: path for tensor in tensors})
            if all(each.unchanged and each.name not in self.changed for each in tensors):
                self.source.archive.get_file(shard.blob, directory.place(path))
                directory.note(path, shard.blob, shard.size)
                copied += 1
                if progress is not None:
                    progress(shard.size)
                continue
            prove(self.source.archive, shard.blob)
            with directory.file(path) as sink:
                write_safetensors(sink, self.source.archive, tensors, change, progress)
        if len(self.source.shards) > 1:
            total = sum(tensor.nbytes for _, tensors in self.shards() for tensor in tensors)
            document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
            directory.write(INDEX_FILE, (json.dumps(document, indent=2) + "\n").encode())
        return copied


def prove(archive: Archive, blob: Digest) -> None:
    """Hash a blob as a whole, so that its tensors may be read one by one.

    Raises:
        CorruptError: it is not what was put.
    """
    report = archive.verify([blob])
    if not report.ok:
        first = report.findings[0].what if report.findings else "it could not be read"
        raise CorruptError(f"{blob}: {first}; `csf repair` may mend it, nothing was exported")


def write_safetensors(
    sink: Sink,
    archive: Archive,
    tensors: Sequence[OutTensor],
    change: Change | None = None,
    progress: Progress | None = None,
) -> None:
    """Write one safetensors file, tensor by tensor."""
    sink.write(safetensors_header((each.name, each.dtype, each.stored.info.shape, each.nbytes) for each in tensors))
    for each in tensors:
        sink.write(tensor_bytes(converted(read_tensor(archive, each.stored), each, change)))
        if progress is not None:
            progress(each.stored.info.nbytes)


def safetensors_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """Length and JSON header of a safetensors file: (name, dtype, shape, bytes) in the order of the data."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape, nbytes in tensors:
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_tensor(archive: Archive, stored: StoredTensor) -> Tensor:
    """A tensor of a proven blob, as stored."""
    data = archive.read_tensor(stored.shard.blob, stored.stored_name)
    dtype = FLOAT_DTYPES[stored.info.dtype]
    if not stored.info.nbytes:
        return torch.empty(stored.info.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(stored.info.shape)


def converted(tensor: Tensor, out: OutTensor, change: Change | None) -> Tensor:
    """The tensor as it will be written.

    Raises:
        RefusedError: a finite value has no finite form in the dtype asked for.
    """
    if change is not None:
        tensor = change(out.stored.name, tensor)
    target = FLOAT_DTYPES[out.dtype]
    if tensor.dtype == target:
        return tensor
    made = tensor.to(target)
    if bool((tensor.isfinite() & ~made.isfinite()).any()):
        raise RefusedError(
            f"tensor {out.name} holds values up to {float(tensor.abs().max()):.3g}, which {out.dtype} cannot hold;"
            " export with --dtype float32 or bfloat16"
        )
    return made


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes in row-major order, without a copy where it lies so."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def parameter_count(tensors: Mapping[str, StoredTensor]) -> int:
    """Parameters, tied ones once."""
    return sum(each.info.nbytes // _ITEM_BYTES[each.info.dtype] for each in tensors.values())
