"""A one-loop model is a Llama: the same logits as transformers' own Llama, Mistral and Qwen2 on the same weights."""

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from keystone import KeystoneConfig, KeystoneForCausalLM

BAR = 1e-4
TRAINED = 24  # positions the scaled variants were "trained" on; the prompts run past them
SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
ONE_LOOP: dict[str, Any] = {
    "plt_num_loops": 1,
    "plt_emb_scale": 1.0,
    "plt_hidden_scale": 0.0,
    "plt_window_size": [64, 0],
    "plt_normalize_per_loop": True,
    "plt_gate_use_hidden_states": True,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    "yarn, spelled out": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
        "original_max_position_embeddings": TRAINED,
    },
}


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Biases and norm weights start as zeros and ones, which would hide one left out."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def ours_of(theirs: PreTrainedModel, **changes: object) -> KeystoneForCausalLM:
    config = theirs.config
    fields = {name: getattr(config, name) for name in SHAPE} | ONE_LOOP
    fields |= {"rope_parameters": dict(config.rope_parameters), "tie_word_embeddings": config.tie_word_embeddings}
    ours = KeystoneForCausalLM(KeystoneConfig(**{**fields, **changes})).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours


def assert_same_logits(ours: KeystoneForCausalLM, theirs: PreTrainedModel, length: int = 60) -> None:
    """One pass over a prompt, and then token by token from a shorter one."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 96, (2, length), generator=generator)
    with torch.inference_mode():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() <= BAR
        ours_out, theirs_out = ours(ids[:, :20], use_cache=True), theirs(ids[:, :20], use_cache=True)
        for step in range(20, length):
            token = ids[:, step : step + 1]
            ours_out = ours(token, past_key_values=ours_out.past_key_values)
            theirs_out = theirs(token, past_key_values=theirs_out.past_key_values)
            assert (ours_out.logits - theirs_out.logits).abs().max() <= BAR, f"step {step}"


@pytest.mark.parametrize("rope", ROPES)
def test_llama_with_every_rope(rope: str) -> None:
    torch.manual_seed(0)
    limit = TRAINED if rope == "dynamic" else 128
    parameters = {**ROPES[rope], "rope_theta": 10000.0}
    config = LlamaConfig(**{**SHAPE, "max_position_embeddings": limit, "rope_parameters": parameters})
    theirs = randomised(LlamaForCausalLM(config))
    assert_same_logits(ours_of(theirs), theirs)


def test_the_scaled_ropes_differ_from_one_another() -> None:
    """Else the test above would say nothing about the scaling."""
    angles = []
    for parameters in ROPES.values():
        fields = {**SHAPE, **ONE_LOOP, "rope_parameters": {**parameters, "rope_theta": 10000.0}}
        model = KeystoneForCausalLM(KeystoneConfig(**{**fields, "max_position_embeddings": TRAINED}))
        angles.append(model.model.rotary_emb(torch.zeros(1), torch.arange(60)[None])[0])
    for index, first in enumerate(angles):
        for second in angles[index + 1 :]:
            assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"head_dim": 16},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
    ],
    ids=str,
)
def test_llama_in_other_shapes(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    parameters = {"rope_type": "default", "rope_theta": 500.0}
    theirs = randomised(LlamaForCausalLM(LlamaConfig(**{**SHAPE, "rope_parameters": parameters, **changes})))
    biases = {name: changes[name] for name in ("attention_bias", "mlp_bias") if name in changes}
    assert_same_logits(ours_of(theirs, head_dim=theirs.config.head_dim, **biases), theirs)


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2_has_biases_on_q_k_and_v_alone(tied: bool) -> None:
    torch.manual_seed(0)
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    config = Qwen2Config(**{**SHAPE, "rope_parameters": parameters, "tie_word_embeddings": tied})
    theirs = randomised(Qwen2ForCausalLM(config))
    assert_same_logits(ours_of(theirs, attention_bias=True, attention_output_bias=False), theirs)


def test_mistral_without_a_window() -> None:
    torch.manual_seed(0)
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    config = MistralConfig(**{**SHAPE, "rope_parameters": parameters, "sliding_window": None, "head_dim": 16})
    theirs = randomised(MistralForCausalLM(config))
    assert_same_logits(ours_of(theirs, head_dim=16), theirs)


@pytest.mark.parametrize(
    ("biases", "expected"),
    [
        ({}, (False, False)),
        ({"attention_bias": True}, (True, True)),
        ({"attention_bias": True, "attention_output_bias": False}, (True, False)),
        ({"attention_output_bias": True}, (False, True)),
    ],
)
def test_which_projections_carry_a_bias(biases: dict[str, bool], expected: tuple[bool, bool]) -> None:
    attention = KeystoneForCausalLM(KeystoneConfig(**SHAPE, **ONE_LOOP, **biases)).model.layers[0].self_attn
    assert (attention.q_proj.bias is not None, attention.o_proj.bias is not None) == expected
