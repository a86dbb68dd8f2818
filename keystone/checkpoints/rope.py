"""Rotary scalings: which are computed here, and what each of them reads.

The model takes its frequencies from transformers' own functions. A parameter that those would overlook, a scaling they
would warn about, or a number that is none, is refused here by name.
"""

import math
from collections.abc import Mapping

from keystone.checkpoints.fields import number
from keystone.errors import ConfigurationError

ROPE_FIELDS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {
            "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
            "mscale_all_dim", "truncate",
        }
    ),
}  # fmt: skip
"""The rotary scalings and what each of them reads beside `rope_theta`."""

_ALWAYS = frozenset(
    {
        "rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
        "finetuned",  # how the weights came to be: no angle depends on it
    }
)  # fmt: skip
_WHERE = "rope_parameters"


def checked_rope(parameters: object, *, context: int) -> dict[str, object]:
    """Rotary parameters as transformers standardised them, held to what is computed here.

    Args:
        parameters: `rope_parameters` of a configuration.
        context: its `max_position_embeddings`, which some scalings start from.

    Raises:
        ConfigurationError: another scaling, a parameter it does not know, or a value that is no sensible number.
    """
    if not isinstance(parameters, Mapping):
        raise ConfigurationError(f"config.json: rope_parameters is {parameters!r}; an object is needed")
    found = {name: value for name, value in parameters.items() if value is not None}
    kind = found.get("rope_type", "default")
    if kind not in ROPE_FIELDS:
        raise ConfigurationError(
            f"config.json: rope_type is {kind!r}; {', '.join(ROPE_FIELDS)} are computed here, and no other"
        )
    if found.get("partial_rotary_factor", 1.0) != 1:
        partial = found["partial_rotary_factor"]
        raise ConfigurationError(f"config.json: partial_rotary_factor is {partial}; every number of a head is turned")
    rope: dict[str, object] = {"rope_type": kind, "rope_theta": number(found, "rope_theta", where=_WHERE)}
    rope |= {name: _plain_number(name, found[name]) for name in sorted(ROPE_FIELDS[kind] & found.keys())}
    if strange := sorted(found.keys() - ROPE_FIELDS[kind] - _ALWAYS):
        raise ConfigurationError(f"{_WHERE}: {strange[0]} is {found[strange[0]]!r}, which {kind} scaling does not know")
    return _completed(rope, kind, context)


def _plain_number(name: str, value: object) -> bool | int | float:
    if not isinstance(value, bool | int | float) or not math.isfinite(value) or value < 0:
        raise ConfigurationError(f"{_WHERE}: {name} is {value!r}; a number is needed")
    return value


def _completed(rope: dict[str, object], kind: str, context: int) -> dict[str, object]:
    needed = {"linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",)}.get(kind, ())
    if kind in {"llama3", "yarn"}:
        rope.setdefault("original_max_position_embeddings", context)
        needed = (*needed, "original_max_position_embeddings")
    if kind == "llama3":
        needed = (*needed, "factor", "low_freq_factor", "high_freq_factor")
    for name in needed:
        number(rope, name, where=_WHERE)
    return rope
