"""What a merge costs: the same prompts through the merged files and through base plus adapters, both in fp32.

In fp32 the only difference left is the rounding of the merged weights. The merged side is read back from the files just
written, so the comparison also proves that they load.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from keystone.checkpoints.export.source import ExportSource
from keystone.checkpoints.gguf_file import read_gguf
from keystone.checkpoints.huggingface import Choices
from keystone.errors import CheckpointError
from keystone.loader import load
from keystone.model import KeystoneForCausalLM

PROMPTS = (
    "def add(a, b):\n    return",
    "The quick brown fox jumps over the lazy dog, and then",
    "import os\n\n\nclass Stack:\n    def push(self, item):\n        self.items.append(item)\n",
    "1 + 1 = 2, 2 + 2 = 4, 4 + 4 =",
)
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """Merged against unmerged.

    Attributes:
        prompts: how many.
        tokens: positions compared.
        max_abs: largest absolute difference of a logit.
        relative: Frobenius norm of the difference over that of the unmerged logits.
        top1_agreement: share of positions where both put the same token first.
        effect: largest absolute difference that the adapters make at all, against the bare base.
    """

    prompts: int
    tokens: int
    max_abs: float
    relative: float
    top1_agreement: float
    effect: float


def compare_merged(source: ExportSource, merged: Path, *, plain: bool, gguf: str | None = None) -> LogitDifference:
    """Run the fixed prompts through both.

    Args:
        source: the manifest with its adapters.
        merged: the directory that was written.
        plain: transformers' own class loads it, not ours.
        gguf: the name of the GGUF file in it, if that is what was written.
    """
    loaded = load(source.digest, archive=source.archive, quantization="none", device="cpu")
    rows = [loaded.tokenizer(prompt)["input_ids"][:MAX_TOKENS] for prompt in PROMPTS]
    wrapped: Any = loaded.model.float()
    expected = _logits(wrapped, rows)
    with wrapped.disable_adapter():
        bare = _logits(wrapped, rows)
    del loaded, wrapped
    if gguf is not None:
        model: Any = _from_gguf(merged / gguf)
    else:
        reader: Any = AutoModelForCausalLM if plain else KeystoneForCausalLM
        model = reader.from_pretrained(merged, dtype=torch.float32, local_files_only=True)
    found = _logits(model.eval(), rows)
    return LogitDifference(
        prompts=len(rows),
        tokens=len(expected),
        max_abs=float((found - expected).abs().max()),
        relative=float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected)),
        top1_agreement=float((found.argmax(-1) == expected.argmax(-1)).float().mean()),
        effect=float((expected - bare).abs().max()),
    )


def _from_gguf(path: Path) -> KeystoneForCausalLM:
    """The model of a GGUF file through our own import: transformers' reader leaves biases out without a word."""
    checkpoint = read_gguf(path, Choices(dtype="F32"))
    model: KeystoneForCausalLM = KeystoneForCausalLM(checkpoint.config)
    state = {
        checkpoint.rename(each.name): torch.frombuffer(
            bytearray().join(bytes(block) for block in each.blocks()), dtype=torch.float32
        ).reshape(each.shape)
        for each in checkpoint.tensors
    }
    missing, surplus = model.load_state_dict(state, strict=False)
    if surplus or set(missing) - {"lm_head.weight"} or (missing and not checkpoint.config.tie_word_embeddings):
        raise CheckpointError(f"{path.name} read back lacks {missing} and has {surplus} too many")
    model.tie_weights()
    return model


def _logits(model: Any, rows: list[list[int]]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([row]), use_cache=False).logits[0].float() for row in rows if row])
