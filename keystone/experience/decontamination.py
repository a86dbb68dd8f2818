"""Every hold-out this installation knows, as one index to hold training examples against.

- The frozen held-out draw of `basics`, all of it; and by rule, whatever its split holds out: a task's name carries the
  fingerprint that decides its side, so a draw that nobody has made yet is turned away too.
- HumanEval, where its package is installed.
- Every suite that is passed in, and single items: consumed draws, sentinels, suites of one's own.

Exact matches compare normal forms, function fingerprints among them; near ones count shared shingles (see
`adapters.contamination`, which also says what that cannot see).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from adapters import HeldOut, HoldoutIndex, Match
from csf_store import Digest
from keystone.errors import SuiteMissingError
from keystone.evaluation import CodeItem, Suite, load_suite
from keystone.evaluation.basics import FROZEN_COUNT, SUITE_NAME, families, in_held_out_fraction
from keystone.evaluation.fingerprint import source_fingerprint


def known_holdouts(
    suites: Sequence[Suite] = (), *, extra: Iterable[HeldOut] = (), basics: int = FROZEN_COUNT
) -> HoldoutIndex:
    """The index of all hold-outs.

    Args:
        suites: further suites of code; texts have no programs to compare.
        extra: single items.
        basics: how many of the frozen draw are compared nearly. All of them take some seconds to draw; the rule holds
            for all in any case.
    """
    found: list[HeldOut] = []
    for suite in (*_shipped(basics), *suites):
        found += [held_out_item(item) for item in suite.items if isinstance(item, CodeItem)]
    return HoldoutIndex([*found, *extra], keys=[_fingerprint], rules=[basics_rule])


def held_out_item(item: CodeItem) -> HeldOut:
    """An item of a suite as the index takes it."""
    return HeldOut(item.suite, item.name, item.prompt, item.prompt + (item.solution or ""))


def basics_rule(suite: str, task: str) -> Match | None:
    """Whether a task of `basics` is held out, from its name alone: the family, and the head of its fingerprint."""
    if suite != SUITE_NAME:
        return None
    family, _, head = task.partition("/")
    known = families().get(family)
    try:
        fingerprint = Digest(bytes.fromhex(head).ljust(32, b"\0"))
    except ValueError:
        fingerprint = None
    if known is None or fingerprint is None or len(head) < 12:
        return Match(
            suite, task, "unknown task", 1.0
        )  # a name that says nothing is no proof of being on the other side
    if known.held_out:
        return Match(suite, task, "held-out family", 1.0)
    return Match(suite, task, "held-out share", 1.0) if in_held_out_fraction(fingerprint) else None


def _shipped(basics: int) -> list[Suite]:
    found = [load_suite(SUITE_NAME, limit=basics)] if basics else []
    with suppress(SuiteMissingError):  # where it is not installed nobody evaluates on it; its name is refused anyway
        found.append(load_suite("humaneval"))
    return found


def _fingerprint(source: str) -> Digest | None:
    try:
        return source_fingerprint(source)
    except (SyntaxError, LookupError, ValueError, RecursionError):
        return None
