"""What quantization costs a model, on text it has not seen: schemes side by side with the weights as they are.

Bits per byte says how well a scheme predicts the text, KL divergence how far its predictions are from those of the
unquantized model, token by token, and top-1 agreement how often both would write the same next token. Memory and speed
come from a process of its own for each scheme, so that no model pays for another.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from csf_store import Archive, Digest
from keystone.checkpoints import BaseCheckpoint
from keystone.errors import KeystoneError
from keystone.loader import LoadedModel, load
from keystone.quantize import Quantization

WINDOW = 256
"""Tokens of text predicted at a time."""


@dataclass(frozen=True)
class Quality:
    """One scheme's numbers.

    Attributes:
        quantization: the scheme.
        bits_per_byte: needed for a byte of the text.
        kl_bits: mean divergence from the unquantized model, in bits a token.
        top1_agreement: share of tokens for which both would write the same.
        tokens: how many were predicted.
        tokens_per_second: of greedy decoding, one sequence.
        stored_bytes: of the weights in the archive, compressed; shared with others where they are shared.
        weight_bytes: of the weights in memory.
        peak_bytes: the most that a process with this model held (or a card).
    """

    quantization: Quantization
    bits_per_byte: float
    kl_bits: float
    top1_agreement: float
    tokens: int
    tokens_per_second: float
    stored_bytes: int
    weight_bytes: int
    peak_bytes: int


def compare_schemes(
    archive: Archive,
    target: Digest,
    texts: Sequence[str],
    schemes: Sequence[Quantization],
    *,
    device: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Quality]:
    """Measure schemes one by one; two models are in memory at a time, the unquantized one and the one compared.

    Args:
        archive: where the model is.
        target: its manifest.
        texts: held-out texts; each one's first token is context only.
        schemes: which.
        device: where to run.
        progress: told how many characters of text were predicted by a scheme.

    Raises:
        RefusedError: a scheme cannot be honoured here.
        KeystoneError: the process that measures memory and speed failed.
    """
    reference = load(target, archive=archive, quantization="none", device=device)
    for scheme in schemes:
        loaded = reference
        if scheme != "none":
            loaded = load(target, archive=archive, quantization=scheme, device=device)
        bits, divergence, agreement, tokens = _predict(reference, loaded, texts, progress)
        stored, weights = _stored_bytes(archive, loaded), loaded.weight_bytes
        del loaded
        speed, peak = _run_alone(archive, target, scheme, device)
        yield Quality(scheme, bits, divergence, agreement, tokens, speed, stored, weights, peak)


def _predict(
    reference: LoadedModel, loaded: LoadedModel, texts: Sequence[str], progress: Callable[[int], None] | None
) -> tuple[float, float, float, int]:
    bits = divergence = 0.0
    agreed = tokens = total_bytes = 0
    for text in texts:
        ids = reference.tokenizer(text)["input_ids"]
        for start in range(0, len(ids) - 1, WINDOW):
            row = torch.tensor(ids[start : start + WINDOW + 1])
            theirs = _log_probabilities(reference.model, row[:-1])
            ours = theirs if loaded is reference else _log_probabilities(loaded.model, row[:-1])
            bits += float(functional.nll_loss(ours, row[1:], reduction="sum")) / math.log(2)
            divergence += float((theirs.exp() * (theirs - ours)).sum()) / math.log(2)
            agreed += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
            tokens += len(row) - 1
        total_bytes += len(text.encode())
        if progress is not None:
            progress(len(text))
    return bits / max(1, total_bytes), divergence / max(1, tokens), agreed / max(1, tokens), tokens


def _log_probabilities(model: nn.Module, row: Tensor) -> Tensor:
    with torch.inference_mode():
        device = next(model.parameters()).device
        logits: Tensor = model(row[None].to(device), use_cache=False).logits[0]
        return logits.float().log_softmax(-1).cpu()


def _stored_bytes(archive: Archive, loaded: LoadedModel) -> int:
    if loaded.derived is not None:
        return archive.stat(loaded.derived).stored
    checkpoint = BaseCheckpoint.open(archive, loaded.manifest.assembly.base)
    return sum(archive.stat(entry.blob).stored for entry in checkpoint.shards)


def _run_alone(archive: Archive, target: Digest, scheme: Quantization, device: str | None) -> tuple[float, int]:
    """Tokens a second and peak memory of a process that holds this model and no other."""
    command = [sys.executable, "-m", "keystone.cli", "--archive", str(archive.path), "fit", str(target), "--json"]
    command += ["--measure", "--quantize", scheme, "--context", "288", "--prompt", "256"]
    command += ["--device", device] if device is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise KeystoneError(f"measuring {scheme} in a process of its own failed: {done.stderr.strip()[-300:]}")
    measured = json.loads(lines[-1])
    return float(measured["decode_tokens_per_second"]), int(measured["peak_bytes"])
