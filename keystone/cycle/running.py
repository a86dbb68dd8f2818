"""The guarded cycle: collect, gate, train, evaluate, tripwire, and stop at the operator.

| step | what is there afterwards |
|---|---|
| `begun` | the policy file, recorded; which manifest is challenged |
| `calibrated` | the guard's policy, with the base's own noise |
| `committed` | a fresh draw nobody can know, and the rules of this cycle |
| `collected` | Convergence Records, every one executed |
| `gated` | the source gate's report: each was executed again |
| `trained` | a candidate; the base's bytes are the same before and after |
| `opened` | the draw, spent on this candidate |
| `answered-candidate`, `-incumbent`, `-base` | results item by item, and signals of samples |
| `judged` | the guard's report; evidence in a new manifest of the candidate |
| `finished` | the verdict; after a trip, the ref at its last good manifest |

Each step makes documents that are named by their content, then says so with one event in the ledger. A kill between
the two costs doing the step again, to the same digests; a kill anywhere else costs nothing. Nothing here moves a ref
forward: that takes an operator's signature (`keystone approve`, `keystone promote`).
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from adapters import (
    BaseChangedError,
    ConvergenceRecord,
    GuardPolicy,
    HoldoutBook,
    HoldoutEvent,
    LedgerJournal,
    OpenedDraw,
    SourceRefusedError,
    TrainingFailedError,
    tripwire_policy,
)
from csf_store import Digest
from keystone.cycle.documents import CycleRecords, keep
from keystone.cycle.draw_key import DrawKey
from keystone.cycle.hands import Hands
from keystone.cycle.judging import Judged, judge_cycle
from keystone.cycle.plan import CyclePlan
from keystone.cycle.restoring import restore
from keystone.cycle.steps import Cycle, CycleLog, Fields
from keystone.errors import RefusedError, StorageError
from manifests import Manifest, Repository

_SEEDS: Final = 10**9  # as a Convergence Record holds them
ROLES: Final = ("candidate", "incumbent", "base")
STEPS: Final = (
    "begun",
    "calibrated",
    "committed",
    "collected",
    "gated",
    "trained",
    "opened",
    *(f"answered-{role}" for role in ROLES),
    "judged",
    "finished",
)


class Listener:
    """Is told what happens; the command line draws it."""

    def step(self, cycle: str, step: str) -> None:
        """A step begins."""

    def done(self, cycle: str, step: str, fields: Fields) -> None:
        """A step is recorded."""


@dataclass
class Runner:
    """Runs cycles for refs of one archive.

    Attributes:
        repository: where everything is.
        plan: the policy file's content.
        hands: who has the models.
        key: what draws are computed from.
        state: a directory for what is unfinished.
        listener: who is told.
        after: called after each step is recorded; tests kill the run there.
    """

    repository: Repository
    plan: CyclePlan
    hands: Hands
    key: DrawKey
    state: Path
    listener: Listener
    after: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self._log = CycleLog(self.repository.archive)
        self._journal = LedgerJournal(self.repository.archive)

    def run(self, ref: str) -> Cycle:
        """Run one cycle to its end, or go on with the one that was interrupted.

        Raises:
            RefusedError: an interrupted cycle began under another policy.
            manifests.RefNotFoundError: there is no such ref.
        """
        with _alone(self.state, ref):
            cycle = self._begin(ref)
            for step in STEPS[1:]:
                if step in cycle.steps:
                    continue
                if cycle.is_finished:
                    break
                self.listener.step(cycle.name, step)
                fields = self._do(step, cycle)
                if "outcome" in fields:
                    step = "finished"  # refused or halted: nothing is left to do  # noqa: PLW2901
                self._record(cycle, step, fields)
                cycle = self._log.get(cycle.name)
            return cycle

    def _record(self, cycle: Cycle, step: str, fields: Fields) -> None:
        self._log.record(cycle.name, cycle.ref, step, fields)
        self.listener.done(cycle.name, step, fields)
        if self.after is not None:
            self.after(step)

    def _begin(self, ref: str) -> Cycle:
        earlier = self._log.cycles(ref)
        plan = keep(self.repository, self.plan)
        if earlier and not earlier[-1].is_finished:
            cycle = earlier[-1]
            if cycle.digest("begun", "plan") != plan:
                raise RefusedError(
                    f"cycle {cycle.name} was interrupted, and began under policy {cycle.digest('begun', 'plan')}, not"
                    f" {plan}; finish it with the policy it began with"
                )
            return cycle
        number = len(earlier) + 1
        incumbent = self.repository.refs.get(ref)
        fields: dict[str, str | int] = {
            "plan": str(plan),
            "incumbent": str(incumbent),
            "base": str(self._bare(incumbent)),
            "draw": f"{ref}/{number}",
        }
        cycle = Cycle(f"{ref}/{number}", ref, number, -1, "")
        self._record(cycle, "begun", fields)
        return self._log.get(cycle.name)

    def _bare(self, incumbent: Digest) -> Digest:
        manifest = self.repository.load(incumbent)
        if not manifest.assembly.adapters:
            return incumbent
        bare = manifest.assembly.revised(adapters=())
        return self.repository.put(Manifest(assembly=bare, code_source=manifest.code_source, source=manifest.source))

    def _do(self, step: str, cycle: Cycle) -> Fields:
        if step.startswith("answered-"):
            return self._answered(cycle, step.removeprefix("answered-"))
        done: Mapping[str, Callable[[Cycle], Fields]] = {
            "calibrated": self._calibrated,
            "committed": self._committed,
            "collected": self._collected,
            "gated": self._gated,
            "trained": self._trained,
            "opened": self._opened,
            "judged": self._judged,
            "finished": self._finished,
        }
        return done[step](cycle)

    def _calibrated(self, cycle: Cycle) -> Fields:
        base = self.repository.load(cycle.digest("begun", "base")).assembly.digest
        for earlier in reversed(self._log.cycles()):
            policy = earlier.find("calibrated", "policy")
            same_plan = policy is not None and earlier.digest("begun", "plan") == self.plan.digest
            if same_plan and self.repository.load(earlier.digest("begun", "base")).assembly.digest == base:
                return {"policy": str(policy)}
        reruns = self.hands.reruns(cycle.digest("begun", "base"))
        policy = keep(self.repository, self.plan.guard_policy(self.hands.sentinel(), reruns))
        return {"policy": str(policy)}

    def _committed(self, cycle: Cycle) -> Fields:
        policy = self._policy(cycle)
        draw = cycle.text("begun", "draw")
        self._book().commit(
            draw,
            suite=policy.fresh_suite,
            count=policy.fresh_items,
            policy=policy.digest,
            secret=self.key.secret(draw),
        )
        sealed = next(event.commitment for event in self._journal.events() if event.draw == draw)
        rules = self.repository.put_record(tripwire_policy(policy, commitment=sealed))
        began = str(self.repository.archive.ledger.checkpoint())
        return {"commitment": str(sealed), "rules": str(rules), "began": began}

    def _collected(self, cycle: Cycle) -> Fields:
        records = self.hands.collect(
            cycle.digest("begun", "incumbent"), seed=self._seed(cycle, "collect"), opened=self._opened_draws(cycle)
        )
        if not records.records:
            return {"outcome": "REFUSED", "why": f"none of {records.sampled} sampled answers may train"}
        return {
            "records": str(keep(self.repository, records)),
            "kept": len(records.records),
            "external": len(records.external),
            "sampled": records.sampled,
            "passed": records.passed,
        }

    def _gated(self, cycle: Cycle) -> Fields:
        try:
            gated = self.hands.gate(self._records(cycle), opened=self._opened_draws(cycle))
        except SourceRefusedError as error:
            return {"outcome": "REFUSED", "why": str(error)}
        return {
            "gate": str(gated.report),
            "records": str(keep(self.repository, gated.records)),
            "refusals": str(gated.refusals) if gated.refusals is not None else None,
        }

    def _trained(self, cycle: Cycle) -> Fields:
        work = self.state / "training" / cycle.name.replace("/", "-")
        try:
            trained = self.hands.train(
                cycle.digest("begun", "incumbent"),
                self._records(cycle),
                cycle.digest("gated", "gate"),
                seed=self._seed(cycle, "train"),
                work=work,
            )
        except (BaseChangedError, TrainingFailedError) as error:
            restored = restore(self.repository, cycle.ref, None)
            return {"outcome": "HALTED", "why": str(error), "at": str(restored)}
        assembly = self.repository.load(trained.manifest).assembly.digest
        return {"adapter": str(trained.adapter), "manifest": str(trained.manifest), "assembly": str(assembly)}

    def _opened(self, cycle: Cycle) -> Fields:
        return {"items": len(self._open(cycle).items)}

    def _open(self, cycle: Cycle) -> OpenedDraw:
        draw = cycle.text("begun", "draw")
        records = self._records(cycle)
        trained = {
            self.repository.load_record(each, ConvergenceRecord).claim.task
            for each in (*records.records, *records.external)
        }
        return self._book().open(
            self.key.secret(draw),
            self.hands.draw,
            candidate=cycle.digest("trained", "assembly"),
            policy=cycle.digest("calibrated", "policy"),
            trained=trained,
        )

    def _answered(self, cycle: Cycle, role: str) -> Fields:
        manifest = cycle.digest("trained", "manifest") if role == "candidate" else cycle.digest("begun", role)
        assembly = str(self.repository.load(manifest).assembly.digest)
        known = dict(self._known_answers(cycle, assembly))
        if "fresh" not in known:
            event = next(e for e in self._opened_draws(None) if e.draw == cycle.text("begun", "draw"))
            known["fresh"] = str(self.hands.answer_fresh(manifest, int(event.seed or 0), event.items))
        if "sentinel" not in known:
            known["sentinel"] = str(self.hands.answer_sentinel(manifest))
            known["signals"] = str(self.hands.signals(manifest))
        return {"assembly": assembly, **known}

    def _known_answers(self, cycle: Cycle, assembly: str) -> Iterator[tuple[str, str]]:
        """What this model answered before: the sentinel set under this very policy, the fresh draw in this cycle."""
        for earlier in self._log.cycles():
            if earlier.find("calibrated", "policy") != cycle.find("calibrated", "policy"):
                continue
            for role in ROLES:
                step = f"answered-{role}"
                if earlier.text(step, "assembly") == assembly:
                    names = ("fresh", "sentinel", "signals") if earlier.name == cycle.name else ("sentinel", "signals")
                    yield from ((name, earlier.text(step, name)) for name in names)

    def _judged(self, cycle: Cycle) -> Fields:
        judged: Judged = judge_cycle(
            self.repository,
            self._policy(cycle),
            cycle,
            draw=self._open(cycle),
            earlier=[each for each in self._log.cycles(cycle.ref) if each.number < cycle.number],
            recipe=self.hands.recipe(cycle.digest("trained", "manifest")),
        )
        return {
            "report": str(judged.report),
            "verdict": judged.verdict,
            "status": judged.status,
            "look": judged.look,
            "manifest": str(judged.manifest),
        }

    def _finished(self, cycle: Cycle) -> Fields:
        tripped = cycle.digest("trained", "assembly") if cycle.text("judged", "status") == "tripped" else None
        at = restore(self.repository, cycle.ref, tripped) if tripped else self.repository.refs.get(cycle.ref)
        return {"outcome": cycle.text("judged", "verdict"), "manifest": cycle.text("judged", "manifest"), "at": str(at)}

    def _policy(self, cycle: Cycle) -> GuardPolicy:
        return self.repository.load_record(cycle.digest("calibrated", "policy"), GuardPolicy)

    def _records(self, cycle: Cycle) -> CycleRecords:
        step = "gated" if "gated" in cycle.steps else "collected"
        return self.repository.load_record(cycle.digest(step, "records"), CycleRecords)

    def _book(self) -> HoldoutBook:
        return HoldoutBook(self._journal, frozen=self.hands.frozen())

    def _opened_draws(self, cycle: Cycle | None) -> list[HoldoutEvent]:
        opened = [event for event in self._journal.events() if event.step == "open"]
        if cycle is None:
            return opened
        # A later draw of another cycle must not change what this one does when it is resumed.
        return [event for event in opened if event.draw != cycle.text("begun", "draw")]

    def _seed(self, cycle: Cycle, purpose: str) -> int:
        text = f"{self.plan.digest}:{cycle.number}:{purpose}".encode()
        return int.from_bytes(blake3(text).digest()[:8], "big") % _SEEDS


@contextlib.contextmanager
def _alone(state: Path, ref: str) -> Iterator[None]:
    """One process at a time runs a ref's cycle; the lock goes with the process, so a kill leaves none behind."""
    path = state / f"cycle-{ref.replace('/', '-')}.lock"
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(f"another process runs a cycle for {ref!r}; {path} is its lock") from error
        yield
