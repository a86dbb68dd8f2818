"""External experience: somebody else's solutions, executed here before they count.

The file is a suite in the format of `keystone/evaluation/SUITES.md` whose items bring their solution. Each is executed
against its own tests in the sandbox; and once more with its function replaced by one that returns nothing, since tests
that this satisfies prove nothing. Whoever adds says where the file is from and under which licence, an SPDX expression
that grants something: `NOASSERTION` is refused. The file itself is kept as a blob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adapters import ConvergenceRecord, EvidenceRun, HoldoutIndex, RecordSource, SourceGate
from csf_store import Digest
from keystone.errors import InvalidInputError
from keystone.evaluation import CodeItem, Sandbox, Verdict, load_suite
from keystone.evaluation.candidates import run_sources
from keystone.evaluation.record_checks import check_of
from keystone.experience.batches import CollectReport, Contaminated, ExperienceBatch, Refused, put_batch, put_records
from keystone.experience.collecting import record_of
from manifests import ManifestError, Repository, Source

_AT_ONCE = 64


def add_external(
    repository: Repository,
    path: Path,
    *,
    licence: str,
    source: str,
    sandbox: Sandbox,
    holdouts: HoldoutIndex,
    progress: Callable[[int], None] | None = None,
) -> CollectReport:
    """Keep the items of a file as Convergence Records, each executed before it counts.

    Args:
        repository: where records go.
        path: a suite of code whose items bring their solution.
        licence: of the solutions, an SPDX expression.
        source: what to call the data set, with its revision.
        sandbox: where programs are executed.
        holdouts: what may not be learned; see `known_holdouts`.
        progress: told how many items were done.

    Returns:
        What was kept, and by name what was not: refused, contaminated.

    Raises:
        InvalidInputError: no licence, or a file of texts.
        SuiteFormatError, SuiteMissingError: the file cannot be read; the line is named.
    """
    check_licence(licence)
    if not source.strip():
        raise InvalidInputError("external data has a source: say which data set, and which revision of it")
    items = load_suite(str(path)).code_items
    about = RecordSource(kind="external", name=source, licence=licence)
    with repository.archive.keeping():
        kept, refused, contaminated = [], [], []
        seen: set[Digest] = set()
        passed = duplicates = 0
        for item, problem in _executed(items, sandbox, progress):
            if problem is not None:
                refused.append(Refused(item.name, problem))
                continue
            passed += 1
            record = _record(repository, item, about)
            reason = _gate_reason(record, holdouts)
            if record.content in seen:
                duplicates += 1
            elif reason is not None:
                contaminated.append(Contaminated(item.name, reason))
            else:
                kept.append(record)
            seen.add(record.content)
        records = put_records(repository, kept)
        batch = ExperienceBatch(
            origin="added",
            suite=items[0].suite,
            records=records,
            file=repository.archive.put_bytes(path.read_bytes()).digest,
            tasks=len(items),
            sampled=len(items),
            passed=passed,
            duplicates=duplicates,
            contaminated=tuple((each.task, each.reason) for each in contaminated),
            refused=tuple((each.item, each.reason) for each in refused),
        )
        digest = put_batch(repository, batch)
    return CollectReport(records, len(items), passed, duplicates, tuple(contaminated), digest, tuple(refused))


def check_licence(licence: str) -> None:
    """Refuse what grants nothing.

    Raises:
        InvalidInputError: no SPDX expression, or one that says that nobody knows.
    """
    if licence.strip().upper() in {"", "NOASSERTION", "NONE"}:
        raise InvalidInputError(
            "external data needs a licence that somebody stated: --licence Apache-2.0, for instance"
        )
    try:
        Source(kind="directory", location="external data", licence=licence)
    except ManifestError as error:
        raise InvalidInputError(f"{licence!r} is not an SPDX licence expression such as MIT or CC-BY-4.0") from error


def _executed(
    items: Sequence[CodeItem], sandbox: Sandbox, progress: Callable[[int], None] | None
) -> Iterator[tuple[CodeItem, str | None]]:
    """Every item, and why it does not stand up, if so."""
    for start in range(0, len(items), _AT_ONCE):
        part = items[start : start + _AT_ONCE]
        whole = [item for item in part if item.solution is not None]
        judged = run_sources(whole, [f"{item.prompt}{item.solution}" for item in whole], sandbox)
        broken = run_sources(whole, [_broken(item) for item in whole], sandbox)
        said = {
            item.name: _problem(ran.verdict, ran.detail, nothing.verdict)
            for item, ran, nothing in zip(whole, judged, broken, strict=True)
        }
        for item in part:
            yield item, said.get(item.name, "it brings no solution")
        if progress is not None:
            progress(len(part))


def _problem(verdict: Verdict, detail: str, broken: Verdict) -> str | None:
    if verdict is not Verdict.PASSED:
        return f"its solution does not pass its own tests: {verdict}{f', {detail}' if detail else ''}"[:1000]
    if broken is Verdict.PASSED:
        return "its tests are satisfied by a function that returns nothing, so they prove nothing"
    return None


def _broken(item: CodeItem) -> str:
    return f"{item.prompt}{item.solution}\n\ndef {item.entry_point}(*args, **kwargs):\n    return None\n"


def _record(repository: Repository, item: CodeItem, about: RecordSource) -> ConvergenceRecord:
    check = repository.archive.put_bytes(check_of(item)).digest
    return record_of(item, f"{item.prompt}{item.solution}", check, about)


def _gate_reason(record: ConvergenceRecord, holdouts: HoldoutIndex) -> str | None:
    """What the source gate would say against it; its evidence was run a moment ago."""
    total = record.confidence.total
    gate = SourceGate({record.digest: record}.__getitem__, lambda _: EvidenceRun(total, total), holdouts)
    rejected = gate.judge([record.digest]).rejected
    return rejected[0].reason if rejected else None
