"""One digest for a set of named tensors, wherever they are held.

A file digest changes with sharding, header order and padding; a model in memory has no file at all. The *tensor-set
digest* names only what matters: BLAKE3 of the RFC 8785 JSON `{"tensors":[[name,dtype,shape,digest],...],"v":1}`, sorted
by the UTF-8 bytes of the name, dtype as the safetensors code, each digest that of the tensor's little-endian
row-major bytes. The trainer computes it from parameters, the audit from the archive, and the two must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from csf_store import Digest
from manifests import canonical
from manifests.errors import InvalidDocumentError


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a set: its name, safetensors dtype code, shape, and the digest of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: Digest


def tensor_set_digest(entries: Iterable[TensorEntry]) -> Digest:
    """The digest of a set of tensors; the order of `entries` does not matter.

    Raises:
        InvalidDocumentError: when a name appears twice or is not Unicode.
    """
    ordered = sorted(entries, key=lambda entry: entry.name.encode("utf-8", "surrogatepass"))
    for before, after in pairwise(ordered):
        if before.name == after.name:
            raise InvalidDocumentError(f"tensor {after.name!r} appears twice in one set")
    rows: Sequence[canonical.Json] = [[e.name, e.dtype, list(e.shape), str(e.digest)] for e in ordered]
    return canonical.digest_of({"v": 1, "tensors": rows})
