"""Signals of collapse: each against a case worked by hand, and calibration against what reruns show."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidEvidenceError
from adapters.signals import (
    Sample,
    SampledItem,
    SignalTable,
    calibrate,
    compression,
    distinct,
    divergences,
    echo,
    entropies,
    measure,
    self_bleu,
    shift,
)
from adapters.tripwire_policy import SignalRule

TOKENS = st.lists(st.integers(0, 5), max_size=12)


def test_distinct_counts_different_ngrams() -> None:
    assert distinct([(1, 2, 1, 2), (1, 2)], 2) == 2 / 4  # 12 21 12, 12
    assert distinct([(1, 2, 3)], 1) == 1
    assert distinct([(), (1,)], 2) == 0


def test_self_bleu_is_one_for_copies_and_small_for_strangers() -> None:
    same = (1, 2, 3, 4, 5)
    assert self_bleu([same, same, same]) == pytest.approx(1.0)
    assert self_bleu([same, (6, 7, 8, 9, 10)]) < 0.2
    assert self_bleu([(), ()]) == 1.0
    # "1 2 3" against "1 2 4": precisions 2/3, 1/2 and (smoothed) 0.5/1; equal lengths, no penalty.
    assert self_bleu([(1, 2, 3), (1, 2, 4)]) == pytest.approx((2 / 3 * 1 / 2 * 0.5) ** (1 / 3))
    # A shorter sample pays for its length: exp(1 - 4/2) on perfect precisions.
    assert self_bleu([(1, 2), (1, 2, 3, 4)]) == pytest.approx((math.exp(-1) + (0.5 * 1 / 3 * 0.25 * 0.5) ** 0.25) / 2)


@given(st.lists(TOKENS, min_size=2, max_size=4))
def test_self_bleu_and_distinct_are_shares(samples: list[list[int]]) -> None:
    assert 0 <= self_bleu(samples) <= 1 + 1e-12
    assert 0 <= distinct(samples, 2) <= 1


def test_compression_falls_with_repetition() -> None:
    varied = [f"def f{n}(x): return x * {n * 7919 % 1000} + {n}" for n in range(20)]
    assert compression([varied[0]] * 20) < 0.2 < compression(varied)
    assert compression(["", " "]) == 0


def test_echo_is_the_share_of_ngrams_that_the_prompt_holds() -> None:
    assert echo((1, 2, 3, 4, 5), (2, 3, 4, 5, 6)) == 1 / 2
    assert echo((1, 2, 3, 4), (5, 6, 7, 8)) == 0
    assert echo((1, 2, 3, 4), (1, 2, 3)) == 0


def test_entropy_and_divergence_of_known_distributions() -> None:
    flat, sharp = np.zeros((1, 4)), np.array([[100.0, 0.0, 0.0, 0.0]])
    assert entropies(flat) == pytest.approx([math.log(4)])
    assert entropies(sharp) == pytest.approx([0.0], abs=1e-9)
    assert divergences(sharp, flat) == pytest.approx([math.log(4)])
    assert divergences(flat + 7.0, flat) == pytest.approx([0.0], abs=1e-12)
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.25, 0.25])
    assert divergences(np.log(p)[None], np.log(q)[None]) == pytest.approx([(p * np.log(p / q)).sum()])
    with pytest.raises(InvalidEvidenceError, match="same tokens"):
        divergences(np.zeros((2, 3)), np.zeros((3, 3)))


def item(name: str, *tokens: tuple[int, ...], logits: bool = True) -> SampledItem:
    known = (1.0, 0.25) if logits else (None, None)
    samples = tuple(Sample(each, " ".join(map(str, each)), *known) for each in tokens)
    return SampledItem(name, name[0], (9, 1, 2, 3, 4), samples)


def test_a_table_holds_what_the_samples_allow() -> None:
    table = measure([item("b1", (1, 2, 3, 4), ()), item("a1", (5, 6), (5, 6))])
    assert table.items == ("a1", "b1")
    assert table.values["length"].tolist() == [2, 2]
    assert table.values["empty"].tolist() == [0, 0.5]
    assert table.values["echo"].tolist() == [0, 0.5]
    assert table.values["kl"].tolist() == [0.25, 0.25]
    assert table.level("self-bleu") > 0
    alone = measure([item("a1", (1, 2), logits=False)])
    assert alone.values.keys() == {"distinct-1", "distinct-2", "compression", "length", "empty", "echo"}
    assert measure([item("a1", (1,))], is_refusal=lambda text: text == "1").values["empty"].tolist() == [1.0]
    for broken in ([], [item("a1", (1,)), item("a1", (2,))], [item("a1")]):
        with pytest.raises(InvalidEvidenceError):
            measure(broken)


def lengths(values: np.ndarray) -> SignalTable:
    names = tuple(f"i{number:02}" for number in range(len(values)))
    return SignalTable(names, names, {"length": values})


RULE = SignalRule(name="length", harm="either", tolerance=0.25, relative=True)


def test_a_shift_is_paired_and_counted_towards_harm() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(20, 8, 40)  # items differ far more than the models do
    longer = lengths(base + 2 + rng.normal(0, 0.1, 40))
    found = shift(RULE, longer, lengths(base))
    assert found.harm == pytest.approx(2, abs=0.1)
    assert found.low < found.harm < found.high
    assert found.error < 0.05
    assert found.tolerance == pytest.approx(0.25 * base.mean())
    lower = RULE.model_copy(update={"harm": "lower", "relative": False})
    assert shift(lower, longer, lengths(base)).harm == pytest.approx(-2, abs=0.1)
    assert shift(lower, longer, lengths(base)).tolerance == 0.25
    with pytest.raises(InvalidEvidenceError, match="different items"):
        shift(RULE, lengths(base[:-1]), lengths(base))
    with pytest.raises(InvalidEvidenceError, match="was not measured"):
        shift(RULE.model_copy(update={"name": "kl"}), longer, lengths(base))


def test_calibrated_noise_is_passed_by_chance_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    rule = RULE.model_copy(update={"harm": "higher"})
    passed = 0
    for _ in range(400):
        runs = [lengths(20 + rng.normal(0, 1, 30)) for _ in range(8)]
        (found,) = calibrate([rule], runs[:6], alpha=0.1)
        passed += runs[6].level("length") - runs[7].level("length") > found.noise
    assert 0.06 <= passed / 400 <= 0.14


def test_calibration_needs_enough_reruns_of_the_same_items() -> None:
    runs = [lengths(np.full(3, 20.0 + number)) for number in range(5)]
    (found,) = calibrate([RULE], runs, alpha=0.01)
    assert found.noise > 3 * np.std([20, 21, 22, 23, 24], ddof=1)
    with pytest.raises(InvalidEvidenceError, match="at least 5"):
        calibrate([RULE], runs[:4], alpha=0.01)
    with pytest.raises(InvalidEvidenceError, match="same items"):
        calibrate([RULE], [*runs, lengths(np.zeros(2))], alpha=0.01)
    with pytest.raises(InvalidEvidenceError, match="in every rerun"):
        calibrate([RULE.model_copy(update={"name": "kl"})], runs, alpha=0.01)
