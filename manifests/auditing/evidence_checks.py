"""Checks on evidence: does each report say what the manifest says, and do its own parts add up to it?"""

from __future__ import annotations

from collections.abc import Iterator

from csf_store import Checkpoint, CsfError, Digest
from manifests.approvals import ledger_problem
from manifests.auditing.context import Context, Lines, Subject
from manifests.auditing.lines import AuditLine, Verdict
from manifests.errors import ManifestError
from manifests.evidence import EvalReport
from manifests.items import read_items, score_problem
from manifests.loading import load_manifest
from manifests.schema import Assembly, EvalSummary
from manifests.tripwires import TripwireMeasure, TripwirePolicy, TripwireReport, judge


def check_evals(context: Context, subject: Subject) -> Lines:
    """Each summary against its report, and each report against its items."""
    for summary in subject.manifest.evals:
        name = f"{summary.suite} {summary.metric}"
        try:
            report = context.repository.load_record(summary.report, EvalReport)
            problem = _eval_problem(summary, report, subject.manifest.assembly) or items_problem(context, report)
        except (CsfError, ManifestError) as error:
            problem = f"the report cannot be read: {error}"
        if problem:
            yield AuditLine("eval", Verdict.FAIL, summary.report, f"{name}: {problem}")
            continue
        text = f"{name} = {summary.score:.4g} over {summary.n} items, bound to this assembly and"
        own = subject.manifest.recipe
        other = own is not None and own.digest != summary.recipe
        text = (
            f"{text} recipe {summary.recipe.short}, which is not the one to be served with"
            if other
            else f"{text} recipe"
        )
        if report.items is None:
            yield AuditLine("eval", Verdict.UNKNOWN, summary.report, f"{text}; no items are kept to score again")
        elif str(summary.report) not in context.facts.evidence:
            yield AuditLine("eval", Verdict.UNKNOWN, summary.report, f"{text}; the ledger never heard of its report")
        else:
            yield AuditLine("eval", Verdict.PASS, summary.report, f"{text}, scored again from them")


def _eval_problem(summary: EvalSummary, report: EvalReport, assembly: Assembly) -> str | None:
    if report.assembly != assembly.digest:
        return f"the report measured assembly {report.assembly}, this manifest runs {assembly.digest}"
    if report.recipe != summary.recipe:
        return f"the report measured recipe {report.recipe}, the manifest says {summary.recipe}"
    for field in type(report.result).model_fields:
        told, measured = getattr(summary, field), getattr(report.result, field)
        if told != measured:
            return f"the manifest says {field} {told}, its report says {measured}"
    return None


def items_problem(context: Context, report: EvalReport) -> str | None:
    """Why a report's items do not give its score, or None; None too where it keeps no items."""
    if report.items is None:
        return None
    items = read_items(context.archive.get_bytes(report.items))
    problem = score_problem(report.result, items)
    return f"{problem} (items {report.items})" if problem else None


def check_tripwire(context: Context, subject: Subject) -> Lines:
    """The tripwire's report is of this assembly, follows from its policy, and the policy came first."""
    manifest, wire = subject.manifest, subject.manifest.tripwire
    if wire.report is None:
        if manifest.assembly.adapters:
            yield AuditLine("tripwire", Verdict.UNKNOWN, manifest.assembly.digest, "the tripwire has not been run")
        else:
            text = "the bare frozen base needs no tripwire"
            yield AuditLine("tripwire", Verdict.PASS, manifest.assembly.base, text)
        return
    try:
        report = context.repository.load_record(wire.report, TripwireReport)
        problem = _wire_problem(subject, report) or wire_report_problem(context, wire.report, report)
        problem = problem or _tripped_later(context, wire.report, report)
    except (CsfError, ManifestError) as error:
        problem = f"its report cannot be read: {error}"
    if problem:
        yield AuditLine("tripwire", Verdict.FAIL, wire.report, problem)
    elif wire.status == "tripped":
        text = f"the collapse tripwire tripped on this assembly: {', '.join(report.tripped)}"
        yield AuditLine("tripwire", Verdict.FAIL, wire.report, text)
    elif manifest.recipe is not None and manifest.recipe.digest != report.recipe:
        text = f"it was run with recipe {report.recipe.short}, and not with {manifest.recipe.digest}, to be served with"
        yield AuditLine("tripwire", Verdict.UNKNOWN, wire.report, text)
    else:
        text = f"clear by policy {report.policy.short}, which was fixed before the run; judged again"
        yield AuditLine("tripwire", Verdict.PASS, wire.report, text)
    if problem is None and report.detail is not None:
        yield _guard_line(context, report, report.detail)


def _tripped_later(context: Context, digest: Digest, report: TripwireReport) -> str | None:
    """A clear report does not stand against a later one of the same pair, whether the manifest names that or not."""
    last, status = context.facts.tripwires.get((str(report.assembly), str(report.recipe)), (0, "untold"))
    if report.status == "clear" and status == "tripped" and last > context.facts.evidence.get(str(digest), last):
        return f"it is clear, and event {last} brought a later report of the same assembly and recipe, which tripped"
    return None


def _guard_line(context: Context, report: TripwireReport, detail: Digest) -> AuditLine:
    if context.documents is None:
        return AuditLine("guard", Verdict.UNKNOWN, detail, "the full report behind the tripwire's was not checked")
    problem = context.documents(context.archive, report, context.facts)
    text = problem or "the full report gives the same numbers and, by its own policy, the same verdict"
    return AuditLine("guard", Verdict.FAIL if problem else Verdict.PASS, detail, text)


def wire_report_problem(context: Context, digest: Digest, report: TripwireReport) -> str | None:
    """Why a tripwire report does not follow from its policy and what was measured, or None.

    Raises:
        ManifestError, csf_store.CsfError: when something that it names cannot be read.
    """
    problem = _policy_problem(context, digest, report)
    for measure in report.measures:
        problem = problem or _measure_problem(context, digest, report, measure)
    return problem


def _wire_problem(subject: Subject, report: TripwireReport) -> str | None:
    manifest, wire = subject.manifest, subject.manifest.tripwire
    if report.assembly != manifest.assembly.digest:
        return f"the report watched assembly {report.assembly}, this manifest runs {manifest.assembly.digest}"
    if report.recipe != wire.recipe:
        return f"the report watched recipe {report.recipe}, the manifest says {wire.recipe}"
    if report.status != wire.status:
        return f"the report says {report.status}, the manifest says {wire.status}"
    return None


def _policy_problem(context: Context, digest: Digest, report: TripwireReport) -> str | None:
    policy = context.repository.load_record(report.policy, TripwirePolicy)
    tripped = judge(policy, report.measures)
    if set(tripped) != set(report.tripped):
        different = sorted(set(tripped) ^ set(report.tripped))[0]
        said = tripped.get(different, "it is within the policy")
        return f"policy {report.policy} judges {different!r} otherwise than the report: {said}"
    began, written = Checkpoint.parse(report.began).size, context.facts.evidence.get(str(report.policy))
    if written is None or written >= began:
        when = f"by event {written}" if written is not None else "never in the ledger"
        return f"policy {report.policy} was written {when}, after the run began at event {began}"
    if problem := ledger_problem(context.archive, report.began):
        return f"where the run began: {problem}"
    arrived = context.facts.evidence.get(str(digest))
    if arrived is None or arrived < began:
        return f"the report says its run began at event {began}, and arrived {'before' if arrived else 'without one'}"
    return None


def _measure_problem(context: Context, digest: Digest, report: TripwireReport, measure: TripwireMeasure) -> str | None:
    sources = [(measure.report, measure.value, report.assembly)]
    if measure.incumbent_report is not None and measure.incumbent_value is not None:
        if report.incumbent is None:
            return f"{measure.title} is compared with an incumbent that is not named"
        incumbent = load_manifest(context.archive, report.incumbent).assembly.digest
        sources.append((measure.incumbent_report, measure.incumbent_value, incumbent))
    for source, value, assembly in sources:
        found = context.repository.load_record(source, EvalReport)
        about = found.assembly, found.result.suite, found.result.suite_digest, found.result.metric
        if about != (assembly, measure.suite, measure.suite_digest, measure.metric):
            return f"{measure.title} is taken from report {source}, which measured something else"
        if found.result.score != value:
            return f"{measure.title} is {value} here and {found.result.score} in report {source}"
        if problem := items_problem(context, found):
            return f"{measure.title}: {problem}"
    return next(_order_problems(context, digest, report, measure), None)


def _order_problems(
    context: Context, digest: Digest, report: TripwireReport, measure: TripwireMeasure
) -> Iterator[str]:
    """The policy came first, then what was measured, then the report over it."""
    events = context.facts.evidence
    policy, arrived = events.get(str(report.policy)), events.get(str(digest))
    told = events.get(str(measure.report))
    if told is None or arrived is None or told > arrived:
        yield f"report {measure.report} of {measure.title} is not in the ledger before tripwire report {digest}"
    elif policy is not None and policy > told:
        yield f"policy {report.policy} was written by event {policy}, after {measure.title} was measured ({told})"
    found = context.repository.load_record(measure.report, EvalReport)
    if found.recipe != report.recipe:
        yield f"{measure.title} was measured with recipe {found.recipe}, the run is of {report.recipe}"
