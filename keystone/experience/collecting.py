"""Collecting: let a model answer training tasks, execute every answer, keep those that pass.

What a model writes is not experience; what passed the tests of its task is. Of that, three kinds are left out and
counted: what teaches the same as another record (the same program in other names), since a model that hears its
favourite answer fifty times collapses onto it; what comes from a hold-out or is near one; and what an earlier
collection brought already, where the caller names it.

Answers and verdicts are journaled batch by batch as they come. A collection that was killed goes on with the batch it
was in and ends with the same records; storing those again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from adapters import Claim, Confidence, ConvergenceRecord, Evidence, HoldoutIndex, RecordSource
from csf_store import Digest
from keystone.errors import InvalidInputError, RefusedError
from keystone.evaluation import CodeItem, Sandbox, Suite, Task, Verdict, item_of_task
from keystone.evaluation.extraction import program_source
from keystone.evaluation.journal import Journal, Line
from keystone.evaluation.record_checks import CHECKER, check_of
from keystone.evaluation.running import Progress, Settings, evaluate, journal_key
from keystone.evaluation.suite_format import item_line
from keystone.experience.batches import CollectReport, Contaminated, ExperienceBatch, put_batch, put_records
from keystone.loader import LoadedModel
from manifests import Repository

LONGEST_ANSWER = 128
"""Tokens an answer may take unless told otherwise; solutions of `basics` take at most 44."""


def collect(
    repository: Repository,
    model: LoadedModel,
    manifest: Digest,
    tasks: Sequence[Task | CodeItem],
    *,
    samples: int,
    seed: int,
    sandbox: Sandbox,
    holdouts: HoldoutIndex,
    temperature: float = 0.8,
    top_p: float = 1.0,
    max_new_tokens: int = LONGEST_ANSWER,
    batch_size: int = 32,
    known: Sequence[Digest] = (),
    state: Path | None = None,
    progress: Progress | None = None,
) -> CollectReport:
    """Sample answers, execute them, and keep what passed as Convergence Records on the ledger.

    Args:
        repository: where records go.
        model: the loaded manifest.
        manifest: its digest; a model of another assembly is refused.
        tasks: training tasks, of one suite; a held-out task is refused by name, before anything is sampled.
        samples: answers for each task.
        seed: of the sampling.
        sandbox: where answers are executed.
        holdouts: what may not be learned; see `known_holdouts`.
        temperature: 0 is greedy, and only makes sense with one sample.
        top_p: nucleus size.
        max_new_tokens: the most tokens an answer may take.
        batch_size: answers decoded together.
        known: records from earlier collections; what teaches the same as one of them is a duplicate.
        state: a directory for the journal; None keeps no journal, and a killed collection starts anew.
        progress: told how many answers were done.

    Raises:
        RefusedError: a held-out task, or a model that is not the manifest's.
        InvalidInputError: no tasks, tasks of several suites, or several greedy samples.
    """
    suite = _training_suite(tasks, holdouts)
    if repository.load(manifest).assembly.digest != model.manifest.assembly.digest:
        raise RefusedError(f"the loaded model is not that of manifest {manifest}; load it and collect from that")
    settings = Settings(samples, temperature, top_p, seed, batch_size, max_new_tokens)
    settings.check()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory())) if state is None else state
        key = {"collect": 1, **journal_key(model, suite, settings, sandbox.name)}
        journal = stack.enter_context(Journal(folder, key))
        lines = evaluate(model, suite, settings, sandbox=sandbox, journal=journal, progress=progress)
        with repository.archive.keeping():
            found = _sorted_out(repository, model, manifest, suite, lines, settings, holdouts, known)
            records = put_records(repository, found.kept)
            batch = ExperienceBatch(
                origin="collected",
                suite=suite.name,
                records=records,
                assembly=model.manifest.assembly.digest,
                recipe=model.recipe.digest,
                tasks=len(suite.items),
                samples=samples,
                seed=seed,
                sampled=len(lines),
                passed=found.passed,
                duplicates=found.duplicates,
                contaminated=tuple((each.task, each.reason) for each in found.contaminated),
            )
            digest = put_batch(repository, batch)
        journal.remove()
    return CollectReport(records, len(lines), found.passed, found.duplicates, found.contaminated, digest)


@dataclass(frozen=True, slots=True)
class _Found:
    kept: tuple[ConvergenceRecord, ...]
    passed: int
    duplicates: int
    contaminated: tuple[Contaminated, ...]


def _training_suite(tasks: Sequence[Task | CodeItem], holdouts: HoldoutIndex) -> Suite:
    if not tasks:
        raise InvalidInputError("there are no tasks to collect from")
    for task in tasks:
        match = holdouts.match_name(task.suite, task.name)
        if match is not None or (isinstance(task, Task) and task.held_out):
            how = match.how if match is not None else "its side of the split"
            raise RefusedError(f"task {task.name} of {task.suite} is held out ({how}); collect from training tasks")
    items = tuple(item_of_task(task) if isinstance(task, Task) else task for task in tasks)
    if len({item.suite for item in items}) > 1 or len({item.name for item in items}) < len(items):
        raise InvalidInputError("tasks to collect from are of one suite, each once")
    digest = Digest.of("".join(item_line(item) + "\n" for item in items).encode())
    return Suite(items[0].suite, items, digest)


def _sorted_out(  # noqa: PLR0917 - one step of `collect`
    repository: Repository,
    model: LoadedModel,
    manifest: Digest,
    suite: Suite,
    lines: Sequence[Line],
    settings: Settings,
    holdouts: HoldoutIndex,
    known: Sequence[Digest],
) -> _Found:
    """From passing answers to records, in the order of the answers."""
    items = {item.name: item for item in suite.code_items}
    seen = {repository.load_record(digest, ConvergenceRecord).content for digest in known}
    source = RecordSource(
        kind="model",
        name=f"manifest {manifest.short}",
        licence=model.manifest.source.licence,
        assembly=model.manifest.assembly.digest,
        recipe=model.recipe.digest,
        seed=settings.seed,
    )
    checks: dict[str, Digest] = {}
    kept: list[ConvergenceRecord] = []
    contaminated: list[Contaminated] = []
    passed = duplicates = 0
    for line in lines:
        if line["verdict"] != Verdict.PASSED:
            continue
        passed += 1
        item = items[str(line["name"])]
        if item.name not in checks:
            checks[item.name] = repository.archive.put_bytes(check_of(item)).digest
        program = program_source(item, str(line["completion"]), "completion")
        record = record_of(item, program, checks[item.name], source)
        if record.content in seen:
            duplicates += 1
            continue
        seen.add(record.content)
        match = holdouts.match(item.prompt, program)
        if match is not None:
            reason = f"{match.how} match with {match.suite} {match.item} ({match.similarity:.0%})"
            contaminated.append(Contaminated(item.name, reason))
            continue
        kept.append(record)
    return _Found(tuple(kept), passed, duplicates, tuple(contaminated))


def record_of(item: CodeItem, program: str, check: Digest, source: RecordSource) -> ConvergenceRecord:
    """The record of a program that satisfied every check of its item."""
    total = len(item.cases) or 1
    return ConvergenceRecord(
        claim=Claim(suite=item.suite, task=item.name, prompt=item.prompt, answer=program.removeprefix(item.prompt)),
        evidence=Evidence(ground="tests-passed", check=check, checker=CHECKER),
        confidence=Confidence(passed=total, total=total),
        source=source,
    )
