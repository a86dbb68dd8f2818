"""GGUF metadata as a configuration of ours: the `llama` and `qwen2` architectures, and nothing else.

A GGUF file says what its model is in keys under the architecture's name. As with a `config.json`, a key that is not
known here and is switched on refuses the import by name. Llama 3's rotary scaling is not in the keys at all: the file
holds the divisor of every frequency as a tensor, from which the scaling is found again and checked.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from keystone.checkpoints.families import OTHER_FAMILIES, one_loop
from keystone.checkpoints.fields import is_off, number, whole
from keystone.checkpoints.rope import checked_rope
from keystone.checkpoints.sources import Fields, Note
from keystone.errors import ConfigurationError
from keystone.model import KeystoneConfig

ARCHITECTURES = ("llama", "qwen2")
WHERE = "GGUF metadata"
NEUTRAL_FACTORS = frozenset({"rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.alpha"})
KNOWN = frozenset(
    {
        "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
        "attention.sliding_window", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
        "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear", "vocab_size",
        "expert_count", "expert_used_count", "tensor_data_layout", "attention.causal", *NEUTRAL_FACTORS,
    }
)  # fmt: skip
_ORIGINAL_CONTEXTS = tuple(1024 << power for power in range(8))
_TOLERANCE = 2e-3


@dataclass(frozen=True)
class TensorFacts:
    """What tensors say that the keys leave out.

    Attributes:
        names: every tensor's name.
        vocabulary: rows of the token embedding.
        divisors: the rotary divisors (`rope_freqs.weight`), if there are any.
    """

    names: Collection[str]
    vocabulary: int
    divisors: Sequence[float] | None


def read_metadata(
    metadata: Fields, facts: TensorFacts, *, ignored: Collection[str] = ()
) -> tuple[KeystoneConfig, bytes, tuple[Note, ...]]:
    """A one-loop configuration from a GGUF file's metadata.

    Args:
        metadata: key to value.
        facts: what its tensors say.
        ignored: keys an owner declares harmless.

    Raises:
        ConfigurationError: another architecture, a missing size, or a key that cannot be honoured.
    """
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES or not isinstance(arch, str):
        reason = OTHER_FAMILIES.get(arch) if isinstance(arch, str) else None
        because = f": {reason}" if reason else ""
        raise ConfigurationError(f"the GGUF architecture is {arch!r}{because}; {' and '.join(ARCHITECTURES)} are read")
    if isinstance(count := metadata.get("split.count"), int) and count > 1:
        raise ConfigurationError(f"this is one of {count} parts; join them with llama.cpp's gguf-split --merge first")
    keys = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    notes = tuple(_overlooked(keys, ignored))
    heads = whole(keys, "attention.head_count", where=WHERE)
    shared = _uniform(keys.get("attention.head_count_kv", heads))
    hidden = whole(keys, "embedding_length", where=WHERE)
    context = whole(keys, "context_length", where=WHERE)
    head_dim = _head_dim(keys, hidden // heads)
    ours: dict[str, object] = {
        "vocab_size": facts.vocabulary,
        "hidden_size": hidden,
        "intermediate_size": _uniform(keys.get("feed_forward_length")),
        "num_hidden_layers": whole(keys, "block_count", where=WHERE),
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": shortest(number(keys, "attention.layer_norm_rms_epsilon", where=WHERE)),
        "tie_word_embeddings": "output.weight" not in facts.names,
        "rope_parameters": _rope(keys, facts, context, head_dim),
        **{f"{role}_token_id": value for role, value in token_ids(metadata).items()},
        **_biases(facts.names),
    }
    _refuse_window(keys, context)
    return *one_loop(ours), notes


def token_ids(metadata: Fields) -> dict[str, int | list[int] | None]:
    """The ids that begin, end and fill a text; every one that ends a turn is an end."""

    def token(key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    ends = [found for found in map(token, ("eos", "eot", "eom")) if found is not None]
    ends = list(dict.fromkeys(ends))
    return {
        "bos": token("bos"),
        "eos": ends[0] if len(ends) == 1 else ends or None,
        "pad": token("padding"),
    }


def shortest(value: float) -> float:
    """GGUF holds fp32: the shortest decimal that rounds to the same fp32 is what its author wrote (1e-05)."""
    import numpy as np  # noqa: PLC0415 - one function needs it

    return float(str(np.float32(value)))


def _overlooked(keys: Fields, ignored: Collection[str]) -> Iterator[Note]:
    for key, value in sorted(keys.items()):
        if key in ignored:
            yield Note("field", key, f"ignored as asked for, at {str(value)[:80]}")
        elif key == "expert_count" and isinstance(value, int) and value > 1:
            raise ConfigurationError(f"{WHERE}: expert_count is {value}: it is a mixture of experts")
        elif key == "attention.causal" and value is not True:
            raise ConfigurationError(f"{WHERE}: attention.causal is {value}; only causal models are bases")
        elif key in NEUTRAL_FACTORS and value != 1:
            raise ConfigurationError(f"{WHERE}: {key} is {value}; only a factor of one leaves the angles as they are")
        elif key in KNOWN:
            continue
        elif is_off(value):
            yield Note("field", key, f"unknown here, and off ({value!r})")
        else:
            raise ConfigurationError(
                f"{WHERE}: {key} is {str(value)[:80]}, and what it changes is not known here; if it changes nothing,"
                f" say --ignore-field {key}"
            )


def _uniform(value: object) -> int:
    """A size that GGUF may give once for every layer; all must agree."""
    values = list(value) if isinstance(value, list) else [value]
    if len(set(values)) != 1:
        raise ConfigurationError(f"{WHERE}: layers of different sizes ({values[:4]} ...) are not read")
    return whole({"size": values[0]}, "size", where=WHERE)


def _head_dim(keys: Fields, usual: int) -> int:
    dims = {
        name: whole(keys, name, where=WHERE)
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        if name in keys
    }
    head_dim = dims.get("attention.key_length", usual)
    for name, value in dims.items():
        if value != head_dim:
            raise ConfigurationError(f"{WHERE}: {name} is {value}, and a head has {head_dim}; all must be the same")
    return head_dim


def _refuse_window(keys: Fields, context: int) -> None:
    window = keys.get("attention.sliding_window")
    if isinstance(window, int) and 0 < window < context:
        raise ConfigurationError(f"{WHERE}: attention.sliding_window is {window}; the base must see every key")


def _biases(names: Collection[str]) -> dict[str, bool]:
    found = {part: f"blk.0.{part}.bias" in names for part in ("attn_q", "attn_output", "ffn_up")}
    biases = {"attention_bias": found["attn_q"], "mlp_bias": found["ffn_up"]}
    if found["attn_q"] != found["attn_output"]:
        biases["attention_output_bias"] = found["attn_output"]
    return biases


def _rope(keys: Fields, facts: TensorFacts, context: int, head_dim: int) -> dict[str, object]:
    theta = shortest(number({"rope.freq_base": 10000.0, **keys}, "rope.freq_base", where=WHERE))  # the format's default
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": theta}
    kind = keys.get("rope.scaling.type", "linear" if "rope.scale_linear" in keys else "none")
    if kind in {"linear", "yarn"}:
        factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))
        rope |= {"rope_type": kind, "factor": shortest(number({"factor": factor}, "factor", where=WHERE))}
    elif kind != "none":
        raise ConfigurationError(f"{WHERE}: rope.scaling.type is {kind!r}; none, linear and yarn are computed here")
    if kind == "yarn":
        names = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
        rope |= {ours: keys[f"rope.scaling.{name}"] for name, ours in names.items() if f"rope.scaling.{name}" in keys}
        if "rope.scaling.original_context_length" in keys:
            rope["original_max_position_embeddings"] = whole(keys, "rope.scaling.original_context_length", where=WHERE)
    if facts.divisors is not None:
        if kind != "none":
            raise ConfigurationError(f"{WHERE}: both {kind} scaling and a tensor of rotary divisors; one is computed")
        rope |= llama3_scaling(facts.divisors, theta, head_dim)
    return checked_rope(rope, context=context)


def llama3_scaling(divisors: Sequence[float], theta: float, head_dim: int) -> dict[str, object]:
    """The llama3 scaling that gives these divisors of the rotary frequencies; nothing where all are one.

    Raises:
        ConfigurationError: no llama3 scaling with the usual factors 1 and 4 gives them.
    """
    if len(divisors) == head_dim // 2:
        if all(abs(divisor - 1) <= _TOLERANCE for divisor in divisors):
            return {}
        factor = shortest(max(divisors))
        for context in _ORIGINAL_CONTEXTS:
            scaling: dict[str, object] = {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": context,
            }  # fmt: skip
            expected = llama3_divisors(factor, context, theta, head_dim)
            if all(math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(divisors, expected, strict=True)):
                return scaling
    raise ConfigurationError(
        "the tensor of rotary divisors (rope_freqs) is no llama3 scaling with factors 1 and 4; import the original"
        " checkpoint, whose config.json names the scaling"
    )


def llama3_divisors(factor: float, context: int, theta: float, head_dim: int) -> list[float]:
    """What llama3 scaling divides each rotary frequency by: 1 for short waves, `factor` for long, a blend between."""
    divisors = []
    for step in range(0, head_dim, 2):
        turns = context / (2 * math.pi * theta ** (step / head_dim))  # how often this wave fits the original context
        share = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        divisors.append(1.0 / ((1 - share) / factor + share))
    return divisors


def base_model_claims(metadata: Fields) -> Mapping[str, str]:
    """What the file says it was made from, in the Hub's words."""
    names = []
    for index in range(8):
        for part in ("repo_url", "name"):
            value = metadata.get(f"general.base_model.{index}.{part}")
            if isinstance(value, str) and value:
                names.append(value)
                break
    return {"base_model": ", ".join(names)} if names else {}
