"""Hands without a model: everything they make is a pure function of what they are given, and every call is counted.

Run as a program it is a cycle that kills itself: `python cycle_lab.py ARCHIVE STATE STEP WHEN`.
"""

import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adapters import (
    Claim,
    Confidence,
    ConvergenceRecord,
    Evidence,
    HoldoutEvent,
    RecordSource,
    SignalRule,
    SignalTable,
    SourceRefusedError,
)
from csf_store import Archive, Digest
from keystone.cycle.documents import CycleRecords, SignalReport, put_signals
from keystone.cycle.draw_key import DrawKey
from keystone.cycle.hands import Gated, Trained
from keystone.cycle.plan import CyclePlan, GuardRules, SamplingRules
from keystone.cycle.running import Listener, Runner
from keystone.cycle.steps import Cycle
from manifests import (
    AcceptedRecord,
    AdapterRecord,
    AdapterUse,
    Assembly,
    EvalReport,
    Manifest,
    Recipe,
    Repository,
    Score,
    Source,
    SourceGateReport,
)

FAMILIES = [f"family{number:02}" for number in range(20)]
SENTINEL = [f"{family}/s{number}" for family in FAMILIES for number in range(10)]
RECIPE = Recipe(dtype="float32")
SOURCE = Source(kind="embedded", location="a test", licence="Apache-2.0")
PLAN = CyclePlan(
    name="test",
    guard=GuardRules(
        sentinel_items=200,
        fresh_items=200,
        looks=4,
        unwatched=20,
        signals=(SignalRule(name="distinct-2", harm="lower", tolerance=0.15, relative=True),),
    ),
    sampling=SamplingRules(prompts=100),
)


class Killed(BaseException):
    """What a test throws where a process would die."""


def chance(*parts: object) -> float:
    return int.from_bytes(bytes(Digest.of(repr(parts).encode()))[:6], "big") / 2**48


@dataclass
class FakeHands:
    """`keystone.cycle.hands.Hands`; `rate` is what every adapter adds to the base's pass rate of 0.6."""

    repository: Repository
    rate: float = 0.15
    shorter: float = 0.0
    records: int = 5
    refuses: bool = False
    calls: Counter[str] = field(default_factory=Counter)

    def sentinel(self) -> Digest:
        return Digest.of(b"sentinel")

    def frozen(self) -> frozenset[str]:
        return frozenset(SENTINEL)

    def recipe(self, manifest: Digest) -> Recipe:
        return RECIPE

    def reruns(self, base: Digest) -> Sequence[SignalTable]:
        self.calls["reruns"] += 1
        return [self._table(base, seed) for seed in range(5)]

    def draw(self, seed: int, count: int, without: frozenset[str]) -> Sequence[str]:
        each = count // len(FAMILIES)
        names = []
        for family in FAMILIES:
            stream = (f"{family}/{seed % 997}-{number}" for number in range(10 * each))
            names += [name for name in stream if name not in without][:each]
        return names

    def collect(self, incumbent: Digest, *, seed: int, opened: Sequence[HoldoutEvent]) -> CycleRecords:
        self.calls["collect"] += 1
        check = self.repository.archive.put_bytes(b"a check").digest
        found = []
        for number in range(self.records):
            record = ConvergenceRecord(
                claim=Claim(suite="basics", task=f"t{number}", prompt="p", answer=f"{seed}-{number}"),
                evidence=Evidence(ground="tests-passed", check=check, checker="test/1"),
                confidence=Confidence(passed=1, total=1),
                source=RecordSource(
                    kind="model",
                    name="test",
                    licence="Apache-2.0",
                    assembly=self.repository.load(incumbent).assembly.digest,
                ),
            )
            found.append(self.repository.put_record(record))
        return CycleRecords(records=tuple(found), sampled=10, passed=len(found), duplicates=0, contaminated=0)

    def gate(self, records: CycleRecords, *, opened: Sequence[HoldoutEvent]) -> Gated:
        self.calls["gate"] += 1
        if self.refuses:
            raise SourceRefusedError("record t0 may not train: it is from a hold-out")
        accepted = tuple(AcceptedRecord(record=each, ground="tests-passed") for each in records.records)
        return Gated(self.repository.put_record(SourceGateReport(gate="test", accepted=accepted)), records)

    def train(self, incumbent: Digest, records: CycleRecords, gate: Digest, *, seed: int, work: Path) -> Trained:
        self.calls["train"] += 1
        manifest = self.repository.load(incumbent)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "adapter_config.json").write_text(f"{{}} {seed} {records.digest}")
            adapter = self.repository.archive.put_tree(Path(folder)).digest
        base = manifest.assembly.base
        self.repository.put_adapter_record(
            AdapterRecord(adapter=adapter, base=base, rank=1, alpha=1.0, targets=("m",), claim=True)
        )
        assembly = manifest.assembly.revised(adapters=(AdapterUse(adapter=adapter),))
        lineage = self.repository.trace([adapter], base=base)
        candidate = Manifest(assembly=assembly, source=SOURCE, lineage=lineage, parent=incumbent)
        return Trained(adapter, self.repository.put(candidate))

    def answer_sentinel(self, manifest: Digest) -> Digest:
        self.calls["answer sentinel"] += 1
        return self._answer(manifest, SENTINEL, "basics/sentinel")

    def answer_fresh(self, manifest: Digest, seed: int, names: Sequence[str]) -> Digest:
        self.calls["answer fresh"] += 1
        return self._answer(manifest, names, "basics/fresh")

    def signals(self, manifest: Digest) -> Digest:
        self.calls["signals"] += 1
        assembly = self.repository.load(manifest).assembly
        report = SignalReport(
            assembly=assembly.digest,
            recipe=RECIPE.digest,
            suite_digest=self.sentinel(),
            seed=0,
            items=put_signals(self.repository.archive, self._table(manifest, 0)),
        )
        return self.repository.put_record(report)

    def _table(self, manifest: Digest, seed: int) -> SignalTable:
        adapted = bool(self.repository.load(manifest).assembly.adapters)
        items = SENTINEL[:100]
        values = {
            rule.name: np.array([1 + 0.1 * chance(rule.name, item, seed) for item in items])
            * (1 - (self.shorter if adapted and rule.name == "distinct-2" else 0))
            for rule in PLAN.guard.signals
        }
        return SignalTable(tuple(sorted(items)), tuple(name.split("/")[0] for name in sorted(items)), values)

    def _answer(self, manifest: Digest, names: Sequence[str], suite: str) -> Digest:
        assembly = self.repository.load(manifest).assembly
        level = 0.6 + (self.rate if assembly.adapters else 0)
        lines, passed = "", 0
        for name in names:
            right = chance("luck", name) < level
            passed += right
            family = name.split("/")[0]
            verdict = "passed" if right else "failed"
            lines += f'{{"family":"{family}","name":"{name}","verdict":"{verdict}"}}\n'
        report = EvalReport(
            assembly=assembly.digest,
            recipe=RECIPE.digest,
            result=Score(
                suite=suite,
                suite_digest=Digest.of("".join(names).encode()),
                metric="pass@1",
                n=len(names),
                passed=passed,
                score=passed / len(names),
            ),
            items=self.repository.archive.put_bytes(lines.encode()).digest,
        )
        return self.repository.put_record(report)


def new_archive(path: Path, ref: str = "prod") -> None:
    with Archive.create(path) as archive, tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text("{}")
        tree = archive.put_tree(Path(folder)).digest
        repository = Repository(archive)
        manifest = repository.put(Manifest(assembly=Assembly(base=tree, tokenizer=tree), recipe=RECIPE, source=SOURCE))
        repository.refs.set(ref, manifest, expected=None, reason="the bare base")


def runner(archive: Archive, state: Path, hands: FakeHands | None = None, plan: CyclePlan = PLAN) -> Runner:
    repository = Repository(archive)
    return Runner(repository, plan, hands or FakeHands(repository), DrawKey(state, archive), state, Listener())


def run_once(path: Path, state: Path, **about: float | int | bool) -> Cycle:
    with Archive.open(path) as archive:
        repository = Repository(archive)
        return runner(archive, state, FakeHands(repository, **about)).run("prod")  # type: ignore[arg-type]


def main(path: str, state: str, step: str, when: str) -> None:
    with Archive.open(path) as archive:
        machine = runner(archive, Path(state))

        def die(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        if when == "after":
            machine.after = lambda done: die() if done == step else None
        else:
            machine._log.record = lambda name, ref, done, fields: die()  # type: ignore[method-assign]
        machine.run("prod")


if __name__ == "__main__":
    main(*sys.argv[1:])
