"""The guard's and the gate's own documents under audit: each lie in one of them is a line of its own."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from adapter_lab import Lab
from test_guard_report import ITEMS, REFERENCES
from test_tripwire import POLICY, measured

from adapters import (
    Claim,
    Confidence,
    ConvergenceRecord,
    Evidence,
    GuardPolicy,
    GuardReport,
    HoldoutEvent,
    LedgerJournal,
    OpenedDraw,
    RecordSource,
    add_adapter,
    document_problem,
    judge_candidate,
    tripwire_evidence,
    tripwire_policy,
)
from adapters.holdouts import commitment
from csf_store import Digest
from manifests import (
    AcceptedRecord,
    AdapterUse,
    Assembly,
    Auditor,
    AuditReport,
    Manifest,
    Recipe,
    Source,
    SourceGateReport,
    Tripwire,
    TripwireReport,
    Verdict,
)

RECIPE = Recipe(dtype="float32")
SALT = "5a" * 32
SEALED = commitment(POLICY.fresh_suite, len(ITEMS), 5, SALT)
COMMIT = HoldoutEvent("commit", "cycle-1", POLICY.fresh_suite, len(ITEMS), POLICY.digest, SEALED)

Moment = Literal["before", "during", "after"]
Told = list[tuple[Moment, HoldoutEvent]]


def honest_draw(commit: HoldoutEvent, opened: HoldoutEvent) -> Told:
    return [("before", commit), ("during", opened)]


@dataclass
class Run:
    """One run of the guard in an archive, with a hand in between its steps."""

    lab: Lab
    assembly: Assembly

    def put(
        self,
        *,
        policy_first: bool = True,
        forge: Callable[[GuardReport], GuardReport] = lambda report: report,
        rewrite: Callable[[TripwireReport], TripwireReport] = lambda report: report,
        commit: HoldoutEvent = COMMIT,
        tell: Callable[[HoldoutEvent, HoldoutEvent], Told] = honest_draw,
    ) -> tuple[Digest, Digest, Digest]:
        """Store everything; the manifest, the full report and the simple one."""
        repository, candidate = self.lab.repository, self.assembly.digest
        told = tell(commit, replace(commit, step="open", candidate=candidate, seed=5, salt=SALT, items=ITEMS))
        draw = OpenedDraw(commit.draw, commit.suite, commit.policy, commit.commitment, candidate, ITEMS)
        repository.put_record(tripwire_policy(POLICY, commitment=draw.commitment))
        if policy_first:
            repository.put_record(POLICY)
        self.tell(told, "before")
        began = str(self.lab.archive.ledger.checkpoint())
        self.tell(told, "during")
        honest = judge_candidate(
            POLICY, draw, measured(0.8), REFERENCES, recipe=RECIPE.digest, history={}, sentinel=POLICY.sentinel
        )
        found = tripwire_evidence(POLICY, honest, incumbent=None, began=began)
        assert found is not None
        repository.put_record(POLICY)
        detail = repository.put_record(forge(honest))
        for number in found.numbers:
            repository.put_record(number)
        wire = rewrite(found.report.revised(detail=detail))
        stored = repository.put_record(wire)
        self.tell(told, "after")
        manifest = Manifest(
            assembly=self.assembly,
            recipe=RECIPE,
            source=Source(kind="trained", location="a test", licence="Apache-2.0"),
            tripwire=Tripwire(status=wire.status, report=stored, recipe=RECIPE.digest),
            lineage=repository.trace([self.assembly.adapters[0].adapter], base=self.lab.base),
        )
        return repository.put(manifest), detail, stored

    def tell(self, told: Told, moment: Moment) -> None:
        """What of the draw's story the ledger hears at a moment, by the book or not."""
        journal = LedgerJournal(self.lab.archive)
        for when, event in told:
            if when == moment:
                assert journal.append(event, after=len(journal.events()))


@pytest.fixture
def run(lab: Lab) -> Run:
    adapter, _ = add_adapter(lab.repository, lab.adapter, base=lab.base)
    return Run(lab, Assembly(base=lab.base, adapters=(AdapterUse(adapter=adapter),), tokenizer=lab.base))


def line(report: AuditReport, check: str) -> tuple[Verdict, str]:
    (found,) = (each for each in report.lines if each.check == check)
    return found.verdict, found.message


def test_an_honest_run_passes_as_a_manifest_and_document_by_document(run: Run) -> None:
    manifest, detail, stored = run.put()
    auditor = Auditor(run.lab.archive, documents=document_problem)
    assert line(auditor.audit(manifest), "guard") == (
        Verdict.PASS,
        "the full report gives the same numbers and, by its own policy, the same verdict",
    )
    for digest in (POLICY.digest, detail, stored):
        report = auditor.audit_target(str(digest))
        assert {each.verdict for each in report.lines} == {Verdict.PASS}, report
        assert line(report, "inclusion")[0] is Verdict.PASS
    without = Auditor(run.lab.archive).audit(manifest)
    assert line(without, "guard")[0] is Verdict.UNKNOWN and line(without, "tripwire")[0] is Verdict.PASS


def better(report: GuardReport) -> GuardReport:
    return report.revised(judgement=replace(report.judgement, minimal_effect=0.001))


def tamer(report: GuardReport) -> GuardReport:
    return report.revised(standings=tuple(replace(each, e_value=each.e_value / 2) for each in report.standings))


def of_another(report: GuardReport) -> GuardReport:
    return report.revised(assembly=Digest.of(b"another"))


def of_another_draw(report: GuardReport) -> GuardReport:
    return report.revised(commitment=Digest.of(b"another draw"))


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (better, "its numbers say"),
        (tamer, "gives other numbers than this report, for .*e-value"),
        (of_another, "is of assembly"),
        (of_another_draw, "is not what guard policy .* comes to on draw"),
    ],
)
def test_a_full_report_that_says_something_else(
    run: Run, forge: Callable[[GuardReport], GuardReport], says: str
) -> None:
    manifest, detail, _ = run.put(forge=forge)
    auditor = Auditor(run.lab.archive, documents=document_problem)
    verdict, text = line(auditor.audit(manifest), "guard")
    assert verdict is Verdict.FAIL and re.search(says, text)
    if forge is better:
        assert line(auditor.audit_document(detail), "claims")[0] is Verdict.FAIL


def test_a_guard_policy_that_came_after_the_run_began(run: Run) -> None:
    manifest, _, _ = run.put(policy_first=False)
    report = Auditor(run.lab.archive, documents=document_problem).audit(manifest)
    verdict, text = line(report, "guard")
    assert verdict is Verdict.FAIL and "after the run began" in text
    assert line(report, "tripwire")[0] is Verdict.PASS  # which knows of the simple policy alone


def spent_before(commit: HoldoutEvent, opened: HoldoutEvent) -> Told:
    earlier = replace(opened, draw="cycle-0", items=(ITEMS[3], "another"))
    return [("before", earlier), *honest_draw(commit, opened)]


OTHER = Digest.of(b"another")


@pytest.mark.parametrize(
    ("tell", "says"),
    [
        (lambda _, __: [], "nobody committed to draw 'cycle-1' before the run"),
        (lambda commit, opened: [("during", commit), ("during", opened)], "after the run began"),
        (lambda commit, opened: [("before", opened), ("before", commit)], "opened by event .* not between"),
        (lambda commit, opened: [("before", commit), ("after", opened)], "opened by event .* not between"),
        (lambda commit, _: [("before", commit)], "committed to 1 times, opened 0 times"),
        (lambda commit, opened: [*honest_draw(commit, opened), ("after", opened)], "opened 2 times"),
        (lambda commit, opened: honest_draw(replace(commit, policy=OTHER), opened), "under policy"),
        (lambda commit, opened: honest_draw(replace(commit, commitment=OTHER), opened), "committed to as"),
        (lambda commit, opened: honest_draw(commit, replace(opened, candidate=OTHER)), "consumed by assembly"),
        (lambda commit, opened: honest_draw(commit, replace(opened, salt="00")), "not those that were committed to"),
        (lambda commit, opened: honest_draw(commit, replace(opened, seed=6)), "not those that were committed to"),
        (lambda commit, opened: honest_draw(commit, replace(opened, items=ITEMS[1:])), "the verdict is about others"),
        (spent_before, "which draw 'cycle-0' had consumed"),
    ],
)
def test_a_draw_that_was_not_fresh(run: Run, tell: Callable[[HoldoutEvent, HoldoutEvent], Told], says: str) -> None:
    manifest, detail, _ = run.put(tell=tell)
    auditor = Auditor(run.lab.archive, documents=document_problem)
    verdict, text = line(auditor.audit(manifest), "guard")
    assert verdict is Verdict.FAIL and re.search(says, text), text
    if "run began" not in says:  # where a run began is told by the simple report alone
        assert line(auditor.audit_document(detail), "claims")[0] is Verdict.FAIL


def test_a_verdict_about_other_items_than_were_drawn(run: Run) -> None:
    count = len(ITEMS) + 1
    more = replace(COMMIT, count=count, commitment=commitment(COMMIT.suite, count, 5, SALT))

    def tell(commit: HoldoutEvent, opened: HoldoutEvent) -> Told:
        return honest_draw(commit, replace(opened, items=(*ITEMS, "one more")))

    manifest, _, _ = run.put(commit=more, tell=tell)
    verdict, text = line(Auditor(run.lab.archive, documents=document_problem).audit(manifest), "guard")
    assert verdict is Verdict.FAIL and "the verdict is about others" in text, text


def test_a_line_of_the_book_that_cannot_be_read(run: Run) -> None:
    run.lab.archive.ledger.append("holdout", step="swap", draw="cycle-1")
    manifest, _, _ = run.put(tell=lambda _, __: [])
    verdict, text = line(Auditor(run.lab.archive, documents=document_problem).audit(manifest), "guard")
    assert verdict is Verdict.FAIL and "cannot read" in text


def record(**changes: object) -> ConvergenceRecord:
    return ConvergenceRecord(
        claim=Claim(suite="basics", task="t", prompt="p", answer="a"),
        evidence=Evidence(ground="tests-passed", check=Digest.of(b"tests"), checker="sandbox"),
        confidence=Confidence(passed=2, total=2),
        source=RecordSource(kind="person", name="alice", licence="Apache-2.0"),
    ).revised(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"evidence": Evidence(ground="none", checker="nobody")}, "stands on 'none', which may never train"),
        ({"confidence": Confidence(passed=1, total=2)}, "1 of 2 checks passed"),
        ({"evidence": Evidence(ground="grounding-check", check=Digest.of(b"tests"), checker="c")}, "was let in for"),
        ({"evidence": Evidence(ground="tests-passed", check=Digest.of(b"other"), checker="c")}, "was let in for"),
        (
            {
                "evidence": Evidence(
                    ground="tests-passed", check=Digest.of(b"tests"), checker="c", scorer=Digest.of(b"judge")
                )
            },
            "was scored by model",
        ),
    ],
)
def test_what_a_gate_let_in_stands_on_what_it_says(lab: Lab, changes: dict[str, object], says: str | None) -> None:
    for data in (b"tests", b"other"):
        lab.archive.put_bytes(data)
    stored = lab.repository.put_record(record(**changes))
    accepted = AcceptedRecord(record=stored, ground="tests-passed", evidence=Digest.of(b"tests"))
    gate = lab.repository.put_record(SourceGateReport(gate="source-gate/1", accepted=(accepted,)))
    auditor = Auditor(lab.archive, documents=document_problem)
    verdict, text = line(auditor.audit_document(gate), "claims")
    assert (verdict is Verdict.PASS) == (says is None)
    assert says is None or says in text
    assert line(auditor.audit_document(stored), "document")[0] is Verdict.PASS


def test_a_record_that_is_none_is_not_let_in(lab: Lab) -> None:
    lab.archive.put_bytes(b"tests")
    stored = lab.repository.put_record(GuardPolicy(name="n", sentinel=Digest.of(b"s"), fresh_suite="f"))
    accepted = AcceptedRecord(record=stored, ground="tests-passed", evidence=Digest.of(b"tests"))
    gate = lab.repository.put_record(SourceGateReport(gate="source-gate/1", accepted=(accepted,)))
    verdict, text = line(Auditor(lab.archive, documents=document_problem).audit_document(gate), "claims")
    assert verdict is Verdict.FAIL and "convergence-record" in text
