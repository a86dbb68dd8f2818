"""Checks on what runs: its objects, its code, its tokenizer, and where its adapters come from."""

from __future__ import annotations

from csf_store import CsfError, Digest
from manifests.auditing.base_forms import archived_tensor_set, tensor_sets_in_memory
from manifests.auditing.context import Context, Lines, Subject
from manifests.auditing.lines import AuditLine, Verdict
from manifests.errors import ManifestError
from manifests.evidence import TrainingRecord
from manifests.lineage import trace
from manifests.loading import load_manifest
from manifests.schema import KNOWN_CODES, LineageStep
from manifests.statements import SourceGateReport


def check_objects(context: Context, subject: Subject) -> Lines:
    """Every object below the manifest decodes and hashes to its address."""
    objects = context.prover.reach(subject.digest)
    before = context.prover.skipped
    try:
        problems = context.prover.problems(objects)
    except (CsfError, ManifestError) as error:
        text = f"not everything this manifest needs can be read: {error}"
        yield AuditLine("objects", Verdict.FAIL, subject.digest, text)
        return
    for digest, problem in sorted(problems.items()):
        yield AuditLine("objects", Verdict.FAIL, digest, problem)
    if not problems:
        quick = context.prover.skipped - before
        said = f", {quick} of them unchanged since they were last proven" if quick else ""
        text = f"{len(objects)} objects decoded and re-hashed to their addresses{said}"
        yield AuditLine("objects", Verdict.PASS, subject.digest, text)


def check_code(subject: Subject) -> Lines:
    """The modeling code is one that this release has fixtures for."""
    assembly = subject.manifest.assembly
    known = assembly.code in KNOWN_CODES
    text = f"modeling code {assembly.code}" + ("" if known else " is not one this release has fixtures for")
    yield AuditLine("code", Verdict.PASS if known else Verdict.UNKNOWN, assembly.digest, text)


def check_tokenizer(context: Context, subject: Subject) -> Lines:
    """The tokenizer is the one that the manifest this one grew from had on the same base."""
    tokenizer, at = subject.manifest.assembly.tokenizer, subject.manifest.parent
    if at is None:
        yield AuditLine("tokenizer", Verdict.PASS, tokenizer, "part of the assembly")
        return
    try:
        parent = load_manifest(context.archive, at).assembly
    except (CsfError, ManifestError) as error:
        yield AuditLine("tokenizer", Verdict.FAIL, at, f"the parent manifest cannot be read: {error}")
        return
    if parent.base == subject.manifest.assembly.base and parent.tokenizer != tokenizer:
        text = f"another than parent {at.short} uses on the same base: {parent.tokenizer}"
        yield AuditLine("tokenizer", Verdict.UNKNOWN, tokenizer, text)
    else:
        yield AuditLine("tokenizer", Verdict.PASS, tokenizer, f"the one that parent {at.short} was made with")


def check_lineage(context: Context, subject: Subject) -> Lines:
    """The records lead from every adapter to the base, as the manifest says, without a circle."""
    assembly = subject.manifest.assembly
    told = {(step.adapter, step.parent) for step in subject.manifest.lineage}
    try:
        uses = (use.adapter for use in assembly.adapters)
        traced = trace(uses, base=assembly.base, lookup=context.find_record)
    except (CsfError, ManifestError) as error:
        yield AuditLine("lineage", Verdict.FAIL, assembly.digest, str(error))
        return
    found = {(step.adapter, step.parent) for step in traced}
    if told != found:
        culprit = min(adapter for adapter, _ in told ^ found)
        text = f"the manifest and the records disagree on where adapter {culprit} descends from"
        yield AuditLine("lineage", Verdict.FAIL, culprit, text)
        return
    text = f"{len(traced)} adapters lead to base {assembly.base.short}" if traced else "the bare base"
    yield AuditLine("lineage", Verdict.PASS, assembly.base, text)


def check_training(context: Context, subject: Subject) -> Lines:
    """Each adapter's record: proven by a training record that left the right base as it was, or a claim."""
    for step in subject.manifest.lineage:
        base = subject.manifest.assembly.base
        try:
            found = context.find_record(step.adapter)
            record = found[1] if found is not None else None
            if record is None:
                yield AuditLine("training", Verdict.UNKNOWN, step.adapter, "no record says how this adapter came to be")
            elif record.training is None:
                text = f"its base {base.short} is a claim: no training record proves it"
                yield AuditLine("training", Verdict.UNKNOWN, step.adapter, text)
            else:
                training = context.repository.load_record(record.training, TrainingRecord)
                yield from _trained(context, step, base, record.training, training)
        except (CsfError, ManifestError) as error:
            yield AuditLine("training", Verdict.FAIL, step.adapter, str(error))


def _trained(context: Context, step: LineageStep, base: Digest, digest: Digest, training: TrainingRecord) -> Lines:
    problem = _training_problem(context, training, step, base)
    text = problem or f"trained on base {base.short}, which came out as it went in"
    yield AuditLine("training", Verdict.FAIL if problem else Verdict.PASS, digest, text)
    if problem is None:
        yield from _base(context, base, digest, training)
    yield from _gate(context, digest, training)


def _training_problem(context: Context, training: TrainingRecord, step: LineageStep, base: Digest) -> str | None:
    if training.base != base:
        return f"trained on base {training.base}, used on {base}"
    if training.parent != step.parent:
        return f"trained on top of {training.parent or 'the base'}, recorded on top of {step.parent or 'the base'}"
    if training.base_before != training.base_after:
        return f"the base changed during training, from {training.base_before} to {training.base_after}"
    found = archived_tensor_set(context.archive, step.adapter)
    if found != training.adapter_tensors:
        return f"the record made tensors {training.adapter_tensors}, adapter {step.adapter} holds {found}"
    return None


def _base(context: Context, base: Digest, digest: Digest, training: TrainingRecord) -> Lines:
    """The base that was in memory is the archived one, whatever dtype it was held in."""
    seen = context.base_sets.setdefault(base, [])
    if training.base_before not in seen:
        for found in tensor_sets_in_memory(context.archive, base, context.tied, context.progress):
            seen.append(found)
            if found == training.base_before:
                break
    if training.base_before in seen:
        yield AuditLine("base", Verdict.PASS, base, "the tensors it was trained on are those of the archived base")
    elif not seen:
        yield AuditLine("base", Verdict.UNKNOWN, base, "the base holds no tensors to compare with the training record")
    else:
        text = (
            f"training record {digest} was made on tensors {training.base_before}, which base {base} does not hold in"
            " any dtype: another base of the same shapes"
        )
        yield AuditLine("base", Verdict.FAIL, base, text)


def _gate(context: Context, digest: Digest, training: TrainingRecord) -> Lines:
    """What was trained on went through the source gate, by a report that says so."""
    if training.gate is None:
        verdict = Verdict.FAIL if training.experience else Verdict.UNKNOWN
        what = "experience was trained on" if training.experience else "its data was trained on"
        yield AuditLine("gate", verdict, digest, f"{what} and no source gate is named that let it in")
        return
    try:
        report = context.repository.load_record(training.gate, SourceGateReport)
    except (CsfError, ManifestError) as error:
        yield AuditLine("gate", Verdict.FAIL, training.gate, f"the source gate's report cannot be read: {error}")
        return
    unseen = sorted(set(training.experience) - {each.record for each in report.accepted})
    strange = sorted(set(training.data) - set(report.data))
    if unseen or strange:
        text = f"record {unseen[0]}" if unseen else f"data set {strange[0]}"
        yield AuditLine("gate", Verdict.FAIL, training.gate, f"{text} was trained on and not let in by the gate")
    elif context.documents and (problem := context.documents(context.archive, report, context.facts)):
        yield AuditLine("gate", Verdict.FAIL, training.gate, problem)
    else:
        text = f"{len(report.accepted)} records let in, {len(report.rejected)} kept out by {report.gate}"
        yield AuditLine("gate", Verdict.PASS, training.gate, text)


def check_fit(context: Context, subject: Subject) -> Lines:
    """Names, shapes and ranks of each adapter fit the base."""
    base = subject.manifest.assembly.base
    for step in subject.manifest.lineage:
        if context.fit is None:
            yield AuditLine("fit", Verdict.UNKNOWN, step.adapter, "whether its tensors fit the base was not checked")
            continue
        try:
            problem = context.fit(context.archive, step.adapter, base)
        except (CsfError, ManifestError) as error:
            problem = str(error)
        problem = problem or _record_problem(context, step.adapter)
        text = problem or f"names, shapes and ranks fit base {base.short}"
        yield AuditLine("fit", Verdict.FAIL if problem else Verdict.PASS, step.adapter, text)


def _record_problem(context: Context, adapter: Digest) -> str | None:
    """What the adapter's record says of its rank and modules, against the adapter itself."""
    found = context.find_record(adapter)
    if found is None or context.documents is None:
        return None
    return context.documents(context.archive, found[1], context.facts)
