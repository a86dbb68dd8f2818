"""What a put may store differences to: the tensors of a base, by name, cut as the writer cuts them.

A fine-tune is its base plus a little. Where somebody names the base, a chunk of a tensor can be held as the difference
to the same stretch of the base's tensor of the same name, dtype and shape. Both were cut from the tensor's own start,
so chunks meet chunks, in whatever file or order the tensors lie.

Differences go one deep: where the base's chunk is itself a difference, what it is a difference to serves instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from csf_store.objects import Form, Kind
from csf_store.retrieve import OpenObject, Retrieve
from csf_store.safetensors_layout import SafetensorsHeader, TensorInfo
from csf_store.store import Store


class _Stretch(NamedTuple):
    """Chunks of one tensor: what it is, and the digest of the chunk that begins at each place."""

    dtype: str
    shape: tuple[int, ...]
    chunks: dict[int, bytes]


class Base:
    """The tensors of one or more safetensors blobs, ready to be differences' other side."""

    def __init__(self, store: Store, retrieve: Retrieve) -> None:
        self._store = store
        self._retrieve = retrieve
        self._tensors: dict[str, _Stretch] = {}

    @property
    def names(self) -> frozenset[str]:
        """The tensors it knows."""
        return frozenset(self._tensors)

    def add(self, found: OpenObject, header: SafetensorsHeader) -> None:
        """Takes in the tensors of a blob. Of a name given twice, the first counts."""
        if found.body.form != Form.CHUNKED:
            return
        starts: dict[int, bytes] = {}
        at = 0
        for chunk in found.body.chunks:
            starts[at] = chunk.digest
            at += chunk.length
        places = sorted(starts)
        number = 0
        for info in header.tensors.values():
            while number < len(places) and places[number] < info.offset:
                number += 1
            inside: dict[int, bytes] = {}
            while number < len(places) and places[number] < info.offset + info.nbytes:
                inside[places[number] - info.offset] = starts[places[number]]
                number += 1
            if 0 in inside:
                self._tensors.setdefault(info.name, _Stretch(info.dtype, info.shape, inside))

    def chunk_for(self, tensor: TensorInfo, within: int, length: int) -> bytes | None:
        """The digest of a chunk that stands alone and has ``length`` bytes at the same place of the same tensor."""
        stretch = self._tensors.get(tensor.name)
        if stretch is None or (stretch.dtype, stretch.shape) != (tensor.dtype, tensor.shape):
            return None
        digest = stretch.chunks.get(within)
        where = self._store.find_chunk(digest) if digest else None
        if digest is not None and where is not None and where.is_difference:
            digest, where = where.base, self._store.find_chunk(where.base)
        if where is None or where.raw != length or where.is_difference:
            return None
        return digest


def base_of(store: Store, retrieve: Retrieve, blobs: Iterable[OpenObject]) -> Base:
    """The base that opened safetensors blobs make up."""
    base = Base(store, retrieve)
    for found in blobs:
        if found.kind == Kind.BLOB:
            base.add(found, retrieve.header(found))
    return base
