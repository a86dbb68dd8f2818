"""Batched decoding: many prompts in, their continuations out.

Prompts of unequal length share a batch: they are sorted by length to keep padding small and come back in the order
given. A sequence that has ended leaves the batch as soon as half of the batch has, so a long answer does not keep
short ones computing. Each prompt draws from a generator of its own when sampling: a seed gives the same text whatever
ran before and whoever shares its batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from keystone.model import KeystoneCache

Progress = Callable[[int], None]

MOST_RESERVED = 256
"""Tokens that a cache makes room for ahead of an answer; longer answers let it grow."""

_MARK = "an answer"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest at temperature 0, else drawn from the nucleus of mass `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def draws(self, prompt: int, count: int) -> Tensor:
        """The random numbers of one prompt, `[count]` in [0, 1): a function of the seed and of its place alone."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + prompt) % 2**63)
        return torch.rand(count, generator=generator)

    def choose(self, logits: Tensor, draws: Tensor) -> Tensor:
        """The next token of each sequence, `[B]`."""
        if self.temperature <= 0:
            return logits.argmax(-1)
        likely, token = (logits.float() / self.temperature).softmax(-1).sort(dim=-1, descending=True)
        mass = likely.cumsum(-1)
        # A token belongs to the nucleus if those before it do not fill it; the likeliest always does.
        nucleus = ((mass - likely) < self.top_p).sum(-1, keepdim=True).clamp_min(1)
        target = draws[:, None].to(mass) * mass.gather(1, nucleus - 1)
        place = torch.searchsorted(mass, target, right=True).minimum(nucleus - 1)
        return token.gather(1, place)[:, 0]


def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """Continue each prompt until an end token, a stop sequence or `max_new_tokens`.

    Args:
        model: a `KeystoneForCausalLM`, wrapped by PEFT or not.
        tokenizer: its tokenizer; special tokens it adds by itself are kept.
        prompts: any number of texts; an empty one begins with the beginning token.
        max_new_tokens: the most tokens to add to each.
        temperature: 0 is greedy.
        top_p: nucleus size when sampling.
        seed: of the sampling.
        stop: texts that end an answer where one first appears; it is left out. Special tokens do not count as text.
        batch_size: prompts that share a forward pass.
        progress: told how many prompts were finished.

    Returns:
        The continuations alone, special tokens left out, in the order of the prompts.
    """
    encoded = [tokenizer(prompt)["input_ids"] or [_first_id(model, tokenizer)] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    sampling = Sampling(temperature, top_p, seed)
    answers = [""] * len(prompts)
    ending = _Ending(tokenizer, end_ids(model, tokenizer), tuple(text for text in stop if text))
    with torch.inference_mode():
        for batch in _batches(order, batch_size):
            draws = torch.stack([sampling.draws(index, max_new_tokens) for index in batch])
            tokens = _continue(model, [encoded[index] for index in batch], draws, sampling, ending)
            for index, text in zip(batch, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                answers[index] = ending.cut(text)
            if progress is not None:
                progress(len(batch))
    return answers


@dataclass(frozen=True)
class _Ending:
    """When an answer is over: an end token, or one of the texts it is to stop at."""

    tokenizer: PreTrainedTokenizerFast
    ids: frozenset[int]
    texts: tuple[str, ...]

    def reached(self, answer: list[int]) -> bool:
        """Whether the last token of an answer completed a text to stop at."""
        if not self.texts:
            return False
        # A token is at least a byte, and a character at most four: no text reaches further back.
        tail = answer[-(4 * max(map(len, self.texts)) + 4) :]
        written = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(text in written for text in self.texts)

    def cut(self, answer: str) -> str:
        """The answer up to the first text to stop at."""
        return answer[: min([len(answer), *(place for text in self.texts if (place := answer.find(text)) >= 0)])]


def _continue(
    model: Any, prompts: Sequence[Sequence[int]], draws: Tensor, sampling: Sampling, ending: _Ending
) -> list[list[int]]:
    """Token ids that follow each prompt, the end token left out; at most as many as there are draws."""
    most = draws.shape[1]
    answers: list[list[int]] = [[] for _ in prompts]
    if most == 0:
        return answers
    device = next(model.parameters()).device
    ids, mask = _left_padded(prompts)
    cache = KeystoneCache(model.config, reserve=ids.shape[1] + min(most, MOST_RESERVED))
    logits = _last_logits(model, ids.to(device), cache, attention_mask=mask.to(device))
    rows, live = list(range(len(prompts))), set(range(len(prompts)))
    draws = draws.to(device)
    for step in range(most):
        chosen = sampling.choose(logits, draws[:, step])
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if row in live and token not in ending.ids:
                answers[row].append(token)
                if ending.reached(answers[row]):
                    live.discard(row)
            else:
                live.discard(row)
        if not live or step == most - 1:
            break
        if 2 * len(live) <= len(rows):
            staying = [place for place, row in enumerate(rows) if row in live]
            cache.select(staying)
            chosen, draws = chosen[staying], draws[staying]
            rows = [rows[place] for place in staying]
        logits = _last_logits(model, chosen[:, None], cache)
    return answers


def _last_logits(model: Any, ids: Tensor, cache: KeystoneCache, **inputs: Tensor) -> Tensor:
    output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
    logits: Tensor = output.logits[:, -1]
    return logits


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask; the mask hides what fills the rows, so any id will do."""
    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The tokens that end an answer, from all that say so.

    These are the model's generation settings, its configuration, its tokenizer, and the chat template, by the special
    token it writes after an answer. Published models often have the right one in only some of these places, and none of
    these tokens ever stands inside an answer.
    """
    found = {tokenizer.eos_token_id, _end_of_turn(tokenizer)}
    for settings in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        configured = getattr(settings, "eos_token_id", None)
        found.update(configured if isinstance(configured, list) else [configured])
    return frozenset(token for token in found if isinstance(token, int))


def _end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the chat template writes right after an assistant's answer."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    try:
        written = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # noqa: BLE001 - templates are programs of their makers; one that fails has no end to tell
        return None
    before, mark, after = written.rpartition(_MARK)
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"] if mark and before else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def _first_id(model: Any, tokenizer: PreTrainedTokenizerFast) -> int:
    """A token to begin with where there is no prompt."""
    for candidate in (tokenizer.bos_token_id, getattr(model.config, "bos_token_id", None), tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0
