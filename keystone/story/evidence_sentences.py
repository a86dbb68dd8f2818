"""Sentences about evidence, with the numbers that its documents hold.

Each function gives None where the document can not be read any more; the event is then told by what the ledger says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from csf_store import JSON
from keystone.story.names import Names, short
from manifests import (
    EvalReport,
    Interval,
    SourceGateReport,
    TrainingRecord,
    TripwirePolicy,
    TripwireReport,
)


def interval_words(interval: Interval | None) -> str:
    """` (0.33 to 0.49 at 95 %)`, or nothing."""
    if interval is None:
        return ""
    return f" ({interval.low:.3g} to {interval.high:.3g} at {interval.level * 100:g} %)"


def _evaluated(names: Names, record: JSON) -> str | None:
    report = names.load_record(record, EvalReport)
    if report is None:
        return None
    result = report.result
    return (
        f"{names.assembly(str(report.assembly))} scored {result.metric} {result.score:.4g}"
        f"{interval_words(result.interval)} over {result.n} items of {result.suite}"
    )


def _trained(names: Names, record: JSON) -> str | None:
    run = names.load_record(record, TrainingRecord)
    if run is None:
        return None
    parent = f", from adapter {short(str(run.parent))}" if run.parent is not None else ""
    records = f", {len(run.experience)} of them verified records" if run.experience else ""
    intact = "" if run.base_before == run.base_after else "; THE BASE CHANGED"
    return (
        f"an adapter was trained on base {short(str(run.base))}{parent}: {run.examples} examples{records},"
        f" {run.config.steps} steps, loss {run.losses[0]:.3g} to {run.final_loss:.3g}{intact}"
    )


def _policy(names: Names, record: JSON) -> str | None:
    policy = names.load_record(record, TripwirePolicy)
    if policy is None:
        return None
    rules = f"{len(policy.rules)} rule{'' if len(policy.rules) == 1 else 's'}"
    return f"tripwire policy {policy.name} was fixed with {rules}: {short(record)}"


def _watched(names: Names, record: JSON) -> str | None:
    report = names.load_record(record, TripwireReport)
    if report is None:
        return None
    about = names.assembly(str(report.assembly))
    if report.tripped:
        return f"the tripwire TRIPPED on {about}: {', '.join(report.tripped)}"
    return f"the tripwire stayed clear on {about} ({', '.join(each.title for each in report.measures)})"


def _gated(names: Names, record: JSON) -> str | None:
    report = names.load_record(record, SourceGateReport)
    if report is None:
        return None
    return f"the source gate let {len(report.accepted)} records in and kept {len(report.rejected)} out: {short(record)}"


DOCUMENT_SENTENCES: Final[Mapping[str, Callable[[Names, JSON], str | None]]] = {
    "eval-report": _evaluated,
    "training-record": _trained,
    "tripwire-policy": _policy,
    "tripwire-report": _watched,
    "source-gate-report": _gated,
}
"""Kind of document -> its sentence. Every other kind is told by its name."""
