"""Draws: cut where they should be, as likely as they should be, and the same for the same seed."""

import math

import pytest
import torch

from keystone.serve.errors import ModelFailedError
from keystone.serve.sampling import Sampler, Sampling, score

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def draws(count: int = 4000, logits: torch.Tensor = LOGITS, **settings: object) -> list[float]:
    sampler = Sampler(Sampling(seed=7, **settings), 0, (0,))
    counts = torch.zeros(len(logits))
    for _ in range(count):
        counts[sampler.draw(logits)] += 1
    return (counts / count).tolist()


def test_frequencies_are_the_distribution() -> None:
    assert draws(temperature=1.0) == pytest.approx(LOGITS.softmax(-1).tolist(), abs=0.025)
    assert draws(temperature=0.5) == pytest.approx((LOGITS / 0.5).softmax(-1).tolist(), abs=0.025)


def test_top_k_top_p_and_min_p_cut_the_tail() -> None:
    assert [share > 0 for share in draws(top_k=2)] == [True, True, False, False, False, False]
    reached = LOGITS.softmax(-1).cumsum(-1).tolist()
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
    before = LOGITS.clone()
    draws(5, bias={1: 3.0}, presence_penalty=1.0)
    assert torch.equal(before, LOGITS)
    with pytest.raises(ModelFailedError, match="not numbers"):
        Sampler(Sampling(), 0, ()).draw(torch.tensor([1.0, math.nan]))


def test_scores_are_natural_logarithms_best_first() -> None:
    found = score(LOGITS, 3, 2)
    expected = LOGITS.log_softmax(-1).tolist()
    assert found.logprob == pytest.approx(expected[3])
    assert found.alternatives == ((0, pytest.approx(expected[0])), (1, pytest.approx(expected[1])))
