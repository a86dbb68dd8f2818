"""From the archive into a model: verified bytes straight into parameters, no temporary file, no second copy.

The model is built on the meta device, which costs nothing; each tensor is then decoded into memory of its own and
*becomes* the parameter. Every blob is re-hashed as a whole, header included, while it is read, so a model that comes
back from here consists of exactly the bytes its base tree names.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from csf_store import Archive, Digest, TensorInfo, Tree, TreeEntry, allocate
from keystone.errors import CheckpointError
from keystone.model import KeystoneConfig, KeystoneForCausalLM
from keystone.model.modeling import GATE_SPELLINGS, RotaryEmbedding

Progress = Callable[[int], None]

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def assemble_base(archive: Archive, base: Digest, *, progress: Progress | None = None) -> KeystoneForCausalLM:
    """Build the model of a base tree, its weights as stored.

    Args:
        archive: where the tree lives.
        base: a tree of `config.json` and safetensors files.
        progress: told how many bytes were read, blob by blob.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a file that does not belong, or tensors missing, surplus or misshapen; all are named.
        ConfigurationError: `config.json` cannot be honoured.
        csf_store.CorruptError: bytes that do not hash to their address.
    """
    tree = archive.tree(base)
    shards = _shards(tree)
    config = KeystoneConfig.from_dict(_json_object(archive, tree, CONFIG_FILE))
    with torch.device("meta"):
        model: KeystoneForCausalLM = KeystoneForCausalLM(config)
    wanted = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for entry in shards:
        for name, tensor in _proven_tensors(archive, entry.blob).items():
            ours = _our_name(name)
            if ours in found:
                raise CheckpointError(f"{base}: {entry.path} holds {name} again; another shard has it already")
            found[ours] = tensor
        if progress is not None:
            progress(entry.size)
    _check_complete(base, wanted, found)
    for name in wanted:
        _assign(model, name, found[name])
    model.model.rotary_emb = RotaryEmbedding(config)  # its angles are computed, and meta tensors hold none
    model.tie_weights()
    if _entry(tree, GENERATION_FILE) is not None:
        model.generation_config = GenerationConfig.from_dict(_json_object(archive, tree, GENERATION_FILE))
    model.train(mode=False)
    return model


def read_adapter_tensors(archive: Archive, adapter: Digest) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The PEFT configuration and the tensors of an adapter tree.

    Raises:
        CheckpointError: a file is missing or is not what it should be.
        csf_store.CorruptError: bytes that do not hash to their address.
    """
    tree = archive.tree(adapter)
    weights = _entry(tree, ADAPTER_WEIGHTS)
    if weights is None:
        raise CheckpointError(f"adapter {adapter} holds no {ADAPTER_WEIGHTS}; pickled adapters are never read")
    return _json_object(archive, tree, "adapter_config.json"), _proven_tensors(archive, weights.blob)


def _shards(tree: Tree) -> list[TreeEntry]:
    shards = []
    for entry in tree.entries:
        if entry.path.endswith(WEIGHTS_SUFFIX):
            shards.append(entry)
        elif entry.path not in (CONFIG_FILE, GENERATION_FILE) and not entry.path.endswith(INDEX_SUFFIX):
            raise CheckpointError(
                f"base {tree.digest} holds {entry.path!r}; a base is configuration and safetensors alone"
            )
    if not shards:
        raise CheckpointError(f"base {tree.digest} holds no {WEIGHTS_SUFFIX} file")
    return shards


def _entry(tree: Tree, path: str) -> TreeEntry | None:
    return next((entry for entry in tree.entries if entry.path == path), None)


def _json_object(archive: Archive, tree: Tree, path: str) -> dict[str, Any]:
    entry = _entry(tree, path)
    if entry is None:
        raise CheckpointError(f"{tree.digest} holds no {path}")
    try:
        value = json.loads(archive.get_bytes(entry.blob))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} in {tree.digest} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} in {tree.digest} is a JSON {type(value).__name__}, not an object")
    return value


def _our_name(name: str) -> str:
    for pattern, replacement in GATE_SPELLINGS.items():
        name = re.sub(pattern, replacement, name)
    return name


def _proven_tensors(archive: Archive, blob: Digest) -> dict[str, Tensor]:
    """Every tensor of a safetensors blob in memory of its own; the blob as a whole is re-hashed on the way."""
    tensors: dict[str, Tensor] = {}

    def place(info: TensorInfo) -> memoryview:
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise CheckpointError(f"tensor {info.name!r} in {blob} has a dtype this code does not read: {info.dtype}")
        # A mapping each, so that a tensor's memory can go as soon as it is quantized.
        (memory,) = allocate([info.nbytes])
        tensors[info.name] = (
            torch.frombuffer(memory, dtype=dtype).reshape(info.shape)
            if info.nbytes
            else torch.empty(info.shape, dtype=dtype)
        )
        return memory

    archive.read_tensors(blob, place)
    return tensors


def _check_complete(base: Digest, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    shared = wanted.keys() & found.keys()
    misshapen = [
        f"{name} {list(found[name].shape)} for {list(wanted[name].shape)}"
        for name in sorted(shared)
        if found[name].shape != wanted[name].shape
    ]
    faults = {
        "missing": sorted(wanted.keys() - found.keys()),
        "surplus": sorted(found.keys() - wanted.keys()),
        "misshapen": misshapen,
    }
    named = [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]
    if named:
        raise CheckpointError(f"base {base}: {'; '.join(named)}")


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
