"""Which tensor sets a base may have in memory: as it is stored, and cast to the dtypes that training is done in.

A training record names the tensor set of the base as it was in memory. The audit computes the same from the archive.
Training in another dtype than the archive's casts every tensor; the casts are exact or correctly rounded, so they can
be done again here, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from csf_store import Archive, Digest
from manifests.tensor_set import TensorEntry, tensor_set_digest

_FLOATS: Final = {"BF16", "F16", "F32"}
_CASTS: Final = (None, "F32", "BF16", "F16")


def archived_tensor_set(archive: Archive, tree: Digest) -> Digest:
    """The tensor-set digest of every safetensors file of a tree, read from the archive tensor by tensor."""
    return tensor_set_digest(_entries(archive, tree, None).values())


def tensor_sets_in_memory(
    archive: Archive, base: Digest, tied: Mapping[str, str], progress: Callable[[int], None] | None = None
) -> Iterator[Digest]:
    """Every tensor set the base may have in memory, the likeliest first; nothing for a base without tensors.

    Args:
        archive: where the base is.
        base: its tree.
        tied: names that a model adds for a tensor it shares, and the tensor's own name.
        progress: called with bytes as they are read, once for each form that is tried.
    """
    for cast in _CASTS:
        entries = _entries(archive, base, cast, progress)
        if not entries:
            return
        added = {
            name: TensorEntry(name, entries[other].dtype, entries[other].shape, entries[other].digest)
            for name, other in tied.items()
            if name not in entries and other in entries
        }
        if added:
            yield tensor_set_digest({**entries, **added}.values())
        yield tensor_set_digest(entries.values())


def _entries(
    archive: Archive, tree: Digest, cast: str | None, progress: Callable[[int], None] | None = None
) -> dict[str, TensorEntry]:
    entries = {}
    for entry in archive.tree(tree).entries:
        if not entry.path.endswith(".safetensors"):
            continue
        for name, info in archive.tensors(entry.blob).items():
            data = bytes(archive.read_tensor(entry.blob, name))
            if progress is not None:
                progress(len(data))
            dtype = info.dtype
            if cast is not None and dtype in _FLOATS and dtype != cast:
                data, dtype = _cast(data, dtype, cast), cast
            entries[name] = TensorEntry(name, dtype, tuple(info.shape), Digest.of(data))
    return entries


def _cast(data: bytes, dtype: str, to: str) -> bytes:
    wide = _to_float32(data, dtype)
    if to == "F32":
        return wide.tobytes()
    with np.errstate(over="ignore"):
        return wide.astype("<f2").tobytes() if to == "F16" else _to_bfloat16(wide).tobytes()


def _to_float32(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype("<f4")


def _to_bfloat16(wide: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest, ties to even, as torch does; a NaN stays one."""
    bits = wide.view("<u4")
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(wide), np.uint16(0x7FC0), rounded).astype("<u2")
