"""The guard: each verdict, each way to trip, each way to be blind."""

from dataclasses import replace

import numpy as np
import pytest

from adapters.comparison import Contrast, FamilyLoss, Outcome, family_losses, pair
from adapters.errors import InvalidEvidenceError, InvalidPolicyError
from adapters.signals import SignalShift, SignalTable
from adapters.statistics import Look
from adapters.tripwire import Judgement, Measured, Standing, conclude, stand
from adapters.tripwire_policy import GuardPolicy, SignalRule
from csf_store import Digest
from manifests import InvalidDocumentError

RULE = SignalRule(name="length", harm="either", tolerance=0.25, relative=True, noise=0.5)
POLICY = GuardPolicy(
    name="test",
    sentinel=Digest.of(b"sentinel"),
    fresh_suite="made-up",
    fresh_items=800,
    sentinel_items=400,
    signals=(RULE,),
)
QUIET = SignalShift("length", 20.0, 20.1, 0.1, 0.1, -0.1, 0.3, 5.0)
EVEN = Contrast(800, 40, 0.0, 0.01, 0.5, 0.5, 0.0001)
NO_LOSS = FamilyLoss("f01", 2, 2, 30, 0.7)


def standing(name: str, **changes: object) -> Standing:
    calm = Standing(name, EVEN, replace(EVEN, items=400), NO_LOSS, 0, 0.8, (-0.1,) * 4, (QUIET,))
    return replace(calm, **changes)  # type: ignore[arg-type]


def judged(**changes: object) -> Judgement:
    return conclude(POLICY, [standing("base", **changes), standing("incumbent")])


def test_no_harm_and_its_absence_shown_is_non_inferior() -> None:
    found = judged()
    assert (found.verdict, found.status, found.tripped, found.open) == ("NON-INFERIOR", "clear", (), ())
    assert 0.03 < found.minimal_effect < 0.06


def test_beating_the_incumbent_is_improved_and_only_at_the_level_spent_over_the_looks() -> None:
    better = replace(EVEN, difference=0.1, p_better=0.0001)
    lucky = replace(EVEN, difference=0.02, p_better=0.04)
    for fresh, verdict in ((better, "IMPROVED"), (lucky, "NON-INFERIOR")):
        assert conclude(POLICY, [standing("base"), standing("incumbent", fresh=fresh)]).verdict == verdict
    assert conclude(POLICY, [standing("base", fresh=better), standing("incumbent")]).verdict == "NON-INFERIOR"


SIGNAL = replace(QUIET, value=32.0, harm=12.0)
TRIPS = {
    "fresh": {"fresh": replace(EVEN, p_worse=0.0001)},
    "sentinel": {"sentinel": replace(EVEN, p_worse=0.0001)},
    "family": {"family": FamilyLoss("f07", 28, 0, 30, 2.0**-28)},
    "chain": {"e_value": 250.0},
    "signals": {"signals": (SIGNAL,)},
}


@pytest.mark.parametrize("reference", ["base", "incumbent"])
@pytest.mark.parametrize("guard", sorted(TRIPS))
def test_each_guard_trips_by_itself_against_either_reference(guard: str, reference: str) -> None:
    other = "incumbent" if reference == "base" else "base"
    found = conclude(POLICY, [standing(reference, **TRIPS[guard]), standing(other)])
    assert (found.verdict, found.status) == ("REGRESSED", "tripped")
    assert [(reason.guard, reason.reference) for reason in found.tripped] == [(guard, reference)]


def test_what_is_just_inside_does_not_trip() -> None:
    assert judged(fresh=replace(EVEN, p_worse=POLICY.look_alpha * 1.01)).status == "clear"
    assert judged(e_value=POLICY.chain_limit * 0.99).status == "clear"
    assert judged(family=FamilyLoss("f07", 11, 0, 30, 2.0**-28)).status == "clear"
    assert judged(family=FamilyLoss("f07", 14, 0, 30, 2.0**-14)).status == "clear"
    assert judged(signals=(replace(SIGNAL, harm=5.4),)).status == "clear"


def test_noise_of_reruns_and_of_items_is_taken_off_a_signals_harm() -> None:
    shaky = replace(SIGNAL, error=2.0)
    assert judged(signals=(shaky,)).status == "clear"
    loud = POLICY.revised(signals=(RULE.model_copy(update={"noise": 8.0}),))
    assert conclude(loud, [standing("base", signals=(SIGNAL,)), standing("incumbent")]).status == "clear"


def test_a_signal_that_nobody_measured_has_tripped() -> None:
    found = judged(signals=())
    assert found.status == "tripped"
    assert "not measured" in found.tripped[0].text


BLIND = {
    "cannot exclude the margin": {"fresh": replace(EVEN, p_inferior=0.06)},
    "too few fresh items": {"fresh": replace(EVEN, items=799)},
    "too few sentinel items": {"sentinel": replace(EVEN, items=399)},
    "too few families on the fresh draw": {"fresh": replace(EVEN, families=11)},
    "too few families on the sentinel set": {"sentinel": replace(EVEN, items=400, families=5)},
    "families too small to watch": {"unwatched": 3},
}


@pytest.mark.parametrize("reference", ["base", "incumbent"])
@pytest.mark.parametrize("case", sorted(BLIND))
def test_what_could_not_have_been_seen_is_underpowered_and_never_clear(case: str, reference: str) -> None:
    other = "incumbent" if reference == "base" else "base"
    found = conclude(POLICY, [standing(reference, **BLIND[case]), standing(other)])
    assert (found.verdict, found.status) == ("UNDERPOWERED", "untested")
    assert len(found.open) == 1


def test_a_loss_outweighs_a_lack_of_power_and_a_win() -> None:
    best = replace(EVEN, difference=0.2, p_better=0.0001)
    found = conclude(POLICY, [standing("base", e_value=1e6, unwatched=9), standing("incumbent", fresh=best)])
    assert found.verdict == "REGRESSED"


def test_every_reference_of_the_policy_is_needed_once() -> None:
    for standings in ([], [standing("base")], [standing("base"), standing("incumbent"), standing("other")],
                      [standing("base"), standing("base"), standing("incumbent")]):  # fmt: skip
        with pytest.raises(InvalidEvidenceError, match="asks for base, incumbent"):
            conclude(POLICY, standings)


def test_alpha_is_shared_out_and_never_more_than_once() -> None:
    per_look = 2 * POLICY.look_alpha  # fresh and sentinel
    per_look += 40 * POLICY.family_alpha(40) + len(POLICY.signals) * POLICY.signal_alpha
    spent = len(POLICY.references) * (POLICY.looks * per_look + 1 / POLICY.chain_limit)
    assert spent == pytest.approx(POLICY.alpha)
    assert POLICY.improved_alpha * POLICY.looks == pytest.approx(POLICY.promote_alpha)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"references": ("base", "best")}, "always compares with the incumbent"),
        ({"references": ("incumbent", "best")}, "always compares with the base"),
        ({"references": ("base", "incumbent", "base")}, "named twice"),
        ({"signals": (RULE, RULE)}, "named twice"),
        ({"alpha": 0.0}, "greater than 0"),
        ({"margin": 1.0}, "less than 1"),
        ({"looks": 0}, "greater than or equal to 1"),
    ],
)
def test_policies_that_could_not_guard_are_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidDocumentError, match=why):
        POLICY.revised(**change)


def test_a_policy_is_its_bytes() -> None:
    assert GuardPolicy.from_bytes(POLICY.to_bytes()) == POLICY
    assert POLICY.revised(margin=0.05).digest != POLICY.digest


def results(seed: int, rate: float, *, items: int = 20, prefix: str = "fresh") -> list[Outcome]:
    luck = np.random.default_rng(seed).random((40, items))
    return [
        Outcome(f"{prefix}-{family}-{item}", f"f{family:02}", bool(luck[family, item] < rate))
        for family in range(40) for item in range(items)
    ]  # fmt: skip


def flipped(outcomes: list[Outcome], *, seed: int) -> list[Outcome]:
    # Every fifth item falls out at random, so that a small fall does not stand out item by item.
    rng = np.random.default_rng(seed)
    return [replace(o, passed=bool(rng.random() < 0.7)) if rng.random() < 0.2 else o for o in outcomes]


def table(length: float) -> SignalTable:
    items = tuple(f"s{number}" for number in range(40))
    values = length + np.random.default_rng(0).normal(0, 0.3, 40)
    return SignalTable(items, tuple(f"f{number:02}" for number in range(40)), {"length": values})


def measured(rate: float, *, length: float = 20.0, seed: int = 1) -> Measured:
    return Measured(results(seed, rate), results(9, rate, items=10, prefix="sentinel"), table(length))


def verdict(candidate: Measured, history: list[Look] | None = None) -> str:
    base, incumbent = measured(0.65), measured(0.7)
    past = history or []
    return conclude(
        POLICY, [stand(POLICY, "base", candidate, base, past), stand(POLICY, "incumbent", candidate, incumbent, past)]
    ).verdict


def test_from_results_to_verdicts() -> None:
    assert verdict(measured(0.8)) == "IMPROVED"
    assert verdict(measured(0.7)) == "NON-INFERIOR"
    assert verdict(measured(0.6)) == "REGRESSED"
    assert verdict(measured(0.8, length=30.0)) == "REGRESSED"
    noisy = measured(0.64, seed=5)
    assert verdict(replace(noisy, sentinel=measured(0.7).sentinel)) == "UNDERPOWERED"


def test_a_forgotten_family_is_seen_though_the_mean_hides_it() -> None:
    better = measured(0.72)
    forgets = [
        replace(outcome, passed=outcome.passed and outcome.family != "f03")
        for outcome in (*better.fresh, *better.sentinel)
    ]
    candidate = replace(better, fresh=forgets[:800], sentinel=forgets[800:])
    base = measured(0.7)
    found = conclude(POLICY, [stand(POLICY, name, candidate, base, []) for name in ("base", "incumbent")])
    assert {reason.guard for reason in found.tripped} == {"family"}
    assert "family f03 lost" in found.tripped[0].text


def test_a_drift_too_small_for_one_cycle_is_seen_over_the_chain() -> None:
    base = measured(0.7)
    candidate = replace(measured(0.67), sentinel=base.sentinel)
    history: dict[str, list[Look]] = {"base": [], "incumbent": []}
    verdicts = []
    for cycle in range(20):
        mine = replace(candidate, fresh=flipped(results(30 + cycle, 0.67), seed=70 + cycle))
        other = replace(base, fresh=results(30 + cycle, 0.7))
        standings = [stand(POLICY, name, mine, other, history[name]) for name in history]
        found = conclude(POLICY, standings)
        verdicts.append((found.verdict, {reason.guard for reason in found.tripped}))
        if found.status == "tripped":
            break
        for each in standings:
            history[each.reference].append(Look(each.bets, kept=True))
    assert 5 <= len(verdicts) < 20
    assert verdicts[-1] == ("REGRESSED", {"chain"})


def test_looks_beyond_the_plan_are_refused() -> None:
    with pytest.raises(InvalidPolicyError, match="20 looks and they are used up"):
        verdict(measured(0.7), [Look((0.0,) * 4, kept=True)] * 20)


def test_results_that_do_not_belong_together_are_refused_by_name() -> None:
    mine, theirs = results(1, 0.5), results(1, 0.5)
    with pytest.raises(InvalidEvidenceError, match=r"'fresh-39-19' was answered by the candidate alone"):
        pair(mine, theirs[:-1], what="fresh")
    with pytest.raises(InvalidEvidenceError, match=r"'fresh-0-0' was answered twice"):
        pair([mine[0], *mine], theirs, what="fresh")
    with pytest.raises(InvalidEvidenceError, match="is of family"):
        pair([replace(mine[0], family="other"), *mine[1:]], theirs, what="fresh")
    base = measured(0.7)
    with pytest.raises(InvalidEvidenceError, match="in the fresh draw and in the sentinel set"):
        both = replace(base, sentinel=base.fresh)
        stand(POLICY, "base", both, both, [])


def test_small_families_are_counted_as_unwatched() -> None:
    few = [outcome for outcome in results(1, 0.7) if outcome.family != "f00" or outcome.item.endswith("-0")]
    small = replace(measured(0.7), fresh=few, sentinel=results(9, 0.7, items=10, prefix="sentinel"))
    assert stand(POLICY, "base", small, small, []).unwatched == 1
    assert family_losses(pair(few, few, what="x"))[0].p == 1.0
