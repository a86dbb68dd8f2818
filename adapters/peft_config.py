"""`adapter_config.json`, read with suspicion and written in one form.

PEFT's LoRA configuration has some forty fields and gains more with every release. Three kinds matter here:

- those that decide which tensors there are and what they compute (`LoraSettings`): typed and checked;
- book-keeping and choices that only matter before training (`_HARMLESS`): accepted, never interpreted;
- everything else: accepted only while it is switched off. A field of a future PEFT that is *on* changes the result in a
  way we would not check, so it is refused by name rather than ignored.

Patterns are refused where PEFT allows regular expressions: a configuration is untrusted input, a regular expression
can take for ever, and a list of names says the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from adapters.errors import InvalidAdapterError, UnsupportedAdapterError
from manifests import ModuleName

MAX_CONFIG_BYTES = 2**20
"""A configuration is a page of text; anything larger is not one."""

MAX_RANK = 2**16

_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)


def _sorted_names(value: object) -> object:
    # A set in PEFT's mind, an array in JSON, a single name where somebody saved typing.
    if value is None:
        return ()
    if isinstance(value, str):
        raise ValueError(f"{value[:80]!r} is a pattern; list the module names instead")
    if isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(item, str) for item in value):
        return tuple(sorted(set(value)))
    raise ValueError("expected a list of module names")


def _plain_keys(value: object) -> object:
    if isinstance(value, dict):
        return {key.removeprefix("^") if isinstance(key, str) else key: item for key, item in value.items()}
    return {} if value is None else value


def _layer_list(value: object) -> object:
    if value is None or (isinstance(value, list) and not value):
        return None
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


MAX_NAMES = 4096
"""Names in one list; every tensor is compared with each."""

_Names = Annotated[tuple[ModuleName, ...], Field(max_length=MAX_NAMES), BeforeValidator(_sorted_names)]
_Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
_Alpha = Annotated[float, Field(gt=-1e9, lt=1e9, allow_inf_nan=False)]


_RankPattern = Annotated[Mapping[ModuleName, _Rank], Field(max_length=MAX_NAMES), BeforeValidator(_plain_keys)]
_AlphaPattern = Annotated[Mapping[ModuleName, _Alpha], Field(max_length=MAX_NAMES), BeforeValidator(_plain_keys)]


class LoraSettings(BaseModel):
    """The fields of a LoRA configuration that decide its tensors and its effect."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    peft_type: Literal["LORA"]
    r: _Rank
    lora_alpha: _Alpha
    target_modules: Annotated[_Names, Field(min_length=1)]
    exclude_modules: _Names = ()
    modules_to_save: _Names = ()
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    layers_to_transform: Annotated[
        tuple[Annotated[int, Field(ge=0, le=2**20)], ...] | None, BeforeValidator(_layer_list)
    ] = None
    rank_pattern: _RankPattern = Field(default_factory=dict)
    alpha_pattern: _AlphaPattern = Field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank of one module: the first matching entry of `rank_pattern`, else `r`."""
        for name, rank in self.rank_pattern.items():
            if names_module(name, module):
                return rank
        return self.r

    def targets(self, module: str) -> bool:
        """Whether the configuration adapts a module of this full name."""
        if any(names_module(name, module) for name in self.exclude_modules):
            return False
        if self.saves(module):
            return False
        if module in self.target_modules:
            return True  # PEFT asks for the layer only where a module is named by its last parts
        if not any(names_module(name, module) for name in self.target_modules):
            return False
        return self.layers_to_transform is None or layer_index(module) in self.layers_to_transform

    def saves(self, module: str) -> bool:
        """Whether the configuration replaces this module, or one around it, as a whole."""
        return any(f".{name}." in f".{module}." for name in self.modules_to_save)


def names_module(name: str, module: str) -> bool:
    """Whether `name` is the module's full name or its last parts."""
    return module == name or module.endswith(f".{name}")


def layer_index(module: str) -> int | None:
    """The layer a module is in, as PEFT counts: the first number from the third part on, `model.layers.3.mlp` -> 3."""
    parts = module.split(".")
    for part in parts[2:-1]:
        if re.fullmatch(r"[0-9]{1,7}", part):
            return int(part)
    return None


def parse_config(data: bytes, *, where: str) -> LoraSettings:
    """Read the bytes of an `adapter_config.json`.

    Args:
        data: the file's content.
        where: its path, for messages.

    Raises:
        InvalidAdapterError: when it is not JSON or a field is malformed; the field is named.
        UnsupportedAdapterError: for another PEFT method, or a feature that is on and that we do not check.
    """
    value = _json_object(data, where)
    peft_type = value.get("peft_type")
    if peft_type != "LORA":
        raise UnsupportedAdapterError(
            f"{where}: peft_type is {str(peft_type)[:80]!r}; only LORA adapters are supported"
        )
    for field, setting in value.items():
        known = field in LoraSettings.model_fields or field in _HARMLESS
        if not known and not _is_off(setting):
            raise UnsupportedAdapterError(
                f"{where}: {field[:80]!r} is {str(setting)[:80]!r}, and this release does not check what it changes;"
                " train or export the adapter without it"
            )
    try:
        return LoraSettings.model_validate({field: value[field] for field in value.keys() & _FIELDS})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        shown = repr(first["input"])[:80]
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidAdapterError(f"{where}: field {name}: {message} (got {shown})") from error


_FIELDS = frozenset(LoraSettings.model_fields)


def _is_off(setting: object) -> bool:
    return setting is None or setting is False or setting in ({}, [], "")


def _json_object(data: bytes, where: str) -> dict[str, object]:
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidAdapterError(f"{where}: {len(data)} bytes; a configuration has at most {MAX_CONFIG_BYTES}")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise InvalidAdapterError(f"{where}: a key appears twice in one object; which one is meant cannot be known")
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterError(f"{where}: not readable as JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise InvalidAdapterError(f"{where}: expected a JSON object")
    return value
