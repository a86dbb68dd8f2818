"""What an audit asks of the guard's and the source gate's own documents, one floor above the audit that asks.

The audit proves that bytes are canonical, well-formed and where the ledger says. What a document of this floor *means*
is known here: that a verdict follows from its numbers, that policy and draw were fixed before the run and the draw was
consumed once, that what trained stood on a ground that may train. `document_problem` is passed to `manifests.Auditor`,
as `fit_problem` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TypeVar

from adapters.errors import AdapterError
from adapters.fit import archived_adapter
from adapters.guard_report import GuardReport, recheck
from adapters.holdout_journal import draw_problems
from adapters.records import ConvergenceRecord
from adapters.tripwire_documents import tripwire_evidence, tripwire_policy
from adapters.tripwire_policy import GuardPolicy
from csf_store import Archive, Checkpoint, CsfError, Digest, Kind
from manifests import AdapterRecord, Document, LedgerFacts, ManifestError, SourceGateReport, TripwireReport

D = TypeVar("D", bound=Document)


def document_problem(archive: Archive, document: Document, facts: LedgerFacts) -> str | None:
    """What is wrong with a document that the audit has found well-formed, or None.

    Args:
        archive: where it and what it names are.
        document: of any kind; those that nothing is known about here have no problem.
        facts: what the ledger says.
    """
    try:
        if isinstance(document, TripwireReport) and document.detail is not None:
            return next(_detail_problems(archive, document, document.detail, facts), None)
        if isinstance(document, GuardReport):
            problems = chain(_report_problems(archive, document, facts), _draw_problems(document, facts))
            return next(problems, None)
        if isinstance(document, AdapterRecord):
            return next(_record_problems(archive, document), None)
        if isinstance(document, SourceGateReport):
            return next(_gate_problems(archive, document), None)
    except (CsfError, ManifestError, AdapterError) as error:
        return str(error)
    return None


def _report_problems(archive: Archive, report: GuardReport, facts: LedgerFacts) -> Iterator[str]:
    policy = _read(archive, report.policy, GuardPolicy)
    try:
        recheck(policy, report)
    except AdapterError as error:
        yield f"guard report {report.digest}: {error}"
    if sorted(each.reference for each in report.standings) != sorted(each.name for each in report.references):
        yield f"guard report {report.digest} has numbers against others than the references it names"
    written, arrived = facts.evidence.get(str(report.policy)), facts.evidence.get(str(report.digest))
    if arrived is None:
        yield f"the ledger never heard of guard report {report.digest}"
    elif written is None or written > arrived:
        when = f"by event {written}" if written is not None else "never in the ledger"
        yield f"guard policy {report.policy} was written {when}, after its report (event {arrived})"


def _draw_problems(report: GuardReport, facts: LedgerFacts, *, began: int | None = None) -> Iterator[str]:
    arrived = facts.evidence[str(report.digest)]
    yield from draw_problems(report, facts.entries, began=arrived if began is None else began, arrived=arrived)


def _detail_problems(archive: Archive, wire: TripwireReport, detail: Digest, facts: LedgerFacts) -> Iterator[str]:
    """The simple report says what the full one says, of the same run."""
    report = _read(archive, detail, GuardReport)
    if (report.assembly, report.recipe) != (wire.assembly, wire.recipe):
        yield f"guard report {detail} is of assembly {report.assembly} with recipe {report.recipe}"
    yield from _report_problems(archive, report, facts)
    policy, began = _read(archive, report.policy, GuardPolicy), Checkpoint.parse(wire.began).size
    written, arrived = facts.evidence.get(str(report.policy)), facts.evidence.get(str(detail))
    if written is None or written >= began:
        yield f"guard policy {report.policy} was written by event {written}, after the run began at event {began}"
    if arrived is None or arrived < began:
        yield f"guard report {detail} came by event {arrived}, before its run began at event {began}"
    if tripwire_policy(policy, commitment=report.commitment).digest != wire.policy:
        yield f"policy {wire.policy} is not what guard policy {report.policy} comes to on draw {report.commitment}"
    again = tripwire_evidence(policy, report, incumbent=wire.incumbent, began=wire.began)
    if again is None:
        yield f"guard report {detail} says {report.judgement.verdict}, which is neither clear nor tripped"
    elif again.report != wire:
        wrong = {each.title for each in again.report.measures} ^ {each.title for each in wire.measures}
        wrong |= {each.title for each in set(wire.measures) - set(again.report.measures)}
        yield f"guard report {detail} gives other numbers than this report, for {', '.join(sorted(wrong)[:4])}"
    yield from _draw_problems(report, facts, began=began)


def _record_problems(archive: Archive, record: AdapterRecord) -> Iterator[str]:
    """The record says of the adapter what the adapter's own configuration and tensors say."""
    adapter = archived_adapter(archive, record.adapter)
    settings = adapter.settings
    if (record.rank, record.alpha) != (settings.r, float(settings.lora_alpha)):
        yield (
            f"the record of adapter {record.adapter} says rank {record.rank} and alpha {record.alpha:g}, its own"
            f" configuration {settings.r} and {settings.lora_alpha:g}"
        )
    if other := sorted(set(record.targets) ^ set(adapter.modules)):
        yield f"the record of adapter {record.adapter} and its tensors disagree on whether it adapts {other[0]}"


def _gate_problems(archive: Archive, report: SourceGateReport) -> Iterator[str]:
    """Everything that was let in is a record that stands on what the gate says it stands on."""
    for accepted in report.accepted:
        record = _read(archive, accepted.record, ConvergenceRecord)
        ground = record.evidence.training_ground
        if ground is None:
            yield f"record {accepted.record} stands on {record.evidence.ground!r}, which may never train"
        elif (ground, record.evidence.check) != (accepted.ground, accepted.evidence):
            yield (
                f"record {accepted.record} stands on {ground!r} by {record.evidence.check}, and was let in for"
                f" {accepted.ground!r} by {accepted.evidence}"
            )
        elif record.evidence.scorer is not None:
            yield f"record {accepted.record} was scored by model {record.evidence.scorer}, which is no ground"
        elif not record.confidence.complete:
            passed, total = record.confidence.passed, record.confidence.total
            yield f"record {accepted.record} was let in with {passed} of {total} checks passed"


def _read(archive: Archive, digest: Digest, model: type[D]) -> D:
    """A record of one kind.

    Raises:
        ManifestError, CsfError: it is not there, or is none.
    """
    return model.from_bytes(archive.get_bytes(digest, kind=Kind.RECORD))
