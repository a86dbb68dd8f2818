"""The suite: which families there are, which draws are held out, and how to draw.

The split is a pure function of what a task *is*, never of how it was drawn:

- every draw of a held-out family is held out;
- a draw of a seen family is held out if and only if its fingerprint, read as a fraction of the hash space, lies below
  one fifth.

A fingerprint ignores names and wording (see `keystone.evaluation.fingerprint`), so two phrasings of one function are
always on the same side, and a generator of training text needs no list of forbidden tasks: it asks `is_held_out` and
draws again. `split.json` records the frozen draw; a test recomputes it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal

from blake3 import blake3

from csf_store import Digest
from keystone.errors import SuiteExhaustedError
from keystone.evaluation.basics import dict_families, list_families, number_families, text_families
from keystone.evaluation.basics.dice import Dice
from keystone.evaluation.basics.drafts import Draft
from keystone.evaluation.task import Side, Task

SUITE_NAME = "basics"
TASK_SUITE_VERSION = 1
FROZEN_SEED = 2
FROZEN_COUNT = 4000

FamilySet = Literal["seen", "held-out", "all"]

_HELD_OUT_BELOW = 2**64 // 5
_PATIENCE = 400  # draws in a row that bring nothing new before a family counts as exhausted


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of task: its name, whether all of it is held out, and the generator."""

    name: str
    held_out: bool
    build: Callable[[Dice], Draft]

    def is_held_out(self, draft: Draft) -> bool:
        """Whether this draw may never be trained on."""
        return self.side_of(draft) is not Side.TRAINING

    def side_of(self, draft: Draft) -> Side:
        """On which side of the split this draw is."""
        if self.held_out:
            return Side.UNSEEN_FAMILY
        return Side.SEEN_FAMILY if in_held_out_fraction(draft.fingerprint) else Side.TRAINING


def in_held_out_fraction(fingerprint: Digest) -> bool:
    """Whether a function of a seen family is held out."""
    return int.from_bytes(bytes(fingerprint)[:8], "big") < _HELD_OUT_BELOW


_SEEN: tuple[Callable[[Dice], Draft], ...] = (
    *(number_families.conditional, number_families.clamp, number_families.classify, number_families.check),
    *(number_families.combine, list_families.list_filter, list_families.list_map, list_families.list_count),
    *(list_families.list_sum_map, list_families.list_any, list_families.list_first, list_families.list_choose),
    *(list_families.list_max_map, list_families.list_slice, list_families.list_fold, text_families.word_filter),
    *(text_families.word_map, text_families.word_filter_map, text_families.word_all, text_families.word_total),
    *(text_families.text_edit, text_families.text_conditional, text_families.char_count, text_families.char_filter),
    *(dict_families.dict_filter, dict_families.dict_map, dict_families.dict_filter_map, dict_families.dict_keys),
    *(dict_families.dict_sum_where, dict_families.dict_lookup),
)
_HELD_OUT: tuple[Callable[[Dice], Draft], ...] = (
    *(
        list_families.list_filter_map,
        list_families.list_sum_where,
        list_families.list_all,
        list_families.list_max_where,
    ),
    *(list_families.list_capped_sum, text_families.word_any, text_families.word_count, text_families.word_first),
    *(dict_families.dict_count, dict_families.dict_choose),
)
_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        build.__name__: Family(build.__name__, held_out, build)
        for held_out, builds in ((False, _SEEN), (True, _HELD_OUT))
        for build in builds
    }
)


def families() -> Mapping[str, Family]:
    """Every family by name, seen ones first."""
    return _FAMILIES


def draft_stream(family: Family, purpose: str, seed: int) -> Iterator[Draft]:
    """An endless stream of a family's draws, both sides of the split; other purposes give unrelated streams."""
    for index in itertools.count():
        yield family.build(Dice(SUITE_NAME, TASK_SUITE_VERSION, purpose, seed, family.name, index))


@cache
def frozen_fingerprints() -> frozenset[Digest]:
    """Fingerprints of the frozen draw."""
    return frozenset(draft.fingerprint for _, draft in _held_out_drafts(FROZEN_COUNT, FROZEN_SEED, "all"))


def training_drafts(seed: int) -> Iterator[tuple[Family, Draft]]:
    """An endless stream of exercises that may be trained on; the same function may come back in other words."""
    seen = [family for family in _FAMILIES.values() if not family.held_out]
    index = 0
    while True:
        family = seen[index % len(seen)]
        draft = family.build(Dice(SUITE_NAME, TASK_SUITE_VERSION, "training", seed, family.name, index))
        index += 1
        if not family.is_held_out(draft):
            yield family, draft


def draw_training(n: int, seed: int) -> list[Task]:
    """`n` tasks that may be trained on, distinct as functions."""
    stream = ((family, draft) for family, draft in training_drafts(seed))
    found: dict[Digest, Task] = {}
    stale = 0
    for family, draft in stream:
        if len(found) >= n:
            break
        stale = stale + 1 if draft.fingerprint in found else 0
        if stale > _PATIENCE * len(_SEEN):
            raise SuiteExhaustedError(
                f"{SUITE_NAME} can draw only {len(found)} distinct training tasks; {n} were asked for"
            )
        if not stale:
            found[draft.fingerprint] = draft.task(SUITE_NAME, family.name, Side.TRAINING)
    return list(found.values())


def draw_held_out(n: int, seed: int, *, families: FamilySet = "all") -> list[Task]:
    """`n` held-out tasks, distinct as functions, spread evenly over the families of the chosen set.

    Args:
        n: How many.
        seed: Names the draw; the same seed gives the same tasks in the same order on every Python.
        families: `seen` for held-out draws of families that training knows, `held-out` for families it never sees, or
            `all`.

    Raises:
        SuiteExhaustedError: There are not `n` distinct ones.
    """
    return [
        draft.task(SUITE_NAME, family.name, family.side_of(draft))
        for family, draft in _held_out_drafts(n, seed, families)
    ]


def _held_out_drafts(n: int, seed: int, families: FamilySet) -> list[tuple[Family, Draft]]:
    chosen = [
        family for family in _FAMILIES.values() if families == "all" or family.held_out == (families == "held-out")
    ]
    taken: set[Digest] = set()
    sources = [_fresh_drafts(family, seed, taken) for family in chosen]
    tasks: list[tuple[Family, Draft]] = []
    while len(tasks) < n:
        alive = []
        for family, source in zip(chosen, sources, strict=True):
            draft = next(source, None)
            if draft is None:
                continue
            alive.append((family, source))
            if len(tasks) < n:
                tasks.append((family, draft))
        if not alive:
            raise SuiteExhaustedError(
                f"{SUITE_NAME} can draw only {len(tasks)} distinct held-out tasks from {families} families; "
                f"{n} were asked for"
            )
        chosen, sources = [family for family, _ in alive], [source for _, source in alive]
    return tasks


def _fresh_drafts(family: Family, seed: int, taken: set[Digest]) -> Iterator[Draft]:
    stale = 0
    for draft in draft_stream(family, "held-out", seed):
        stale += 1
        if stale > _PATIENCE:
            return
        if family.is_held_out(draft) and draft.fingerprint not in taken:
            taken.add(draft.fingerprint)
            stale = 0
            yield draft


def tasks_digest(tasks: Sequence[Task]) -> Digest:
    """BLAKE3 of everything that decides a result: prompts, solutions, hidden tests, in order."""
    hasher = blake3()
    for task in tasks:
        cases = [[list(case.args), case.expected] for case in task.cases]
        row = [task.suite, task.family, task.name, task.prompt, task.solution, task.entry_point, task.held_out, cases]
        hasher.update(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    return Digest(hasher.digest())


def suite_digest() -> Digest:
    """Digest of the suite: its version, its families and the frozen held-out draw.

    Computed anew, in some seconds; `frozen_split().digest` is the value on record.
    """
    return suite_digest_of(tasks_digest(draw_held_out(FROZEN_COUNT, FROZEN_SEED)))


def suite_digest_of(frozen_draw: Digest) -> Digest:
    """`suite_digest` for somebody who has the digest of the frozen draw already."""
    head = [SUITE_NAME, TASK_SUITE_VERSION, [[family.name, family.held_out] for family in _FAMILIES.values()]]
    return Digest.of(json.dumps(head, separators=(",", ":")).encode() + bytes(frozen_draw))
