"""Which tensors a configuration asks for, and what became of each tensor of a source.

The list of wanted names and shapes comes from the model itself, built on the meta device, where a model of any size
costs nothing. Every tensor then has one of these fates, and a report has a line for each:

| fate | meaning |
|---|---|
| mapped | it goes into the base, under our name |
| dropped | the model computes it, or has it already: old rotary tables, a second copy of tied embeddings |
| missing | the configuration asks for it and no file holds it |
| misshapen | its shape is not the one the configuration asks for |
| surplus | no place in the model |
| refused | a dtype that cannot be a weight here, such as packed integers |

Anything but the first two refuses the import as a whole.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from blake3 import blake3

from keystone.checkpoints.sources import FLOATS, Checkpoint, SourceTensor
from keystone.errors import CheckpointError, ConfigurationError
from keystone.model import KeystoneConfig, KeystoneForCausalLM
from keystone.model.modeling import GATE_SPELLINGS, RotaryEmbedding

Fate: TypeAlias = Literal["mapped", "dropped", "missing", "misshapen", "surplus", "refused"]
FAULTS: tuple[Fate, ...] = ("missing", "misshapen", "surplus", "refused")

MAX_LAYERS = 4096
"""More layers than any model has; a configuration that claims more is not built, not even on the meta device."""

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
ROTARY_TABLE = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
NAMED_AT_ONCE = 12

_EXPLANATIONS = (
    (re.compile(r"\.(q|k)_norm\."), "norms on queries and keys, which this architecture has not"),
    (re.compile(r"\.experts\.|\.block_sparse_moe\.|\.mlp\.gate\."), "a mixture of experts, which this one is not"),
    (re.compile(r"\.(qweight|qzeros|g_idx|scales|weight_scale(_inv)?|absmax|quant_map|quant_state)"), "quantized"),
    (re.compile(r"\.lora_[AB]\."), "part of an adapter: import the base, then `keystone adapter add`"),
    (re.compile(r"\.sinks$"), "attention sinks, which this architecture has not"),
)


@dataclass(frozen=True)
class TensorLine:
    """The fate of one tensor.

    Attributes:
        fate: see the table above.
        name: our name for it, or the source's where we have none.
        tensor: what the source holds; None if it is missing.
        wanted: the shape the configuration asks for, if it asks for it.
        reason: why, in words, where it was not simply mapped.
    """

    fate: Fate
    name: str
    tensor: SourceTensor | None = None
    wanted: tuple[int, ...] | None = None
    reason: str = ""


def our_name(name: str) -> str:
    """A tensor's name as the model has it: the gate goes by three names in the wild."""
    for pattern, replacement in GATE_SPELLINGS.items():
        name = re.sub(pattern, replacement, name)
    return name


def expected_tensors(config: KeystoneConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model a configuration describes, with its shape; tied ones once.

    Raises:
        ConfigurationError: no model can be built from it.
    """
    if not 1 <= config.num_hidden_layers <= MAX_LAYERS:
        raise ConfigurationError(f"num_hidden_layers is {config.num_hidden_layers}; 1 to {MAX_LAYERS} can be built")
    try:
        with torch.device("meta"):
            model = KeystoneForCausalLM(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"no model can be built from this configuration: {error}") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def parameter_count(shapes: Mapping[str, Sequence[int]]) -> int:
    """How many numbers these tensors hold together."""
    total = 0
    for shape in shapes.values():
        count = 1
        for dimension in shape:
            count *= dimension
        total += count
    return total


def match(checkpoint: Checkpoint) -> list[TensorLine]:
    """The fate of every tensor of a checkpoint and of every one its configuration asks for.

    Raises:
        CheckpointError: two tensors of the source would go by one name.
    """
    wanted = expected_tensors(checkpoint.config)
    if checkpoint.headless:
        return list(_match_names(checkpoint, wanted))
    held = {tensor.name: tensor for tensor in checkpoint.tensors}
    lines: list[TensorLine] = []
    seen: dict[str, str] = {}
    for tensor in checkpoint.tensors:
        name = checkpoint.rename(tensor.name)
        if name in seen:
            raise CheckpointError(f"{tensor.file}: {tensor.name} and {seen[name]} are both {name}; keep one of them")
        seen[name] = tensor.name
        lines.append(_fate(checkpoint, tensor, name, wanted, held))
    missing = wanted.keys() - seen.keys()
    lines += [TensorLine("missing", name, wanted=shape) for name, shape in wanted.items() if name in missing]
    order = {name: index for index, name in enumerate(wanted)}
    return sorted(lines, key=lambda line: (order.get(line.name, len(order)), line.name))


def _match_names(checkpoint: Checkpoint, wanted: Mapping[str, tuple[int, ...]]) -> Iterator[TensorLine]:
    """What names alone tell; without even an index, only what will be asked for."""
    if checkpoint.named is None:
        for name, shape in wanted.items():
            yield TensorLine("mapped", name, wanted=shape, reason="wanted; no weights are here to compare it with")
        return
    named = {checkpoint.rename(name) for name in checkpoint.named}
    for name, shape in wanted.items():
        yield TensorLine(
            "mapped" if name in named else "missing", name, wanted=shape, reason="by its name in the index"
        )
    for name in sorted(named - wanted.keys()):
        tied = name == HEAD and checkpoint.config.tie_word_embeddings
        computed = tied or ROTARY_TABLE.fullmatch(name)
        yield TensorLine("dropped" if computed else "surplus", name, reason="by its name in the index")


def _fate(
    checkpoint: Checkpoint,
    tensor: SourceTensor,
    name: str,
    wanted: Mapping[str, tuple[int, ...]],
    held: Mapping[str, SourceTensor],
) -> TensorLine:
    shape = wanted.get(name)
    if ROTARY_TABLE.fullmatch(name):
        return _rotary_table(checkpoint.config, tensor, name)
    if name == HEAD and shape is None:
        embeddings = next((held[key] for key in held if checkpoint.rename(key) == EMBEDDINGS), None)
        return _second_copy(tensor, embeddings)
    if shape is None:
        known = next((words for pattern, words in _EXPLANATIONS if pattern.search(name)), "no place in this model")
        return TensorLine("surplus", name, tensor, reason=known)
    if tensor.dtype not in FLOATS:
        return TensorLine(
            "refused", name, tensor, shape, f"{tensor.dtype} is no dtype a weight can have here; dequantize it first"
        )
    if tensor.shape != shape:
        return TensorLine("misshapen", name, tensor, shape, f"{list(tensor.shape)}, not {list(shape)}")
    return TensorLine("mapped", name, tensor, shape)


def _second_copy(head: SourceTensor, embeddings: SourceTensor | None) -> TensorLine:
    """An output head beside tied embeddings: harmless if it is the same tensor, a contradiction if not."""
    same = (
        embeddings is not None
        and (head.dtype, head.shape) == (embeddings.dtype, embeddings.shape)
        and head.dtype in FLOATS
        and _digest(head) == _digest(embeddings)
    )
    if same:
        return TensorLine("dropped", HEAD, head, reason="the embeddings again, byte for byte; the two are tied")
    reason = "tie_word_embeddings is true, and it differs from the embeddings; which one is meant cannot be known"
    return TensorLine("surplus", HEAD, head, reason=reason)


def _digest(tensor: SourceTensor) -> bytes:
    whole = blake3()
    for block in tensor.blocks():
        whole.update(block)
    return whole.digest()


def _rotary_table(config: KeystoneConfig, tensor: SourceTensor, name: str) -> TensorLine:
    """Old checkpoints carry the rotary frequencies. They must be the ones the configuration computes."""
    computed = RotaryEmbedding(config).inv_freq
    codes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if tensor.dtype in codes and tensor.shape == tuple(computed.shape):
        data = bytearray(b"".join(bytes(block) for block in tensor.blocks()))
        held = torch.frombuffer(data, dtype=codes[tensor.dtype]).float()
        if torch.allclose(held, computed.float(), rtol=1e-2 if tensor.dtype != "F32" else 1e-4, atol=0):
            return TensorLine("dropped", name, tensor, reason="the model computes it, and to the same values")
    return TensorLine("surplus", name, tensor, reason="not the rotary frequencies that config.json leads to")


def count_fates(lines: Sequence[TensorLine]) -> dict[Fate, int]:
    """How many tensors met each fate."""
    return dict(Counter(line.fate for line in lines))


def refuse_faults(where: str, lines: Sequence[TensorLine]) -> None:
    """Refuse a checkpoint with any fault.

    Raises:
        CheckpointError: naming the first few of each kind, and how many there are.
    """
    parts = []
    for fault in FAULTS:
        found = [line for line in lines if line.fate == fault]
        if found:
            named = [f"{line.name} ({line.reason})" if line.reason else line.name for line in found[:NAMED_AT_ONCE]]
            more = f" and {len(found) - NAMED_AT_ONCE} more" if len(found) > NAMED_AT_ONCE else ""
            parts.append(f"{fault}: {', '.join(named)}{more}")
    if parts:
        raise CheckpointError(f"{where} does not fit its configuration: {'; '.join(parts)}")
