"""`config.json` for whoever will read it: our own code, transformers' Llama or Qwen2, or the vendor's engine.

A one-loop model is a plain Llama, so it is written as one and needs no code of ours; with biases on q, k and v alone it
is a Qwen2. Only fields that are known are written: a stored configuration may hold an `auto_map` that names somebody
else's code, and an export must not pass that on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from keystone.checkpoints.export.code_files import AUTO_MAP
from keystone.checkpoints.export.source import ExportSource
from keystone.errors import RefusedError
from keystone.model import KeystoneConfig
from keystone.model.configuration import REQUIRED_FIELDS, VENDOR_MODEL_TYPE
from manifests import Json

Architecture: TypeAlias = Literal["keystone", "llama", "qwen2"]

VENDOR_ARCHITECTURE = "IQuestPLTCoderForCausalLM"
_PLAIN = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
)


def has_output_bias(config: KeystoneConfig) -> bool:
    """Whether the attention's output projection has a bias."""
    own = getattr(config, "attention_output_bias", None)
    return config.attention_bias if own is None else bool(own)


def plain_architecture(config: KeystoneConfig) -> Architecture:
    """The transformers architecture that computes the same function, ours where there is none."""
    if config.plt_num_loops > 1:
        return "keystone"
    if config.attention_bias == has_output_bias(config):
        return "llama"
    return "qwen2" if config.attention_bias and not config.mlp_bias else "keystone"


def transformers_config(source: ExportSource, architecture: Architecture, dtype: str) -> bytes:
    """`config.json` for `AutoModelForCausalLM`.

    Args:
        source: the base.
        architecture: which class is to load it.
        dtype: of the weights, as torch names it.
    """
    known: dict[str, Any] = source.config.to_dict()
    made: dict[str, Any] = {name: known[name] for name in _PLAIN if name in known}
    if architecture == "keystone":
        # The class's own fields say what the model computes; those it inherits say how somebody last used it.
        made |= {name: known[name] for name in KeystoneConfig.__annotations__ if name in known}
        made |= {"architectures": ["KeystoneForCausalLM"], "model_type": KeystoneConfig.model_type}
        made["auto_map"] = dict(AUTO_MAP)
    elif architecture == "llama":
        made |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        made |= {"attention_bias": source.config.attention_bias, "mlp_bias": source.config.mlp_bias}
        made |= _older_rope(made)
    else:
        made |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
        made |= _older_rope(made)
    made |= {"dtype": dtype, "torch_dtype": dtype}
    return config_bytes(made)


def vendor_config(source: ExportSource, dtype: str, *, weights_as_stored: bool) -> bytes:
    """`config.json` in the form of the released LoopCoder-V2, byte for byte where the base has it so.

    Raises:
        RefusedError: the model has one loop; the vendor's layout has no gates to leave out.
    """
    config = source.config
    if config.plt_num_loops < 2:
        raise RefusedError(
            f"base {source.manifest.assembly.base} has one loop, and the vendor's layout holds a gate in every layer;"
            " export it with --format transformers, or upcycle it first"
        )
    stored = source.stored_config()
    if weights_as_stored and stored.get("model_type") == VENDOR_MODEL_TYPE and not _foreign_code(stored):
        return source.config_bytes
    known: dict[str, Any] = config.to_dict()
    made: dict[str, Any] = {name: known[name] for name in (*_PLAIN, *REQUIRED_FIELDS) if name in known}
    made |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    made |= {"architectures": [VENDOR_ARCHITECTURE], "model_type": VENDOR_MODEL_TYPE, "torch_dtype": dtype}
    made |= _older_rope(made)
    if has_output_bias(config) != config.attention_bias:
        raise RefusedError("the vendor's layout has biases on all of q, k, v and o or on none; this base differs")
    if config.plt_train_hidden_scale:
        raise RefusedError(
            "this base holds its hidden scale as a tensor that adapters may have trained; the vendor's layout has it as"
            " a number of the configuration alone; export it with --format transformers"
        )
    return config_bytes(made)


def config_bytes(made: Mapping[str, Any]) -> bytes:
    """JSON as people like to read it, keys sorted."""
    return (json.dumps(made, indent=2, sort_keys=True) + "\n").encode()


def _older_rope(made: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters as readers before transformers 5 look for them, beside the newer spelling."""
    rope = dict(made.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", 10000.0)
    scaled = rope.get("rope_type", "default") != "default"
    return {"rope_theta": theta, "rope_scaling": rope if scaled else None}


def _foreign_code(stored: Mapping[str, Json]) -> bool:
    """Whether the configuration names code in another repository (`org/name--module.Class`)."""
    return "--" in json.dumps(stored.get("auto_map", ""))
