"""The small random models of the tests of the forward pass; each test module says what it needs to be different."""

import torch

from keystone import KeystoneConfig, KeystoneForCausalLM

PAD = 95


def small_config(**changes: object) -> KeystoneConfig:
    """Two layers, short windows, scales away from one, and weights large enough for mistakes to show."""
    fields: dict[str, object] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "plt_num_loops": 3,
        "plt_emb_scale": 0.7,
        "plt_hidden_scale": 0.4,
        "plt_window_size": [3, 0],
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "initializer_range": 0.2,
    }
    return KeystoneConfig(**{**fields, **changes})


def small_model(**changes: object) -> KeystoneForCausalLM:
    """The same weights every time."""
    torch.manual_seed(3)
    return KeystoneForCausalLM(small_config(**changes)).eval()
