"""The switch and the check after it: a ref moves forward, the model that is there now answers, or the ref goes back.

Before the move everything was measured on a model that this process had loaded. After the move the ref is what others
load, so the check begins where they begin: resolve the ref, load what it names, every byte verified, and ask. The
first sentinel items were answered when the candidate was measured, greedily; asked again, the model must say the same
to nearly all of them. A check that fails, in whatever way, rolls the ref back to its last good manifest, by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from csf_store import Archive, CsfError, Digest
from keystone.cycle.clearing import require_clear
from keystone.cycle.pool import pool_of
from keystone.cycle.restoring import last_good
from keystone.cycle.steps import Cycle, CycleLog
from keystone.errors import KeystoneError
from keystone.evaluation.suite_format import CodeItem
from keystone.loader import LoadedModel, load
from manifests import EvalReport, ManifestError, RefEvent, Repository

ASKED: Final = 8
"""Sentinel items that are asked again."""
SAME: Final = 0.75
"""Share of them that must get the answer they got before: other threads and other batches round other bits."""
_PROMPT: Final = "def add(a, b):\n"

Loader = Callable[[str, Archive], LoadedModel]


@dataclass(frozen=True)
class Switched:
    """What a promotion came to.

    Attributes:
        event: the move forward.
        problem: what the check after it found, None when all was well.
        back: the rollback that followed a problem.
    """

    event: RefEvent
    problem: str | None = None
    back: RefEvent | None = None


def _load(ref: str, archive: Archive) -> LoadedModel:
    return load(ref, archive=archive)


def promote_and_check(
    repository: Repository,
    ref: str,
    target: Digest,
    *,
    approval: Digest,
    reason: str | None = None,
    loader: Loader = _load,
) -> Switched:
    """Move a ref with an approval, check what it serves now, and take the move back where that is bad.

    Args:
        repository: where the ref is.
        ref: the ref.
        target: the manifest to move to.
        approval: the envelope that allows it.
        reason: a sentence for the ledger.
        loader: loads a ref as anybody would.

    Raises:
        RefusedError: an adapter whose tripwire is not clear.
        manifests.ApprovalRefusedError: the approval does not allow the move.
    """
    require_clear(repository, target)
    event = repository.refs.promote(ref, target, approval=approval, reason=reason)
    return check_switch(repository, ref, event, loader=loader)


def check_switch(repository: Repository, ref: str, event: RefEvent, *, loader: Loader = _load) -> Switched:
    """The check after a switch, and the way back. Also for a promotion whose process died before its check."""
    problem = switch_problem(repository, ref, loader)
    cycle = cycle_of(repository, ref)
    if cycle is not None:
        fields: dict[str, str | int] = {"at": str(event.target), "move": event.seq, "problem": problem or ""}
        CycleLog(repository.archive).record(cycle.name, ref, f"checked-{event.seq}", fields)
    if problem is None:
        return Switched(event)
    bad = repository.load(repository.refs.get(ref)).assembly.digest
    back = repository.refs.rollback(
        ref, to=last_good(repository, ref, without=bad), reason=f"the check after the switch failed: {problem}"[:300]
    )
    return Switched(event, problem, back)


def switch_problem(repository: Repository, ref: str, loader: Loader) -> str | None:
    """What is wrong with the model that a ref serves, or None."""
    try:
        model = loader(ref, repository.archive)
        known = _known_answers(repository, ref, model)
        prompts = [item.prompt for item, _ in known] or [_PROMPT]
        answers = model.complete(prompts, max_new_tokens=64)
    except (KeystoneError, CsfError, ManifestError, RuntimeError, ValueError) as error:
        return f"it does not load and answer: {type(error).__name__}: {error}"
    if not any(answer.strip() for answer in answers):
        return f"it answers nothing to {len(prompts)} prompts"
    same = sum(answer == said for answer, (_, said) in zip(answers, known, strict=False))
    if known and same < SAME * len(known):
        return f"{len(known) - same} of {len(known)} answers are not those that were measured"
    return None


def cycle_of(repository: Repository, ref: str) -> Cycle | None:
    """The cycle whose candidate a ref holds now, if one made it."""
    wanted = repository.load(repository.refs.get(ref)).assembly.digest
    for cycle in reversed(CycleLog(repository.archive).cycles(ref)):
        if cycle.find("trained", "assembly") == wanted:
            return cycle
    return None


def _known_answers(repository: Repository, ref: str, model: LoadedModel) -> list[tuple[CodeItem, str]]:
    """Sentinel items with the answers of the candidate's own measurement, where it was held in the same way."""
    cycle = cycle_of(repository, ref)
    report = cycle.find("answered-candidate", "sentinel") if cycle is not None else None
    if report is None:
        return []
    found = repository.load_record(report, EvalReport)
    if found.items is None or found.recipe != model.recipe.digest:
        return []
    lines = [json.loads(line) for line in repository.archive.get_bytes(found.items).splitlines()]
    said = {str(line["name"]): str(line["completion"]) for line in lines if "completion" in line}
    items = pool_of(found.result.suite.split("/", maxsplit=1)[0]).sentinel(ASKED)
    return [(item, said[item.name]) for item in items if item.name in said]


def unchecked_move(repository: Repository, ref: str) -> RefEvent | None:
    """The promotion that a ref stands on and that nobody checked: the process died in between."""
    history = repository.refs.history(ref)
    cycle = cycle_of(repository, ref) if history else None
    if cycle is None or history[-1].approval is None or f"checked-{history[-1].seq}" in cycle.steps:
        return None
    return history[-1]
