"""Upcycling: a base with one loop becomes one with several, without a weight of it being changed.

The new loops need a gate per layer, and nothing else is missing. With `emb_scale` 1 and `hidden_scale` 0 every loop
starts from the embeddings alone, and with the gate saturated at its global branch it sees the keys of loop 0 and
nothing of its own: each loop computes again what loop 0 did, and the function is the same, number for number.

- *exact* is that proof. Nothing in it can be trained: a saturated gate and a factor of nought pass no gradient.
- *trainable* is where adapters start: a gate bias of 6 (99.75 % global), and a hidden scale that lets through a
  twentieth of the embeddings' own size. It is no longer the same function; how far off it begins is measured. Gate and
  scale are modules (`plt_gate`, `loop_carry`), which PEFT trains and saves through `modules_to_save`.

The weights files of the source stay the blobs they are; one small file and another configuration are added.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from csf_store import Archive, Digest, Kind, Tree, TreeEntry
from keystone.checkpoints.archived import assemble_base
from keystone.checkpoints.fields import canonical_json
from keystone.checkpoints.huggingface import CONFIG
from keystone.checkpoints.importing import put_small
from keystone.checkpoints.names import expected_tensors
from keystone.checkpoints.safetensors_files import pack, unpack
from keystone.checkpoints.sources import BLOCK_BYTES, FLOATS, SourceTensor
from keystone.checkpoints.streaming import Placed, StreamedShard
from keystone.checkpoints.tokenizers import archived_tokenizer
from keystone.errors import CheckpointError, RefusedError
from keystone.identity import source_digest
from keystone.model import KeystoneConfig
from manifests import Assembly, Manifest, Repository, Source

Mode: TypeAlias = Literal["exact", "trainable"]

SHARD = "upcycled-loops.safetensors"
SATURATED, OPEN = 100.0, 6.0
"""The gate's bias: beyond what a sigmoid can tell from one, and where it still passes a gradient."""
CARRIED = 0.05
"""How large the hidden state enters a trainable loop, as a share of the embeddings."""
WINDOW = 64
"""Earlier keys of its own that a new loop sees, as in LoopCoder-V2."""
TRAINABLE_MODULES = ("plt_gate", "loop_carry")
"""For PEFT's `modules_to_save`."""

PROMPTS = ("def add(a, b):\n    return", "The capital of France is", "1, 2, 3, 4, 5, 6,")
"""What the first difference of the logits is measured on."""

_EMBEDDINGS, _NORM, _CARRY = "model.embed_tokens.weight", "model.norm.weight", "model.loop_carry.weight"


@dataclass(frozen=True)
class Upcycled:
    """A base with more loops.

    Attributes:
        base: its tree.
        tokenizer: the tokenizer's tree, the source's own.
        manifest: the manifest, whose parent is the source's.
        hidden_scale: how much of the hidden state a new loop starts from.
        logit_difference: the largest difference to the source's logits on `PROMPTS`.
        logit_size: the largest logit of the source there, for scale.
    """

    base: Digest
    tokenizer: Digest
    manifest: Digest
    hidden_scale: float
    logit_difference: float
    logit_size: float


def upcycle(archive: Archive, source: Digest, *, loops: int = 2, mode: Mode = "exact") -> Upcycled:
    """Make a base with `loops` loops from a manifest's base with one.

    Args:
        archive: where it is, and where to.
        source: a manifest without adapters.
        loops: at least 2.
        mode: see the module.

    Raises:
        RefusedError: adapters in the manifest, or a base with several loops already.
        csf_store.CsfError: bytes of the source that are not there or not what their digest says.
    """
    if loops < 2:
        raise RefusedError(f"{loops} loops are no upcycle; ask for 2 or more")
    repository = Repository(archive)
    known = repository.load(source)
    if known.assembly.adapters:
        raise RefusedError(f"manifest {source.short} holds adapters, which were trained on one loop; upcycle its base")
    tree = archive.tree(known.assembly.base)
    scale = _hidden_scale(archive, tree) if mode == "trainable" else 0.0
    fields, config = _with_loops(archive, tree, loops, mode, scale)
    with archive.keeping():
        shard = StreamedShard(SHARD, _new_tensors(config, _dtype(archive, tree), mode, scale))
        stored = archive.put_source(shard)
        kept = [entry for entry in tree.entries if entry.path != CONFIG]
        added = [TreeEntry(SHARD, stored.digest, stored.size), put_small(archive, CONFIG, canonical_json(fields))]
        base = archive.put_tree_entries([*kept, *added]).digest
        archive.pin(base, kind=Kind.TREE, name=f"{known.source.location} with {loops} loops")
        labels = {**known.labels, "upcycled": mode, "loops": str(loops)}
        note = f"Upcycled from one loop to {loops}, {mode}. {known.source.note}".strip()
        manifest = repository.put(
            Manifest(
                assembly=Assembly(base=base, tokenizer=known.assembly.tokenizer),
                code_source=source_digest(),
                source=Source(kind="upcycled", location=known.source.location, licence=known.source.licence, note=note),
                parent=source,
                labels=labels,
            )
        )
    before, after = (_logits(archive, each, known.assembly.tokenizer) for each in (known.assembly.base, base))
    difference = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True))
    size = max(float(logits.abs().max()) for logits in before)
    return Upcycled(base, known.assembly.tokenizer, manifest, scale, difference, size)


def _with_loops(
    archive: Archive, tree: Tree, loops: int, mode: Mode, scale: float
) -> tuple[dict[str, object], KeystoneConfig]:
    """The source's configuration with more loops."""
    fields = json.loads(archive.get_bytes(_blob(tree, CONFIG)))
    found = KeystoneConfig.from_dict(fields).plt_num_loops
    if found != 1:
        raise RefusedError(f"base {tree.digest.short} has {found} loops already; only a base with one can be upcycled")
    fields |= {
        "plt_num_loops": loops,
        "plt_emb_scale": 1.0,
        "plt_hidden_scale": scale,
        "plt_window_size": [WINDOW, 0],
        "plt_normalize_per_loop": True,  # so that the carried state has a size of its own, whatever the depth made it
        "plt_gate_use_hidden_states": True,
    }
    if mode == "trainable":
        fields["plt_train_hidden_scale"] = True
    return fields, KeystoneConfig.from_dict(fields)


def _new_tensors(config: KeystoneConfig, dtype: str, mode: Mode, scale: float) -> list[Placed]:
    """The tensors that only a model with loops has, each of one value."""
    bias = SATURATED if mode == "exact" else OPEN
    values = {".plt_gate.weight": 0.0, ".plt_gate.bias": bias, ".gate_norm.weight": 1.0, ".loop_carry.weight": scale}
    placed = []
    for name, shape in expected_tensors(config).items():
        value = next((value for suffix, value in values.items() if name.endswith(suffix)), None)
        if value is not None:
            blocks = partial(_constant, value, int(np.prod(shape)), dtype, name)
            placed.append(Placed(name, SourceTensor(name, dtype, shape, blocks, SHARD)))
    return placed


def _constant(value: float, count: int, dtype: str, name: str) -> Iterator[memoryview]:
    step = BLOCK_BYTES // 4
    for first in range(0, count, step):
        yield pack(np.full(min(step, count - first), value, dtype=np.float32), dtype, name)


def _hidden_scale(archive: Archive, tree: Tree) -> float:
    """The factor at which the normed hidden state is `CARRIED` times as large as the embeddings, to two digits."""
    embeddings, norm = (_sample(archive, tree, name) for name in (_EMBEDDINGS, _NORM))
    return float(f"{CARRIED * _rms(embeddings) / max(_rms(norm), 1e-6):.1e}")


def _rms(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _sample(archive: Archive, tree: Tree, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The first few megabytes of a tensor, as fp32."""
    for entry in tree.entries:
        if entry.path.endswith(".safetensors") and (info := archive.tensors(entry.blob).get(name)) is not None:
            data = bytearray(min(info.nbytes, BLOCK_BYTES))
            archive.read_range(archive.record(entry.blob, Kind.BLOB), info.offset, memoryview(data))
            return unpack(memoryview(data), info.dtype)
    raise CheckpointError(f"base {tree.digest} holds no {name}")


def _dtype(archive: Archive, tree: Tree) -> str:
    """The dtype of the embeddings, which the new tensors share."""
    for entry in tree.entries:
        if entry.path.endswith(".safetensors") and (info := archive.tensors(entry.blob).get(_EMBEDDINGS)) is not None:
            if info.dtype in FLOATS:
                return info.dtype
            raise CheckpointError(f"base {tree.digest} holds its embeddings as {info.dtype}; floats can be upcycled")
    raise CheckpointError(f"base {tree.digest} holds no {_EMBEDDINGS}")


def _blob(tree: Tree, path: str) -> Digest:
    found = next((entry.blob for entry in tree.entries if entry.path == path), None)
    if found is None:
        raise CheckpointError(f"base {tree.digest} holds no {path}")
    return found


@torch.no_grad()
def _logits(archive: Archive, base: Digest, tokenizer: Digest) -> list[Tensor]:
    """The logits of every prompt, one model in memory at a time."""
    model = assemble_base(archive, base)
    encode = archived_tokenizer(archive, tokenizer)
    last = int(model.config.vocab_size) - 1
    ids = [torch.tensor([encode(prompt)["input_ids"]]).clamp(max=last) for prompt in PROMPTS]
    return [model(input_ids=each, use_cache=False).logits.float() for each in ids if each.numel()]
