"""The source gate at work: every record of a training set judged again, its evidence executed in the sandbox, now.

`gate` stores its report as evidence, refusals included. The report names one data set: the digest of the list of
records that it let in, and of nothing else. Training asks for that digest, so a report about one set cannot open the
gate for another. When any record is refused the report names no data set at all: a set that shrinks in silence is not
the one that was approved; leave the refused ones out and have the rest judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from adapters import ConvergenceRecord, EvidenceRun, HoldoutIndex, SourceGate
from csf_store import CsfError, Digest, Kind
from keystone.errors import EvaluationError
from keystone.evaluation import Sandbox
from keystone.evaluation.candidates import run_sources
from keystone.evaluation.record_checks import RecordExecutor, read_check
from manifests import JsonObject, ManifestError, RejectedRecord, Repository, SourceGateReport, canonical_bytes

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Gated:
    """What the gate said.

    Attributes:
        report: who is in, who is not and why.
        digest: the report as it is stored.
        data: names the set that was let in; None when any record was refused.
    """

    report: SourceGateReport
    digest: Digest
    data: Digest | None

    @property
    def accepted(self) -> tuple[Digest, ...]:
        """The records that may train."""
        return tuple(each.record for each in self.report.accepted)

    @property
    def rejected(self) -> tuple[RejectedRecord, ...]:
        """The records that may not, each with its reason."""
        return self.report.rejected


def gate(
    repository: Repository,
    records: Sequence[Digest],
    *,
    sandbox: Sandbox,
    holdouts: HoldoutIndex,
    progress: Progress | None = None,
) -> Gated:
    """Judge a training set: collected and external records together.

    Args:
        repository: where the records and their checks are, and where the report goes.
        records: the training set; its order does not matter.
        sandbox: where evidence is executed again.
        holdouts: what may not be learned; see `known_holdouts`.
        progress: told how many more records were judged.

    Raises:
        SourceRefusedError: an empty set.
        SandboxError: the sandbox does not work.
    """
    chosen = sorted(set(records))
    data = data_set_digest(chosen)
    executor = _Ahead(
        RecordExecutor(repository.archive, sandbox), _executed_ahead(repository, chosen, sandbox, holdouts)
    )

    def told(_: int) -> None:
        if progress is not None:
            progress(1)

    def load(digest: Digest) -> ConvergenceRecord:
        return repository.load_record(digest, ConvergenceRecord)

    report = SourceGate(load, executor, holdouts, progress=told).judge(chosen, data=[data])
    report = report.revised(settings={**report.settings, "sandbox": sandbox.name})
    with repository.archive.keeping():
        if not report.rejected:
            repository.archive.put_bytes(canonical_bytes(data_set(chosen)))
        stored = repository.put_record(report)
    return Gated(report, stored, None if report.rejected else data)


def data_set(records: Iterable[Digest]) -> JsonObject:
    """A training set as a document: its records in the order of their digests, each once."""
    return {"v": 1, "kind": "training-set", "records": [str(digest) for digest in sorted(set(records))]}


def data_set_digest(records: Iterable[Digest]) -> Digest:
    """What names a training set, in gate reports and training records."""
    return Digest.of(canonical_bytes(data_set(records)))


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Answers from runs made together on all workers; what is not among them is run by itself."""

    executor: RecordExecutor
    done: dict[Digest, EvidenceRun] = field(default_factory=dict)

    def __call__(self, record: ConvergenceRecord) -> EvidenceRun:
        found = self.done.pop(record.digest, None)
        return self.executor(record) if found is None else found


def _executed_ahead(
    repository: Repository, records: Sequence[Digest], sandbox: Sandbox, holdouts: HoldoutIndex
) -> dict[Digest, EvidenceRun]:
    """Run the evidence of every record that gets as far as being executed, in one go.

    The gate itself asks for one record at a time, which leaves all workers but one idle. So it is asked once with an
    executor that believes everything, to learn what it would execute.
    """
    wanted: list[ConvergenceRecord] = []

    def believe(record: ConvergenceRecord) -> EvidenceRun:
        wanted.append(record)
        return EvidenceRun(record.confidence.total, record.confidence.total)

    def load(digest: Digest) -> ConvergenceRecord:
        return repository.load_record(digest, ConvergenceRecord)

    SourceGate(load, believe, holdouts).judge(records)
    items, sources, names = [], [], []
    for record in wanted:
        try:
            if record.evidence.ground != "tests-passed" or record.evidence.check is None:
                continue
            item = read_check(repository.archive.get_bytes(record.evidence.check, kind=Kind.BLOB))
        except (CsfError, ManifestError, EvaluationError):
            continue  # whatever is wrong with its check is said by the executor, when the gate asks
        if (item.suite, item.name, item.prompt) == (record.claim.suite, record.claim.task, record.claim.prompt):
            items.append(item)
            sources.append(record.program)
            names.append(record.digest)
    judged = run_sources(items, sources, sandbox)
    return {name: EvidenceRun(run.right, run.total, run.detail) for name, run in zip(names, judged, strict=True)}
