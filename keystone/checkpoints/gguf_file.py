"""A GGUF file as a checkpoint: its tensors dequantized block by block, under the names they had before.

`gguf` reads the file's directory and knows every quantization; the data is read with plain positioned reads, a few
rows at a time, so neither a mapping nor a dequantized tensor is ever held whole. llama.cpp's converter reorders the
rows of q and k for the `llama` architecture (it pairs neighbouring numbers in its rotary embedding); that is undone.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from blake3 import blake3
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from keystone.checkpoints.fields import canonical_json
from keystone.checkpoints.gguf_config import TensorFacts, base_model_claims, read_metadata, token_ids
from keystone.checkpoints.gguf_tokenizer import tokenizer_from_metadata
from keystone.checkpoints.huggingface import Choices, tokenizer_files
from keystone.checkpoints.licences import UNKNOWN, Card, claim_labels, plain, spdx
from keystone.checkpoints.safetensors_files import pack
from keystone.checkpoints.sources import BLOCK_BYTES, Checkpoint, Fields, Note, Origin, SourceTensor
from keystone.errors import CheckpointError, InvalidInputError

ROPE_DIVISORS, EMBEDDING = "rope_freqs.weight", "token_embd.weight"
TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_TOP_NAME = re.compile(r"([a-z_]+)\.(weight|bias)")
_PERMUTED = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in the file and how."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Directory:
    """A GGUF file without its data."""

    metadata: Fields
    tensors: dict[str, _Stored] = field(default_factory=dict)


def read_gguf(path: Path, choices: Choices) -> Checkpoint:
    """Read a GGUF file as a checkpoint; nothing of a weight is read yet, but the file is hashed for the record.

    Args:
        path: the file.
        choices: what the importing person decides; weights become bf16 unless another dtype is chosen.

    Raises:
        InvalidInputError: it is no sound GGUF file, or its tokenizer cannot be rebuilt.
        ConfigurationError: another architecture, or metadata that cannot be honoured.
    """
    directory = _read_directory(path)
    metadata, tensors = directory.metadata, directory.tensors
    if EMBEDDING not in tensors:
        raise InvalidInputError(f"{path.name} holds no {EMBEDDING}; it is no language model")
    divisors = None
    if ROPE_DIVISORS in tensors:
        stored = tensors.pop(ROPE_DIVISORS)
        divisors = np.concatenate(list(_rows(path, stored, 1))).reshape(-1).tolist()
    facts = TensorFacts(tuple(tensors), tensors[EMBEDDING].shape[0], divisors)
    config, config_json, notes = read_metadata(metadata, facts, ignored=choices.ignored)
    dtype = choices.dtype or "BF16"
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads or 0}
    permuted = metadata["general.architecture"] == "llama"
    made = []
    for name, stored in tensors.items():
        found = _PERMUTED.fullmatch(name) if permuted else None
        made.append(_tensor(path, stored, dtype, heads[found[1]] if found else 0))
    if divisors is not None:
        notes += (Note("tensor", ROPE_DIVISORS, "the model computes it from the scaling it was made with"),)
    if choices.tokenizer is not None:
        tokenizer = tokenizer_files(choices.tokenizer)
    else:
        tokenizer = tokenizer_from_metadata(metadata, context=config.max_position_embeddings)
    return Checkpoint(
        layout=f"gguf-{metadata['general.architecture']}",
        config=config,
        config_json=config_json,
        generation_json=_generation(metadata),
        tensors=tuple(made),
        files={},
        rename=name_in_base,
        tokenizer=tokenizer,
        origin=_origin(path, metadata, tensors[EMBEDDING].kind, choices),
        notes=notes,
    )


def name_in_base(name: str) -> str:
    """What a GGUF tensor is called in a base; a name that is not known here stays, and finds no place."""
    if (found := _LAYER_NAME.fullmatch(name)) and found[2] in LAYER_NAMES:
        return f"model.layers.{found[1]}.{LAYER_NAMES[found[2]]}.{found[3]}"
    if (found := _TOP_NAME.fullmatch(name)) and found[1] in TOP_NAMES:
        return f"{TOP_NAMES[found[1]]}.{found[2]}"
    return name


def _read_directory(path: Path) -> _Directory:
    try:
        reader = GGUFReader(path)
        metadata = {name: each.contents() for name, each in reader.fields.items() if not name.startswith("GGUF.")}
        tensors = {}
        for each in reader.tensors:
            shape = tuple(reversed([int(size) for size in each.shape]))
            tensors[each.name] = _Stored(each.name, each.tensor_type, shape, int(each.data_offset), int(each.n_bytes))
    except Exception as error:  # the reader trusts what it reads, and fails in every way there is
        raise InvalidInputError(f"{path.name} is not a sound GGUF file ({error}); fetch it again") from error
    if reader.byte_order != "I":
        raise InvalidInputError(f"{path.name} is in the other byte order; convert it with gguf-convert-endian first")
    return _Directory(metadata, tensors)


def _tensor(path: Path, stored: _Stored, dtype: str, heads: int) -> SourceTensor:
    if not _can_dequantize(stored.kind):
        dtype = stored.kind.name  # which has no place, and says why
    blocks = partial(_blocks, path, stored, dtype, heads)
    return SourceTensor(stored.name, dtype, stored.shape, blocks, path.name, stored.kind.name)


def _can_dequantize(kind: GGMLQuantizationType) -> bool:
    block, size = GGML_QUANT_SIZES[kind]
    if kind.name[0] == "I" and not kind.name.startswith("IQ"):
        return False  # integers are no weights, whatever numpy makes of them
    try:
        values = dequantize(np.zeros((1, size), dtype=np.uint8), kind)
    except (NotImplementedError, ValueError):
        return False
    return values.size == block


def _blocks(path: Path, stored: _Stored, dtype: str, heads: int) -> Iterator[memoryview]:
    """The tensor in blocks of whole rows, and of whole heads where rows are put back in order."""
    per_head = stored.shape[0] // heads if heads else 1
    for values in _rows(path, stored, per_head):
        if not np.isfinite(values).all():
            raise CheckpointError(f"{path.name}: tensor {stored.name} holds values that are no numbers; fetch it again")
        yield pack(_unpermuted(values, per_head) if heads else values, dtype, stored.name)


def _rows(path: Path, stored: _Stored, multiple: int) -> Iterator[NDArray[np.float32]]:
    """fp32 rows `[n, columns]`, `n` a multiple of `multiple`; a vector counts as rows of one number."""
    rows, columns = stored.shape[0], int(np.prod(stored.shape[1:], dtype=np.int64))
    if len(stored.shape) == 1 and stored.kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        rows, columns = 1, stored.shape[0]  # a quantized vector is one row of blocks
        multiple = 1
    row_bytes = stored.nbytes // rows
    step = max(multiple, BLOCK_BYTES // (4 * columns) // multiple * multiple)
    with path.open("rb", buffering=0) as file:
        for first in range(0, rows, step):
            count = min(step, rows - first)
            data = os.pread(file.fileno(), count * row_bytes, stored.offset + first * row_bytes)
            if len(data) != count * row_bytes:
                raise CheckpointError(f"{path.name} is truncated within tensor {stored.name}; fetch it again")
            yield _dequantized(np.frombuffer(data, np.uint8).reshape(count, row_bytes), stored.kind)


def _dequantized(rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    match kind:
        case GGMLQuantizationType.F32:
            return rows.view("<f4").astype(np.float32, copy=False)
        case GGMLQuantizationType.F16:
            return rows.view("<f2").astype(np.float32)
    with np.errstate(all="ignore"):  # broken scales give infinities, which are refused by name
        return np.asarray(dequantize(rows, kind), dtype=np.float32)


def _unpermuted(values: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of whole heads back in the order of halves: the file has number `i` and `i + head_dim/2` side by side."""
    columns = values.shape[1:]
    pairs = values.reshape(-1, head_dim // 2, 2, *columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1, *columns)


def _generation(metadata: Fields) -> bytes | None:
    ids = {f"{role}_token_id": value for role, value in token_ids(metadata).items() if value is not None}
    return canonical_json(ids) if ids else None


def _origin(path: Path, metadata: Fields, kind: GGMLQuantizationType, choices: Choices) -> Origin:
    def text(key: str) -> str | None:
        value = metadata.get(key)
        return value if isinstance(value, str) else None

    whole = blake3()
    with path.open("rb", buffering=0) as file:
        while data := file.read(BLOCK_BYTES):
            whole.update(data)
    licence = choices.licence or spdx(text("general.license"), name=text("general.license.name")) or UNKNOWN
    labels = {
        **claim_labels(Card(None, {key: plain(value) for key, value in base_model_claims(metadata).items()})),
        "layout": f"gguf-{text('general.architecture')}",
        "gguf/file": f"b3:{whole.hexdigest()}",
    }
    if name := plain(text("general.name") or ""):
        labels["gguf/name"] = name
    if choices.ignored:
        labels["ignored-fields"] = plain(", ".join(sorted(choices.ignored)))
    note = f"Dequantized from GGUF; the token embeddings were held as {kind.name}."
    return Origin("gguf", plain(path.name), licence, note, labels)
