"""A one-loop base as a GGUF file, written with the `gguf` package and read back before it counts.

A two-loop model has no form in GGUF: no architecture there knows loops, shifts or gates, and a file that left them out
would be another model. A one-loop base is a `llama`, or a `qwen2` where q, k and v alone have biases. llama.cpp's
`llama` pairs neighbouring numbers in its rotary embedding where our halves lie apart, so the rows of q and k change
places. Vectors (norms, biases) are fp32, as every reader expects; matrices keep the dtype asked for.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from csf_store import Digest
from keystone.checkpoints.export.configs import plain_architecture
from keystone.checkpoints.export.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from keystone.checkpoints.export.source import ExportSource
from keystone.checkpoints.export.weights import Change, OutTensor, Progress, converted, prove, read_tensor, tensor_bytes
from keystone.checkpoints.export.writing import ExportDirectory
from keystone.checkpoints.gguf_config import llama3_divisors
from keystone.checkpoints.gguf_file import LAYER_NAMES, ROPE_DIVISORS, TOP_NAMES
from keystone.errors import CheckpointError, RefusedError

GGUF_FILE = "model.gguf"
_TYPES = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_ROTATED = re.compile(r"\.self_attn\.([qk])_proj\.(?:weight|bias)$")


@dataclass(frozen=True)
class GgufPlan:
    """Everything that is decided before a byte is written.

    Attributes:
        source: the base.
        architecture: `llama` or `qwen2`.
        dtype: safetensors code for matrices.
        vocabulary: the tokenizer.
        divisors: of the rotary frequencies, where the scaling is Llama 3's.
    """

    source: ExportSource
    architecture: str
    dtype: str
    vocabulary: GgufVocabulary
    divisors: tuple[float, ...] | None


def plan_gguf(source: ExportSource, dtype: str | None) -> GgufPlan:
    """Decide whether and how a base can be a GGUF file.

    Raises:
        RefusedError: it cannot honestly be one; the reason is named.
    """
    config = source.config
    if config.plt_num_loops > 1:
        raise RefusedError(
            f"base {source.manifest.assembly.base} runs its layers {config.plt_num_loops} times, and GGUF has no"
            " architecture with loops, shifts and gates; export it with --format transformers or vendor"
        )
    architecture = plain_architecture(config)
    if architecture == "keystone":
        raise RefusedError("this combination of biases is neither llama nor qwen2, and GGUF knows no other that fits")
    divisors = _divisors(config.rope_parameters or {}, config.head_dim or 0)
    return GgufPlan(source, architecture, dtype or source.dtype, gguf_vocabulary(source), divisors)


def write_gguf(
    directory: ExportDirectory, plan: GgufPlan, title: str, change: Change | None, progress: Progress | None
) -> None:
    """Write `model.gguf`, one tensor at a time, and read it back.

    Raises:
        CheckpointError: what was read back is not what was written.
    """
    import gguf  # noqa: PLC0415 - only this format needs it

    logging.getLogger("gguf").setLevel(logging.WARNING)
    path = directory.place(GGUF_FILE)
    writer: Any = gguf.GGUFWriter(path, plan.architecture)
    try:
        _describe(writer, plan, title)
        _speak(writer, plan.vocabulary)
        tensors = [_planned(each.name, plan) for each in plan.source.tensors.values()]
        for name, out in tensors:
            kind = gguf.GGMLQuantizationType[_TYPES[out.dtype]]
            writer.add_tensor_info(name, tuple(out.stored.info.shape), _numpy(out.dtype), out.nbytes, raw_dtype=kind)
        if plan.divisors is not None:
            writer.add_tensor_info(ROPE_DIVISORS, (len(plan.divisors),), _numpy("F32"), 4 * len(plan.divisors))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        written = _write_tensors(writer, plan, tensors, change, progress)
    finally:
        writer.close()
    _read_back(path, written)
    size, digest = _sealed(path)
    directory.note(GGUF_FILE, digest, size)


def _write_tensors(
    writer: Any, plan: GgufPlan, tensors: list[tuple[str, OutTensor]], change: Change | None, progress: Progress | None
) -> dict[str, bytes]:
    """Write the data in the order announced; returns each tensor's BLAKE3."""
    written = {}
    for shard in plan.source.shards:
        prove(plan.source.archive, shard.blob)
    for name, out in tensors:
        tensor = converted(read_tensor(plan.source.archive, out.stored), out, change)
        heads = _rotated_heads(out.name, plan)
        data = tensor_bytes(permuted(tensor, heads) if heads else tensor)
        written[name] = blake3(data).digest()
        writer.write_tensor_data(_array(data))
        if progress is not None:
            progress(out.stored.info.nbytes)
    if plan.divisors is not None:
        data = tensor_bytes(torch.tensor(plan.divisors, dtype=torch.float32))
        written[ROPE_DIVISORS] = blake3(data).digest()
        writer.write_tensor_data(_array(data))
    return written


def gguf_name(name: str) -> str:
    """A tensor's name in GGUF.

    Raises:
        CheckpointError: it has none there.
    """
    found = _LAYER.fullmatch(name)
    if found:
        by_ours = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
        if found[2] in by_ours:
            return f"blk.{found[1]}.{by_ours[found[2]]}.{found[3]}"
    else:
        module, _, leaf = name.rpartition(".")
        top = {ours: theirs for theirs, ours in TOP_NAMES.items()}
        if module in top:
            return f"{top[module]}.{leaf}"
    raise CheckpointError(f"tensor {name} has no name in GGUF")


def permuted(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k in llama.cpp's order: number `i` of a head beside number `i + head_dim / 2`."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape).contiguous()


def _rotated_heads(name: str, plan: GgufPlan) -> int:
    found = _ROTATED.search(name)
    if found is None or plan.architecture != "llama":
        return 0
    config = plan.source.config
    return config.num_attention_heads if found[1] == "q" else config.num_key_value_heads or 0


def _planned(name: str, plan: GgufPlan) -> tuple[str, OutTensor]:
    stored = plan.source.tensors[name]
    return gguf_name(name), OutTensor(name, "F32" if len(stored.info.shape) == 1 else plan.dtype, stored)


def _divisors(rope: Mapping[str, Any], head_dim: int) -> tuple[float, ...] | None:
    kind = rope.get("rope_type", "default")
    known = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor",
             "high_freq_factor", "partial_rotary_factor", "beta_fast", "beta_slow"}  # fmt: skip
    surplus = sorted(name for name in rope.keys() - known if rope[name] is not None)
    if kind not in ("default", "linear", "yarn", "llama3") or surplus or rope.get("partial_rotary_factor", 1) != 1:
        raise RefusedError(
            f"rotary scaling {kind!r} with {surplus or 'its parameters'} has no form in GGUF that is known"
        )
    if kind != "llama3":
        return None
    if (rope.get("low_freq_factor"), rope.get("high_freq_factor")) != (1.0, 4.0):
        raise RefusedError("llama3 rotary scaling is written for the factors 1 and 4, which all released models have")
    made = llama3_divisors(rope["factor"], rope["original_max_position_embeddings"], rope["rope_theta"], head_dim)
    return tuple(made)


def _describe(writer: Any, plan: GgufPlan, title: str) -> None:
    """What the model is."""
    import gguf  # noqa: PLC0415 - as above

    config, source = plan.source.config, plan.source.manifest.source
    rope: Mapping[str, Any] = config.rope_parameters or {}
    writer.add_type("model")
    writer.add_name(title)
    writer.add_license(source.licence)
    writer.add_string("keystone.manifest", str(plan.source.digest))
    writer.add_string("keystone.base", str(plan.source.manifest.assembly.base))
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[plan.dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32.0))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1.0))


def _speak(writer: Any, vocabulary: GgufVocabulary) -> None:
    """What it reads and writes."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_space_prefix(False)
    for role, index in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def _read_back(path: Path, written: Mapping[str, bytes]) -> None:
    """Verify before sealing: the file, parsed again, holds these tensors with these bytes."""
    import gguf  # noqa: PLC0415 - as above

    read = gguf.GGUFReader(path).tensors
    found = {tensor.name: blake3(tensor.data.reshape(-1).view("u1").data).digest() for tensor in read}
    if found != dict(written):
        differing = sorted(name for name in found.keys() | written.keys() if found.get(name) != written.get(name))
        raise CheckpointError(f"{GGUF_FILE} read back differs in {', '.join(differing[:8])}; nothing was exported")


def _sealed(path: Path) -> tuple[int, Digest]:
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path.stat().st_size, Digest(hasher.digest())


def _array(data: memoryview) -> Any:
    import numpy as np  # noqa: PLC0415 - as above

    return np.frombuffer(data, dtype=np.uint8)


def _numpy(dtype: str) -> Any:
    import numpy as np  # noqa: PLC0415 - as above

    return np.dtype(np.float16 if dtype == "F16" else np.float32)
