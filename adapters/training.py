"""LoRA training on a frozen base: given a model and batches, an adapter and the record that proves how it was made.

The base is hashed before and after (see `frozen`); seeds, data, libraries and machine go into a `TrainingRecord`. On
one machine with the same libraries and thread count, the same arguments give the same adapter, bit for bit: the order
of batches, the initial weights and dropout come from the seed, and PyTorch is held to deterministic kernels. The
caller's random state is left as it was.

Nothing here chooses data. Which examples may train is the source gate's decision, made before this is called.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias

from adapters.errors import TrainingFailedError
from adapters.frozen import base_entries, check_unchanged, tensor_entry
from adapters.writing import adapter_state
from csf_store import Digest
from manifests import TensorEntry, TrainingConfig, TrainingRecord, tensor_set_digest

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

Batch: TypeAlias = "Mapping[str, Tensor]"
"""What the model's forward takes: `input_ids`, `labels`, and `attention_mask` where rows are padded; all (B, T)."""

Progress: TypeAlias = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss)."""

_LIBRARIES = ("numpy", "peft", "safetensors", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came out.

    Attributes:
        model: the PEFT model, in evaluation mode, adapter `default` active.
        losses: one number a step.
        record: the proof, not yet stored.
    """

    model: PeftModel
    losses: tuple[float, ...]
    record: TrainingRecord


def train_lora(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    config: TrainingConfig,
    *,
    base: Digest,
    data: Iterable[Digest] = (),
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a LoRA adapter on a frozen model. The model is wrapped in place, as PEFT does.

    Args:
        model: a causal language model of transformers, on the device and in the dtype to train in.
        batches: used in a seeded order, every batch once before any comes again.
        config: rank, targets, steps, rate, seed.
        base: the tree the model was loaded from.
        data: the data sets behind the batches, by digest.
        progress: told after every step.

    Raises:
        TrainingFailedError: no batches, no such target module, or a loss that is not finite; the step is named.
        BaseChangedError: when any base tensor differs afterwards; the tensor is named.
    """
    import torch  # noqa: PLC0415  # lazy: `import adapters` stays light

    if not batches:
        raise TrainingFailedError("there are no batches to train on; collect or generate some first")
    _clear_in_place_repacking(model)
    before = base_entries(model)
    device = next(model.parameters()).device
    with _reproducible(config.seed, device):
        peft_model = _attach(model, config)
        losses = _run(peft_model, batches, config, device, progress)
    peft_model.eval()
    after = base_entries(peft_model)
    check_unchanged(before, after)
    state = adapter_state(peft_model)
    record = TrainingRecord(
        base=base,
        base_before=tensor_set_digest(before.values()),
        base_after=tensor_set_digest(after.values()),
        adapter_tensors=tensor_set_digest(tensor_entry(name, tensor) for name, tensor in state.items()),
        data=tuple(data),
        batches=batches_digest(batches),
        examples=sum(int(batch["input_ids"].shape[0]) for batch in batches),
        config=config,
        losses=tuple(losses),
        final_loss=losses[-1],
        device=_device_name(device),
        threads=torch.get_num_threads(),
        capability=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        libraries={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    )
    return TrainingResult(model=peft_model, losses=tuple(losses), record=record)


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


def _attach(model: PreTrainedModel, config: TrainingConfig) -> PeftModel:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  # lazy: peft imports torch and transformers

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT says int, and divides
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise TrainingFailedError(f"no adapter can be attached to {', '.join(config.targets)}: {error}") from error


def _run(
    model: PeftModel,
    batches: Sequence[Batch],
    config: TrainingConfig,
    device: torch.device,
    progress: Progress | None,
) -> list[float]:
    import torch  # noqa: PLC0415

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    model.train()
    losses: list[float] = []
    for step, number in zip(range(config.steps), _order(len(batches), config.seed), strict=False):
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


def _device_name(device: torch.device) -> str:
    import torch  # noqa: PLC0415

    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
