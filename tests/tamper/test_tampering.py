"""Every kind of tampering on the list, each caught, and the culprit named; and nothing else is.

`make tamper` applies thousands. Here each kind is tried a few times, and what the audit says must name what was done.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
import victim
from harness import Harness, scratch
from manifest_house import signer
from tamperings import MUTATIONS, Scene
from victim import audit_all, sign, trained

from csf_store import Archive
from csf_store.pipeline import Pipeline
from manifests import (
    Auditor,
    AuditorState,
    InvalidDocumentError,
    Verdict,
)
from manifests.auditing import evidence_checks, lineage_checks, ref_checks, signature_checks


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    ordered = Pipeline.ordered
    with scratch() as root:
        yield Harness(root)
    Pipeline.ordered = ordered  # type: ignore[method-assign]


SAYS = {
    "a-byte-of-a-segment": "damaged|cannot be read|header|segment|no manifest",
    "a-byte-of-a-segment-and-no-caches": "damaged|cannot be read|no manifest|in no segment|segment|not in",
    "a-byte-of-a-stored-object": "damaged|cannot be read",
    "the-end-of-a-segment-cut-off": "in no segment|no manifest|damaged|cannot be read|not there|gone|no record|not in",
    "a-byte-of-a-ledger-line": "ledger line",
    "a-ledger-line-removed": "ledger line|lines were removed|does not begin with|tail was cut off",
    "a-ledger-line-inserted": "ledger line|does not begin with",
    "ledger-lines-reordered": "ledger line",
    "the-tail-of-the-ledger-cut-off": "tail was cut off|does not begin with",
    "the-tail-of-the-ledger-forged": "does not begin with the",
    "one-ledger-line-rewritten-and-all-hashes-after-it": "does not begin with the",
    "a-ref-moved-without-an-event": "ref 'main' was moved to .* without an event",
    "a-ref-moved-from-where-it-was-not": "moves it from",
    "a-report-of-another-assembly": "eval .*the report measured assembly",
    "a-report-rewritten-for-this-assembly": "approvals .*did not see report",
    "a-score-moved-to-another-recipe": "eval .*the report measured recipe",
    "a-score-raised-in-the-manifest": "eval .*its report says",
    "items-that-do-not-add-up": "eval .*(the items say|results of|comes twice)",
    "a-score-that-its-items-do-not-give": "eval .*the items say",
    "an-interval-narrowed": "eval .*it says an interval",
    "a-policy-written-after-the-run": "tripwire .*policy .* was written .*after",
    "a-policy-written-after-the-run-that-is-said-to-be-later": "tripwire .*policy .* was written .*after .* measured",
    "a-policy-written-during-the-run": "tripwire .*policy .* was written .*after the run began",
    "a-tripwire-that-is-said-not-to-have-tripped": "tripwire .*judges .* otherwise",
    "a-tripwire-value-that-no-report-measured": "tripwire .* here and .* in report",
    "a-tripwire-that-tripped-later-and-is-kept-quiet": "tripwire .*a later report of the same .*, which tripped",
    "a-tripwire-of-another-assembly": "tripwire .*watched assembly",
    "a-tripwire-measured-on-another-assembly": "tripwire .*measured something else",
    "a-guard-report-that-its-numbers-do-not-give": "guard .*its numbers say",
    "a-number-of-the-guard-changed-in-its-full-report": "guard .*gives other numbers than this report, for .*e-value",
    "a-guard-report-of-another-assembly": "guard .*is of assembly",
    "a-draw-that-nobody-committed-to": "guard .*nobody committed to draw",
    "a-draw-opened-for-one-more-candidate": "guard .*opened 2 times",
    "a-draw-that-was-committed-to-twice": "guard .*committed to 2 times",
    "items-of-a-draw-that-an-earlier-one-had-consumed": "guard .*which draw 'week-31' had consumed",
    "a-guard-policy-written-after-the-run": "guard .*guard policy .* was written .*after the run began",
    "raw-model-output-let-in-by-the-gate": "gate .*which may never train",
    "experience-that-did-not-pass-let-in-by-the-gate": "gate .*of 3 checks passed",
    "experience-let-in-for-a-check-that-is-not-its-own": "gate .*was let in for",
    "an-attestation-given-again-to-an-old-nonce": "attestation .*given before proves nothing",
    "an-attestation-of-another-assembly-told-as-of-this": "attestation .*it is of b3:",
    "an-attestation-that-is-gone": "attestation .*(in no segment|is gone)",
    "an-approval-replayed-for-another-candidate": "ref .*moves a protected ref: approval .*it is for assembly",
    "an-approval-of-another-candidate-in-a-manifest": "approvals .*given for assembly",
    "an-approval-spent-twice": "ref .*spent by event",
    "a-protected-ref-moved-without-an-approval": "ref .*moves a protected ref",
    "an-approval-by-a-revoked-key": "ref .*bob .*revoked before it",
    "an-approval-by-a-key-nobody-trusts": "ref .*nobody here knows",
    "a-signature-that-is-none": "signature .*not a signature of these bytes",
    "a-signature-by-a-revoked-key": "signature .*bob .*revoked before it",
    "a-lineage-cycle": "lineage .*is recorded with parent|own ancestor",
    "a-lineage-cut-short": "lineage .*disagree",
    "a-base-swapped-for-one-of-the-same-shapes": "lineage .*is recorded on base",
    "a-base-swapped-with-all-records-forged": "base .*another base of the same shapes",
    "an-adapter-trained-on-another-base": "training .*trained on base",
    "a-base-that-changed-during-training": "training .*the base changed during training",
    "an-adapter-that-its-training-did-not-make": "training .*the record made tensors",
    "data-that-the-source-gate-did-not-let-in": "gate .*(not let in|no source gate)",
    "an-adapter-that-does-not-fit": "fit .*does not fit",
    "an-adapter-record-that-lies-about-its-adapter": "fit .*the record of adapter .*(says rank|disagree on)",
    "a-tokenizer-changed-by-one-merge": "eval .*the report measured assembly",
    "an-adapter-left-out-of-an-approved-manifest": "approvals .*given for assembly",
    "an-adapter-weight-changed": "approvals .*given for assembly",
    "a-manifest-that-is-not-canonical": "manifest .*not in RFC 8785 form",
}


def test_every_mutation_has_its_sentence() -> None:
    assert SAYS.keys() == MUTATIONS.keys()


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_tampering_is_caught_and_named(harness: Harness, name: str) -> None:
    for seed in range(1):
        alarms = harness.alarms(name, seed)
        assert any(re.search(SAYS[name], alarm) for alarm in alarms), alarms


def test_an_untouched_archive_raises_no_alarm(harness: Harness) -> None:
    for seed in range(3):
        assert harness.alarms(None, seed) == []


def test_everything_about_the_victim_is_proven(harness: Harness) -> None:
    with harness.copy() as (path, state):
        reports = audit_all(path, state)
    assert {report.verdict for report in reports} == {Verdict.PASS}


def test_honest_work_raises_no_alarm(harness: Harness) -> None:
    with harness.copy() as (path, state):
        with Archive.open(path) as archive:
            house = Scene(path, harness.victim, random.Random(0)).house(archive)
            refs = house.repository.refs
            adapter = trained(house, 77, harness.victim.adapters[1])
            target = house.repository.put(house.wired(house.manifest(adapter).revised(parent=harness.victim.second)))
            refs.promote("prod", target, approval=house.approve("prod", target, signer()))
            refs.set("main", target, expected=refs.find("main"))
            sign(house, target)
            refs.rollback("main")
        for report in audit_all(path, state, [target]):
            assert report.verdict is Verdict.PASS, [line for line in report.lines if line.verdict is not Verdict.PASS]
        assert {report.verdict for report in audit_all(path, state, [target])} == {Verdict.PASS}


@pytest.mark.parametrize(
    ("module", "check", "name"),
    [
        (evidence_checks, "score_problem", "a-score-that-its-items-do-not-give"),
        (evidence_checks, "_policy_problem", "a-tripwire-that-is-said-not-to-have-tripped"),
        (evidence_checks, "_measure_problem", "a-tripwire-value-that-no-report-measured"),
        (evidence_checks, "_wire_problem", "a-tripwire-of-another-assembly"),
        (evidence_checks, "_eval_problem", "a-report-of-another-assembly"),
        (lineage_checks, "_training_problem", "a-base-that-changed-during-training"),
        (ref_checks, "_unapproved", "an-approval-by-a-revoked-key"),
        (evidence_checks, "_tripped_later", "a-tripwire-that-tripped-later-and-is-kept-quiet"),
        (lineage_checks, "_record_problem", "an-adapter-record-that-lies-about-its-adapter"),
        (victim, "document_problem", "a-number-of-the-guard-changed-in-its-full-report"),
        (victim, "document_problem", "raw-model-output-let-in-by-the-gate"),
    ],
)
def test_a_check_that_is_taken_out_is_missed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, module: object, check: str, name: str
) -> None:
    assert harness.alarms(name, 5)
    monkeypatch.setattr(module, check, lambda *_: None)
    assert harness.alarms(name, 5) == []


def test_a_verdict_on_signatures_that_is_taken_out_is_missed(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_checks, "verdict_of", lambda _: Verdict.PASS)
    assert harness.alarms("a-signature-that-is-none", 5) == []


def test_without_what_the_auditor_remembers_a_perfect_forgery_passes(harness: Harness) -> None:
    """Which is why the checkpoint is kept outside: nothing inside an archive can show that all of it was rewritten."""
    name = "one-ledger-line-rewritten-and-all-hashes-after-it"
    with harness.copy() as (path, state):
        MUTATIONS[name](Scene(path, harness.victim, random.Random(f"{name} 3")))
        (kept,) = state.iterdir()
        before = kept.read_bytes()
        reports = audit_all(path, state)
        failed = {line.check for report in reports for line in report.lines if line.verdict is Verdict.FAIL}
        assert "checkpoint" in failed and kept.read_bytes() == before  # a bad ledger is not what is remembered next
        kept.unlink()
        again = {line.check for r in audit_all(path, state) for line in r.lines if line.verdict is Verdict.FAIL}
        assert "checkpoint" not in again


def test_a_state_that_cannot_be_read_is_not_replaced(harness: Harness) -> None:
    with harness.copy() as (path, state):
        (kept,) = state.iterdir()
        kept.write_text("{}")
        with Archive.open(path) as archive, pytest.raises(InvalidDocumentError, match="last checkpoint seen"):
            AuditorState(state).recall(archive)


def test_quick_trusts_what_did_not_change_and_nothing_else(harness: Harness) -> None:
    with harness.copy() as (path, state):
        audit_all(path, state)  # the copy's files are new: the first audit of them is a full one
        with Archive.open(path) as archive:
            report = Auditor(archive, state=AuditorState(state), quick=True).audit_target("main")
        (line,) = (line for line in report.lines if line.check == "objects")
        assert "27 of them unchanged" in line.message
        MUTATIONS["a-byte-of-a-stored-object"](Scene(path, harness.victim, random.Random(1)))
        with Archive.open(path) as archive:
            report = Auditor(archive, state=AuditorState(state), quick=True).audit_target("main")
        assert all("unchanged" not in line.message for line in report.lines if line.check == "objects")
