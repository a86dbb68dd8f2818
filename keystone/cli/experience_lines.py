"""What `keystone experience` and `keystone adapter train` share: which records are meant, and how they are shown."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, progress_bar

if TYPE_CHECKING:
    from adapters import ConvergenceRecord, HoldoutIndex
    from csf_store import Digest
    from keystone.evaluation import CodeItem, Sandbox, Task
    from keystone.experience import CollectReport, ExperienceBatch, Gated
    from manifests import Repository


def training_tasks(suite: str, count: int, seed: int) -> "Sequence[Task | CodeItem]":
    """Tasks to learn from: a draw of `basics` from the training side of its split, or the first items of a file."""
    from keystone.evaluation import load_suite  # noqa: PLC0415 - pydantic or torch, not needed for --help
    from keystone.evaluation.basics import SUITE_NAME, draw_training  # noqa: PLC0415

    if suite == SUITE_NAME:
        return draw_training(count, seed)
    return load_suite(suite, limit=count).code_items


def read_holdouts(session: Session, files: Sequence[Path]) -> "HoldoutIndex":
    """Every hold-out there is, and those of the files."""
    from keystone.evaluation import load_suite  # noqa: PLC0415 - pydantic or torch, not needed for --help
    from keystone.experience import known_holdouts  # noqa: PLC0415

    index = known_holdouts([load_suite(str(file)) for file in files])
    session.note(f"held out: {len(index)} items, and whatever else the split of basics holds out")
    return index


def chosen_records(repository: "Repository", named: Sequence[str], file: Path | None) -> "tuple[Digest, ...]":
    """Records by name, by batch, and from a file; each once."""
    from keystone.experience import record_digests  # noqa: PLC0415 - pydantic or torch, not needed for --help

    if not named and file is None:
        raise click.UsageError("name records or batches, or give a file of them with --records")
    found = named_records(repository, named)
    return tuple(dict.fromkeys([*found, *(record_digests(file) if file is not None else ())]))


def named_records(repository: "Repository", named: Sequence[str]) -> "tuple[Digest, ...]":
    """The records that digests or prefixes mean; a batch means all of its records."""
    from csf_store import Kind  # noqa: PLC0415 - pydantic or torch, not needed for --help

    found: list[Digest] = []
    for text in named:
        digest = repository.archive.resolve(text, kind=Kind.RECORD)
        batch = as_batch(repository, digest)
        found += batch.records if batch is not None else [digest]
    return tuple(dict.fromkeys(found))


def judged(
    session: Session,
    repository: "Repository",
    records: "Sequence[Digest]",
    sandbox: "Sandbox",
    holdouts: "HoldoutIndex",
) -> "Gated":
    """The gate over a set, with a bar."""
    from keystone.experience import gate  # noqa: PLC0415 - pydantic or torch, not needed for --help

    with progress_bar(session, "gate", len(records), unit="objects") as progress:
        return gate(repository, records, sandbox=sandbox, holdouts=holdouts, progress=progress)


def show_gated(session: Session, gated: "Gated") -> None:
    """Who is in, who is not and why; last the report."""
    for each in gated.report.accepted:
        if session.json:
            session.item({"record": str(each.record), "accepted": True, "ground": each.ground}, "")
    for refused in gated.rejected:
        fields: dict[str, Value] = {"record": str(refused.record), "accepted": False, "reason": refused.reason}
        session.item(fields, f"refused  {refused.record}: {refused.reason}")
    summary: dict[str, Value] = {
        "report": str(gated.digest),
        "accepted": len(gated.accepted),
        "refused": len(gated.rejected),
        "data": str(gated.data) if gated.data is not None else None,
    }
    session.item(summary, f"report  {gated.digest}  {len(gated.accepted)} let in, {len(gated.rejected)} refused")


def show_report(session: Session, report: "CollectReport") -> None:
    """Each record, what was left out and why; last the batch."""
    for digest in report.records:
        if session.json:
            session.item({"record": str(digest)}, "")
    for each in report.contaminated:
        session.item({"left_out": each.task, "reason": each.reason}, plain(f"left out  {each.task}: {each.reason}"))
    for refused in report.refused:
        fields: dict[str, Value] = {"left_out": refused.item, "reason": refused.reason}
        session.item(fields, plain(f"refused   {refused.item}: {refused.reason}"))
    summary: dict[str, Value] = {
        "batch": str(report.batch),
        "kept": len(report.records),
        "sampled": report.sampled,
        "passed": report.passed,
        "duplicates": report.duplicates,
        "contaminated": len(report.contaminated),
        "refused": len(report.refused),
    }
    counts = f"{report.duplicates} repeat another, {len(report.contaminated)} come from a hold-out or near one"
    text = f"{len(report.records)} records kept of {report.passed} that passed of {report.sampled}; {counts}"
    session.item(summary, f"{text}\nbatch  {report.batch}\nnext: keystone experience gate {report.batch.short}")


def state_folder(name: str) -> Path:
    """Where unfinished work of a kind waits."""
    from platformdirs import user_state_path  # noqa: PLC0415 - not needed for --help

    return user_state_path("keystone") / name


def as_batch(repository: "Repository", digest: "Digest") -> "ExperienceBatch | None":
    """The batch of this digest; None where it is another kind of record."""
    from keystone.experience import ExperienceBatch  # noqa: PLC0415 - pydantic or torch, not needed for --help
    from manifests import ManifestError  # noqa: PLC0415

    with contextlib.suppress(ManifestError):
        return repository.load_record(digest, ExperienceBatch)
    return None


def batch_fields(batch: "ExperienceBatch") -> dict[str, Value]:
    """A batch for programs."""
    return {
        "origin": batch.origin,
        "suite": batch.suite,
        "kept": len(batch.records),
        "assembly": str(batch.assembly) if batch.assembly is not None else None,
        "tasks": batch.tasks,
        "samples": batch.samples,
        "seed": batch.seed,
        "sampled": batch.sampled,
        "passed": batch.passed,
        "duplicates": batch.duplicates,
        "contaminated": len(batch.contaminated),
        "refused": len(batch.refused),
    }


def batch_text(batch: "ExperienceBatch") -> str:
    """A batch in one line."""
    whence = f" of assembly {batch.assembly.short}" if batch.assembly is not None else ""
    counts = f"{batch.duplicates} repeated, {len(batch.contaminated)} contaminated, {len(batch.refused)} refused"
    text = (
        f"{batch.origin} {batch.suite}{whence}: {len(batch.records)} kept of {batch.passed} passed of {batch.sampled}"
    )
    return plain(f"{text}, {counts}")


def record_text(record: "ConvergenceRecord") -> str:
    """A record with its program."""
    claim, evidence, source = record.claim, record.evidence, record.source
    lines = [
        f"claim       {claim.suite} {claim.task}",
        f"evidence    {evidence.ground}, check {evidence.check or 'none'}, by {evidence.checker}",
        f"confidence  {record.confidence.passed} of {record.confidence.total} checks",
        f"source      {source.kind} {source.name}, {source.licence}",
    ]
    return "\n".join([*(plain(line) for line in lines), *(plain(line) for line in record.program.splitlines())])


def plain(text: str) -> str:
    """Names and programs come from anywhere; what would control the terminal does not get there."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
