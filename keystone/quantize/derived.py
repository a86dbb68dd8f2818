"""Quantized weights as blobs of the archive: derived from a base and a recipe, found again by what they derive from.

A derived blob is a safetensors file with everything a model consists of in its quantized form: the parts of each
quantized weight, and all other parameters as they are, which the archive stores once with the base's own. It is
addressed by its content and proven like any other blob when it is read. Where to find it is a pin named
`derived/<digest of the key>`; the key holds what decides the bytes: base, recipe, and the versions of bitsandbytes and
torch. An archive that lies about that pin can be caught by `keystone.attestation`, which computes from the base.

It is a cache. Nothing links to it, and it links to nothing, so it keeps no base alive. A collection leaves it while it
is pinned; `drop` unpins it, as does `csf rm`. A copy that was damaged is unpinned, made again from the base and, once
it can be read back whole, pinned again.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from csf_store import Archive, CorruptError, CsfError, Digest, Kind
from keystone.checkpoints import DTYPES
from manifests import Json, Recipe, canonical_digest

PREFIX: Final = "derived/"
LIBRARIES: Final = ("bitsandbytes", "torch")
"""Those whose arithmetic decides the bytes."""
_LAYOUT: Final = 1
_CODES: Final = {dtype: code for code, dtype in DTYPES.items()}
_ALIGNMENT: Final = 8
_WORTH: Final = 0.8
"""A cache is there to be fast: quantized values, of which a tenth could be saved, are read as they are."""


@dataclass(frozen=True)
class DerivedKey:
    """What a derived blob is made from: the base, how its numbers are held, and who computed them."""

    base: Digest
    recipe: Recipe

    @cached_property
    def libraries(self) -> Mapping[str, str]:
        """The versions that matter. torch without its build tag: what it is built for does not change these bytes."""
        return {name: version(name).partition("+")[0] for name in LIBRARIES}

    @cached_property
    def digest(self) -> Digest:
        """Of all of it."""
        fields: dict[str, Json] = {"base": str(self.base), "recipe": str(self.recipe.digest), "layout": _LAYOUT, "v": 1}
        return canonical_digest({**fields, "libraries": dict(self.libraries)})

    @property
    def pin_name(self) -> str:
        """Under which the blob is pinned."""
        return PREFIX + self.digest.hex

    def metadata(self) -> dict[str, str]:
        """What the blob's header says of itself."""
        libraries = {f"keystone.{name}": number for name, number in self.libraries.items()}
        recipe = {"keystone.recipe": str(self.recipe.digest), "keystone.quantization": self.recipe.quantization}
        return {"keystone.base": str(self.base), "keystone.derived": self.digest.hex, **libraries, **recipe}


@dataclass(frozen=True)
class DerivedBlob:
    """One entry of the cache."""

    blob: Digest
    name: str
    size: int
    metadata: Mapping[str, str]


def find_derived(archive: Archive, key: DerivedKey) -> Digest | None:
    """The blob of a key, if it is here."""
    for pin in reversed(archive.pins()):
        if pin.name == key.pin_name and archive.contains(pin.digest, Kind.BLOB):
            return pin.digest
    return None


def list_derived(archive: Archive) -> Iterator[DerivedBlob]:
    """Everything in the cache."""
    for pin in archive.pins():
        if pin.name is not None and pin.name.startswith(PREFIX) and archive.contains(pin.digest, Kind.BLOB):
            try:
                metadata = archive.metadata(pin.digest)
            except CorruptError:
                metadata = {}
            yield DerivedBlob(pin.digest, pin.name, archive.content_size(pin.digest), metadata)


def drop(archive: Archive, blob: Digest) -> None:
    """Let go of a derived blob; the next collection takes its bytes.

    Raises:
        csf_store.NotFoundError: it is not pinned.
        csf_store.StorageError: the archive cannot be written.
    """
    archive.unpin(blob)


def store_derived(archive: Archive, key: DerivedKey, tensors: Mapping[str, Tensor]) -> Digest:
    """Keep a quantized model's tensors, read back before they are given a name.

    Args:
        archive: where to.
        key: what they are made from.
        tensors: on the CPU, by name; not copied.

    Raises:
        csf_store.CsfError: the archive cannot be written, or holds damaged bytes where these should be.
    """
    source = TensorSource(tensors, key.metadata())
    with archive.keeping():  # so that no collection comes between storing and pinning
        stored = archive.put_source(source, worth=_WORTH)
        # Pieces that are here already are not written again, and may have rotted meanwhile.
        report = archive.verify([stored.digest])
        if not report.ok:
            raise CorruptError(f"{stored.digest}: cannot be read back; csf repair mends or clears what is damaged")
        archive.pin(stored.digest, kind=Kind.BLOB, name=key.pin_name)
    return stored.digest


def discard_damaged(archive: Archive, blob: Digest) -> None:
    """Unpin what cannot be read, where the archive can be written; it is found damaged again next time otherwise."""
    try:
        drop(archive, blob)
    except CsfError:
        return


class TensorSource:
    """Tensors in memory as a safetensors file that was never written: nothing is copied."""

    path = Path("derived.safetensors")

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        # In the order of reading them back, which is the model's own.
        self._pieces = [_bytes_of(tensor) for tensor in tensors.values()]
        header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
        end = 0
        for (name, tensor), piece in zip(tensors.items(), self._pieces, strict=True):
            header[name] = {
                "dtype": _CODES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [end, end + len(piece)],
            }
            end += len(piece)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._pieces.insert(0, memoryview(len(text).to_bytes(8, "little") + text))
        self._ends = list(accumulate(map(len, self._pieces)))
        self.size = self._ends[-1]

    def read(self, offset: int, length: int, into: memoryview | None = None) -> memoryview:
        """Exactly these bytes: a view where they lie in one tensor, as all chunks do."""
        for piece, end in zip(self._pieces, self._ends, strict=True):
            start = end - len(piece)
            if start <= offset and offset + length <= end:
                return piece[offset - start : offset - start + length]
        out = memoryview(bytearray(length)) if into is None else into
        for piece, end in zip(self._pieces, self._ends, strict=True):
            start = max(offset, end - len(piece))
            stop = min(offset + length, end)
            if start < stop:
                base = end - len(piece)
                out[start - offset : stop - offset] = piece[start - base : stop - base]
        return out


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    array: Any = flat.numpy()
    return memoryview(array) if flat.numel() else memoryview(b"")
