"""From logits to a token, for one answer at a time: its own settings, its own generator.

A seed names a stream of random numbers that no other answer draws from, and every token takes exactly one of them.
So the same seed gives the same draws whatever else is in the batch.
"""

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from keystone.serve.errors import ModelFailedError

Row = NDArray[np.float32]
"""One row of numbers on the CPU: logits, or weights made of them."""
Places = NDArray[np.intp]
_FEW = 256
_BLOCK = 256


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

    In numpy, on the CPU: there are a dozen small operations to a token, and torch takes several times as long to begin
    each of them, with every answer of a batch waiting for its turn.

    Args:
        settings: how.
        choice: which of the answers to one request this is; each draws differently.
        prompt: the prompt's tokens, for `repeat_penalty`.
    """

    def __init__(self, settings: Sampling, choice: int, prompt: tuple[int, ...]) -> None:
        self.settings = settings
        seed = secrets.randbits(63) if settings.seed is None else settings.seed
        mixed = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=16).digest()
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(mixed)))
        self._answered: dict[int, int] = {}
        self._prompt = frozenset(prompt) if settings.repeat_penalty != 1.0 else frozenset()

    def draw(self, logits_V: Row) -> int:  # noqa: N803 - the shape is in the name
        """The next token.

        Args:
            logits_V: `[V]`; left as it is.

        Raises:
            ModelFailedError: the model gave no number to choose by.
        """
        scores_V = self._penalised(logits_V)  # noqa: N806
        token = int(scores_V.argmax())  # of not-a-number, where there is one
        best = float(scores_V[token])
        if not math.isfinite(best):
            raise ModelFailedError("the model's logits are not numbers; its weights or its quantization are at fault")
        if self.settings.temperature > 0:
            token = self._random(scores_V, best)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Count a token that was chosen without this sampler: the likeliest one of a whole batch."""
        self._answered[token] = self._answered.get(token, 0) + 1

    def _penalised(self, logits_V: Row) -> Row:  # noqa: N803
        settings = self.settings
        changed = settings.presence_penalty or settings.frequency_penalty or settings.repeat_penalty != 1.0
        if not changed and not settings.bias:
            return logits_V
        scores_V = logits_V.copy()  # noqa: N806
        if settings.repeat_penalty != 1.0 and (seen := sorted(self._prompt | self._answered.keys())):
            held = scores_V[seen]
            scores_V[seen] = np.where(held > 0, held / settings.repeat_penalty, held * settings.repeat_penalty)
        if self._answered and (settings.presence_penalty or settings.frequency_penalty):
            counts = np.array(list(self._answered.values()), dtype=np.float32)
            scores_V[list(self._answered)] -= settings.presence_penalty + settings.frequency_penalty * counts
        for token, bias in settings.bias.items():
            scores_V[token] += bias
        return scores_V

    def _random(self, scores_V: Row, best: float) -> int:  # noqa: N803
        """Draw by inverting the distribution function: one random number a token, whatever was cut off before."""
        settings, ids = self.settings, None
        point = self._generator.random()
        # The likeliest token weighs 1. A temperature next to nothing must not overflow.
        weights_V = np.exp((scores_V - np.float32(best)) * np.float32(min(1 / settings.temperature, 1e30)))  # noqa: N806
        if settings.top_k and settings.top_k < weights_V.shape[0]:
            ids = _largest(weights_V, settings.top_k)
            weights_V = weights_V[ids]  # noqa: N806
        if settings.top_p < 1:
            kept = _nucleus(weights_V, settings.top_p)
            weights_V = weights_V[kept]  # noqa: N806
            ids = kept if ids is None else ids[kept]
        if settings.min_p > 0:
            weights_V = np.where(weights_V >= settings.min_p, weights_V, np.float32(0))  # noqa: N806
        place = _pick(weights_V, point)
        return place if ids is None else int(ids[place])


def score(logits_V: Row, token: int, alternatives: int) -> TokenScore:  # noqa: N803
    """What the model itself thought of a token and of the likeliest ones.

    Args:
        logits_V: `[V]`.
        token: the one that was taken.
        alternatives: how many of the likeliest to name.
    """
    best = logits_V.max()
    whole = float(best) + math.log(float(np.exp(logits_V - best).sum(dtype=np.float64)))
    ids = _largest(logits_V, min(alternatives, logits_V.shape[0])).tolist() if alternatives else []
    return TokenScore(
        token, float(logits_V[token]) - whole, tuple((number, float(logits_V[number]) - whole) for number in ids)
    )


def _largest(weights_V: Row, count: int) -> Places:  # noqa: N803
    """Where the `count` largest stand, the largest first, of equals the first one first."""
    if count < weights_V.shape[0]:
        ids = np.argpartition(weights_V, -count)[-count:]
        ids.sort()
    else:
        ids = np.arange(weights_V.shape[0])
    return ids[np.argsort(-weights_V[ids], kind="stable")]


def _nucleus(weights_V: Row, mass: float) -> Places:  # noqa: N803
    """Where the fewest weights stand that make up a share of all, the largest first; at least one."""
    wanted = mass * float(weights_V.sum(dtype=np.float64))
    # Sorting a whole vocabulary takes milliseconds, and a nucleus is small more often than not.
    ids = _largest(weights_V, min(_FEW, weights_V.shape[0]))
    if float(weights_V[ids].sum(dtype=np.float64)) < wanted:
        ids = _largest(weights_V, weights_V.shape[0])
    held = weights_V[ids].astype(np.float64)
    inside = int(np.count_nonzero(held.cumsum() - held < wanted))
    return ids[: max(1, inside)]


def _pick(weights_V: Row, point: float) -> int:  # noqa: N803
    """Where a share `point` of all weight is reached: first among blocks, then inside of one."""
    sums = np.add.reduceat(weights_V, np.arange(0, weights_V.shape[0], _BLOCK))
    reached = sums.cumsum(dtype=np.float64)
    target = point * float(reached[-1])
    block = min(int(np.searchsorted(reached, target, side="right")), int(np.flatnonzero(sums)[-1]))
    part = weights_V[block * _BLOCK : (block + 1) * _BLOCK]
    # Sums of different order differ in their last digits; a token of no weight must never come of it.
    rest = max(0.0, target - (float(reached[block - 1]) if block else 0.0))
    place = min(int(np.searchsorted(part.cumsum(dtype=np.float64), rest, side="right")), int(np.flatnonzero(part)[-1]))
    return block * _BLOCK + place
