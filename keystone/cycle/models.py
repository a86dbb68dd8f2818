"""Hands with models: the real work of a cycle, on this box.

One sandbox serves collecting, the gate and the measuring. Models are loaded when they are first asked something and the
last two are kept, since candidate, incumbent and base answer one after the other.

What may not train is held against every example, exactly and nearly: the sentinel set, every draw that was ever opened,
HumanEval where it is installed, and by rule all that the task pool holds out, drawn already or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from adapters import ConvergenceRecord, HoldoutEvent, HoldoutIndex, SignalTable, SourceRefusedError
from csf_store import Digest
from keystone.cycle.answering import answer, code_suite, put_signal_report, signals_of
from keystone.cycle.documents import CycleRecords
from keystone.cycle.hands import Gated, Trained
from keystone.cycle.plan import CyclePlan
from keystone.cycle.pool import TaskPool, pool_of
from keystone.errors import SuiteMissingError
from keystone.evaluation import CodeItem, Sandbox, load_suite
from keystone.evaluation.fingerprint import source_fingerprint
from keystone.evaluation.suite_format import item_fields
from keystone.evaluation.suites import Suite, item_of_task
from keystone.experience import Gated as GateRun
from keystone.experience import add_external, collect, gate
from keystone.experience.decontamination import held_out_item
from keystone.loader import LoadedModel, load
from keystone.training import TrainSettings, train_adapter
from manifests import Recipe, Repository

Bar: TypeAlias = "Callable[[str, int], AbstractContextManager[Callable[[int], None]]]"
"""Opens a progress bar: (what, how many) to a context that is told how many more were done."""

LICENCE = "Apache-2.0"
MOST_REFUSED = 0.05
"""Of a training set: a program that passes by luck now and then is left out, more than that stops the cycle."""
_KEPT_MODELS = 2


class ModelHands:
    """`keystone.cycle.hands.Hands` with models.

    Args:
        repository: where everything is.
        plan: the policy file's content.
        sandbox: where programs run.
        state: a directory for what is unfinished.
        bar: opens progress bars; none by default.
    """

    def __init__(
        self, repository: Repository, plan: CyclePlan, sandbox: Sandbox, state: Path, bar: Bar | None = None
    ) -> None:
        self._repository, self._plan, self._sandbox, self._state = repository, plan, sandbox, state
        self._bar: Bar = bar or _no_bar
        self._pool: TaskPool = pool_of(plan.suite)
        self._models: dict[Digest, LoadedModel] = {}

    @cached_property
    def _sentinel(self) -> Suite:
        return code_suite(f"{self._plan.suite}/sentinel", self._pool.sentinel(self._plan.guard.sentinel_items))

    def sentinel(self) -> Digest:
        """See `Hands`."""
        return self._sentinel.digest

    def frozen(self) -> frozenset[str]:
        """See `Hands`."""
        return frozenset(item.name for item in self._sentinel.items)

    def draw(self, seed: int, count: int, without: frozenset[str]) -> Sequence[str]:
        """See `Hands`."""
        return self._pool.draw(seed, count, without)

    def recipe(self, manifest: Digest) -> Recipe:
        """See `Hands`."""
        return self.model(manifest).recipe

    def reruns(self, base: Digest) -> Sequence[SignalTable]:
        """See `Hands`."""
        rules, model = self._plan.sampling, self.model(base)
        items = self._sentinel.code_items[: rules.prompts]
        with self._bar("reruns of the base", rules.reruns * len(items) * rules.samples) as progress:
            return [
                signals_of(model, items, rules, seed=self._plan.seed + 1 + number, progress=progress)
                for number in range(rules.reruns)
            ]

    def signals(self, manifest: Digest) -> Digest:
        """See `Hands`."""
        rules, model, seed = self._plan.sampling, self.model(manifest), self._plan.seed
        items = self._sentinel.code_items[: rules.prompts]
        with self._bar("sampling for signals", len(items) * rules.samples) as progress:
            table = signals_of(model, items, rules, seed=seed, progress=progress)
        return put_signal_report(self._repository, model, self._sentinel, table, seed=seed)

    def answer_sentinel(self, manifest: Digest) -> Digest:
        """See `Hands`."""
        return self._answer(manifest, self._sentinel, "sentinel set")

    def answer_fresh(self, manifest: Digest, seed: int, names: Sequence[str]) -> Digest:
        """See `Hands`."""
        suite = code_suite(f"{self._plan.suite}/fresh", self._pool.named(seed, names))
        return self._answer(manifest, suite, "fresh draw")

    def _answer(self, manifest: Digest, suite: Suite, what: str) -> Digest:
        with self._bar(what, len(suite.items)) as progress:
            return answer(
                self._repository,
                self.model(manifest),
                suite,
                self._plan,
                sandbox=self._sandbox,
                state=self._state,
                progress=progress,
            )

    def collect(self, incumbent: Digest, *, seed: int, opened: Sequence[HoldoutEvent]) -> CycleRecords:
        """See `Hands`."""
        rules, holdouts = self._plan.practice, self._holdouts(opened)
        tasks = self._pool.practice(rules.tasks, seed)
        with self._bar("collecting", rules.tasks * rules.samples) as progress:
            found = collect(
                self._repository,
                self.model(incumbent),
                incumbent,
                [task for task in tasks if holdouts.match(task.prompt, task.source) is None],
                samples=rules.samples,
                seed=seed,
                sandbox=self._sandbox,
                holdouts=holdouts,
                temperature=rules.temperature,
                max_new_tokens=self._plan.sampling.max_new_tokens,
                batch_size=self._plan.sampling.batch,
                state=self._state / "collect",
                progress=progress,
            )
        share = self._plan.training.external
        wanted = round(len(found.records) * share / (1 - share))
        return CycleRecords(
            records=found.records,
            external=self._external(found.records, wanted, seed + 1, holdouts) if wanted else (),
            sampled=found.sampled,
            passed=found.passed,
            duplicates=found.duplicates,
            contaminated=len(found.contaminated),
        )

    def _external(self, own: Sequence[Digest], wanted: int, seed: int, holdouts: HoldoutIndex) -> tuple[Digest, ...]:
        """Exercises with the suite's own solutions, each executed; none that teaches what an own record teaches."""
        items = [item_of_task(task) for task in self._pool.practice(2 * wanted, seed)]
        with TemporaryDirectory() as folder:
            path = Path(folder, "exercises.jsonl")
            # Not `item_line`: it sorts keys, and a dictionary among the arguments has an order that programs return.
            lines = [
                json.dumps({"v": 1, "suite": self._plan.suite}),
                *(json.dumps(item_fields(item)) for item in items),
            ]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            with self._bar("external exercises", len(items)) as progress:
                report = add_external(
                    self._repository,
                    path,
                    licence=LICENCE,
                    source=f"exercises of {self._plan.suite} with its own solutions, seed {seed}",
                    sandbox=self._sandbox,
                    holdouts=holdouts,
                    progress=progress,
                )
        known = {self._repository.load_record(each, ConvergenceRecord).content for each in own}
        fresh = (
            each
            for each in report.records
            if self._repository.load_record(each, ConvergenceRecord).content not in known
        )
        return tuple(each for each, _ in zip(fresh, range(wanted), strict=False))

    def gate(self, records: CycleRecords, *, opened: Sequence[HoldoutEvent]) -> Gated:
        """See `Hands`."""
        holdouts = self._holdouts(opened)
        found = self._judged(records, holdouts)
        if not found.rejected:
            return Gated(found.digest, records)
        first, total = found.rejected[0], len(records.records) + len(records.external)
        said = f"{len(found.rejected)} of {total} records, {first.record} among them: {first.reason}"
        out = {each.record for each in found.rejected}
        rest = records.revised(
            records=tuple(each for each in records.records if each not in out),
            external=tuple(each for each in records.external if each not in out),
        )
        if len(found.rejected) > MOST_REFUSED * total or not rest.records:
            raise SourceRefusedError(f"the source gate refused {said}; report {found.digest}")
        # A set that shrinks in silence is not the one that was judged: what is left is judged by itself.
        again = self._judged(rest, holdouts)
        if again.rejected:
            raise SourceRefusedError(
                f"the source gate refused {said}; and then more of the rest, report {again.digest}"
            )
        return Gated(again.digest, rest, found.digest)

    def _judged(self, records: CycleRecords, holdouts: HoldoutIndex) -> GateRun:
        chosen = [*records.records, *records.external]
        with self._bar("source gate", len(chosen)) as progress:
            return gate(self._repository, chosen, sandbox=self._sandbox, holdouts=holdouts, progress=progress)

    def train(self, incumbent: Digest, records: CycleRecords, gate: Digest, *, seed: int, work: Path) -> Trained:
        """See `Hands`."""
        rules = self._plan.training
        settings = TrainSettings(
            rank=rules.rank,
            alpha=rules.lora_alpha,
            targets=rules.targets,
            steps=rules.steps,
            batch_size=rules.batch,
            warmup_steps=rules.warmup_steps,
            learning_rate=rules.learning_rate,
            seed=seed,
        )
        with self._bar("training", rules.steps) as progress:
            done = 0

            def told(steps: int, total: int, loss: float) -> None:  # noqa: ARG001 - what training tells
                nonlocal done
                progress(steps - done)
                done = steps

            trained = train_adapter(
                self._repository,
                incumbent,
                records.records,
                gate,
                settings,
                external=records.external,
                checkpoint_dir=work,
                progress=told,
            )
        return Trained(trained.adapter, trained.manifest)

    def model(self, manifest: Digest) -> LoadedModel:
        """A manifest's model, loaded once while it is among the last two that were asked for."""
        assembly = self._repository.load(manifest).assembly.digest
        if assembly not in self._models:
            while len(self._models) >= _KEPT_MODELS:
                del self._models[next(iter(self._models))]
            quantization = self._plan.sampling.quantization
            self._models[assembly] = load(manifest, archive=self._repository.archive, quantization=quantization)
        return self._models[assembly]

    def _holdouts(self, opened: Sequence[HoldoutEvent]) -> HoldoutIndex:
        items: list[CodeItem] = [*self._sentinel.code_items]
        for event in opened:
            if event.suite == self._plan.suite:
                items += self._pool.named(int(event.seed or 0), event.items)
        with suppress(SuiteMissingError):  # where it is not installed nobody here measures with it
            items += load_suite("humaneval").code_items
        return HoldoutIndex(map(held_out_item, items), keys=[_fingerprint], rules=[self._pool.holds_out])


@contextmanager
def _no_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:  # noqa: ARG001 - for those who draw
    yield lambda _: None


def _fingerprint(source: str) -> Digest | None:
    try:
        return source_fingerprint(source)
    except (SyntaxError, LookupError, ValueError, RecursionError):
        return None
