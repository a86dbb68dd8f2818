"""An adapter written in its one form, so that equal adapters are equal directories.

PEFT's own `save_pretrained` writes `target_modules` in the order of a set, the path the base was loaded from, and a
README with a date. The same weights trained twice would then be two trees. Here: sorted lists, RFC 8785 JSON, only
fields that decide the result, no path, no version, no README, tensors in the order `safetensors` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import OutputExistsError, UnsupportedAdapterError
from adapters.peft_config import LoraSettings, parse_config
from adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE
from manifests import Json, JsonObject, canonical_bytes

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor


def canonical_config(config: Mapping[str, object], *, task_type: str | None = "CAUSAL_LM") -> JsonObject:
    """The JSON object to write for a PEFT LoRA configuration given as a mapping (`LoraConfig.to_dict()`).

    Raises:
        UnsupportedAdapterError: for a feature that is on and that this release does not check.
        InvalidAdapterError: for a malformed field.
    """
    plain = {key: sorted(value) if isinstance(value, (set, frozenset)) else value for key, value in config.items()}
    peft_type = plain.get("peft_type")
    plain["peft_type"] = str(getattr(peft_type, "value", peft_type))
    settings = parse_config(canonical_bytes(_jsonable(plain)), where="the configuration of this model")
    return {
        "task_type": task_type,
        "inference_mode": True,
        **{name: _written(settings, name) for name in LoraSettings.model_fields},
    }


def _jsonable(plain: Mapping[str, object]) -> JsonObject:
    # Enums, nested dataclasses and the like only occur in fields that must be off; as text they are refused by name.
    return {key: value if _is_json(value) else str(value) for key, value in plain.items()}  # type: ignore[misc]


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_json(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def _written(settings: LoraSettings, name: str) -> Json:
    value: object = getattr(settings, name)
    if name in ("modules_to_save", "exclude_modules") and not value:
        return None
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(sorted(value.items()))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UnsupportedAdapterError(f"field {name} holds a {type(value).__name__}, which has no form in JSON")


def adapter_state(model: PeftModel, *, adapter_name: str = "default") -> dict[str, Tensor]:
    """The tensors of one adapter under the names they are saved with, on the CPU, contiguous."""
    # Lazy: peft pulls in torch and transformers, and `import adapters` serves command lines that need neither.
    from peft import get_peft_model_state_dict  # noqa: PLC0415

    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {name: state[name].detach().cpu().contiguous() for name in sorted(state)}


def write_adapter(model: PeftModel, directory: Path, *, adapter_name: str = "default") -> Path:
    """Write one adapter of a PEFT model as a canonical directory.

    Args:
        model: the PEFT model.
        directory: created; must not exist or be empty.
        adapter_name: which of its adapters.

    Returns:
        The directory.

    Raises:
        OutputExistsError: when the directory holds something.
        UnsupportedAdapterError: for a feature that is on and that this release does not check; nothing is written.
    """
    from safetensors.torch import save  # noqa: PLC0415  # lazy: needs torch

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputExistsError(f"{directory} exists and is not an empty directory; choose another")
    config = canonical_bytes(canonical_config(model.peft_config[adapter_name].to_dict()))
    weights = save(adapter_state(model, adapter_name=adapter_name), metadata={"format": "pt"})
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_bytes(config)
    (directory / WEIGHTS_FILE).write_bytes(weights)
    return directory
