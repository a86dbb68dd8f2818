"""What an engine runs through the model: prompts on their way in, and batches of answers that share a decode step.

Shapes: B sequences, T tokens of a call, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from keystone.model import KeystoneCache, KeystoneConfig
from keystone.serve.answers import Answer
from keystone.serve.prefixes import Variant


@dataclass
class Prompt:
    """A prompt on its way into the model, alone in its cache until it is through.

    Attributes:
        ids: what the model has to see: the prompt, and what was answered already when a broken batch is redone.
        answers: who continue from it.
        variant: the adapters it runs with.
        cache: what was seen so far; None before the first chunk.
    """

    ids: tuple[int, ...]
    answers: list[Answer]
    variant: Variant
    cache: KeystoneCache | None = None

    @property
    def seen(self) -> int:
        """Tokens that are through."""
        return 0 if self.cache is None else self.cache.seen

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for any of its answers."""
        return all(answer.done or answer.generation.cancelled for answer in self.answers)


@dataclass
class Batch:
    """Answers with the same adapters, one sequence each in one cache."""

    variant: Variant
    cache: KeystoneCache
    answers: list[Answer]

    def join(self, cache: KeystoneCache, answers: list[Answer]) -> None:
        """Take in sequences that are ready to go on."""
        self.cache = KeystoneCache.merge([self.cache, cache])
        self.answers = [*self.answers, *answers]

    def sweep(self) -> bool:
        """Let go of what is over; False when nothing is left."""
        kept = [row for row, answer in enumerate(self.answers) if not (answer.done or answer.generation.cancelled)]
        if not kept:
            return False
        if len(kept) < len(self.answers):
            self.cache.select(kept)
            self.answers = [self.answers[row] for row in kept]
        return True


class Runner:
    """A model as a function of tokens and caches; owns nothing.

    Args:
        model: a causal model with a `KeystoneCache`; its layers may carry adapters.
        config: its configuration.
    """

    def __init__(self, model: nn.Module, config: KeystoneConfig) -> None:
        self._model: Any = model
        self._config = config
        self._device = next(model.parameters()).device

    def chunk(self, prompt: Prompt, size: int) -> Tensor:
        """Run the next chunk of one prompt; it ends at a multiple of `size`, where a snapshot is kept.

        Returns:
            Logits after it, `[1, V]` in fp32.
        """
        if prompt.cache is None:
            prompt.cache = KeystoneCache(self._config, reserve=len(prompt.ids))
        start = prompt.cache.seen
        end = min(len(prompt.ids), start - start % size + size)
        ids = torch.tensor([prompt.ids[start:end]], device=self._device)
        logits = self._call(ids, None, prompt.cache)
        if end % size == 0:
            prompt.cache.snapshot()
        return logits

    def together(self, prompts: list[Prompt]) -> tuple[Tensor, KeystoneCache]:
        """Run several short prompts in one call, padded behind: `[B, V]`, and one cache for all."""
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            mask[row, : len(prompt.ids)] = 1
        cache = KeystoneCache(self._config, reserve=width)
        return self._call(ids.to(self._device), mask.to(self._device), cache), cache

    def step(self, batch: Batch) -> Tensor:
        """One token of each answer: `[B, V]`."""
        ids = torch.tensor([[answer.ids[-1]] for answer in batch.answers], device=self._device)
        return self._call(ids, None, batch.cache)

    def _call(self, ids_BT: Tensor, mask_BT: Tensor | None, cache: KeystoneCache) -> Tensor:  # noqa: N803
        out = self._model(
            input_ids=ids_BT, attention_mask=mask_BT, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = out.logits[:, -1]
        return logits.float()
