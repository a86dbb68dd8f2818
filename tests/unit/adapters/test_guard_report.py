"""The guard's report: bound to policy and draw, judged again by anybody, and the memory of its chain."""

from dataclasses import replace

import pytest
from test_tripwire import POLICY, measured

from adapters.errors import HoldoutError, InvalidEvidenceError
from adapters.guard_report import GuardReport, histories, judge, recheck
from adapters.holdouts import OpenedDraw
from adapters.statistics import Look
from adapters.tripwire import Measured
from csf_store import Digest

BASE, INCUMBENT, CANDIDATE = (Digest.of(name) for name in (b"base", b"incumbent", b"candidate"))
RECIPE = Digest.of(b"recipe")
ITEMS = tuple(sorted(outcome.item for outcome in measured(0.7).fresh))
DRAW = OpenedDraw("cycle-1", POLICY.fresh_suite, POLICY.digest, Digest.of(b"sealed"), CANDIDATE, ITEMS)
REFERENCES = {"base": (BASE, measured(0.65)), "incumbent": (INCUMBENT, measured(0.7))}


def report(
    candidate: Measured | None = None,
    *,
    draw: OpenedDraw = DRAW,
    references: dict[str, tuple[Digest, Measured]] = REFERENCES,
    history: dict[str, tuple[Look, ...]] | None = None,
    sentinel: Digest = POLICY.sentinel,
) -> GuardReport:
    return judge(
        POLICY, draw, candidate or measured(0.8), references, recipe=RECIPE, history=history or {}, sentinel=sentinel
    )


def test_a_report_is_its_bytes_and_names_all_it_rests_on() -> None:
    found = report()
    assert found.judgement.verdict == "IMPROVED"
    assert (found.assembly, found.recipe, found.policy, found.look) == (CANDIDATE, RECIPE, POLICY.digest, 1)
    assert {(model.name, model.assembly) for model in found.references} == {("base", BASE), ("incumbent", INCUMBENT)}
    assert GuardReport.from_bytes(found.to_bytes()) == found
    assert found.links() == (POLICY.digest,)
    assert report().digest == found.digest


@pytest.mark.parametrize("rate", [0.6, 0.7, 0.8])
def test_a_report_is_judged_again_from_its_numbers(rate: float) -> None:
    found = GuardReport.from_bytes(report(measured(rate)).to_bytes())
    recheck(POLICY, found)
    better = replace(found.judgement, verdict="IMPROVED" if rate != 0.8 else "NON-INFERIOR")
    with pytest.raises(InvalidEvidenceError, match="its numbers say"):
        recheck(POLICY, found.revised(judgement=better))
    with pytest.raises(InvalidEvidenceError, match="went by policy"):
        recheck(POLICY.revised(margin=0.1), found)


def test_a_tripped_report_can_not_be_made_clear_by_dropping_its_reasons() -> None:
    found = report(measured(0.6))
    assert found.judgement.status == "tripped"
    with pytest.raises(InvalidEvidenceError, match="its numbers say REGRESSED"):
        recheck(POLICY, found.revised(judgement=replace(found.judgement, tripped=())))


def test_a_verdict_is_about_all_of_the_draw_that_this_policy_committed_to() -> None:
    other = measured(0.8)
    with pytest.raises(HoldoutError, match="was committed to under policy"):
        report(draw=replace(DRAW, policy=RECIPE))
    with pytest.raises(HoldoutError, match="is from other"):
        report(draw=replace(DRAW, suite="other"))
    with pytest.raises(HoldoutError, match="a verdict is about all of draw"):
        report(replace(other, fresh=other.fresh[1:]))
    with pytest.raises(HoldoutError, match="answered and not drawn"):
        report(draw=replace(DRAW, items=ITEMS[1:]))
    with pytest.raises(InvalidEvidenceError, match="the policy fixed"):
        report(sentinel=RECIPE)
    with pytest.raises(InvalidEvidenceError, match="asks for base, incumbent"):
        report(references={"base": REFERENCES["base"]})


def test_the_chain_is_built_from_reports_and_none_may_be_left_out() -> None:
    first = report()
    past = histories([(first, True)])
    assert past["base"][0] == Look(first.standings[0].bets, kept=True)
    second = report(history=dict(past))
    assert second.look == 2
    assert second.standings[0].e_value != first.standings[0].e_value
    both = histories([(first, True), (second, False)])
    assert [look.kept for look in both["incumbent"]] == [True, False]
    with pytest.raises(InvalidEvidenceError, match="expected look 1"):
        histories([(second, True)])
    with pytest.raises(InvalidEvidenceError, match="of one chain"):
        histories([(first, True), (second.revised(policy=RECIPE), True)])
    with pytest.raises(InvalidEvidenceError, match="more looks against one reference"):
        report(history={"base": past["base"]})
