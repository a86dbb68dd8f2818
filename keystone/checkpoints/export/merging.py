"""Adapters into the weights: `W + sum of weight * scaling * B @ A`, module by module, computed in fp32.

The base's weights come from the archive, never from a model that has run: bitsandbytes repacks quantized weights in
place on a first forward, and a merge into those is silently wrong. One tensor of the base is held at a time. What the
sum loses when it is rounded to the dtype it is written in is measured for every module.

What cannot be merged into the same function is refused: DoRA (its magnitudes do not add up with other adapters'), a
bias where the base has none, and a change to embeddings that are tied to the output head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters import LoraSettings, archived_adapter
from csf_store import Digest
from keystone.checkpoints import read_adapter_tensors
from keystone.checkpoints.export.source import ExportSource
from keystone.errors import CheckpointError, RefusedError

PREFIX = "base_model.model."
_TIED = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class ModuleError:
    """What a merge did to one tensor.

    Attributes:
        max_change: largest absolute change the adapters ask for, in fp32.
        max_rounding: largest absolute difference between the sum in fp32 and what was written.
    """

    max_change: float
    max_rounding: float


@dataclass(frozen=True, slots=True)
class _LowRank:
    """One adapter's addition to one tensor: `scale * first @ second`, or `scale * first` for a bias."""

    scale: float
    first: Tensor
    second: Tensor | None

    def added_to(self, wide: Tensor) -> Tensor:
        first = self.first.float()
        if self.second is None:
            return wide.add_(first, alpha=self.scale)
        return wide.addmm_(first, self.second.float(), alpha=self.scale)


class Merge:
    """The `Change` that merges a manifest's adapters; see `weights.Change`.

    Args:
        source: a manifest with at least one adapter.
        dtype: what the tensors will be written in, or None for the dtype each is stored in.

    Raises:
        RefusedError: an adapter cannot be merged into the same function; the module and the reason are named.
        CheckpointError: an adapter's tensors do not fit the base.
    """

    def __init__(self, source: ExportSource, dtype: torch.dtype | None) -> None:
        if not source.manifest.assembly.adapters:
            raise RefusedError(f"manifest {source.digest} has no adapters to merge; leave --merge away")
        self._source = source
        self._dtype = dtype
        self._added: dict[str, list[_LowRank]] = {}
        self._replaced: dict[str, tuple[Tensor, Digest]] = {}
        self.errors: dict[str, ModuleError] = {}
        for use in source.manifest.assembly.adapters:
            self._read(use.adapter, use.weight)
        if both := sorted(self._added.keys() & self._replaced.keys()):
            raise RefusedError(f"{both[0]} is replaced by one adapter and changed by another; they cannot be merged")

    @property
    def changed(self) -> frozenset[str]:
        """The tensors of the base that come out with other values."""
        return frozenset(self._added.keys() | self._replaced.keys())

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The merged tensor, in the dtype it is to be written in."""
        target = self._dtype or tensor.dtype
        if name in self._replaced:
            wide = self._replaced[name][0].float()
        elif name in self._added:
            wide = tensor.to(torch.float32, copy=True)
            for part in self._added[name]:
                wide = part.added_to(wide)
        else:
            return tensor
        made = wide.to(target)
        if not bool(made.isfinite().all()):
            raise RefusedError(f"tensor {name} merged is not finite in {target}; nothing was exported")
        change, rounding = (wide - tensor.float()).abs().max(), (wide - made.float()).abs().max()
        self.errors[name] = ModuleError(float(change), float(rounding))
        return made

    def _read(self, adapter: Digest, weight: float) -> None:
        sorted_tensors = archived_adapter(self._source.archive, adapter)
        settings = sorted_tensors.settings
        for name, on in (("use_dora", settings.use_dora), ("fan_in_fan_out", settings.fan_in_fan_out)):
            if on:
                raise RefusedError(
                    f"adapter {adapter} has {name}, which does not merge into the same function; export without --merge"
                )
        _, tensors = read_adapter_tensors(self._source.archive, adapter)
        for module in sorted_tensors.modules:
            scale = weight * scaling(settings, module)
            self._read_module(adapter, module, tensors, scale)
        for name in sorted_tensors.replaced:
            self._check_target(adapter, name, tensors[PREFIX + name].shape)
            if name in self._replaced:
                other = self._replaced[name][1]
                raise RefusedError(
                    f"adapters {other} and {adapter} both replace {name}; only one of them can be merged"
                )
            self._replaced[name] = (tensors[PREFIX + name], adapter)

    def _read_module(self, adapter: Digest, module: str, tensors: Mapping[str, Tensor], scale: float) -> None:
        def part(name: str) -> Tensor | None:
            return tensors.get(f"{PREFIX}{module}.{name}")

        first, second = part("lora_B.weight"), part("lora_A.weight")
        if first is None or second is None:
            down, up = part("lora_embedding_A"), part("lora_embedding_B")
            if down is None or up is None:
                raise CheckpointError(f"adapter {adapter} has no low-rank pair for {module}")
            first, second = down.T, up.T  # an embedding's rows are its inputs
        self._check_target(adapter, f"{module}.weight", torch.Size((first.shape[0], second.shape[1])))
        self._added.setdefault(f"{module}.weight", []).append(_LowRank(scale, first, second))
        bias = part("lora_B.bias")
        if bias is not None:
            self._check_target(adapter, f"{module}.bias", bias.shape)
            self._added.setdefault(f"{module}.bias", []).append(_LowRank(scale, bias, None))

    def _check_target(self, adapter: Digest, name: str, shape: torch.Size) -> None:
        stored = self._source.tensors.get(name)
        if stored is None:
            raise RefusedError(f"adapter {adapter} changes {name}, and the base has no such tensor to merge it into")
        if tuple(stored.info.shape) != tuple(shape):
            raise CheckpointError(f"adapter {adapter} makes {list(shape)} of {name}, the base has {stored.info.shape}")
        if name in _TIED and self._source.config.tie_word_embeddings:
            raise RefusedError(
                f"adapter {adapter} changes {name}, which is tied: merged, it would change the other end of the model"
                " as well; export without --merge"
            )


def scaling(settings: LoraSettings, module: str) -> float:
    """The factor PEFT gives a module's low-rank product: alpha over the rank, or over its root."""
    alpha = settings.lora_alpha
    for name, value in settings.alpha_pattern.items():
        if module == name or module.endswith(f".{name}"):
            alpha = value
            break
    rank = settings.rank_of(module)
    return float(alpha / rank**0.5) if settings.use_rslora else float(alpha / rank)
