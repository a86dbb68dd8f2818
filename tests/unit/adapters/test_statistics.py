"""Each test statistic against an independent reference: scipy, a slow loop, or published values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adapters.errors import InvalidEvidenceError, InvalidPolicyError
from adapters.statistics import (
    STAKES,
    Families,
    Look,
    SignFlips,
    chain_e_value,
    confidence_sequence,
    items_per_family,
    log_bets,
    mcnemar_better,
    mcnemar_differs,
    mcnemar_worse,
    minimal_effect,
    normal_quantile,
    paired_bootstrap,
    standard_error,
    start_weights,
    t_quantile,
    t_tail,
    wilson,
)
from adapters.statistics.bootstrap import resampled_means
from adapters.statistics.families import family_error

COUNTS = st.integers(0, 60)


@given(COUNTS, COUNTS)
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    if lost + gained == 0:
        assert mcnemar_worse(lost, gained) == mcnemar_differs(lost, gained) == 1
        return
    total = lost + gained
    assert mcnemar_worse(lost, gained) == pytest.approx(stats.binomtest(lost, total, alternative="greater").pvalue)
    assert mcnemar_better(lost, gained) == pytest.approx(stats.binomtest(lost, total, alternative="less").pvalue)
    assert mcnemar_differs(lost, gained) == pytest.approx(stats.binomtest(lost, total).pvalue)


def test_mcnemar_keeps_its_level_exactly_where_mid_p_does_not() -> None:
    exact, mid = 0.0, 0.0
    for lost in range(7):
        chance = math.comb(6, lost) / 64
        p = mcnemar_worse(lost, 6 - lost)
        exact += chance * (p <= 0.1)
        mid += chance * (p - chance / 2 <= 0.1)
    assert exact <= 0.1 < mid


@given(st.floats(1e-7, 1 - 1e-7), st.integers(1, 200))
def test_quantiles_are_those_of_scipy(p: float, degrees: int) -> None:
    assert normal_quantile(p) == pytest.approx(stats.norm.ppf(p), rel=1e-9, abs=1e-9)
    assert t_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-6, abs=1e-9)


@given(st.integers(-5000, 5000).map(lambda hundredths: hundredths / 100), st.integers(1, 200))
def test_the_tail_of_t_is_that_of_scipy(value: float, degrees: int) -> None:
    assert t_tail(value, degrees) == pytest.approx(stats.t.sf(value, degrees), rel=1e-9, abs=1e-14)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_is_that_of_scipy(counts: tuple[int, int], level: float) -> None:
    passed, total = counts
    expected = stats.binomtest(passed, total).proportion_ci(level, method="wilson")
    assert wilson(passed, total, level=level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_says_nothing_and_nonsense_is_refused() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(InvalidPolicyError, match="3 of 2"):
        wilson(3, 2)
    with pytest.raises(InvalidPolicyError, match="between 0 and 1"):
        wilson(1, 2, level=1.5)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(-1, 1)), min_size=1, max_size=40))
def test_family_means_are_those_of_a_slow_loop(rows: list[tuple[str, float]]) -> None:
    families = Families.of([name for name, _ in rows])
    means = families.means([value for _, value in rows])
    for number, name in enumerate(families.names):
        mine = [value for other, value in rows if other == name]
        assert means[number] == pytest.approx(sum(mine) / len(mine), abs=1e-12)
    assert families.means(np.tile([value for _, value in rows], (3, 2, 1))).shape == (3, 2, len(families.names))


def test_what_cannot_be_compared_is_refused() -> None:
    families = Families.of(["a", "b"])
    with pytest.raises(InvalidEvidenceError, match="not a finite number"):
        families.means([0.0, math.nan])
    with pytest.raises(InvalidEvidenceError, match="for 2 items"):
        families.means([0.0])
    with pytest.raises(InvalidEvidenceError, match="no items"):
        Families.of([])
    assert np.isinf(family_error(np.array([0.3])))


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=8), st.sampled_from([0.0, -0.05, 0.1]))
@settings(max_examples=60)
def test_exhaustive_sign_flips_are_those_of_a_slow_loop(twentieths: list[int], null: float) -> None:
    means = np.array(twentieths) / 20
    shifted = means - null
    sums = [sum(s * v for s, v in zip(signs, shifted, strict=True))
            for signs in itertools.product((-1, 1), repeat=len(shifted))]  # fmt: skip
    flips = SignFlips(len(means))
    assert flips.exhaustive
    worse = sum(total <= shifted.sum() + 1e-9 for total in sums) / len(sums)
    better = sum(total >= shifted.sum() - 1e-9 for total in sums) / len(sums)
    assert float(flips.p_worse(means, null=null)) == pytest.approx(worse)
    assert float(flips.p_better(means, null=null)) == pytest.approx(better)


def test_drawn_sign_flips_agree_with_scipys_permutation_test_and_never_reach_zero() -> None:
    means = np.random.default_rng(3).normal(-0.01, 0.06, 40)
    found = float(SignFlips(40).p_worse(means))
    reference = stats.permutation_test(
        (means,),
        np.mean,
        permutation_type="samples",
        alternative="less",
        n_resamples=9999,
        rng=np.random.default_rng(7),
    )
    assert found == pytest.approx(reference.pvalue, abs=0.015)
    assert float(SignFlips(40).p_worse(np.full(40, -1.0))) == 1 / 10_000


def test_sign_flips_of_a_batch_are_those_of_each_row() -> None:
    rows = np.random.default_rng(5).normal(0, 0.05, (600, 40))
    flips = SignFlips(40)
    batch = flips.p_better(rows, null=-0.01)
    assert batch.shape == (600,)
    assert [float(flips.p_better(rows[i], null=-0.01)) for i in (0, 255, 256, 599)] == batch[
        [0, 255, 256, 599]
    ].tolist()


def test_sign_flips_keep_their_level_when_items_hang_together_and_mcnemar_does_not() -> None:
    rng = np.random.default_rng(11)
    shift = rng.normal(0, 0.12, (1500, 20))  # true change of each family, zero on average
    lost = rng.binomial(20, np.clip(0.1 - shift / 2, 0, 0.5))
    gained = rng.binomial(20, np.clip(0.1 + shift / 2, 0, 0.5))
    by_family = SignFlips(20, count=4999).p_worse((gained - lost) / 20)
    by_item = [mcnemar_worse(int(a), int(b)) for a, b in zip(lost.sum(1), gained.sum(1), strict=True)]
    assert (by_family <= 0.05).mean() < 0.07
    assert (np.array(by_item) <= 0.05).mean() > 0.10


def test_bootstrap_intervals_are_those_of_scipy() -> None:
    means = np.random.default_rng(2).exponential(0.1, 60) - 0.05
    for ours, theirs in (("bca", "BCa"), ("percentile", "percentile")):
        found = paired_bootstrap(means, method=ours, resamples=20_000, level=0.9)
        reference = stats.bootstrap(
            (means,), np.mean, confidence_level=0.9, method=theirs, n_resamples=20_000, rng=np.random.default_rng(1)
        )
        low, high = reference.confidence_interval
        assert (found.low, found.high) == pytest.approx((low, high), abs=7e-4)
        assert found.error == pytest.approx(reference.standard_error, rel=0.03)
        assert found.mean == pytest.approx(means.mean())


def test_bootstrap_of_constants_has_no_width_and_nonsense_is_refused() -> None:
    still = paired_bootstrap(np.full(5, 0.25))
    assert (still.low, still.high, still.error) == pytest.approx((0.25, 0.25, 0.0))
    with pytest.raises(InvalidEvidenceError, match="two"):
        paired_bootstrap(np.array([0.1]))
    with pytest.raises(InvalidPolicyError, match="bca or percentile"):
        paired_bootstrap(np.zeros(3), method="magic")
    assert resampled_means(np.zeros((4, 7, 3)), resamples=11).shape == (4, 7, 11)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(-0.5, 0.5), st.floats(0.01, 0.99))
def test_bets_are_the_product_of_their_factors_and_never_ruinous(xs: list[float], null: float, stake: float) -> None:
    slow = 1.0
    for x in xs:
        factor = 1 - stake * (x - null) / (1 + abs(null))
        assert factor >= 0
        slow *= factor
    assert math.exp(float(log_bets(np.array(xs), null=null, stakes=(stake,))[0])) == pytest.approx(slow, rel=1e-9)


@pytest.mark.parametrize("high", [0.05, 0.3, 0.9])
def test_the_expected_bet_is_at_most_one_even_when_families_truly_differ(high: float) -> None:
    # Three families with outcomes -1, 0, 1: two that fall, one that rises as much; every combination is enumerated.
    expected = np.zeros(len(STAKES))
    chances = [{-1: high / 2, 0: 1 - high / 2}, {-1: high / 2, 0: 1 - high / 2}, {1: high, 0: 1 - high}]
    for outcome in itertools.product((-1, 0, 1), repeat=3):
        chance = math.prod(each.get(value, 0.0) for each, value in zip(chances, outcome, strict=True))
        expected += chance * np.exp(log_bets(np.array(outcome, dtype=float)))
    assert (expected <= 1 + 1e-12).all()


@given(st.lists(st.tuples(st.lists(st.floats(-2, 2), min_size=2, max_size=2), st.booleans()), max_size=6))
def test_the_chain_is_the_average_over_starts_of_the_products_since(rows: list[tuple[list[float], bool]]) -> None:
    history = [Look(tuple(bets), kept) for bets, kept in rows]
    now = (0.7, -0.3)
    weights = start_weights(8)
    slow = sum(weights[len(history) + 1 :])
    for start in range(len(history) + 1):
        for stake in range(2):
            product = math.exp(now[stake])
            for look in history[start:]:
                product *= math.exp(look.bets[stake]) if look.kept else min(1.0, math.exp(look.bets[stake]))
            slow += weights[start] * product / 2
    assert chain_e_value(history, now, looks=8) == pytest.approx(slow, rel=1e-9)


def test_looking_at_a_chain_every_cycle_does_not_inflate_its_error_and_repeated_p_values_do() -> None:
    rng = np.random.default_rng(13)
    chains, looks, families = 1500, 20, 40
    means = rng.normal(0, 0.08, (chains, looks, families)).clip(-1, 1)
    bets = log_bets(means)
    p = SignFlips(families, count=999).p_worse(means)
    e_won = p_won = 0
    for chain in range(chains):
        history: list[Look] = []
        won = False
        for look in range(looks):
            now = tuple(bets[chain, look])
            won = won or chain_e_value(history, now, looks=looks) >= 1 / 0.05
            # The hardest case for the guard: only what looks good is kept, as promotion does.
            history.append(Look(now, kept=bool(means[chain, look].mean() > -0.005)))
        e_won += won
        p_won += bool((p[chain] <= 0.05).any())
    assert e_won / chains <= 0.05
    assert p_won / chains > 0.5


def test_a_refused_candidate_is_not_held_against_the_next_and_a_kept_one_is() -> None:
    bad, fine = (3.0,) * 4, (0.0,) * 4
    assert chain_e_value([Look(bad, kept=False)], fine, looks=20) == pytest.approx(1.0)
    assert chain_e_value([Look(bad, kept=True)], fine, looks=20) > 10


def test_looks_that_are_used_up_are_refused() -> None:
    with pytest.raises(InvalidPolicyError, match="used up"):
        chain_e_value([Look((0.0,), kept=True)] * 3, (0.0,), looks=3)
    with pytest.raises(InvalidEvidenceError, match="different stakes"):
        chain_e_value([Look((0.0, 0.0), kept=True)], (0.0,), looks=3)
    assert sum(start_weights(20)) == pytest.approx(1.0)


def test_the_confidence_sequence_covers_at_all_times_at_once_and_narrows() -> None:
    rng = np.random.default_rng(17)
    missed = 0
    for _ in range(150):
        cycles = list(rng.normal(-0.03, 0.1, (20, 40)).clip(-1, 1))
        found = confidence_sequence(cycles, alpha=0.1, points=201)
        missed += any(not each.low <= -0.03 <= each.high for each in found)
        assert found[-1].high - found[-1].low < found[0].high - found[0].low
    assert missed / 150 <= 0.1
    assert found[-1].high < 0.02
    assert found[-1].low > -0.09


def test_the_confidence_sequence_sees_what_the_bets_see() -> None:
    cycles = [np.full(40, -0.1)] * 4
    wealth = np.exp(log_bets(np.stack(cycles)).sum(0)).mean() / 2  # half of the wealth is on the other side
    excluded = confidence_sequence(cycles, alpha=float(1 / wealth) * 1.01, points=201)[-1].high <= 1e-12
    assert excluded
    with pytest.raises(InvalidPolicyError, match="alpha"):
        confidence_sequence(cycles, alpha=0.0)
    with pytest.raises(InvalidEvidenceError, match="between -1 and 1"):
        log_bets(np.array([1.5]))
    with pytest.raises(InvalidPolicyError, match="stakes"):
        log_bets(np.array([0.5]), stakes=(1.0,))


def test_the_planned_error_and_power_are_what_simulation_finds() -> None:
    rng = np.random.default_rng(19)
    families, items, churn, jitter = 40, 20, 0.12, 0.04
    error = standard_error(families=families, items=items, churn=churn, jitter=jitter)
    effect = minimal_effect(error, families=families, alpha=0.01, power=0.8)
    change = -effect + rng.normal(0, jitter, (4000, families))
    lost, gained = (rng.binomial(items, np.clip(churn / 2 + sign * change / 2, 0, 1)) for sign in (-1, 1))
    means = (gained - lost) / items
    assert means.mean(1).std() == pytest.approx(error, rel=0.05)
    assert (SignFlips(families, count=1999).p_worse(means) <= 0.01).mean() == pytest.approx(0.8, abs=0.03)


@given(st.floats(0.04, 0.2), st.integers(10, 60), st.floats(0.02, 0.4))
def test_the_items_needed_are_the_fewest_that_show_the_effect(effect: float, families: int, churn: float) -> None:
    def shown(items: int) -> float:
        error = standard_error(families=families, items=items, churn=churn)
        return minimal_effect(error, families=families, alpha=0.05, power=0.9)

    needed = items_per_family(effect, families=families, churn=churn, alpha=0.05, power=0.9)
    assert shown(needed) <= effect * (1 + 1e-6)
    assert needed == 1 or shown(needed - 1) >= effect * (1 - 1e-6)


def test_families_that_differ_too_much_cannot_be_made_up_for_with_items() -> None:
    with pytest.raises(InvalidPolicyError, match="add families"):
        items_per_family(0.02, families=10, churn=0.1, alpha=0.01, power=0.9, jitter=0.2)
    assert minimal_effect(0.01, families=1, alpha=0.05, power=0.8) == math.inf


@pytest.mark.parametrize(("value", "degrees", "tail"), [(2.0, 1, 0.147583617650433), (12.0, 9, 3.8473e-07)])
def test_the_far_tail_of_t(value: float, degrees: int, tail: float) -> None:
    assert t_tail(value, degrees) == pytest.approx(stats.t.sf(value, degrees), rel=1e-9)
    assert t_tail(value, degrees) == pytest.approx(tail, rel=1e-3)
