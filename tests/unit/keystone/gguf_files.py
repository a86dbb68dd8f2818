"""GGUF files as llama.cpp's converter writes them, made with gguf's own writer, for the tests of imports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from torch import Tensor
from transformers import PreTrainedModel

IN_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
F32, F16, BF16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16


def gguf_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{leaf}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{IN_LAYER[part]}.{leaf}"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The converter's order of q and k rows: number i and number i + half of each head side by side."""
    half = rows.shape[0] // heads // 2
    order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
    return rows[order]


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    *,
    arch: str = "llama",
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    **extra: Any,
) -> Path:
    """A model as a GGUF file. `kinds` names the type of tensors by a part of their names; the others are F32."""
    config = model.config
    writer = GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    for key, value in {**(tokenizer or byte_level_keys(config.vocab_size)), **extra}.items():
        add_key(writer, key.replace("ARCH", arch), value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows = tensor.float().numpy()
        if arch == "llama" and ".q_proj." in name:
            rows = interleaved(rows, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            rows = interleaved(rows, config.num_key_value_heads)
        kind = next((kind for part, kind in (kinds or {}).items() if part in name and rows.ndim == 2), F32)
        add_rows(writer, gguf_name(name), rows, kind)
    finish(writer)
    return path


def add_rows(writer: GGUFWriter, name: str, rows: np.ndarray, kind: GGMLQuantizationType) -> None:
    match kind:
        case GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(rows, dtype=np.float32))
        case GGMLQuantizationType.F16:
            writer.add_tensor(name, rows.astype(np.float16))
        case _:
            writer.add_tensor(name, quantize(np.ascontiguousarray(rows, dtype=np.float32), kind), raw_dtype=kind)


def add_key(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case np.ndarray():
            writer.add_tensor(key, value)
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level_keys(size: int, *, pre: str = "gpt-2") -> dict[str, Any]:
    """A byte-level tokenizer of `size` tokens: two control tokens, 256 bytes, two merges, and padding."""
    from tokenizers import pre_tokenizers  # noqa: PLC0415

    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "llo", "ll"]
    merges = ["h e", "l l", "ll o"]
    kinds = [3, 3, *([1] * (len(tokens) - 2))]
    tokens += [f"[PAD{index}]" for index in range(len(tokens), size)]
    kinds += [5] * (size - len(kinds))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}",
    }


def as_quantized(tensor: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """What is left of a matrix after a round through a quantization."""
    from gguf import dequantize  # noqa: PLC0415

    return torch.from_numpy(dequantize(quantize(tensor.float().numpy(), kind), kind).copy())
