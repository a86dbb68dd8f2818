"""From completions as text to a score, item by item.

Cut the completion to a function body, let the sandbox make the calls, compare the values here, count. Rates come with
Wilson score intervals, because a pass rate on a few hundred tasks without its interval invites wrong conclusions;
seen and held-out families are counted apart, because only the second says whether anything was learnt beyond the
text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from keystone.errors import CompletionMismatchError
from keystone.evaluation.inside.values import encode
from keystone.evaluation.sandbox import Execution, Program, Sandbox, Status
from keystone.evaluation.task import Side, Task, Value

END_OF_TEXT = "<|end|>"
_CLOSERS = (")", "]", "}")
_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution: intervals of 95 %


class Verdict(StrEnum):
    """What one completion was worth; only `PASSED` counts."""

    PASSED = "passed"
    FAILED = "failed"
    """It ran, and some call returned another value."""
    ERROR = "error"
    """It does not parse, raised, exited or died."""
    TIMEOUT = "timeout"
    REFUSED = "refused"
    """The sandbox declined to run it."""


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One task's result."""

    task: str
    family: str
    side: Side
    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of passes with its 95 % Wilson score interval; all of [0, 1] when nothing was counted."""

    passed: int
    total: int
    low: float
    high: float

    @classmethod
    def of(cls, passed: int, total: int) -> Rate:
        """The rate of `passed` out of `total`."""
        if total == 0:
            return cls(0, 0, 0.0, 1.0)
        share = passed / total
        weight = 1 + _Z**2 / total
        centre = (share + _Z**2 / (2 * total)) / weight
        spread = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / weight
        low = 0.0 if passed == 0 else centre - spread  # exactly, where rounding would leave a trace
        high = 1.0 if passed == total else centre + spread
        return cls(passed, total, low, high)

    @property
    def value(self) -> float:
        """The share itself; 0 when nothing was counted."""
        return self.passed / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """Every item of one evaluation, and the rates that follow from them."""

    sandbox: str
    items: tuple[ItemResult, ...]

    @property
    def overall(self) -> Rate:
        """pass@1 over all items."""
        return _rate(self.items)

    @property
    def by_family(self) -> Mapping[str, Rate]:
        """pass@1 per family, in the order in which families appear."""
        names = dict.fromkeys(item.family for item in self.items)
        return {name: _rate(item for item in self.items if item.family == name) for name in names}

    @property
    def by_side(self) -> Mapping[Side, Rate]:
        """pass@1 per side of the split, for the sides that occur."""
        return {side: _rate(item for item in self.items if item.side is side) for side in Side if self._has(side)}

    def _has(self, side: Side) -> bool:
        return any(item.side is side for item in self.items)


def extract_completion(text: str) -> str:
    """The function body at the start of a generated text.

    It ends at the end token, or before the first line that leaves the function: one that is not blank and starts in
    column 0, unless it only closes a bracket.
    """
    body: list[str] = []
    for line in text.split(END_OF_TEXT, 1)[0].splitlines():
        if line.strip() and not line[0].isspace() and not (body and line.startswith(_CLOSERS)):
            break
        body.append(line.rstrip())
    while body and not body[-1]:
        body.pop()
    return "".join(f"{line}\n" for line in body)


def score(tasks: Sequence[Task], completions: Sequence[str], sandbox: Sandbox) -> SuiteResult:
    """Run one completion for each task and judge it.

    Args:
        tasks: What was asked.
        completions: What the model wrote after each task's prompt, uncut.
        sandbox: Where to run it.

    Raises:
        CompletionMismatchError: There is not exactly one completion for each task.
        SandboxError: The sandbox does not work.
    """
    if len(tasks) != len(completions):
        raise CompletionMismatchError(
            f"{len(tasks)} tasks but {len(completions)} completions: give one for each task, in order"
        )
    programs = [program_of(task, completion) for task, completion in zip(tasks, completions, strict=True)]
    executions = sandbox.run(programs)
    return SuiteResult(sandbox.name, tuple(map(_item, tasks, executions)))


def program_of(task: Task, completion: str) -> Program:
    """What is executed for a task and the text a model wrote after its prompt."""
    return Program(
        task.prompt + extract_completion(completion), task.entry_point, tuple(case.args for case in task.cases)
    )


def judge(task: Task, execution: Execution) -> Verdict:
    """Compare returned and expected values; types count, the order of a dict does not."""
    match execution.status:
        case Status.RETURNED:
            expected = tuple(canonical(case.expected) for case in task.cases)
            return Verdict.PASSED if expected and execution.values == expected else Verdict.FAILED
        case Status.FAILED:
            return Verdict.FAILED
        case Status.RAISED | Status.DIED | Status.UNJUDGED:
            return Verdict.ERROR
        case Status.TIMEOUT:
            return Verdict.TIMEOUT
        case Status.REFUSED:
            return Verdict.REFUSED


def canonical(value: Value) -> str:
    """The one text form of a value; two values are the same if and only if their texts are."""
    return json.dumps(encode(value))


def _item(task: Task, execution: Execution) -> ItemResult:
    verdict = judge(task, execution)
    detail = execution.detail or _difference(task, execution, verdict)
    return ItemResult(task.name, task.family, task.side, verdict, detail, execution.seconds)


def _difference(task: Task, execution: Execution, verdict: Verdict) -> str:
    if verdict is not Verdict.FAILED:
        return ""
    pairs = zip(task.cases, execution.values, strict=False)
    wrong = sum(1 for case, value in pairs if canonical(case.expected) != value)
    return f"{wrong} of {len(task.cases)} calls returned another value"


def _rate(items: Iterable[ItemResult]) -> Rate:
    verdicts = [item.verdict for item in items]
    return Rate.of(sum(verdict is Verdict.PASSED for verdict in verdicts), len(verdicts))
