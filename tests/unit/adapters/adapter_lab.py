"""A tiny transformers model, an archive that holds it, and adapters made for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from csf_store import Archive, Digest
from manifests import Repository, TrainingConfig

TARGETS = ("q_proj", "v_proj")
CONFIG = TrainingConfig(targets=TARGETS, rank=4, alpha=8.0, steps=6, warmup_steps=2, learning_rate=5e-3, seed=7)


def tiny_model(seed: int = 0, hidden: int = 32) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def batches(count: int = 3, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(0, 64, (2, 12), generator=generator)
        made.append({"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)})
    return made


def write_base(directory: Path, model: LlamaForCausalLM) -> Path:
    """A base tree: config and weights, nothing else."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, directory / "model.safetensors"
    )
    return directory


@dataclass
class Lab:
    """An archive with the tiny base, and a good adapter directory to spoil."""

    repository: Repository
    base: Digest
    adapter: Path
    root: Path

    @property
    def archive(self) -> Archive:
        return self.repository.archive

    def snapshot(self) -> tuple[int, int, tuple[int, ...]]:
        """What must not change when an add is refused: ledger, objects, segment sizes."""
        segments = sorted((self.archive.path / "segments").iterdir())
        return self.archive.ledger.size, len(list(self.archive.objects())), tuple(p.stat().st_size for p in segments)


def edit_config(directory: Path, **changes: object) -> Path:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


Tensors = dict[str, torch.Tensor]


def edit_tensors(directory: Path, change: Callable[[Tensors], Mapping[str, torch.Tensor]]) -> Path:
    path = directory / "adapter_model.safetensors"
    tensors = dict(change(load_file(path)))
    path.unlink()
    save_file(tensors, path)
    return directory
