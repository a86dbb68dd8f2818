"""What is to be exported: a manifest, its base tree and every tensor in it, found before anything is written.

Reading headers is enough to know whether an export can be made: which tensors there are, under which of their names in
the wild, in which file, and whether they are what the configuration calls for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from csf_store import Archive, Digest, TensorInfo, TreeEntry
from keystone.checkpoints.names import expected_tensors, our_name
from keystone.errors import CheckpointError, RefusedError
from keystone.model import KeystoneConfig
from manifests import KNOWN_CODES, Json, Manifest, Repository

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"

FLOAT_DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes of weights that an export can write; a base in anything else is quantized, and not ours to unpack."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the base.

    Attributes:
        name: as the model names it.
        stored_name: as the file names it.
        shard: the file it is in.
        info: dtype, shape and size as stored.
    """

    name: str
    stored_name: str
    shard: TreeEntry
    info: TensorInfo


@dataclass(frozen=True)
class ExportSource:
    """A manifest and its base, ready to be written in another form.

    Attributes:
        archive: where everything is.
        digest: the manifest's.
        manifest: the manifest.
        config: the base's configuration.
        config_bytes: the same as stored.
        generation: the stored generation configuration, if there is one.
        shards: the weight files, in the order of their paths.
        tensors: by the model's names, in stored order.
    """

    archive: Archive
    digest: Digest
    manifest: Manifest
    config: KeystoneConfig
    config_bytes: bytes
    generation: bytes | None
    shards: tuple[TreeEntry, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files as stored."""
        return sum(entry.size for entry in self.shards)

    @property
    def dtype(self) -> str:
        """The safetensors dtype that most of the weights have."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.info.dtype] = sizes.get(tensor.info.dtype, 0) + tensor.info.nbytes
        return max(sizes, key=lambda name: sizes[name])

    def stored_config(self) -> dict[str, Json]:
        """The base's `config.json` as a JSON object."""
        fields: dict[str, Json] = json.loads(self.config_bytes)
        return fields


def open_source(archive: Archive, target: str | Digest) -> ExportSource:
    """Find a manifest and look at everything it names, without reading a weight.

    Raises:
        CheckpointError: the base's files do not make a checkpoint; tensors missing, surplus or misshapen are named.
        RefusedError: the base is quantized, or its code is not what this release computes.
        csf_store.CsfError, manifests.ManifestError: it is not there, or not what its digest says.
    """
    repository = Repository(archive)
    digest = target if isinstance(target, Digest) else repository.resolve(target)
    manifest = repository.load(digest)
    if manifest.assembly.code not in KNOWN_CODES:
        raise RefusedError(f"manifest {digest} runs on {manifest.assembly.code}; this release knows {KNOWN_CODES}")
    base = manifest.assembly.base
    entries = {entry.path: entry for entry in archive.tree(base).entries}
    shards = tuple(entry for path, entry in entries.items() if path.endswith(WEIGHTS_SUFFIX))
    for path in entries:
        if path not in (CONFIG_FILE, GENERATION_FILE) and not path.endswith((WEIGHTS_SUFFIX, INDEX_SUFFIX)):
            raise CheckpointError(f"base {base} holds {path!r}; a base is configuration and safetensors alone")
    if CONFIG_FILE not in entries or not shards:
        raise CheckpointError(f"base {base} lacks {CONFIG_FILE if shards else 'weights'}; it is no checkpoint")
    config_bytes = archive.get_bytes(entries[CONFIG_FILE].blob)
    generation = archive.get_bytes(entries[GENERATION_FILE].blob) if GENERATION_FILE in entries else None
    config = KeystoneConfig.from_dict(json_object(config_bytes, f"{CONFIG_FILE} in {base}"))
    tensors = _find_tensors(archive, base, shards)
    _check_complete(base, config, tensors)
    return ExportSource(archive, digest, manifest, config, config_bytes, generation, shards, tensors)


def json_object(data: bytes, where: str) -> dict[str, Json]:
    """Parse a JSON object.

    Raises:
        CheckpointError: it is none; `where` is named.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is a JSON {type(value).__name__}, not an object")
    return value


def _find_tensors(archive: Archive, base: Digest, shards: tuple[TreeEntry, ...]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        for stored_name, info in archive.tensors(shard.blob).items():
            name = our_name(stored_name)
            if name in found:
                raise CheckpointError(f"base {base}: {shard.path} holds {stored_name} again; another shard has it")
            if info.dtype not in FLOAT_DTYPES:
                raise RefusedError(
                    f"tensor {stored_name} of base {base} is {info.dtype}; only {', '.join(FLOAT_DTYPES)} weights are"
                    " exported, a quantized base is not unpacked"
                )
            found[name] = StoredTensor(name, stored_name, shard, info)
    return found


def _check_complete(base: Digest, config: KeystoneConfig, tensors: Mapping[str, StoredTensor]) -> None:
    wanted = expected_tensors(config)
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "surplus": sorted(tensors.keys() - wanted.keys()),
        "misshapen": [
            f"{name} {list(tensors[name].info.shape)} for {list(wanted[name])}"
            for name in sorted(wanted.keys() & tensors.keys())
            if tuple(tensors[name].info.shape) != wanted[name]
        ],
    }
    named = [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]
    if named:
        raise CheckpointError(f"base {base}: {'; '.join(named)}")
