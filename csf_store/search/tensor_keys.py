"""Which bytes a tensor has, told from chunk lists: no data is read to find the same tensor elsewhere.

Every tensor is cut from its own start, so equal tensors have equal chunks wherever they lie. The **content key** of a
tensor is the BLAKE3 of its chunks' digests, one after the other, as they are when the tensor is cut every 4 MiB. A
tensor of no bytes has no chunks and the key of no bytes.

A chunk list usually says those digests. Where it does not (small content lies in the object record itself, and readers
may not rely on cuts), the tensor is read and cut here, so that equal bytes always give equal keys. What a chunk list
says is a claim: keys serve to find and to compare; ``get`` and ``verify`` prove.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from blake3 import blake3

from csf_store.framing import CHUNK_SIZE
from csf_store.objects import Form
from csf_store.reading import Reading
from csf_store.retrieve import OpenObject
from csf_store.safetensors_layout import Cut, SafetensorsHeader, TensorInfo, plain_cuts, tensor_cuts


def content_key(chunks: Sequence[bytes]) -> bytes:
    """The key of bytes that have these chunks, 32 bytes."""
    return blake3(b"".join(chunks)).digest()


class Cuts(NamedTuple):
    """How a writer cuts a file with a certain header.

    Attributes:
        lengths: of every chunk, the header's included.
        ends: number of chunks up to the end of the header, of the first tensor, of the second ...
    """

    lengths: list[int]
    ends: list[int]

    @classmethod
    def of(cls, header: SafetensorsHeader) -> Cuts:
        """The cuts that follow from a header."""
        parts = [header.length, *(tensor.nbytes for tensor in header.tensors.values())]
        lengths = [cut.length for cut in tensor_cuts(header)]
        return cls(lengths, list(accumulate(-(-part // CHUNK_SIZE) for part in parts)))


def header_chunks(found: OpenObject) -> list[bytes] | None:
    """The digests of a header's chunks, or None where the chunk list does not tell."""
    digests = []
    left = found.body.header_length
    for chunk in found.body.chunks:
        if not left:
            break
        if chunk.length != min(left, CHUNK_SIZE):
            return None
        digests.append(chunk.digest)
        left -= chunk.length
    return digests if digests and not left else None


def tensor_chunks(archive: Reading, found: OpenObject, header: SafetensorsHeader, cuts: Cuts) -> list[list[bytes]]:
    """The digests of every tensor's chunks, in the order of the header's tensors.

    Raises:
        CorruptError: if the chunk list does not tell and what had to be read is damaged.
    """
    if follows(found, cuts):
        digests = [chunk.digest for chunk in found.body.chunks]
        return [digests[start:end] for start, end in pairwise(cuts.ends)]
    if found.body.form == Form.INLINE:
        content = memoryview(bytearray(found.size))
        archive.read_range(found, 0, content)
        return [
            [blake3(content[cut.offset : cut.offset + cut.length]).digest() for cut in _cuts(tensor)]
            for tensor in header.tensors.values()
        ]
    return [[_read_digest(archive, found, cut) for cut in _cuts(tensor)] for tensor in header.tensors.values()]


def follows(found: OpenObject, cuts: Cuts) -> bool:
    """Whether an object's chunk list is cut as a writer cuts."""
    return found.body.form == Form.CHUNKED and [chunk.length for chunk in found.body.chunks] == cuts.lengths


def _cuts(tensor: TensorInfo) -> Iterator[Cut]:
    return plain_cuts(tensor.nbytes, tensor.offset)


def _read_digest(archive: Reading, found: OpenObject, cut: Cut) -> bytes:
    piece = memoryview(bytearray(cut.length))
    archive.read_range(found, cut.offset, piece)
    return blake3(piece).digest()
