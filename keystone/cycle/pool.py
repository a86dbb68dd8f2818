"""Where a cycle's tasks come from: what may be practised, what is frozen, and what is drawn fresh.

Three sets of one suite, disjoint as functions and not only as texts:

- **practice**: tasks that a model may attempt and then learn from;
- **sentinel**: the first tasks of the suite's frozen draw; every cycle answers them, they can only block;
- **fresh draws**: held out, chosen by a seed that was committed to before the run, each task consumed once.

`basics` keeps ten of its forty families out of its base's training altogether. A cycle may practise those too, or there
would be nothing new to learn, and the line is then drawn through every family in the same way: a function whose
fingerprint falls into the lowest fifth is held out for ever, the others may be practised, except those in the frozen
draw. So after a cycle the fresh draw measures functions nobody trained on, of families that were practised. It no
longer measures families nobody has seen, and no report says that it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Final, Protocol

from adapters import Match
from csf_store import Digest
from keystone.errors import SuiteExhaustedError, SuiteMissingError
from keystone.evaluation.basics import (
    FROZEN_SEED,
    SUITE_NAME,
    Family,
    draft_stream,
    draw_held_out,
    families,
    in_held_out_fraction,
)
from keystone.evaluation.basics.drafts import Draft
from keystone.evaluation.suite_format import CodeItem
from keystone.evaluation.suites import item_of_task
from keystone.evaluation.task import Side, Task

_PATIENCE: Final = 400
_NAMED_BYTES: Final = 6
"""Of its fingerprint, in a task's name."""
_FROZEN_DRAWS: Final = 130
"""Draws of a family that surely hold its hundred in the frozen draw: these are distinct but for a few."""


class TaskPool(Protocol):
    """The tasks of one suite, seen by a cycle."""

    @property
    def suite(self) -> str:
        """The suite's name."""

    def practice(self, count: int, seed: int) -> Sequence[Task]:
        """Tasks that may be trained on, spread over all families; another seed gives others."""

    def holds_out(self, suite: str, task: str) -> Match | None:
        """Whether a task may not be practised, from its name alone; a rule for `adapters.HoldoutIndex`."""

    def sentinel(self, count: int) -> Sequence[CodeItem]:
        """The frozen set, the same in every cycle."""

    def draw(self, seed: int, count: int, without: frozenset[str]) -> Sequence[str]:
        """Names of fresh held-out tasks, spread over all families; pure, see `adapters.HoldoutBook`."""

    def named(self, seed: int, names: Sequence[str]) -> Sequence[CodeItem]:
        """The tasks that `draw` with this seed gave, in the order of their names."""


class BasicsPool:
    """The suite `basics`."""

    suite = SUITE_NAME

    def practice(self, count: int, seed: int) -> list[Task]:
        """See `TaskPool`.

        Raises:
            SuiteExhaustedError: there are not so many.
        """
        sources = [_practice_of(family, seed) for family in families().values()]
        return [
            draft.task(SUITE_NAME, family.name, Side.TRAINING)
            for family, draft in _round_robin(sources, count, "practice")
        ]

    def holds_out(self, suite: str, task: str) -> Match | None:
        """See `TaskPool`. A name that says nothing is no proof of being on the other side."""
        if suite != SUITE_NAME:
            return None
        family, _, head = task.partition("/")
        try:
            fingerprint = bytes.fromhex(head)
        except ValueError:
            fingerprint = b""
        if family not in families() or len(fingerprint) != _NAMED_BYTES:
            return Match(suite, task, "unknown task", 1.0)
        if in_held_out_fraction(Digest(fingerprint.ljust(32, b"\0"))):
            return Match(suite, task, "held-out share", 1.0)
        frozen = any(bytes(each).startswith(fingerprint) for each in _frozen_of(family))
        return Match(suite, task, "frozen draw", 1.0) if frozen else None

    def sentinel(self, count: int) -> list[CodeItem]:
        """See `TaskPool`: the head of the frozen draw, which `keystone eval --suite basics` measures too."""
        return [item_of_task(task) for task in draw_held_out(count, FROZEN_SEED)]

    def draw(self, seed: int, count: int, without: frozenset[str]) -> list[str]:
        """See `TaskPool`."""
        sources = [_fresh_of(family, seed, without) for family in families().values()]
        return [_name(family, draft) for family, draft in _round_robin(sources, count, "fresh held-out")]

    def named(self, seed: int, names: Sequence[str]) -> list[CodeItem]:
        """See `TaskPool`.

        Raises:
            SuiteExhaustedError: this seed never gives one of the names; it is named.
        """
        wanted: dict[str, set[str]] = {}
        for name in names:
            wanted.setdefault(name.split("/", maxsplit=1)[0], set()).add(name)
        found: dict[str, CodeItem] = {}
        for family_name, missing in wanted.items():
            for family, draft in _fresh_of(families()[family_name], seed, frozenset()):
                name = _name(family, draft)
                if name in missing:
                    found[name] = item_of_task(draft.task(SUITE_NAME, family.name, family.side_of(draft)))
                    missing.discard(name)
                if not missing:
                    break
            if missing:
                raise SuiteExhaustedError(f"{SUITE_NAME} drawn with seed {seed} never gives {min(missing)}")
        return [found[name] for name in sorted(names)]


def pool_of(suite: str) -> TaskPool:
    """The tasks of a suite that a cycle can run on.

    Raises:
        SuiteMissingError: a suite that has no tasks to practise; public benchmarks are among them.
    """
    if suite != SUITE_NAME:
        raise SuiteMissingError(f"a cycle needs a suite with tasks to practise, {SUITE_NAME}; {suite!r} only measures")
    return BasicsPool()


def _name(family: Family, draft: Draft) -> str:
    # As `Draft.task` names it, without computing the task's hidden tests.
    return f"{family.name}/{draft.fingerprint.hex[:12]}"


def _distinct(family: Family, purpose: str, seed: int) -> Iterator[tuple[Family, Draft]]:
    seen: set[Digest] = set()
    stale = 0
    for draft in draft_stream(family, purpose, seed):
        stale += 1
        if stale > _PATIENCE:
            return
        if draft.fingerprint not in seen:
            seen.add(draft.fingerprint)
            stale = 0
            yield family, draft


def _practice_of(family: Family, seed: int) -> Iterator[tuple[Family, Draft]]:
    frozen = _frozen_of(family.name)
    for _, draft in _distinct(family, "practice", seed):
        if not in_held_out_fraction(draft.fingerprint) and draft.fingerprint not in frozen:
            yield family, draft


def _fresh_of(family: Family, seed: int, without: frozenset[str]) -> Iterator[tuple[Family, Draft]]:
    for _, draft in _distinct(family, "fresh", seed):
        if in_held_out_fraction(draft.fingerprint) and _name(family, draft) not in without:
            yield family, draft


@cache
def _frozen_of(family: str) -> frozenset[Digest]:
    """Functions of a family that the frozen draw holds, and a few more; only held-out families have such outside."""
    known = families()[family]
    if not known.held_out:
        return frozenset()
    return frozenset(draft.fingerprint for draft in islice(draft_stream(known, "held-out", FROZEN_SEED), _FROZEN_DRAWS))


def _round_robin(
    sources: Sequence[Iterator[tuple[Family, Draft]]], count: int, what: str
) -> list[tuple[Family, Draft]]:
    """One of each family after the other; a family that runs dry leaves its turn to the others."""
    found: list[tuple[Family, Draft]] = []
    alive = list(sources)
    while len(found) < count and alive:
        staying = []
        for source in alive:
            each = next(source, None)
            if each is not None and len(found) < count:
                found.append(each)
            if each is not None:
                staying.append(source)
        alive = staying
    if len(found) < count:
        raise SuiteExhaustedError(f"{SUITE_NAME} has only {len(found)} {what} tasks left; {count} were asked for")
    return found
