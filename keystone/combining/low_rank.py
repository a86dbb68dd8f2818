"""What an adapter adds to a base, module by module, measured without ever writing the sum out.

An adapter's addition to a module is `scale * up @ down`, and a sum of several is again one product: the ups side by
side, the downs stacked. Its Frobenius norm, its singular values and its inner product with another are those of a small
square *core* (QR of both factors, in float64), so comparing two adapters of a 7B model never makes a full matrix. Only
the largest single entry needs one, and takes it a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from adapters import LoraSettings, archived_adapter
from csf_store import Archive, Digest
from keystone.checkpoints import read_adapter_tensors
from keystone.checkpoints.export.merging import PREFIX, scaling
from keystone.errors import RefusedError

_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class LowRank:
    """One addition to one module: `scale * up @ down`.

    Attributes:
        up: `[out, rank]`; an embedding's `[rows, rank]`.
        down: `[rank, in]`; an embedding's `[rank, dim]`.
        scale: what the product is multiplied by, the adapter's weight included.
        embedding: whether the module is an embedding; its factors are stored transposed.
    """

    up: Tensor
    down: Tensor
    scale: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Columns of `up`."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that is added."""
        return self.up.shape[0], self.down.shape[1]

    def times(self, factor: float) -> LowRank:
        """The same at another strength."""
        return LowRank(self.up, self.down, self.scale * factor, self.embedding)


@dataclass(frozen=True, slots=True)
class LowRankAdapter:
    """An archived adapter as what it adds.

    Attributes:
        digest: its tree.
        settings: its configuration.
        modules: what it adds, by module.
        replaced: tensors that take a base tensor's place.
    """

    digest: Digest
    settings: LoraSettings
    modules: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor]


def read_low_rank(archive: Archive, adapter: Digest) -> LowRankAdapter:
    """Read an adapter tree, verified.

    Raises:
        RefusedError: it does more than add low-rank products, so products alone would misjudge it; what is named.
        adapters.AdapterError, CheckpointError: the tree is no adapter.
        csf_store.CorruptError: bytes that do not hash to their address.
    """
    sorted_tensors = archived_adapter(archive, adapter)
    settings = sorted_tensors.settings
    for name in ("use_dora", "lora_bias", "fan_in_fan_out"):
        if getattr(settings, name):
            raise RefusedError(f"adapter {adapter} has {name}: what it adds is not a sum of low-rank products alone")
    _, tensors = read_adapter_tensors(archive, adapter)
    modules = {module: _read_module(tensors, settings, module) for module in sorted_tensors.modules}
    replaced = {name: tensors[PREFIX + name] for name in sorted_tensors.replaced}
    return LowRankAdapter(adapter, settings, MappingProxyType(modules), MappingProxyType(replaced))


def _read_module(tensors: Mapping[str, Tensor], settings: LoraSettings, module: str) -> LowRank:
    where = f"{PREFIX}{module}."
    scale = scaling(settings, module)
    if f"{where}lora_A.weight" in tensors:
        return LowRank(tensors[f"{where}lora_B.weight"], tensors[f"{where}lora_A.weight"], scale)
    down, up = tensors[f"{where}lora_embedding_A"], tensors[f"{where}lora_embedding_B"]
    return LowRank(down.T, up.T, scale, embedding=True)


def core(parts: Sequence[LowRank]) -> Tensor:
    """A small float64 matrix with the singular values of the sum of the parts."""
    up, down = stacked(parts)
    left: Tensor = torch.linalg.qr(up, mode="r").R
    right: Tensor = torch.linalg.qr(down.T, mode="r").R
    return left @ right.T


def stacked(parts: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """The sum of the parts as one product, in float64: ups beside each other with their scales, downs stacked."""
    up = torch.cat([part.up.double() * part.scale for part in parts], dim=1)
    return up, torch.cat([part.down.double() for part in parts])


def norm(parts: Sequence[LowRank]) -> float:
    """The Frobenius norm of the sum; zero for no parts."""
    return float(torch.linalg.matrix_norm(core(parts))) if parts else 0.0


def inner(first: LowRank, second: LowRank) -> float:
    """The sum over all entries of the product of two additions to one module."""
    ups = first.up.double().T @ second.up.double()
    downs = first.down.double() @ second.down.double().T
    return float((ups * downs).sum()) * first.scale * second.scale


def largest(parts: Sequence[LowRank]) -> float:
    """The largest absolute entry of the sum, a block of rows in memory at a time; zero for no parts."""
    if not parts:
        return 0.0
    up, down = stacked(parts)
    rows = max(1, _BLOCK_VALUES // down.shape[1])
    return max(float((block @ down).abs().max()) for block in up.split(rows))
