"""Execute completions of items, and execute stored evidence again.

This is the way in for others: `run_candidates` for anything that has items and completions, `evidence_of` and `recheck`
for the source gate. Evidence is a small JSON text with the item and the program, whole, so that it can be executed
again on any machine, long after the suite that it came from has changed. Its own word about its verdict counts for
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keystone.errors import CompletionMismatchError, SuiteFormatError
from keystone.evaluation.extraction import Style, program_source
from keystone.evaluation.sandbox import CheckedProgram, Execution, Program, Sandbox, Status
from keystone.evaluation.scoring import Verdict, canonical
from keystone.evaluation.suite_format import CodeItem, item_fields, read_item

EVIDENCE_VERSION: Final = 1
EVIDENCE_KIND: Final = "execution"
_VERDICTS: Final = {
    Status.RETURNED: Verdict.PASSED,
    Status.FAILED: Verdict.FAILED,
    Status.RAISED: Verdict.ERROR,
    Status.DIED: Verdict.ERROR,
    Status.UNJUDGED: Verdict.ERROR,
    Status.TIMEOUT: Verdict.TIMEOUT,
    Status.REFUSED: Verdict.REFUSED,
}


@dataclass(frozen=True, slots=True)
class Judged:
    """What one program was worth.

    Attributes:
        verdict: only `passed` counts.
        detail: why not, as far as it is known; untrusted text, made printable and short.
        seconds: wall-clock time of its run.
        right: checks that held: calls with the expected value, or 1 for test code that was satisfied.
        total: checks there are: the item's calls, or 1 for test code.
    """

    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0
    right: int = 0
    total: int = 1


def run_candidates(
    items: Sequence[CodeItem], completions: Sequence[str], sandbox: Sandbox, *, style: Style = "completion"
) -> list[Judged]:
    """Cut each completion to its program, execute it, judge it.

    Equal programs of one item are executed once.

    Args:
        items: what was asked; an item may come several times.
        completions: what the model wrote for each, uncut.
        sandbox: where to execute.
        style: how the model was asked, see `keystone.evaluation.extraction`.

    Raises:
        CompletionMismatchError: there is not exactly one completion for each item.
        SandboxError: the sandbox does not work.
    """
    if len(items) != len(completions):
        raise CompletionMismatchError(
            f"{len(items)} items but {len(completions)} completions: give one for each item, in order"
        )
    sources = [program_source(item, text, style) for item, text in zip(items, completions, strict=True)]
    return run_sources(items, sources, sandbox)


def run_sources(items: Sequence[CodeItem], sources: Sequence[str], sandbox: Sandbox) -> list[Judged]:
    """Like `run_candidates`, for whole programs."""
    places: dict[tuple[int, str], int] = {}
    programs: list[Program | CheckedProgram] = []
    asked: list[CodeItem] = []
    for item, source in zip(items, sources, strict=True):
        if (id(item), source) not in places:
            places[id(item), source] = len(programs)
            programs.append(program_of_item(item, source))
            asked.append(item)
    done = [_judged(item, execution) for item, execution in zip(asked, sandbox.run(programs), strict=True)]
    return [done[places[id(item), source]] for item, source in zip(items, sources, strict=True)]


def program_of_item(item: CodeItem, source: str) -> Program | CheckedProgram:
    """What a sandbox is given to find out whether `source` solves `item`."""
    if item.cases:
        return Program(source, item.entry_point, tuple(case.args for case in item.cases))
    return CheckedProgram(source, item.entry_point, item.setup, item.test)


def evidence_of(item: CodeItem, source: str) -> bytes:
    """The evidence that `source` solves `item`, to be stored as a blob: canonical, equal facts give equal bytes."""
    fields = {"v": EVIDENCE_VERSION, "kind": EVIDENCE_KIND, "suite": item.suite, "source": source}
    whole = {**fields, "item": item_fields(item)}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def recheck(evidence: bytes, sandbox: Sandbox) -> Judged:
    """Execute stored evidence again; `passed` only if it passes now.

    Raises:
        SuiteFormatError: these bytes are no evidence of an execution.
        SandboxError: the sandbox does not work.
    """
    return recheck_all([evidence], sandbox)[0]


def recheck_all(evidence: Sequence[bytes], sandbox: Sandbox) -> list[Judged]:
    """`recheck` for many at once, on all workers of the sandbox."""
    read = [read_evidence(each) for each in evidence]
    return run_sources([item for item, _ in read], [source for _, source in read], sandbox)


def read_evidence(evidence: bytes) -> tuple[CodeItem, str]:
    """The item and the program in a piece of evidence.

    Raises:
        SuiteFormatError: these bytes are no evidence of an execution.
    """
    try:
        fields = json.loads(evidence)
    except (ValueError, RecursionError) as error:
        raise SuiteFormatError(f"this evidence is not JSON: {error}") from error
    match fields:
        case {"v": 1, "kind": "execution", "suite": str(suite), "source": str(source), "item": dict(about)}:
            item = read_item(suite, about)
            if isinstance(item, CodeItem) and len(fields) == 5:
                return item, source
    raise SuiteFormatError("this is no evidence of an execution: it has v 1, kind, suite, source and item, and no more")


def _judged(item: CodeItem, execution: Execution) -> Judged:
    verdict, detail = _VERDICTS[execution.status], execution.detail
    total = len(item.cases) or 1
    if verdict is not Verdict.PASSED:
        return Judged(verdict, detail, execution.seconds, 0, total)
    if not item.cases:
        return Judged(verdict, detail, execution.seconds, 1, total)
    expected = [canonical(case.expected) for case in item.cases]
    right = sum(a == b for a, b in zip(expected, execution.values, strict=False))
    if right != total or len(execution.values) != total:
        verdict, detail = Verdict.FAILED, f"{total - right} of {total} calls returned another value"
    return Judged(verdict, detail, execution.seconds, right, total)
