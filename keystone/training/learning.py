"""One training run on an archived base: load it, hold it, train on it, and prove that it stayed what it was.

Three looks at the base, before and after: every tensor as the archive gives it, re-hashed from the stored bytes; every
tensor as it is held in memory, quantized or not; and the record's own pair, which an audit can compute again. Where the
base is held in 4 or 8 bits, that pair is the archive's, since no audit could know what a library packed into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters import (
    BaseChangedError,
    Checkpoints,
    ParentAdapter,
    TrainingResult,
    check_unchanged,
    tensor_entry,
    train_lora,
)
from csf_store import Archive, Digest
from keystone.checkpoints import BaseCheckpoint, read_adapter_tensors, stream_tensors
from keystone.checkpoints.upcycle import TRAINABLE_MODULES
from keystone.errors import RefusedError
from keystone.model import KeystoneConfig
from keystone.quantize import before_peft, prepare_for_training
from keystone.quantize.assembling import assemble
from keystone.training.settings import Progress
from manifests import Manifest, Recipe, TensorEntry, TrainingConfig, tensor_set_digest


@dataclass(frozen=True, slots=True)
class Lesson:
    """Everything that decides a run.

    Attributes:
        manifest: what is gone on from: a bare base, or a base and one adapter.
        recipe: how the frozen base is held.
        device: where.
        batches: as `batches_of` makes them.
        config: rank, steps, rate, seed.
        data: the data set that the gate let in.
        experience: the records among it that train.
        gate: the gate's report.
    """

    manifest: Manifest
    recipe: Recipe
    device: torch.device
    batches: Sequence[dict[str, Tensor]]
    config: TrainingConfig
    data: tuple[Digest, ...]
    experience: tuple[Digest, ...]
    gate: Digest | None


@dataclass(frozen=True, slots=True)
class Learned:
    """What came out.

    Attributes:
        result: the adapter in memory, and its record.
        held: tensor-set digest of the base as it was held, before and after.
        archived: tensor-set digest of the base as the archive gave it, before and after.
    """

    result: TrainingResult
    held: Digest
    archived: Digest


def learn(
    archive: Archive,
    lesson: Lesson,
    *,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Make a run.

    Args:
        archive: where the base is.
        lesson: what decides the run.
        checkpoints: where to keep its state.
        progress: told (steps done, steps in all, loss).

    Raises:
        BaseChangedError: a tensor of the base, in memory or in the archive; it is named.
        RefusedError: the recipe cannot be honoured here.
        adapters.AdapterError: see `adapters.train_lora`.
    """
    base = lesson.manifest.assembly.base
    before = archived_entries(archive, base)
    checkpoint = BaseCheckpoint.open(archive, base)
    model = assemble(archive, checkpoint, lesson.recipe, device=lesson.device).model
    before_peft()
    prepare_for_training(model)
    quantized = lesson.recipe.quantization != "none"
    result = train_lora(
        model,
        lesson.batches,
        lesson.config,
        base=base,
        data=lesson.data,
        experience=lesson.experience,
        gate=lesson.gate,
        parent=parent_of(archive, lesson.manifest),
        modules_to_save=saved_modules(checkpoint.config),
        checkpoints=checkpoints,
        also=("bitsandbytes",) if quantized else (),
        progress=progress,
    )
    after = archived_entries(archive, base)
    check_unchanged(before, after)
    held, archived = result.record.base_before, tensor_set_digest(before.values())
    if quantized:
        record = result.record.revised(base_before=archived, base_after=tensor_set_digest(after.values()))
        result = TrainingResult(result.model, result.losses, record, result.checkpoint)
    return Learned(result, held, archived)


def archived_entries(archive: Archive, base: Digest) -> dict[str, TensorEntry]:
    """Every tensor of a base as the archive gives it now, one in memory at a time, each file re-hashed as a whole."""
    found: dict[str, TensorEntry] = {}
    for shard in BaseCheckpoint.open(archive, base).shards:
        for name, tensor in stream_tensors(archive, shard.blob):
            found[name] = tensor_entry(name, tensor)
    if not found:
        raise BaseChangedError(f"base {base} holds no tensor that could be compared")
    return found


def parent_of(archive: Archive, manifest: Manifest) -> ParentAdapter | None:
    """The adapter that training goes on from; None on a bare base.

    Raises:
        RefusedError: several adapters, or one at another weight than 1.
    """
    uses = manifest.assembly.adapters
    if not uses:
        return None
    if len(uses) > 1 or uses[0].weight != 1.0:
        shown = ", ".join(f"{use.adapter.short} x {use.weight:g}" for use in uses)
        raise RefusedError(
            f"training goes on from a base or from one adapter at weight 1, not from {shown}; merge first"
        )
    return ParentAdapter(uses[0].adapter, read_adapter_tensors(archive, uses[0].adapter)[1])


def saved_modules(config: KeystoneConfig) -> tuple[str, ...]:
    """Modules to train as a whole: gates and scale of a base whose loops were made to be trained."""
    trainable = bool(config.plt_train_hidden_scale) and int(config.plt_num_loops) > 1
    return tuple(sorted(TRAINABLE_MODULES)) if trainable else ()


def checkpoints_in(directory: Path | None, every: int) -> Checkpoints | None:
    """Where a run keeps its state; None where it keeps none."""
    return None if directory is None else Checkpoints(directory, every)
