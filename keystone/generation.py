"""Batched decoding: many prompts in, their continuations out.

Prompts of unequal length share a batch: they are sorted by length to keep padding small and come back in the order
given. Sampling draws from a generator of its own, so that a seed gives the same text whatever ran before.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

Progress = Callable[[int], None]


def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """Continue each prompt until an end token or `max_new_tokens`.

    Args:
        model: a causal model with `generate`.
        tokenizer: its tokenizer; special tokens it adds by itself are kept.
        prompts: any number of texts.
        max_new_tokens: the most tokens to add to each.
        temperature: 0 is greedy.
        top_p: nucleus size when sampling.
        seed: of the sampling.
        batch_size: prompts that share a forward pass.
        progress: told how many prompts were finished.

    Returns:
        The continuations alone, special tokens left out, in the order of the prompts.
    """
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    answers = [""] * len(prompts)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    device = next(model.parameters()).device
    with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for batch in _batches(order, batch_size):
            ids, mask = _left_padded([encoded[index] for index in batch], _pad_id(model, tokenizer))
            output: Tensor = model.generate(  # type: ignore[operator]
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                pad_token_id=_pad_id(model, tokenizer),
                **sampling,
            )
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                answers[index] = text
            if progress is not None:
                progress(len(batch))
    return answers


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(1, *(len(row) for row in rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        if row:
            ids[index, width - len(row) :] = torch.tensor(row)
            mask[index, width - len(row) :] = 1
    return ids, mask


def _pad_id(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> int:
    """A token to fill rows with; the mask hides it, so any id will do when none is set aside."""
    configured = getattr(model, "generation_config", None)
    for candidate in (tokenizer.pad_token_id, getattr(configured, "pad_token_id", None), tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0
