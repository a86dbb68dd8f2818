"""LoRA training on a frozen base: given a model and batches, an adapter and the record that proves how it was made.

The base is hashed before and after (see `frozen`); seeds, data, libraries and machine go into a `TrainingRecord`. On
one machine with the same libraries and thread count, the same arguments give the same adapter, bit for bit: the order
of batches, the initial weights and dropout come from the seed, and PyTorch is held to deterministic kernels. The
caller's random state is left as it was. A run that keeps checkpoints (`training_state`) may be killed at any instant,
and gives that same adapter when it is called again.

Training may go on from an adapter that is there already: its tensors are where the new one starts, and the record names
it as the parent. Modules named in `modules_to_save` are trained as a whole and saved with the adapter.

Nothing here chooses data. Which examples may train is the source gate's decision, made before this is called.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from adapters.errors import TrainingFailedError
from adapters.frozen import base_entries, check_unchanged, tensor_entry
from adapters.machine import Machine
from adapters.peft_attach import ParentAdapter, attach
from adapters.training_state import Checkpoints, RunFile, capture, restore
from adapters.writing import adapter_state
from csf_store import Digest
from manifests import TensorEntry, TrainingConfig, TrainingRecord, canonical_digest, tensor_set_digest

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

Batch: TypeAlias = "Mapping[str, Tensor]"
"""What the model's forward takes: `input_ids`, `labels`, and `attention_mask` where rows are padded; all (B, T)."""

Progress: TypeAlias = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss)."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came out.

    Attributes:
        model: the PEFT model, in evaluation mode, adapter `default` active.
        losses: one number a step.
        record: the proof, not yet stored.
        checkpoint: the run's file, to be removed when the adapter is safe; None where none is kept.
    """

    model: PeftModel
    losses: tuple[float, ...]
    record: TrainingRecord
    checkpoint: RunFile | None = None


def train_lora(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    config: TrainingConfig,
    *,
    base: Digest,
    data: Iterable[Digest] = (),
    experience: Iterable[Digest] = (),
    gate: Digest | None = None,
    parent: ParentAdapter | None = None,
    modules_to_save: Sequence[str] = (),
    checkpoints: Checkpoints | None = None,
    also: Iterable[str] = (),
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a LoRA adapter on a frozen model. The model is wrapped in place, as PEFT does.

    Args:
        model: a causal language model of transformers, on the device and in the dtype to train in.
        batches: used in a seeded order, every batch once before any comes again.
        config: rank, targets, steps, rate, seed.
        base: the tree the model was loaded from.
        data: the data sets behind the batches, by digest.
        experience: the Convergence Records among them.
        gate: the source gate's report that let them in.
        parent: the adapter to go on from, of the same rank, targets and saved modules.
        modules_to_save: modules trained as a whole, by the last parts of their names.
        checkpoints: where to keep the state of the run, and to look for it; None keeps nothing.
        also: further libraries that compute, for the record.
        progress: told after every step.

    Raises:
        TrainingFailedError: no batches, no such target module, or a loss that is not finite; the step is named.
        AdapterFitError: the parent is not of the shape that is trained here.
        InvalidCheckpointError: the run's checkpoint is damaged.
        BaseChangedError: when any base tensor differs afterwards; the tensor is named.
    """
    if not batches:
        raise TrainingFailedError("there are no batches to train on; collect or generate some first")
    _clear_in_place_repacking(model)
    before = base_entries(model)
    device = next(model.parameters()).device
    machine = Machine.here(device, also=also)
    base_before, digest = tensor_set_digest(before.values()), batches_digest(batches)
    with _reproducible(config.seed, device):
        peft_model = attach(model, config, modules_to_save=modules_to_save, parent=parent)
        file = None
        if checkpoints is not None:
            file = checkpoints.of(_run_key(config, base_before, digest, peft_model, machine))
        losses = _run(peft_model, batches, config, _Keeping(file, checkpoints), progress)
    peft_model.eval()
    after = base_entries(peft_model)
    check_unchanged(before, after)
    state = adapter_state(peft_model)
    record = TrainingRecord(
        base=base,
        parent=None if parent is None else parent.digest,
        base_before=base_before,
        base_after=tensor_set_digest(after.values()),
        adapter_tensors=_set_digest(state),
        data=tuple(data),
        experience=tuple(experience),
        gate=gate,
        batches=digest,
        examples=sum(int(batch["input_ids"].shape[0]) for batch in batches),
        config=config,
        losses=tuple(losses),
        final_loss=losses[-1],
        device=machine.device,
        threads=machine.threads,
        capability=machine.capability,
        libraries=machine.libraries,
    )
    return TrainingResult(model=peft_model, losses=tuple(losses), record=record, checkpoint=file)


def batches_digest(batches: Sequence[Batch]) -> Digest:
    """The tensor-set digest of batches, each tensor named `<batch number>/<key>`."""
    entries: list[TensorEntry] = []
    for number, batch in enumerate(batches):
        entries += [tensor_entry(f"{number}/{key}", tensor) for key, tensor in batch.items()]
    return tensor_set_digest(entries)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The rate of a step counted from 0: a linear rise over `warmup_steps`, then half a cosine down towards zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / left))


def _set_digest(tensors: Mapping[str, Tensor]) -> Digest:
    return tensor_set_digest(tensor_entry(name, tensor) for name, tensor in tensors.items())


def _run_key(config: TrainingConfig, base: Digest, batches: Digest, model: PeftModel, machine: Machine) -> Digest:
    """Names a run: everything that decides its result. The start is the adapter as attached, parent or seed."""
    start = {name: parameter.detach().cpu() for name, parameter in _trainable(model).items()}
    return canonical_digest(
        {
            "config": config.to_json(),
            "base": str(base),
            "batches": str(batches),
            "start": str(_set_digest(start)),
            "machine": [machine.device, machine.threads, machine.capability, dict(machine.libraries)],
        }
    )


def _trainable(model: PeftModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True, slots=True)
class _Keeping:
    """What a run does about its checkpoints; nothing where it has no file."""

    file: RunFile | None
    settings: Checkpoints | None

    def is_due(self, step: int, steps: int) -> bool:
        return self.settings is not None and (step % self.settings.every == 0 or step == steps)


def _run(
    model: PeftModel,
    batches: Sequence[Batch],
    config: TrainingConfig,
    keeping: _Keeping,
    progress: Progress | None,
) -> list[float]:
    import torch  # noqa: PLC0415  # lazy: `import adapters` stays light

    named = _trainable(model)
    trainable = list(named.values())
    device = trainable[0].device
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    model.train()
    losses: list[float] = []
    state = keeping.file.load() if keeping.file is not None else None
    if state is not None:
        restore(state, named, optimizer, device)
        losses += state.losses
        if progress is not None:
            progress(len(losses), config.steps, losses[-1])
    order = islice(_order(len(batches), config.seed), len(losses), None)
    for step, number in zip(range(len(losses), config.steps), order, strict=False):
        batch = {key: tensor.to(device) for key, tensor in batches[number].items()}
        loss = model(**batch, use_cache=False).loss
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingFailedError(f"the loss is {value} at step {step} (batch {number}); lower the learning rate")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, config.max_grad_norm)
        optimizer.step()
        losses.append(value)
        if keeping.file is not None and keeping.is_due(step + 1, config.steps):
            keeping.file.save(capture(step + 1, losses, named, optimizer, device))
        if progress is not None:
            progress(step + 1, config.steps, value)
    return losses


def _order(count: int, seed: int) -> Iterator[int]:
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


@contextmanager
def _reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded and deterministic inside, the caller's random state and settings untouched outside."""
    import torch  # noqa: PLC0415
    from torch.utils import deterministic  # noqa: PLC0415

    devices = [device.index or 0] if device.type == "cuda" else []
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":
        # cuBLAS is only deterministic with a fixed workspace, and reads this when its handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        # Filling every fresh tensor with NaN only helps to find kernels that read it, and costs a pass over memory.
        filling = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # set on the module's class
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _clear_in_place_repacking(model: PreTrainedModel) -> None:
    # bitsandbytes repacks Linear4bit weights in place on the first CPU forward of an AVX512-BF16 machine; gradients
    # then go missing and the base's bytes change. The flag turns that path off.
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # not a declared attribute of Module
