"""Draws: cut where they should be, as likely as they should be, and the same for the same seed."""

import math

import numpy as np
import pytest

from keystone.serve.errors import ModelFailedError
from keystone.serve.sampling import Sampler, Sampling, score

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], dtype=np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def draws(count: int = 4000, logits: np.ndarray = LOGITS, **settings: object) -> list[float]:
    sampler = Sampler(Sampling(seed=7, **settings), 0, (0,))
    counts = np.zeros(len(logits))
    for _ in range(count):
        counts[sampler.draw(logits)] += 1
    return (counts / count).tolist()


def test_frequencies_are_the_distribution() -> None:
    assert draws(temperature=1.0) == pytest.approx(softmax(LOGITS).tolist(), abs=0.025)
    assert draws(temperature=0.5) == pytest.approx(softmax(LOGITS / 0.5).tolist(), abs=0.025)


def test_top_k_top_p_and_min_p_cut_the_tail() -> None:
    assert [share > 0 for share in draws(top_k=2)] == [True, True, False, False, False, False]
    reached = softmax(LOGITS).cumsum().tolist()
    edge = (reached[1] + reached[2]) / 2
    assert [share > 0 for share in draws(top_p=edge)] == [True, True, True, False, False, False]
    assert [share > 0 for share in draws(top_p=0.0)] == [True, False, False, False, False, False]
    assert [share > 0 for share in draws(min_p=0.3)] == [True, True, False, False, False, False]


def test_greedy_takes_the_best_and_penalties_and_bias_count_first() -> None:
    assert draws(50, temperature=0) == [1, 0, 0, 0, 0, 0]
    assert draws(50, temperature=0, bias={5: 100.0})[5] == 1
    assert Sampler(Sampling(temperature=0, repeat_penalty=5.0), 0, (0,)).draw(LOGITS) == 1
    once = Sampler(Sampling(temperature=0, presence_penalty=1.6), 0, ())
    assert [once.draw(LOGITS) for _ in range(3)] == [0, 1, 2]


def test_a_seed_and_a_choice_name_a_stream_of_draws() -> None:
    def text(seed: int | None, choice: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), choice, ())
        return [sampler.draw(LOGITS) for _ in range(40)]

    assert text(1, 0) == text(1, 0)
    assert len({tuple(text(seed, choice)) for seed in (1, 2, -1) for choice in (0, 1)}) == 6
    assert text(None, 0) != text(None, 0)


def test_cutting_the_tail_takes_no_other_random_numbers() -> None:
    narrow, wide = Sampler(Sampling(seed=3, top_p=0.999999), 0, ()), Sampler(Sampling(seed=3), 0, ())
    assert [narrow.draw(LOGITS) for _ in range(60)] == [wide.draw(LOGITS) for _ in range(60)]


def test_logits_are_left_as_they_are_and_numbers_are_demanded() -> None:
    before = LOGITS.copy()
    draws(5, bias={1: 3.0}, presence_penalty=1.0)
    assert np.array_equal(before, LOGITS)
    with pytest.raises(ModelFailedError, match="not numbers"):
        Sampler(Sampling(), 0, ()).draw(np.array([1.0, math.nan], dtype=np.float32))


def test_scores_are_natural_logarithms_best_first() -> None:
    found = score(LOGITS, 3, 2)
    expected = np.log(softmax(LOGITS)).tolist()
    assert found.logprob == pytest.approx(expected[3])
    assert found.alternatives == ((0, pytest.approx(expected[0])), (1, pytest.approx(expected[1])))


@pytest.mark.parametrize(
    "cut", [{}, {"top_p": 0.9}, {"top_p": 0.6, "top_k": 900}, {"top_k": 40}, {"min_p": 0.2}], ids=str
)
@pytest.mark.parametrize("temperature", [1e-40, 0.3, 1.0, 2.0])
def test_a_large_vocabulary_gives_what_plain_arithmetic_gives(cut: dict[str, float], temperature: float) -> None:
    chance = np.random.default_rng(5)
    for turn in range(8):
        logits = (chance.standard_normal(3001) * (1 + turn)).astype(np.float32)
        logits[chance.integers(0, 3001, 400)] = -np.inf
        sampler = Sampler(Sampling(seed=turn, temperature=temperature, **cut), 0, ())
        point = np.random.Generator(type(sampler._generator.bit_generator)(0))
        point.bit_generator.state = sampler._generator.bit_generator.state
        assert sampler.draw(logits) == plainly(logits, temperature, point.random(), **cut)


def plainly(
    logits: np.ndarray, temperature: float, point: float, *, top_p: float = 1, top_k: int = 0, min_p: float = 0
) -> int:
    """The definition, by sorting everything; the order of tokens only matters where something was sorted."""
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.argsort(-weights, kind="stable") if top_k or top_p < 1 else np.arange(len(weights))
    order = order[: top_k or None]
    kept = weights[order]
    if top_p < 1:
        inside = kept.cumsum() - kept < top_p * kept.sum()
        order, kept = order[inside], kept[inside]
    kept = np.where(kept >= min_p, kept, 0)
    reached = kept.cumsum()
    return int(order[np.searchsorted(reached, point * reached[-1], side="right")])
