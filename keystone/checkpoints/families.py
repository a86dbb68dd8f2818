"""Model families that are this architecture with one loop, and their fields in our words.

| model_type | as here | beyond Llama |
|---|---|---|
| `llama` | Llama 1 to 3, CodeLlama, TinyLlama, SmolLM and SmolLM2, Yi, DeepSeek LLM and Coder, Vicuna | |
| `mistral` | Mistral | refused with a sliding window in use |
| `qwen2` | Qwen2, Qwen2.5 and their coders | biases on q, k and v; refused with a sliding window in use |
| `seed_oss` | Seed-OSS | biases on q, k and v, and on o by a field of its own |

All rotary scalings whose angles do not depend on more than the configuration are taken over: default, linear, dynamic,
llama3 and yarn. Where a file leaves a field out, the family's own default holds, as transformers' configuration class
knows it; the sizes of the model must be there.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, SeedOssConfig

from keystone.checkpoints.fields import canonical_json, number, overlooked, whole
from keystone.checkpoints.rope import checked_rope
from keystone.checkpoints.sources import Fields, Note
from keystone.errors import ConfigurationError
from keystone.model import KeystoneConfig

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TAKEN = frozenset(
    {
        *SIZES, "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
        "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id",
        "pad_token_id", "auto_map", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    }
)  # fmt: skip
"""Fields every family here knows and `read_family` looks at."""

ONE_LOOP: Mapping[str, object] = {
    "plt_num_loops": 1,
    "plt_emb_scale": 1.0,
    "plt_hidden_scale": 0.0,
    "plt_window_size": [64, 0],
    "plt_normalize_per_loop": True,
    "plt_gate_use_hidden_states": True,
}
"""What a model with one loop says of the loops it does not have."""

OTHER_FAMILIES: Mapping[str, str] = {
    "qwen3": "it has norms on queries and keys",
    "qwen3_moe": "it is a mixture of experts with norms on queries and keys",
    "qwen2_moe": "it is a mixture of experts",
    "mixtral": "it is a mixture of experts",
    "deepseek_v2": "it is a mixture of experts with latent attention",
    "deepseek_v3": "it is a mixture of experts with latent attention",
    "gpt_oss": "it is a mixture of experts with attention sinks",
    "llama4": "it is a mixture of experts with chunked attention",
    "gemma": "it scales embeddings and its norms add one to their weights",
    "gemma2": "it caps logits softly and uses sliding windows",
    "gemma3": "it has norms on queries and keys and uses sliding windows",
    "gemma3_text": "it has norms on queries and keys and uses sliding windows",
    "phi3": "its projections are fused and its rotary embedding may be partial",
    "granite": "it scales embeddings, residuals, attention and logits",
    "smollm3": "some of its layers know no positions",
    "cohere": "attention and feed-forward run side by side",
    "cohere2": "attention and feed-forward run side by side",
    "olmo2": "it norms after its blocks, and queries and keys",
    "stablelm": "its norms are layer norms and its rotary embedding is partial",
    "starcoder2": "its norms are layer norms",
    "minicpm": "it scales embeddings and residuals",
    "ministral": "it uses sliding windows",
    "gpt2": "it is no Llama: learned positions and layer norms",
    "gpt_neox": "it is no Llama: layer norms and a partial rotary embedding",
}
"""Families people ask for that are not this architecture, and the first reason."""


@dataclass(frozen=True)
class Family:
    """One model type.

    Attributes:
        config_class: transformers' own reading of the file, which knows the defaults.
        fields: what this family knows beyond `TAKEN`.
    """

    config_class: type[PreTrainedConfig]
    fields: frozenset[str] = frozenset()

    def biases(self, config: Any) -> dict[str, bool]:
        """Which projections have biases."""
        match config.model_type:
            case "llama":
                return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
            case "qwen2":
                return {"attention_bias": True, "attention_output_bias": False}
            case "seed_oss":
                return {
                    "attention_bias": config.attention_bias,
                    "attention_output_bias": config.attention_out_bias,
                    "mlp_bias": config.mlp_bias,
                }
        return {}


FAMILIES: Mapping[str, Family] = {
    "llama": Family(LlamaConfig, frozenset({"attention_bias", "mlp_bias"})),
    "mistral": Family(MistralConfig),
    "qwen2": Family(Qwen2Config),
    "seed_oss": Family(SeedOssConfig, frozenset({"attention_bias", "attention_out_bias", "mlp_bias"})),
}


def read_family(fields: Fields, *, ignored: Collection[str] = ()) -> tuple[KeystoneConfig, bytes, tuple[Note, ...]]:
    """A family's `config.json` as a one-loop configuration of ours, and the bytes of the one the base will hold.

    Args:
        fields: the file.
        ignored: fields an owner declares harmless.

    Raises:
        ConfigurationError: another architecture, or a field that cannot be honoured; it is named, with the reason.
    """
    model_type = fields.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ConfigurationError(_not_ours(model_type))
    _check_head(fields)
    notes = tuple(overlooked(fields, known=TAKEN | family.fields, ignored=ignored))
    for name in SIZES:
        whole(fields, name)
    whole(fields, "max_position_embeddings")
    number(fields, "rms_norm_eps")
    known = {name: value for name, value in fields.items() if name in TAKEN | family.fields and name != "auto_map"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it would warn of is checked below, and refused
        try:
            theirs: Any = family.config_class.from_dict(known)
        except Exception as error:  # strict dataclasses and RoPE checks raise whatever they like
            raise ConfigurationError(f"config.json cannot be read as {model_type}: {error}") from error
    window = _refuse_window(fields, theirs)
    ours: dict[str, object] = {
        **{name: getattr(theirs, name) for name in SIZES},
        "num_key_value_heads": theirs.num_key_value_heads,
        "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        "hidden_act": theirs.hidden_act,
        "max_position_embeddings": theirs.max_position_embeddings,
        "rms_norm_eps": theirs.rms_norm_eps,
        "tie_word_embeddings": theirs.tie_word_embeddings,
        "rope_parameters": checked_rope(theirs.rope_parameters, context=theirs.max_position_embeddings),
        "bos_token_id": theirs.bos_token_id,
        "eos_token_id": theirs.eos_token_id,
        "pad_token_id": theirs.pad_token_id,
        **family.biases(theirs),
    }
    pad = theirs.pad_token_id
    if isinstance(pad, int) and not 0 <= pad < theirs.vocab_size:
        ours["pad_token_id"] = None
        notes += (
            Note("field", "pad_token_id", f"{pad} is no row of the {theirs.vocab_size} embeddings: none is used"),
        )
    return *one_loop(ours), (*notes, *window)


def one_loop(fields: Fields) -> tuple[KeystoneConfig, bytes]:
    """A configuration of one loop from Llama's fields, as an object and as the bytes of its file.

    Raises:
        ConfigurationError: a value that cannot be honoured.
    """
    document = {
        **fields,
        **ONE_LOOP,
        "model_type": KeystoneConfig.model_type,
        "architectures": ["KeystoneForCausalLM"],
    }
    try:
        config = KeystoneConfig.from_dict(document)
    except ConfigurationError:
        raise
    except Exception as error:  # as above
        raise ConfigurationError(f"the configuration cannot be honoured: {error}") from error
    return config, canonical_json(document)


def _not_ours(model_type: object) -> str:
    reason = OTHER_FAMILIES.get(model_type) if isinstance(model_type, str) else None
    named = f"config.json says model_type {model_type!r}"
    if reason is not None:
        return f"{named}, and {reason}; only LoopCoder-V2 and {', '.join(FAMILIES)} are this architecture"
    return f"{named}; this code reads LoopCoder-V2 and {', '.join(FAMILIES)}"


def _check_head(fields: Fields) -> None:
    """A causal language model, computed by transformers' own class and by no code that came with the checkpoint."""
    architectures = fields.get("architectures")
    if isinstance(architectures, list) and architectures:
        strange = [name for name in architectures if not str(name).endswith("ForCausalLM")]
        if strange:
            raise ConfigurationError(f"config.json: architectures is {strange}; only causal language models are bases")
    auto_map = fields.get("auto_map")
    if isinstance(auto_map, dict) and any(str(key).startswith("AutoModel") for key in auto_map):
        raise ConfigurationError(
            "config.json: auto_map names modeling code that came with the checkpoint, which is never run; what it"
            " computes cannot be known from the configuration"
        )


def _refuse_window(fields: Fields, theirs: Any) -> tuple[Note, ...]:
    """Refuse a sliding window that would ever bite; one as long as the whole context does not."""
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None) or []
    context = theirs.max_position_embeddings
    if isinstance(window, int) and window < context:
        raise ConfigurationError(
            f"config.json: sliding_window is {window}, shorter than the context of {context}; the base's own loop sees"
            " every key, so a windowed base would be another model"
        )
    if window is None and any(kind != "full_attention" for kind in kinds):
        raise ConfigurationError(f"config.json: layer_types is {sorted(set(kinds))}; every layer must see every key")
    given = fields.get("sliding_window")
    return (Note("field", "sliding_window", f"{given}, and not in use"),) if given is not None else ()
