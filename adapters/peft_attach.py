"""A fresh adapter on a model that is to be trained: low-rank pairs from the seed, or from an adapter to go on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.errors import MissingTensorError, ShapeMismatchError, SurplusTensorError, TrainingFailedError
from adapters.writing import adapter_state
from csf_store import Digest
from manifests import TrainingConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ParentAdapter:
    """An adapter to go on from: its tree, and its tensors by the names they are saved with."""

    digest: Digest
    tensors: Mapping[str, Tensor]


def attach(
    model: PreTrainedModel,
    config: TrainingConfig,
    *,
    modules_to_save: Sequence[str] = (),
    parent: ParentAdapter | None = None,
) -> PeftModel:
    """Wrap a model with an adapter that trains. The caller seeds torch: a new adapter starts from its generator.

    Args:
        model: wrapped in place.
        config: rank, alpha, dropout, targets.
        modules_to_save: modules trained as a whole.
        parent: where to start.

    Raises:
        TrainingFailedError: no such module.
        AdapterFitError: the parent has other tensors than the adapter that is trained here.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  # lazy: peft imports torch and transformers

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT says int, and divides
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        modules_to_save=list(modules_to_save) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        wrapped: PeftModel = get_peft_model(model, lora)
    except ValueError as error:
        raise TrainingFailedError(f"no adapter can be attached to {', '.join(config.targets)}: {error}") from error
    if parent is not None:
        _start_from(wrapped, parent)
    return wrapped


def _start_from(model: PeftModel, parent: ParentAdapter) -> None:
    from peft import set_peft_model_state_dict  # noqa: PLC0415  # lazy: as above

    fresh = adapter_state(model)
    for name, tensor in fresh.items():
        found = parent.tensors.get(name)
        if found is None:
            raise MissingTensorError(
                f"parent adapter {parent.digest} has no {name}; train with its targets and modules"
            )
        if found.shape != tensor.shape:
            raise ShapeMismatchError(
                f"tensor {name} of parent adapter {parent.digest} has shape {list(found.shape)}, and is trained here as"
                f" {list(tensor.shape)}; train with its rank"
            )
    if surplus := sorted(parent.tensors.keys() - fresh.keys()):
        raise SurplusTensorError(f"parent adapter {parent.digest} also changes {surplus[0]}; train with its targets")
    set_peft_model_state_dict(model, dict(parent.tensors))
