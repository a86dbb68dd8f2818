"""Adapters on a base, one at a time with PEFT: the same steps for a model that is loaded and for one that serves."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from keystone.errors import RefusedError
from keystone.model import KeystoneForCausalLM
from keystone.quantize import before_peft
from manifests import AdapterUse


def wrap(base: KeystoneForCausalLM, wrapped: Any, name: str, fields: Mapping[str, Any]) -> Any:
    """Make room for an adapter.

    Args:
        base: the model, before its first forward if it is quantized.
        wrapped: what the last call returned; None for the first adapter.
        name: what the adapter is called in the model.
        fields: its PEFT configuration.

    Returns:
        The base in PEFT's wrapping.
    """
    before_peft()
    from peft import PeftConfig, PeftModel  # noqa: PLC0415 - a second to import

    config: Any = PeftConfig.from_peft_type(**{**fields, "inference_mode": True})
    if wrapped is None:
        return PeftModel(base, config, adapter_name=name)
    wrapped.add_adapter(name, config)
    return wrapped


def fill(wrapped: Any, name: str, tensors: Mapping[str, Tensor], use: AdapterUse) -> None:
    """Give the adapter its tensors and its weight.

    Raises:
        RefusedError: the tensors did not all find their place.
    """
    from peft import set_peft_model_state_dict  # noqa: PLC0415
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    outcome: Any = set_peft_model_state_dict(wrapped, dict(tensors), adapter_name=name)
    missing = [key for key in outcome.missing_keys if f".{name}." in key]
    if missing or outcome.unexpected_keys:
        raise RefusedError(
            f"adapter {use.adapter} does not fit: missing {missing}, surplus {list(outcome.unexpected_keys)}"
        )
    for module in wrapped.modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            module.scaling[name] *= use.weight
