"""The gate's bench, small: its kinds are what they claim, and the default policy is right about them."""

import numpy as np
import pytest

from adapters.tripwire_policy import FRESH_ITEMS, SENTINEL_ITEMS
from bench.gate import KINDS, RATES, Design, Draw, chain, changed, single, z_of

DESIGN = Design(FRESH_ITEMS, SENTINEL_ITEMS, 0.9)
BY_NAME = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize("change", [-0.1, -0.05, 0.0, 0.05, 0.1])
def test_a_simulated_change_is_as_large_as_it_says(change: float) -> None:
    rng = np.random.default_rng(1)
    jitter = 0.15 * rng.standard_normal((200, len(RATES)))
    draw = Draw(rng, 200, 20, 0.9)
    before, after = (draw.passed(z_of(rates) + jitter) for rates in (RATES, changed(change)))
    assert (after - before).mean() == pytest.approx(change, abs=0.004)


@pytest.mark.parametrize("name", ["drop of 10 points", "one family forgotten", "mode collapse", "verbosity"])
def test_harm_is_caught_where_a_margin_alone_lets_most_of_it_through(name: str) -> None:
    row, _ = single(BY_NAME[name], DESIGN, 100, 1)
    assert row.caught >= 0.9
    assert row.promoted <= 0.03
    if name != "drop of 10 points":
        assert row.margin_only > 0.8


def test_gains_are_promoted_and_no_change_trips_nothing() -> None:
    assert single(BY_NAME["gain of 10 points"], DESIGN, 100, 1)[0].promoted >= 0.95
    assert single(BY_NAME["gain of 5 points"], DESIGN, 100, 1)[0].promoted >= 0.9
    row, churn = single(BY_NAME["no change"], DESIGN, 100, 1)
    assert row.caught <= 0.02
    assert 0.05 < churn < 0.15


def test_a_slow_drift_is_stopped_and_a_margin_alone_follows_it_down() -> None:
    guarded = chain("slow drift", -0.01, DESIGN, 24, 1, guarded=True)
    usual = chain("slow drift", -0.01, DESIGN, 24, 1, guarded=False)
    assert guarded.tripped > 0.8
    assert guarded.fell < 0.04
    assert usual.tripped == 0
    assert usual.fell > 0.15
