"""From logits to a token, for one answer at a time: its own settings, its own generator.

A seed names a stream of random numbers that no other answer draws from, and every token takes exactly one of them.
So the same seed gives the same draws whatever else is in the batch.
"""

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from keystone.serve.errors import ModelFailedError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults leave the model's own distribution as it is.

    Attributes:
        temperature: 0 is greedy.
        top_p: the smallest set of tokens with this much probability stays.
        top_k: so many of the likeliest tokens stay; 0 keeps all.
        min_p: tokens less likely than this share of the likeliest one go.
        seed: of the draws; None takes a fresh one.
        presence_penalty: taken off the logit of each token that the answer holds already.
        frequency_penalty: the same, for each time it holds it.
        repeat_penalty: logits of tokens in prompt or answer are divided by it when positive, multiplied when negative.
        bias: added to the logits of single tokens.
        scores: whether the log-probability of each token is wanted.
        alternatives: of so many likeliest tokens, too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    scores: bool = False
    alternatives: int = 0

    @property
    def plain_greedy(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        changed = self.presence_penalty or self.frequency_penalty or self.repeat_penalty != 1.0 or self.bias
        return self.temperature == 0 and not changed and not self.scores


@dataclass(frozen=True)
class TokenScore:
    """A token with its log-probability under the model itself, before temperature and penalties.

    Attributes:
        token: its id.
        logprob: natural logarithm.
        alternatives: the likeliest tokens and theirs, best first.
    """

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws the tokens of one answer.

    Args:
        settings: how.
        choice: which of the answers to one request this is; each draws differently.
        prompt: the prompt's tokens, for `repeat_penalty`.
    """

    def __init__(self, settings: Sampling, choice: int, prompt: tuple[int, ...]) -> None:
        self.settings = settings
        seed = secrets.randbits(63) if settings.seed is None else settings.seed
        mixed = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(mixed) >> 1)
        self._answered: dict[int, int] = {}
        self._prompt = frozenset(prompt) if settings.repeat_penalty != 1.0 else frozenset()

    def draw(self, logits_V: Tensor) -> int:  # noqa: N803 - the shape is in the name
        """The next token.

        Args:
            logits_V: `[V]`, fp32, on the CPU; left as it is.

        Raises:
            ModelFailedError: the model gave no number to choose by.
        """
        scores_V = self._penalised(logits_V)  # noqa: N806
        best = float(scores_V.max())
        if not math.isfinite(best):
            raise ModelFailedError("the model's logits are not numbers; its weights or its quantization are at fault")
        token = int(scores_V.argmax()) if self.settings.temperature == 0 else self._random(scores_V - best)
        self._answered[token] = self._answered.get(token, 0) + 1
        return token

    def accept(self, token: int) -> None:
        """Count a token that was chosen without this sampler: the likeliest one of a whole batch."""
        self._answered[token] = self._answered.get(token, 0) + 1

    def _penalised(self, logits_V: Tensor) -> Tensor:  # noqa: N803
        settings = self.settings
        changed = settings.presence_penalty or settings.frequency_penalty or settings.repeat_penalty != 1.0
        if not changed and not settings.bias:
            return logits_V
        scores_V = logits_V.clone()  # noqa: N806
        if settings.repeat_penalty != 1.0 and (seen := sorted(self._prompt | self._answered.keys())):
            ids = torch.tensor(seen)
            held = scores_V[ids]
            scores_V[ids] = torch.where(held > 0, held / settings.repeat_penalty, held * settings.repeat_penalty)
        if self._answered and (settings.presence_penalty or settings.frequency_penalty):
            ids, counts = torch.tensor(list(self._answered)), torch.tensor(list(self._answered.values()))
            scores_V[ids] -= settings.presence_penalty + settings.frequency_penalty * counts
        for token, bias in settings.bias.items():
            scores_V[token] += bias
        return scores_V

    def _random(self, scores_V: Tensor) -> int:  # noqa: N803
        """Draw by inverting the distribution function: one random number a token, whatever was cut off before."""
        settings = self.settings
        scores_V = scores_V / settings.temperature  # noqa: N806
        point = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        ids = None
        if settings.top_k and settings.top_k < scores_V.shape[0]:
            scores_V, ids = scores_V.topk(settings.top_k)  # noqa: N806
        elif settings.top_p < 1:
            scores_V, ids = scores_V.sort(descending=True, stable=True)  # noqa: N806
        probabilities = scores_V.double().softmax(-1)
        if settings.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities * (before < settings.top_p)  # the likeliest token has nothing before it
            if settings.top_p <= 0:
                probabilities[0] = 1.0
        if settings.min_p > 0:
            probabilities = probabilities * (probabilities >= settings.min_p * probabilities.max())
        reached = probabilities.cumsum(-1)
        place = int(torch.searchsorted(reached, point * float(reached[-1]), right=True))
        place = min(place, int(probabilities.nonzero()[-1]))
        return place if ids is None else int(ids[place])


def score(logits_V: Tensor, token: int, alternatives: int) -> TokenScore:  # noqa: N803
    """What the model itself thought of a token and of the likeliest ones.

    Args:
        logits_V: `[V]`, fp32.
        token: the one that was taken.
        alternatives: how many of the likeliest to name.
    """
    logprobs_V = logits_V.log_softmax(-1)  # noqa: N806
    values, ids = logprobs_V.topk(min(alternatives, logprobs_V.shape[0]))
    return TokenScore(
        token, float(logprobs_V[token]), tuple(zip(map(int, ids.tolist()), map(float, values.tolist()), strict=True))
    )
