"""Reading the fields of somebody else's `config.json`: none is guessed, and none is overlooked.

A configuration of another model family is a page of fields, most of them book-keeping, and any one of them can mean
another computation. So a family lists the fields it takes over, the ones that change nothing, and the ones that this
architecture cannot honour. A field in none of these lists is let pass (and reported) while it is switched off, and is
refused by name when it is on; `--ignore-field` is for an owner who knows better.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from keystone.checkpoints.sources import Fields, Note
from keystone.errors import ConfigurationError

MAX_CONFIG_BYTES = 4 << 20
"""A configuration is a page of text; anything this large is something else."""

Neutral: TypeAlias = Callable[[object], bool]
"""Whether a value leaves the computation as it is."""


def is_off(value: object) -> bool:
    """None, False, nothing, or an empty container. Not 0: a factor of nought is a computation."""
    return value is None or value is False or (isinstance(value, str | list | dict | tuple) and not value)


def is_one(value: object) -> bool:
    """Nothing, or a factor of exactly one."""
    return is_off(value) or (isinstance(value, int | float) and value == 1)


def is_nought(value: object) -> bool:
    """Nothing, or zero."""
    return is_off(value) or value == 0


def is_at_most_one(value: object) -> bool:
    """Nothing, or a count of at most one: one expert is no mixture."""
    return is_off(value) or (isinstance(value, int) and value <= 1)


@dataclass(frozen=True)
class Refusal:
    """A field this architecture cannot honour unless its value is neutral."""

    reason: str
    neutral: Neutral = is_off


_EXPERTS = Refusal("it is a mixture of experts", is_at_most_one)
_NORMS = Refusal("it has norms on queries and keys")
_CAPPING = Refusal("it caps logits softly")
_PARTIAL = Refusal("it turns only part of each head by position", is_one)
_SCALED = Refusal("it scales embeddings, residuals, attention or logits", is_one)

REFUSALS: dict[str, Refusal] = {
    "quantization_config": Refusal("the checkpoint is quantized; import the weights it was made from, or dequantize"),
    "compression_config": Refusal("the checkpoint is compressed; import the weights it was made from"),
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "num_experts_per_tok": _EXPERTS,
    "moe_intermediate_size": Refusal("it is a mixture of experts", is_nought),
    "qk_norm": _NORMS,
    "use_qk_norm": _NORMS,
    "qk_layernorm": _NORMS,
    "attn_logit_softcapping": _CAPPING,
    "final_logit_softcapping": _CAPPING,
    "logit_cap": _CAPPING,
    "partial_rotary_factor": _PARTIAL,
    "rotary_pct": _PARTIAL,
    "rope_interleaved": Refusal("it pairs neighbouring numbers in its rotary embedding"),
    "no_rope_layers": Refusal("some of its layers know no positions"),
    "no_rope_layer_interval": Refusal("some of its layers know no positions", is_nought),
    "embedding_multiplier": _SCALED,
    "residual_multiplier": _SCALED,
    "logits_scaling": _SCALED,
    "logit_scale": _SCALED,
    "scale_emb": _SCALED,
    "attention_multiplier": Refusal("it scales attention by a factor of its own"),
    "query_pre_attn_scalar": Refusal("it scales attention by a factor of its own"),
    "attention_chunk_size": Refusal("it attends within chunks"),
    "attn_temperature_tuning": Refusal("it scales queries by position"),
    "clip_qkv": Refusal("it clips queries, keys and values"),
    "use_parallel_residual": Refusal("attention and feed-forward run side by side"),
    "alibi": Refusal("it uses biases instead of rotary embeddings"),
    "use_mrope": Refusal("its positions have several dimensions"),
    "vision_config": Refusal("it sees images; import its language model alone"),
    "audio_config": Refusal("it hears; import its language model alone"),
    "mtp_num_layers": Refusal("it predicts several tokens with layers of their own", is_nought),
    "add_cross_attention": Refusal("it attends to an encoder"),
    "is_encoder_decoder": Refusal("it is an encoder with a decoder"),
}
"""Fields that mean another computation, and why."""

HARMLESS = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_flash_attn_2_enabled",
        "_name_or_path", "architectures", "attention_dropout", "attn_implementation", "base_model_name_or_path",
        "chunk_size_feed_forward", "do_sample", "dtype", "hidden_dropout", "id2label", "initializer_range",
        "is_llama_config", "keys_to_ignore_at_inference", "label2id", "max_length", "max_new_tokens",
        "max_sequence_length", "model_max_length", "model_type", "num_labels", "output_attentions",
        "output_hidden_states", "pretraining_tp", "problem_type", "repetition_penalty", "residual_dropout",
        "return_dict", "rms_norm_type", "temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype",
        "transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version", "use_bfloat16",
        "use_cache",
    }
)  # fmt: skip
"""Book-keeping: what these say does not reach the forward pass of a causal model that only answers."""


def parse_object(data: bytes, where: str) -> Fields:
    """A JSON object with every key once.

    Raises:
        ConfigurationError: it is not one.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigurationError(f"{where} has {len(data)} bytes; a configuration has at most {MAX_CONFIG_BYTES}")
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} is a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is given twice, and which one is meant cannot be known")
    return document


def canonical_json(fields: Fields) -> bytes:
    """One spelling for one configuration, so that the same source always makes the same base."""
    return (json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def overlooked(fields: Fields, *, known: Collection[str], ignored: Collection[str] = ()) -> Iterator[Note]:
    """What a configuration says beyond the fields a family takes over: a note for each, or a refusal.

    Args:
        fields: the configuration.
        known: fields that are taken over.
        ignored: fields an owner declares harmless; the declaration is part of the notes.

    Raises:
        ConfigurationError: a field that is on and means another computation, or may mean one.
    """
    for name in sorted(fields):
        value = fields[name]
        shown = json.dumps(value)[:80]
        if name in known:
            continue
        if name in ignored:
            yield Note("field", name, f"ignored as asked for, at {shown}")
        elif name in REFUSALS:
            refusal = REFUSALS[name]
            if not refusal.neutral(value):
                raise ConfigurationError(f"config.json: {name} is {shown}: {refusal.reason}, which this model cannot")
        elif name in HARMLESS:
            continue
        elif is_off(value):
            yield Note("field", name, f"unknown here, and off ({shown})")
        else:
            raise ConfigurationError(
                f"config.json: {name} is {shown}, and what it changes is not known here; if it changes nothing, say"
                f" --ignore-field {name}"
            )


def whole(fields: Fields, name: str, *, where: str = "config.json") -> int:
    """A whole number of at least one that a configuration must give.

    Raises:
        ConfigurationError: it is missing or something else.
    """
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ConfigurationError(f"{where}: {name} is {json.dumps(value)[:80]}; a whole number is needed")
    return value


def number(fields: Fields, name: str, *, where: str = "config.json") -> float:
    """A finite number above zero that a configuration must give.

    Raises:
        ConfigurationError: it is missing or something else.
    """
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{where}: {name} is {json.dumps(value)[:80]}; a number above zero is needed")
    return float(value)
