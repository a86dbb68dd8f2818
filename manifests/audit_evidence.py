"""Audit checks on evidence: does each record say what the manifest, and the tensors themselves, say?"""

from __future__ import annotations

from collections.abc import Iterator

from csf_store import CsfError, Digest
from manifests.audit_lines import AuditLine, Verdict
from manifests.errors import ManifestError
from manifests.evidence import EvalReport, TrainingRecord
from manifests.repository import Repository
from manifests.schema import Assembly, EvalSummary, Manifest
from manifests.tensor_set import TensorEntry, tensor_set_digest


def check_evals(repository: Repository, manifest: Manifest) -> Iterator[AuditLine]:
    """Each summary against its report: same assembly, same recipe, same numbers."""
    for summary in manifest.evals:
        name = f"{summary.suite} {summary.metric}"
        try:
            report = repository.load_record(summary.report, EvalReport)
        except (CsfError, ManifestError) as error:
            yield AuditLine("eval", Verdict.FAIL, summary.report, f"{name}: the report cannot be read: {error}")
            continue
        problem = _eval_problem(summary, report, manifest.assembly)
        if problem:
            yield AuditLine("eval", Verdict.FAIL, summary.report, f"{name}: {problem}")
        else:
            text = f"{name} = {summary.score:.4g} over {summary.n} items, bound to this assembly and recipe"
            yield AuditLine("eval", Verdict.PASS, summary.report, text)


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


def check_training(repository: Repository, manifest: Manifest) -> Iterator[AuditLine]:
    """Each adapter's record: proven by a training record that left the base as it was, or a claim."""
    base = manifest.assembly.base
    for step in manifest.lineage:
        try:
            record = repository.adapter_record(step.adapter)
            if record is None:
                yield AuditLine("training", Verdict.UNKNOWN, step.adapter, "no record says how this adapter came to be")
            elif record.training is None:
                text = f"its base {base.short} is a claim: no training record proves it"
                yield AuditLine("training", Verdict.UNKNOWN, step.adapter, text)
            else:
                training = repository.load_record(record.training, TrainingRecord)
                problem = _training_problem(repository, training, adapter=step.adapter, base=base, parent=step.parent)
                verdict = Verdict.FAIL if problem else Verdict.PASS
                text = problem or f"trained on base {base.short}, which came out as it went in"
                yield AuditLine("training", verdict, record.training, text)
        except (CsfError, ManifestError) as error:
            yield AuditLine("training", Verdict.FAIL, step.adapter, str(error))


def _training_problem(
    repository: Repository, training: TrainingRecord, *, adapter: Digest, base: Digest, parent: Digest | None
) -> str | None:
    if training.base != base:
        return f"trained on base {training.base}, used on {base}"
    if training.parent != parent:
        return f"trained on top of {training.parent or 'the base'}, recorded on top of {parent or 'the base'}"
    if training.base_before != training.base_after:
        return f"the base changed during training, from {training.base_before} to {training.base_after}"
    found = archived_tensor_set(repository, adapter)
    if found != training.adapter_tensors:
        return f"the record made tensors {training.adapter_tensors}, adapter {adapter} holds {found}"
    return None


def archived_tensor_set(repository: Repository, tree: Digest) -> Digest:
    """The tensor-set digest of every safetensors file of a tree, read from the archive tensor by tensor."""
    archive = repository.archive
    entries = []
    for entry in archive.tree(tree).entries:
        if not entry.path.endswith(".safetensors"):
            continue
        for name, info in archive.tensors(entry.blob).items():
            data = archive.read_tensor(entry.blob, name)
            entries.append(TensorEntry(name=name, dtype=info.dtype, shape=tuple(info.shape), digest=Digest.of(data)))
    return tensor_set_digest(entries)
