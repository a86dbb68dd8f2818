"""The guard in the documents of manifests: the same word, in the archive, by rules recorded before."""

from dataclasses import replace
from pathlib import Path

import pytest
from adapter_lab import Lab
from test_guard_report import BASE, CANDIDATE, DRAW, INCUMBENT, RECIPE, REFERENCES, report
from test_tripwire import POLICY, TRIPS, measured, standing

from adapters import add_adapter
from adapters.errors import InvalidEvidenceError
from adapters.guard_report import GuardReport, ReferenceModel, judge
from adapters.tripwire import conclude
from adapters.tripwire_documents import tripwire_evidence, tripwire_policy
from csf_store import Archive
from manifests import (
    AdapterUse,
    Assembly,
    Manifest,
    Recipe,
    Repository,
    Source,
    Tripwire,
    TripwirePolicy,
    TripwireReport,
    Verdict,
    audit,
    judge_tripwire,
)

BEGAN = f"3:{'0' * 64}"


@pytest.mark.parametrize("rate", [0.6, 0.7, 0.8])
def test_both_forms_say_the_same_and_the_simple_one_can_be_judged_again(rate: float) -> None:
    full = report(measured(rate))
    found = tripwire_evidence(POLICY, full, incumbent=None, began=BEGAN)
    assert found is not None
    assert found.report.status == full.judgement.status
    rules = tripwire_policy(POLICY, commitment=full.commitment)
    assert found.report.policy == rules.digest
    assert set(judge_tripwire(rules, found.report.measures)) == set(found.report.tripped)
    assert TripwireReport.from_bytes(found.report.to_bytes()) == found.report
    assert {each.assembly for each in found.numbers} == {CANDIDATE}
    assert {each.digest for each in found.numbers} <= set(found.report.links())


@pytest.mark.parametrize("guard", sorted(TRIPS))
def test_each_guard_is_a_rule_of_its_own(guard: str) -> None:
    standings = (standing("base", **TRIPS[guard]), standing("incumbent"))
    full = GuardReport(
        policy=POLICY.digest, assembly=CANDIDATE, recipe=RECIPE, draw="cycle-1", commitment=DRAW.commitment, look=1,
        references=(ReferenceModel(name="base", assembly=BASE), ReferenceModel(name="incumbent", assembly=INCUMBENT)),
        standings=standings, judgement=conclude(POLICY, standings),
    )  # fmt: skip
    found = tripwire_evidence(POLICY, full, incumbent=None, began=BEGAN)
    assert found is not None
    assert len(found.report.tripped) == 1
    assert found.report.tripped[0].endswith(".base")


def test_a_signal_nobody_measured_trips_here_too() -> None:
    standings = (standing("base", signals=()), standing("incumbent"))
    full = report().revised(standings=standings, judgement=conclude(POLICY, standings))
    found = tripwire_evidence(POLICY, full, incumbent=None, began=BEGAN)
    assert found is not None
    assert found.report.tripped == ("sentinel/test length.base",)


def test_underpowered_is_no_report_and_a_changed_report_is_refused() -> None:
    noisy = replace(measured(0.64, seed=5), sentinel=measured(0.7).sentinel)
    unsure = report(noisy)
    assert unsure.judgement.verdict == "UNDERPOWERED"
    assert tripwire_evidence(POLICY, unsure, incumbent=None, began=BEGAN) is None
    good = report()
    forged = report(measured(0.6)).revised(judgement=good.judgement)
    with pytest.raises(InvalidEvidenceError, match="the report was changed"):
        tripwire_evidence(POLICY, forged, incumbent=None, began=BEGAN)
    with pytest.raises(InvalidEvidenceError, match="went by policy"):
        tripwire_evidence(POLICY.revised(margin=0.2), good, incumbent=None, began=BEGAN)


def test_all_of_it_goes_into_an_archive_in_order(tmp_path: Path) -> None:
    with Archive.create(tmp_path / "archive") as archive:
        repository = Repository(archive)
        assert repository.put_record(POLICY) == POLICY.digest
        rules = tripwire_policy(POLICY, commitment=DRAW.commitment)
        repository.put_record(rules)
        began = str(archive.ledger.checkpoint())
        full = judge(POLICY, DRAW, measured(0.8), REFERENCES, recipe=RECIPE, history={}, sentinel=POLICY.sentinel)
        found = tripwire_evidence(POLICY, full, incumbent=None, began=began)
        assert found is not None
        repository.put_record(full)
        for each in found.numbers:
            repository.put_record(each)
        stored = repository.put_record(found.report)
        assert repository.load_record(stored, TripwireReport) == found.report
        assert repository.load_record(found.report.policy, TripwirePolicy) == rules
        assert repository.load_record(full.digest, GuardReport) == full


@pytest.mark.parametrize(("rate", "word"), [(0.8, Verdict.PASS), (0.6, Verdict.FAIL)])
def test_an_audit_that_knows_no_statistics_judges_the_guard_again(lab: Lab, rate: float, word: Verdict) -> None:
    repository = lab.repository
    adapter, _ = add_adapter(repository, lab.adapter, base=lab.base)
    assembly = Assembly(base=lab.base, adapters=(AdapterUse(adapter=adapter),), tokenizer=lab.base)
    recipe = Recipe(dtype="float32")
    draw = replace(DRAW, candidate=assembly.digest)
    repository.put_record(POLICY)
    repository.put_record(tripwire_policy(POLICY, commitment=draw.commitment))
    began = str(lab.archive.ledger.checkpoint())
    full = judge(POLICY, draw, measured(rate), REFERENCES, recipe=recipe.digest, history={}, sentinel=POLICY.sentinel)
    found = tripwire_evidence(POLICY, full, incumbent=None, began=began)
    assert found is not None
    for document in (full, *found.numbers, found.report):
        repository.put_record(document)
    manifest = repository.put(
        Manifest(
            assembly=assembly,
            recipe=recipe,
            source=Source(kind="trained", location="a test", licence="Apache-2.0"),
            tripwire=Tripwire(status=found.report.status, report=found.report.digest, recipe=recipe.digest),
            lineage=repository.trace([adapter], base=lab.base),
        )
    )
    lines = {line.check: line for line in audit(lab.archive, manifest).lines}
    assert lines["tripwire"].verdict is word
    assert ("judged again" in lines["tripwire"].message) == (word is Verdict.PASS)
