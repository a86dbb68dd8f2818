"""How two adapters differ, module by module: not in their factors, which may differ and mean the same, but in effect.

A LoRA pair is not unique: `up @ G` and `inverse(G) @ down` add the same matrix. So the norms, the norm of the
difference and the cosine here are of the matrices that are added, scale included. Two modules are the *same* when they
differ by less than float32 can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from keystone.combining.low_rank import LowRank, LowRankAdapter, inner, norm

Status: TypeAlias = Literal["same", "changed", "added", "removed"]
_SAME = 2.0**-23


@dataclass(frozen=True, slots=True)
class ModuleDelta:
    """One module, or one replaced tensor, of two adapters A and B.

    Attributes:
        name: the module, or the tensor that is replaced.
        status: `added` is in B alone, `removed` in A alone.
        norm_a: Frobenius norm of what A adds; zero where it adds nothing.
        norm_b: the same of B.
        difference: Frobenius norm of B's addition less A's.
        cosine: of the angle between both additions; None where one is zero.
        rank_a: rank of A's pair; None for a replaced tensor or none.
        rank_b: the same of B.
    """

    name: str
    status: Status
    norm_a: float
    norm_b: float
    difference: float
    cosine: float | None
    rank_a: int | None = None
    rank_b: int | None = None


def adapter_delta(a: LowRankAdapter, b: LowRankAdapter) -> tuple[ModuleDelta, ...]:
    """Every module that either adapter touches, by name, replaced tensors last."""
    modules = tuple(
        _module(name, a.modules.get(name), b.modules.get(name)) for name in sorted({*a.modules, *b.modules})
    )
    tensors = tuple(_tensor(name, a.replaced, b.replaced) for name in sorted({*a.replaced, *b.replaced}))
    return modules + tensors


def whole(deltas: tuple[ModuleDelta, ...]) -> ModuleDelta:
    """All modules as one long vector."""
    norm_a, norm_b, difference = (
        sum(getattr(delta, name) ** 2 for delta in deltas) ** 0.5 for name in ("norm_a", "norm_b", "difference")
    )
    dot = sum((delta.cosine or 0.0) * delta.norm_a * delta.norm_b for delta in deltas)
    cosine = dot / (norm_a * norm_b) if norm_a and norm_b else None
    same = all(delta.status == "same" for delta in deltas)
    return ModuleDelta("all", "same" if same else "changed", norm_a, norm_b, difference, cosine)


def _module(name: str, a: LowRank | None, b: LowRank | None) -> ModuleDelta:
    norm_a, norm_b = norm([a] if a else []), norm([b] if b else [])
    rank_a, rank_b = a.rank if a else None, b.rank if b else None
    if a is None or b is None or a.shape != b.shape:
        status: Status = "added" if a is None else "removed" if b is None else "changed"
        return ModuleDelta(name, status, norm_a, norm_b, (norm_a**2 + norm_b**2) ** 0.5, None, rank_a, rank_b)
    if a.scale == b.scale and torch.equal(a.up, b.up) and torch.equal(a.down, b.down):
        difference = 0.0
    else:
        difference = norm([b, a.times(-1)])
    cosine = inner(a, b) / (norm_a * norm_b) if norm_a and norm_b else None
    return ModuleDelta(name, _status(difference, norm_a, norm_b), norm_a, norm_b, difference, cosine, rank_a, rank_b)


def _status(difference: float, norm_a: float, norm_b: float) -> Status:
    return "same" if difference <= _SAME * max(norm_a, norm_b) else "changed"


def _tensor(name: str, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> ModuleDelta:
    """A tensor that one or both put in place of the base's own; the numbers are of those tensors."""
    a, b = (tensors[name].double() if name in tensors else None for tensors in (first, second))
    norm_a = float(a.norm()) if a is not None else 0.0
    norm_b = float(b.norm()) if b is not None else 0.0
    if a is None or b is None or a.shape != b.shape:
        status: Status = "added" if a is None else "removed" if b is None else "changed"
        return ModuleDelta(name, status, norm_a, norm_b, (norm_a**2 + norm_b**2) ** 0.5, None)
    difference = float((b - a).norm())
    cosine = float((a * b).sum()) / (norm_a * norm_b) if norm_a and norm_b else None
    return ModuleDelta(name, _status(difference, norm_a, norm_b), norm_a, norm_b, difference, cosine)
