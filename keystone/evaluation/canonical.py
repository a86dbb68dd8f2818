"""A suite's own solutions, executed: the proof that harness and sandbox can tell right from wrong.

A suite whose own solutions do not pass measures nothing; a harness that passes everything measures nothing either, so
each solution is also run broken, with its function replaced by one that returns nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from keystone.errors import InvalidInputError
from keystone.evaluation.candidates import Judged, run_sources
from keystone.evaluation.sandbox import Sandbox
from keystone.evaluation.scoring import Verdict
from keystone.evaluation.suite_format import CodeItem
from keystone.evaluation.suites import Suite


@dataclass(frozen=True)
class CanonicalResult:
    """What came out.

    Attributes:
        failed: items whose own solution did not pass, with what was said.
        n: items.
        seconds: wall-clock time of the whole solutions, not of the broken ones.
        broken_passed: items whose tests a function that returns nothing satisfies: they cannot tell.
    """

    failed: tuple[tuple[CodeItem, Judged], ...]
    n: int
    seconds: float
    broken_passed: tuple[CodeItem, ...]

    @property
    def passed(self) -> int:
        """Items whose own solution passed."""
        return self.n - len(self.failed)


def run_canonical(suite: Suite, sandbox: Sandbox) -> CanonicalResult:
    """Execute every solution of a suite, whole and broken.

    Raises:
        InvalidInputError: an item brings no solution, or the suite is one of texts.
        SandboxError: the sandbox does not work.
    """
    items = suite.code_items
    started = time.monotonic()
    judged = run_sources(items, [_solution(item) for item in items], sandbox)
    seconds = time.monotonic() - started
    broken = run_sources(items, [_broken(item) for item in items], sandbox)
    return CanonicalResult(
        seconds=seconds,
        failed=_not(Verdict.PASSED, items, judged),
        n=len(items),
        broken_passed=tuple(item for item, each in zip(items, broken, strict=True) if each.verdict is Verdict.PASSED),
    )


def _solution(item: CodeItem) -> str:
    if item.solution is None:
        raise InvalidInputError(f"item {item.name} of suite {item.suite} brings no solution to run")
    return item.prompt + item.solution


def _broken(item: CodeItem) -> str:
    return f"{_solution(item)}\n\ndef {item.entry_point}(*args, **kwargs):\n    return None\n"


def _not(verdict: Verdict, items: Sequence[CodeItem], judged: Sequence[Judged]) -> tuple[tuple[CodeItem, Judged], ...]:
    return tuple((item, each) for item, each in zip(items, judged, strict=True) if each.verdict is not verdict)
