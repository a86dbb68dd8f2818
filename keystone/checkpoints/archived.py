"""From the archive into a model: verified bytes straight into parameters, no temporary file, no second copy.

The model is built on the meta device, which costs nothing; each tensor is then decoded into memory of its own and
*becomes* the parameter. Every blob is re-hashed as a whole, header included, while it is read, so a model that comes
back from here consists of exactly the bytes its base tree names.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from blake3 import blake3
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig

from csf_store import Archive, CorruptError, Digest, Kind, TensorInfo, Tree, TreeEntry, allocate
from keystone.errors import CheckpointError
from keystone.model import KeystoneConfig, KeystoneForCausalLM
from keystone.model.modeling import GATE_SPELLINGS, RotaryEmbedding

Progress = Callable[[int], None]

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_FACTORIES = (torch.empty, torch.ones, torch.zeros)
_FILLS = ("normal_", "uniform_", "fill_", "zero_")
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


@dataclass(frozen=True)
class BaseCheckpoint:
    """A base tree, understood as far as that goes without reading a weight: safetensors headers are read, not data.

    Attributes:
        archive: where it lives.
        digest: the tree.
        config: of the model.
        generation: how its maker wants it to generate, if said.
        shards: its safetensors files.
        tensors: every tensor by our name; exactly those the model has, in their shapes.
        blank: the model without its weights, to look at; who fills one makes another.
    """

    archive: Archive
    digest: Digest
    config: KeystoneConfig
    generation: GenerationConfig | None
    shards: tuple[TreeEntry, ...]
    tensors: Mapping[str, TensorInfo]
    blank: KeystoneForCausalLM

    @classmethod
    def open(cls, archive: Archive, base: Digest) -> Self:
        """Read a tree, its configuration and the headers of its shards.

        Raises:
            CheckpointError: a file that does not belong, or tensors missing, surplus or misshapen; all are named.
            ConfigurationError: `config.json` cannot be honoured.
            csf_store.CorruptError: bytes that do not hash to their address.
        """
        tree = archive.tree(base)
        shards = _shards(tree)
        config = KeystoneConfig.from_dict(_json_object(archive, tree, CONFIG_FILE))
        generation = None
        if _entry(tree, GENERATION_FILE) is not None:
            generation = GenerationConfig.from_dict(_json_object(archive, tree, GENERATION_FILE))
        found: dict[str, TensorInfo] = {}
        for entry in shards:
            for name, info in archive.tensors(entry.blob).items():
                ours = _our_name(name)
                if ours in found:
                    raise CheckpointError(f"{base}: {entry.path} holds {name} again; another shard has it already")
                found[ours] = info
        blank = blank_model(config)
        _check_complete(base, dict(blank.named_parameters()), found)
        return cls(archive, base, config, generation, tuple(shards), found, blank)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in; where that differs from tensor to tensor, what most bytes are stored in."""
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
        return _dtype(max(sizes, key=lambda code: sizes[code]), self.digest)

    def dtypes(self) -> set[torch.dtype]:
        """Every dtype that a tensor is stored in."""
        return {_dtype(info.dtype, info.name) for info in self.tensors.values()}

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(entry.size for entry in self.shards)

    def stream(self, progress: Progress | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by our name, one at a time, each in memory of its own; shards are proven as they end."""
        for entry in self.shards:
            for name, tensor in stream_tensors(self.archive, entry.blob, progress=progress):
                yield _our_name(name), tensor

    def fill(self, model: KeystoneForCausalLM, progress: Progress | None = None) -> None:
        """Decode every tensor in place and make it the model's parameter, all cores at work."""
        for entry in self.shards:
            for name, tensor in proven_tensors(self.archive, entry.blob).items():
                assign(model, _our_name(name), tensor)
            if progress is not None:
                progress(entry.size)


class _Blank(TorchFunctionMode):
    """Parameters are made on the meta device and left as they are; what is computed, such as angles, stays computed.

    `torch.device("meta")` would compute there, too, and that imports torch's whole compiler, half a second of it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        fields = dict(kwargs or {})
        if func in _FACTORIES and fields.get("device") is None:
            return torch.empty(*args, **{**fields, "device": "meta"})
        if getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in _FILLS:
            return fields["tensor"] if "tensor" in fields else args[0]
        return func(*args, **fields)


def blank_model(config: KeystoneConfig) -> KeystoneForCausalLM:
    """A model without memory for its weights, which costs nothing but its modules."""
    with _Blank():
        return KeystoneForCausalLM(config)  # type: ignore[no-any-return, unused-ignore]


def finish_model(model: KeystoneForCausalLM, generation: GenerationConfig | None) -> KeystoneForCausalLM:
    """What a model needs once its weights are in: angles, tied weights, its maker's wishes for generation."""
    model.model.rotary_emb = RotaryEmbedding(model.config)  # its angles are computed, and meta tensors hold none
    model.tie_weights()
    if generation is not None:
        model.generation_config = generation
    model.train(mode=False)
    return model


def assemble_base(archive: Archive, base: Digest, *, progress: Progress | None = None) -> KeystoneForCausalLM:
    """Build the model of a base tree, its weights as stored.

    Args:
        archive: where the tree lives.
        base: a tree of `config.json` and safetensors files.
        progress: told how many bytes were read.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        CheckpointError, ConfigurationError, csf_store.CorruptError: see `BaseCheckpoint.open`.
    """
    checkpoint = BaseCheckpoint.open(archive, base)
    model = blank_model(checkpoint.config)
    checkpoint.fill(model, progress)
    return finish_model(model, checkpoint.generation)


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
    return _json_object(archive, tree, "adapter_config.json"), proven_tensors(archive, weights.blob)


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


def proven_tensors(archive: Archive, blob: Digest) -> dict[str, Tensor]:
    """Every tensor of a safetensors blob in memory of its own; the blob as a whole is re-hashed on the way.

    Raises:
        CheckpointError: a tensor has a dtype that this code does not read.
        csf_store.CorruptError: the blob is not what its digest says.
    """
    tensors: dict[str, Tensor] = {}

    def place(info: TensorInfo) -> memoryview:
        # A mapping each, so that a tensor's memory can go as soon as it is quantized.
        memory, tensors[info.name] = _room(info, blob)
        return memory

    archive.read_tensors(blob, place)
    return tensors


def stream_tensors(archive: Archive, blob: Digest, *, progress: Progress | None = None) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, one after the other, for who lets go of each before taking the next.

    Each is checked chunk by chunk when it comes. That the chunk list itself is the blob's is known only at the end,
    when the whole was hashed, header included: nothing made of the tensors may be used before the iterator ends.

    Raises:
        CheckpointError, csf_store.CorruptError: see `proven_tensors`.
    """
    found = archive.record(blob, Kind.BLOB)
    header = archive.header(found)
    head = bytearray(header.length)
    archive.read_range(found, 0, memoryview(head))
    whole = blake3(head, max_threads=blake3.AUTO)
    if progress is not None:
        progress(len(head))
    for info in header.tensors.values():  # in the order of their data, without a gap
        memory, tensor = _room(info, blob)
        archive.read_range(found, info.offset, memory)
        whole.update(memory)
        yield info.name, tensor
        del memory, tensor
        if progress is not None:
            progress(info.nbytes)
    if whole.digest() != bytes(blob):
        raise CorruptError(f"{blob}: its content does not hash to it: the chunk list is wrong; put the file again")


def _room(info: TensorInfo, blob: Digest) -> tuple[memoryview, Tensor]:
    dtype = _dtype(info.dtype, f"{info.name!r} in {blob}")
    (memory,) = allocate([info.nbytes])
    if not info.nbytes:
        return memory, torch.empty(info.shape, dtype=dtype)
    return memory, torch.frombuffer(memory, dtype=dtype).reshape(info.shape)


def _dtype(code: str, where: object) -> torch.dtype:
    dtype = DTYPES.get(code)
    if dtype is None:
        raise CheckpointError(f"tensor {where} has a dtype this code does not read: {code}")
    return dtype


def _check_complete(base: Digest, wanted: Mapping[str, Tensor], found: Mapping[str, TensorInfo]) -> None:
    shared = wanted.keys() & found.keys()
    misshapen = [
        f"{name} {list(found[name].shape)} for {list(wanted[name].shape)}"
        for name in sorted(shared)
        if tuple(found[name].shape) != tuple(wanted[name].shape)
    ]
    faults = {
        "missing": sorted(wanted.keys() - found.keys()),
        "surplus": sorted(found.keys() - wanted.keys()),
        "misshapen": misshapen,
    }
    named = [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]
    if named:
        raise CheckpointError(f"base {base}: {'; '.join(named)}")


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Let a tensor become a parameter, as it is."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
