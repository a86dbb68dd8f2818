"""A safetensors file that is never written: the archive reads it while it is being made.

`StreamedShard` knows its header beforehand, since names, dtypes and shapes are known, and makes the data of each tensor
only when the reader gets there. The archive reads a source once and front to back, so an import of any size needs no
temporary file and holds a few blocks of one tensor at a time.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from keystone.checkpoints.sources import FLOATS, SourceTensor
from keystone.errors import CheckpointError

SHARD_BYTES = 2_000_000_000
"""How large a made shard may grow; one larger tensor has a shard of its own."""


@dataclass(frozen=True)
class Placed:
    """A tensor of a source under the name it will have in the base."""

    name: str
    tensor: SourceTensor


class StreamedShard:
    """A safetensors file by its header and a promise of its data; the form `Archive.put_source` takes.

    Args:
        name: the file's name in the base tree.
        tensors: its tensors. Wider ones come first, which keeps all data aligned.
    """

    def __init__(self, name: str, tensors: Sequence[Placed]) -> None:
        self.path = Path(name)
        self.tensors = sorted(tensors, key=lambda placed: -FLOATS[placed.tensor.dtype])
        self._head = _header(self.tensors)
        self.size = len(self._head) + sum(placed.tensor.nbytes for placed in self.tensors)
        self._at = len(self._head)
        self._data = self._stream()
        self._rest = memoryview(b"")

    def read(self, offset: int, length: int, into: memoryview | None = None) -> memoryview:
        """Exactly these bytes: any of the header, and of the data what comes next.

        Raises:
            CheckpointError: when the data is not read in order, or a tensor gives more or fewer bytes than its shape.
        """
        view = memoryview(bytearray(length)) if into is None else into[:length]
        inside = max(0, min(len(self._head) - offset, length))
        view[:inside] = self._head[offset : offset + inside]
        if inside < length:
            if offset + inside != self._at:
                raise CheckpointError(f"{self.path} is made while it is read and cannot be read twice or out of order")
            self._fill(view[inside:])
        return view

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            if not self._rest:
                self._rest = next(self._data)
                continue
            taken = min(len(self._rest), len(view) - done)
            view[done : done + taken] = self._rest[:taken]
            self._rest = self._rest[taken:]
            done += taken
        self._at += len(view)

    def _stream(self) -> Iterator[memoryview]:
        for placed in self.tensors:
            left = placed.tensor.nbytes
            for block in placed.tensor.blocks():
                left -= block.nbytes
                if left >= 0:
                    yield block
            if left:
                raise CheckpointError(
                    f"tensor {placed.tensor.name} of {placed.tensor.file} gave {placed.tensor.nbytes - left} bytes; its"
                    f" shape needs {placed.tensor.nbytes}"
                )


def shards(tensors: Sequence[Placed], limit: int = SHARD_BYTES) -> list[StreamedShard]:
    """Tensors in files of at most `limit` bytes each, named as the Hub names them."""
    groups: list[list[Placed]] = [[]]
    size = 0
    for placed in tensors:
        if groups[-1] and size + placed.tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(placed)
        size += placed.tensor.nbytes
    if len(groups) == 1:
        return [StreamedShard("model.safetensors", groups[0])]
    return [
        StreamedShard(f"model-{number:05}-of-{len(groups):05}.safetensors", group)
        for number, group in enumerate(groups, 1)
    ]


def _header(tensors: Sequence[Placed]) -> bytes:
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for placed in tensors:
        end = at + placed.tensor.nbytes
        document[placed.name] = {
            "dtype": placed.tensor.dtype,
            "shape": list(placed.tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
