"""Several adapters as one: the same sum, held as a single low-rank product.

Wearing adapters A and B at weights a and b adds `a*s_A*up_A@down_A + b*s_B*up_B@down_B` to a module. Side by side that
is one product of rank `r_A + r_B`, so *concatenation* is exact: scales and weights go into the ups, the result's own
scale is 1, and only rounding the scaled ups to the dtype they are stored in can lose a last bit. With a smaller rank,
the best approximation in the Frobenius norm is the truncated SVD of that product (Eckart and Young, 1936), and what it
loses is told. Either way the result is read back from the archive and compared with its parents, and those numbers are
its record's.

The result stands on the bare base like any adapter; it was not trained, so its adapter record stays a claim, and an
`AdapterMerge` names its parents.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from adapters import add_adapter, canonical_config
from csf_store import Digest
from keystone.checkpoints.export.merging import PREFIX
from keystone.combining.low_rank import LowRank, LowRankAdapter, largest, norm, read_low_rank, stacked
from keystone.combining.records import AdapterMerge, keep
from keystone.errors import InvalidInputError, RefusedError
from manifests import AdapterUse, BaseMismatchError, Repository, canonical_bytes

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """One module of a merge.

    Attributes:
        rank: of the merged pair.
        exact_rank: the sum of its parents' ranks.
        norm: Frobenius norm of what the parents add together.
        difference: Frobenius norm of what is lost.
        largest: largest absolute entry of what is lost.
    """

    rank: int
    exact_rank: int
    norm: float
    difference: float
    largest: float


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge that is in the archive.

    Attributes:
        adapter: the new tree.
        document: its record, parents named.
        record: the digest of that.
        modules: what became of each module.
    """

    adapter: Digest
    document: AdapterMerge
    record: Digest
    modules: Mapping[str, ModuleChange]


def merge_adapters(
    repository: Repository,
    uses: Sequence[AdapterUse],
    *,
    base: Digest | None = None,
    rank: int | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Merge adapters at their weights into one, store it and say how.

    Args:
        repository: where they are and where the result goes.
        uses: at least one, none twice, no weight zero.
        base: needed only where no record says what the adapters were made for.
        rank: the most any module may have; None keeps the sum of the ranks, which is exact.
        progress: told after every module.

    Raises:
        InvalidInputError: weights or a rank that make no merge.
        RefusedError: an adapter does something that cannot be added up; what is named.
        BaseMismatchError: they were made for different bases; both are named.
        adapters.AdapterFitError: they do not fit the base.
    """
    _check_uses(uses, rank)
    base = _base_of(repository, uses, base)
    read = [read_low_rank(repository.archive, use.adapter) for use in uses]
    parts = _parts(read, [use.weight for use in uses])
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module in sorted(parts):
        up, down = _factors(parts[module], rank)
        ranks[module] = up.shape[1]
        tensors |= _named(module, up, down, embedding=parts[module][0].embedding)
        if progress is not None:
            progress(1)
    with tempfile.TemporaryDirectory(prefix="keystone-merge-") as folder:
        directory = Path(folder) / "adapter"
        directory.mkdir()
        (directory / "adapter_config.json").write_bytes(canonical_bytes(canonical_config(_config(ranks))))
        (directory / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        adapter, _ = add_adapter(repository, directory, base=base)
    changes = _changes(parts, read_low_rank(repository.archive, adapter))
    document = _document(adapter, base, uses, changes)
    return Merged(adapter, document, keep(repository, document), changes)


def check_merge(repository: Repository, record: AdapterMerge) -> str | None:
    """Compute a merge's difference from its parents again; why the record is not to be believed, or None."""
    read = [read_low_rank(repository.archive, use.adapter) for use in record.parents]
    parts = _parts(read, [use.weight for use in record.parents])
    changes = _changes(parts, read_low_rank(repository.archive, record.adapter))
    found = _document(record.adapter, record.base, record.parents, changes)
    for name in ("largest_error", "relative_error"):
        said, seen = getattr(record, name), getattr(found, name)
        if seen > said * 1.01 + 1e-12:  # float64 sums in another order on another machine
            return f"it differs from its parents by {name} {seen:.3g}, its record says {said:.3g}"
    return None


def _check_uses(uses: Sequence[AdapterUse], rank: int | None) -> None:
    if not uses:
        raise InvalidInputError("name at least one adapter to merge")
    if len({use.adapter for use in uses}) != len(uses):
        raise InvalidInputError("an adapter is named twice; add up its weights instead")
    if zero := [use.adapter for use in uses if use.weight == 0]:
        raise InvalidInputError(f"adapter {zero[0]} has weight 0 and would leave nothing behind; leave it out")
    if rank is not None and rank < 1:
        raise InvalidInputError(f"a rank is at least 1, not {rank}")


def _base_of(repository: Repository, uses: Sequence[AdapterUse], asked: Digest | None) -> Digest:
    known = [(use.adapter, repository.adapter_record(use.adapter)) for use in uses]
    bases = {record.base: adapter for adapter, record in known if record is not None}
    if asked is not None:
        bases.setdefault(asked, uses[0].adapter)
    if not bases:
        raise InvalidInputError("no record says which base these adapters are for; name it with --base")
    if len(bases) > 1:
        (first, second), adapters = sorted(bases)[:2], bases
        if asked is not None:
            other = second if asked == first else first
            raise BaseMismatchError(f"adapter {adapters[other]} is recorded on base {other}, not on {asked}")
        raise BaseMismatchError(
            f"adapter {adapters[first]} is recorded on base {first}, adapter {adapters[second]} on base {second}; only"
            " adapters of one base can be added up"
        )
    return next(iter(bases))


def _parts(read: Sequence[LowRankAdapter], weights: Sequence[float]) -> dict[str, list[LowRank]]:
    """What the adapters add at their weights, by module."""
    parts: dict[str, list[LowRank]] = {}
    for adapter, weight in zip(read, weights, strict=True):
        if adapter.replaced:
            name = min(adapter.replaced)
            raise RefusedError(f"adapter {adapter.digest} replaces tensor {name}; a replacement cannot be added up")
        for module, part in adapter.modules.items():
            parts.setdefault(module, []).append(part.times(weight))
    for module, found in parts.items():
        if len({(part.shape, part.embedding) for part in found}) > 1:
            shapes = " and ".join(str(list(part.shape)) for part in found)
            raise RefusedError(f"the adapters add matrices of other shapes to {module}: {shapes}")
    return parts


def _factors(parts: Sequence[LowRank], rank: int | None) -> tuple[Tensor, Tensor]:
    """The sum as one pair, in at least float32."""
    widest = torch.float32
    for part in parts:
        widest = torch.promote_types(widest, torch.promote_types(part.up.dtype, part.down.dtype))
    up, down = stacked(parts)
    if rank is not None and rank < up.shape[1]:
        up, down = _truncated(up, down, rank)
    if not bool(up.isfinite().all() and down.isfinite().all()):
        raise RefusedError("the merged factors are not finite; use smaller weights")
    return up.to(widest).contiguous(), down.to(widest).contiguous()


def _truncated(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best product of this rank, its singular values shared evenly between both factors."""
    left, left_core = torch.linalg.qr(up)
    right, right_core = torch.linalg.qr(down.T)
    first, values, second = torch.linalg.svd(left_core @ right_core.T)
    rank = min(rank, values.shape[0])
    root = values[:rank].sqrt()
    up, down = left @ first[:, :rank] * root, (right @ second[:rank].T * root).T
    # A singular pair is known up to its sign; one choice of it keeps the result the same from run to run.
    places = up.abs().argmax(dim=0)
    signs = torch.where(up.gather(0, places[None])[0] < 0, -1.0, 1.0).to(up)
    return up * signs, down * signs[:, None]


def _named(module: str, up: Tensor, down: Tensor, *, embedding: bool) -> dict[str, Tensor]:
    where = f"{PREFIX}{module}."
    if embedding:
        return {
            f"{where}lora_embedding_A": up.T.contiguous(),
            f"{where}lora_embedding_B": down.T.contiguous(),
        }
    return {f"{where}lora_A.weight": down, f"{where}lora_B.weight": up}


def _config(ranks: Mapping[str, int]) -> dict[str, object]:
    """A configuration whose alpha is the rank everywhere, so that the scale is 1 exactly."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": float(usual),
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": {module: float(rank) for module, rank in others.items()},
    }


def _changes(parts: Mapping[str, Sequence[LowRank]], merged: LowRankAdapter) -> dict[str, ModuleChange]:
    if parts.keys() != merged.modules.keys():
        culprit = min(parts.keys() ^ merged.modules.keys())
        raise RefusedError(f"adapter {merged.digest} and what it was merged from disagree on module {culprit}")
    changes = {}
    for module, found in parts.items():
        made = merged.modules[module]
        # Factors that were kept to the bit lose nothing; measuring that would find the rounding of the measurement.
        kept = all(map(torch.equal, stacked(found), stacked([made])))
        lost = [] if kept else [*found, made.times(-1)]
        exact = sum(part.rank for part in found)
        changes[module] = ModuleChange(made.rank, exact, norm(found), norm(lost), largest(lost))
    return changes


def _document(
    adapter: Digest, base: Digest, uses: Sequence[AdapterUse], changes: Mapping[str, ModuleChange]
) -> AdapterMerge:
    whole = sum(change.norm**2 for change in changes.values()) ** 0.5
    lost = sum(change.difference**2 for change in changes.values()) ** 0.5
    exact = all(change.rank == change.exact_rank for change in changes.values())
    return AdapterMerge(
        adapter=adapter,
        base=base,
        parents=tuple(uses),
        method="concatenation" if exact else "svd",
        rank=max(change.rank for change in changes.values()),
        largest_error=max(change.largest for change in changes.values()),
        relative_error=lost / whole if whole else 0.0,
    )
