"""Signals of collapse and drift, computed from samples: what a pass rate does not show.

A model that trains on its own output forgets how to vary long before it forgets how to pass: it repeats itself, it
copies its prompt, its answers grow or vanish, its next-token distributions sharpen. Each signal here is one number an
item (a prompt with its samples), so that two models are compared item by item, like pass rates.

| signal | of one item | harm |
|---|---|---|
| `distinct-1`, `distinct-2` | different n-grams / n-grams, over its samples | lower |
| `self-bleu` | how much of each sample the item's other samples already said | higher |
| `compression` | zlib bytes / bytes of its samples in a row | lower |
| `entropy` | mean entropy of next-token distributions, nats | lower |
| `kl` | mean KL divergence from the base's distributions, nats a token | higher |
| `length` | mean tokens of a sample | either |
| `empty` | share of samples that are empty or refuse | higher |
| `echo` | share of a sample's 4-grams that its prompt holds | higher |

`calibrate` finds how far apart runs of one and the same model fall, from reruns of the base with other seeds.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.errors import InvalidEvidenceError
from adapters.statistics import Families, normal_quantile, paired_bootstrap, t_quantile
from adapters.statistics.families import Floats
from adapters.tripwire_policy import SignalRule

ECHO = 4
BLEU = 4
FEWEST_RERUNS = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion. `entropy` and `kl` are means over its tokens, null where no logits were kept."""

    tokens: tuple[int, ...]
    text: str
    entropy: float | None = None
    kl: float | None = None


@dataclass(frozen=True, slots=True)
class SampledItem:
    """One prompt with its samples."""

    item: str
    family: str
    prompt: tuple[int, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class SignalTable:
    """Signals of one model over one set of items.

    Attributes:
        items: names, sorted.
        families: of each item.
        values: signal -> one number an item, shape (N,).
    """

    items: tuple[str, ...]
    families: tuple[str, ...]
    values: Mapping[str, Floats]

    def level(self, signal: str) -> float:
        """The mean over families."""
        return float(Families.of(self.families).means(self.values[signal]).mean())


@dataclass(frozen=True, slots=True)
class SignalShift:
    """How far a signal moved towards harm.

    Attributes:
        name: of the signal.
        reference: the other model's level.
        value: the candidate's.
        harm: how far it went the wrong way; negative where it went the right way.
        error: standard error of that, from a paired bootstrap over families.
        low: of the change's 95 % interval (paired bootstrap, BCa).
        high: of that interval.
        tolerance: what is tolerated, in the signal's unit.
    """

    name: str
    reference: float
    value: float
    harm: float
    error: float
    low: float
    high: float
    tolerance: float

    def surely(self, alpha: float, *, noise: float) -> float:
        """The harm that is left after what chance explains, by reruns or by the draw of items, whichever is more."""
        return self.harm - max(noise, normal_quantile(1 - alpha / 2) * self.error)


def measure(
    items: Sequence[SampledItem], *, is_refusal: Callable[[str], bool] = lambda text: not text.strip()
) -> SignalTable:
    """All signals that the samples allow: `self-bleu` needs two samples an item, `entropy` and `kl` need logits.

    Args:
        items: prompts with samples.
        is_refusal: whether a text is no answer; only the empty one by default.

    Raises:
        InvalidEvidenceError: no items, one item twice, or one without samples.
    """
    if not items or len({item.item for item in items}) != len(items):
        raise InvalidEvidenceError("signals need items, and each of them once")
    ordered = sorted(items, key=lambda item: item.item)
    rows = [_signals_of(item, is_refusal) for item in ordered]
    kept = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
    values = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in kept}
    return SignalTable(tuple(i.item for i in ordered), tuple(i.family for i in ordered), values)


def _signals_of(item: SampledItem, is_refusal: Callable[[str], bool]) -> dict[str, float | None]:
    samples = item.samples
    if not samples:
        raise InvalidEvidenceError(f"item {item.item!r} has no samples; sample it, or leave it out for both models")
    tokens = [sample.tokens for sample in samples]
    return {
        "distinct-1": distinct(tokens, 1),
        "distinct-2": distinct(tokens, 2),
        "self-bleu": self_bleu(tokens) if len(tokens) > 1 else None,
        "compression": compression([sample.text for sample in samples]),
        "entropy": _mean([sample.entropy for sample in samples]),
        "kl": _mean([sample.kl for sample in samples]),
        "length": sum(map(len, tokens)) / len(tokens),
        "empty": sum(is_refusal(sample.text) for sample in samples) / len(samples),
        "echo": sum(echo(item.prompt, each) for each in tokens) / len(tokens),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def distinct(samples: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of the samples together; 0 where there are none."""
    grams = [gram for tokens in samples for gram in _ngrams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(samples: Sequence[Sequence[int]], *, n: int = BLEU) -> float:
    """Mean BLEU of each sample against all others: 1 when they all say the same, near 0 when none repeats another.

    Clipped n-gram precisions up to `n`, smoothed by one half where a count is zero, geometric mean, brevity penalty
    with the closest length. Two empty samples say the same.
    """
    scores = []
    for number, tokens in enumerate(samples):
        others = [other for place, other in enumerate(samples) if place != number]
        scores.append(_bleu(tokens, others, n))
    return sum(scores) / len(scores) if scores else 0.0


def _bleu(tokens: Sequence[int], others: Sequence[Sequence[int]], n: int) -> float:
    if not tokens:
        return float(any(not other for other in others))
    logs = []
    for size in range(1, min(n, len(tokens)) + 1):
        mine = Counter(_ngrams(tokens, size))
        most: Counter[tuple[int, ...]] = Counter()
        for other in others:
            most |= Counter(_ngrams(other, size))
        shared = sum(min(count, most[gram]) for gram, count in mine.items())
        logs.append(math.log((shared or 0.5) / mine.total()))
    closest = min((len(other) for other in others), key=lambda size: (abs(size - len(tokens)), size))
    penalty = min(1.0, math.exp(1 - closest / len(tokens)))
    return penalty * math.exp(sum(logs) / len(logs))


def compression(texts: Sequence[str]) -> float:
    """Compressed bytes over bytes of all texts in a row, at most 1; what repeats itself is small. 0 for no text."""
    raw = "\n".join(texts).encode()
    return min(1.0, len(zlib.compress(raw, 9)) / len(raw)) if raw.strip() else 0.0


def echo(prompt: Sequence[int], tokens: Sequence[int], *, n: int = ECHO) -> float:
    """The share of a sample's n-grams that its prompt holds; 0 for a sample too short to have any."""
    grams = _ngrams(tokens, n)
    known = set(_ngrams(prompt, n))
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def entropies(logits: npt.ArrayLike) -> Floats:
    """Entropy of next-token distributions in nats: logits (T, V) to (T,)."""
    logs = _log_softmax(logits)
    return np.asarray(-(np.exp(logs) * logs).sum(axis=-1), dtype=np.float64)


def divergences(logits: npt.ArrayLike, base_logits: npt.ArrayLike) -> Floats:
    """KL(model || base) at each token in nats: two arrays of logits (T, V) to (T,).

    Raises:
        InvalidEvidenceError: when the shapes differ.
    """
    mine, theirs = _log_softmax(logits), _log_softmax(base_logits)
    if mine.shape != theirs.shape:
        raise InvalidEvidenceError(f"logits of shapes {mine.shape} and {theirs.shape}; score the same tokens with both")
    return np.asarray((np.exp(mine) * (mine - theirs)).sum(axis=-1), dtype=np.float64)


def _log_softmax(logits: npt.ArrayLike) -> Floats:
    array = np.asarray(logits, dtype=np.float64)
    array = array - array.max(axis=-1, keepdims=True)
    return np.asarray(array - np.log(np.exp(array).sum(axis=-1, keepdims=True)), dtype=np.float64)


def shift(rule: SignalRule, candidate: SignalTable, reference: SignalTable, *, seed: int = 0) -> SignalShift:
    """How far one signal moved, item by item.

    Raises:
        InvalidEvidenceError: when the items differ, or a signal is missing.
    """
    if candidate.items != reference.items or candidate.families != reference.families:
        raise InvalidEvidenceError(f"signal {rule.name} was measured on different items; sample both on the same ones")
    for table in (candidate, reference):
        if rule.name not in table.values:
            raise InvalidEvidenceError(f"signal {rule.name} was not measured; there are {', '.join(table.values)}")
    means = Families.of(candidate.families).means(candidate.values[rule.name] - reference.values[rule.name])
    interval = paired_bootstrap(means, seed=seed)
    level = reference.level(rule.name)
    return SignalShift(
        name=rule.name,
        reference=level,
        value=candidate.level(rule.name),
        harm=harm_of(rule, interval.mean),
        error=interval.error,
        low=interval.low,
        high=interval.high,
        tolerance=rule.tolerance * abs(level) if rule.relative else rule.tolerance,
    )


def harm_of(rule: SignalRule, change: float) -> float:
    """A change, counted positive in the direction that harms."""
    return {"lower": -change, "higher": change, "either": abs(change)}[rule.harm]


def calibrate(rules: Sequence[SignalRule], reruns: Sequence[SignalTable], *, alpha: float) -> tuple[SignalRule, ...]:
    """The same rules with the noise that reruns of the base show.

    The rule: with s the standard deviation of a signal's level over K reruns, two further runs differ by more than
    `t(1 - alpha, K - 1) * s * sqrt(2)` with probability alpha (levels are means over many items, hence near normal; t
    pays for knowing s from K reruns only; for `either`, alpha is split over both sides). A signal that never varies,
    like the KL of the base from itself, has no noise, and its tolerance alone decides.

    Args:
        rules: what to calibrate.
        reruns: the base, sampled anew each time with another seed, on the items that cycles will use.
        alpha: the level of one signal in one cycle, `GuardPolicy.signal_alpha`.

    Raises:
        InvalidEvidenceError: fewer than five reruns, other items, or a signal that was not measured.
    """
    if len(reruns) < FEWEST_RERUNS:
        raise InvalidEvidenceError(
            f"{len(reruns)} reruns of the base; at least {FEWEST_RERUNS} are needed to see how far they fall apart"
        )
    if len({table.items for table in reruns}) != 1:
        raise InvalidEvidenceError("the reruns are not on the same items; sample the same prompts with other seeds")
    calibrated = []
    for rule in rules:
        if not all(rule.name in table.values for table in reruns):
            raise InvalidEvidenceError(f"signal {rule.name} was not measured in every rerun")
        levels = np.array([table.level(rule.name) for table in reruns])
        side = alpha / 2 if rule.harm == "either" else alpha
        noise = t_quantile(1 - side, len(levels) - 1) * float(levels.std(ddof=1)) * math.sqrt(2)
        calibrated.append(rule.model_copy(update={"noise": noise}))
    return tuple(calibrated)
