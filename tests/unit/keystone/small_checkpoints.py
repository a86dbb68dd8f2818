"""Small random checkpoints as other people's tools write them, for the tests of imports."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
)

VOCABULARY = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
THETA = {"rope_type": "default", "rope_theta": 10000.0}
FAMILIES: dict[str, tuple[type, type]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "seed_oss": (SeedOssConfig, SeedOssForCausalLM),
}


def family_model(family: str = "llama", *, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A random model of a family, every tensor (norms and biases too) away from its starting value."""
    config_class, model_class = FAMILIES[family]
    settings = {**SIZES, "rope_parameters": THETA, **fields}
    if family == "mistral":
        settings.setdefault("sliding_window", None)
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: no merges, one token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: index + 2 for index, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def save(model: PreTrainedModel, directory: Path, **settings: Any) -> Path:
    """A directory as transformers saves it, with a tokenizer."""
    model.save_pretrained(directory, **settings)
    byte_tokenizer().save_pretrained(directory)
    return directory


def edit_config(directory: Path, **fields: Any) -> None:
    """Set fields of a `config.json`; None as a value is written, `...` removes the field."""
    path = directory / "config.json"
    document = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))


def prompt_ids(count: int = 40, *, seed: int = 3) -> torch.Tensor:
    """Some token ids, `[1, count]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY - 2, (1, count), generator=generator)
