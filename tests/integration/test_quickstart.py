"""The quickstart's story on a small scale: every step really happens, and its evidence is in the archive."""

import re
from pathlib import Path

import pytest

from adapters import GuardReport
from csf_store import Archive
from keystone import quickstart
from keystone.cycle.plan import CyclePlan, GuardRules, PracticeRules, SamplingRules, TrainingRules
from keystone.errors import SandboxMissingError
from keystone.evaluation.opening import open_sandbox
from keystone.evaluation.workers import PooledSandbox
from keystone.quickstart import PLAN, Narrator, run
from manifests import EvalReport, Repository

SMALL = CyclePlan(
    name="small",
    guard=GuardRules(sentinel_items=16, fresh_items=16, looks=2),
    practice=PracticeRules(tasks=12, samples=1),
    training=TrainingRules(steps=2, batch=4),
    sampling=SamplingRules(prompts=4, reruns=5, max_new_tokens=32),
)


class Listener(Narrator):
    def __init__(self) -> None:
        self.said: list[str] = []

    def chapter(self, title: str) -> None:
        self.said.append(title)

    def say(self, text: str) -> None:
        self.said.append(text)

    def compare(self, prompt: str, before: str, after: str) -> None:
        self.said.append(prompt + before + after)


def test_the_story_leaves_its_evidence_and_claims_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_bubblewrap(name: str) -> PooledSandbox:
        if name == "bwrap":
            raise SandboxMissingError("there is none")
        return open_sandbox(name)

    monkeypatch.setattr(quickstart, "open_sandbox", without_bubblewrap)
    listener = Listener()
    with Archive.create(tmp_path / "archive") as archive:
        outcome = run(archive, tmp_path, listener, SMALL)
        repository, cycle = Repository(archive), outcome.cycle
        story = "\n".join(listener.said)
        # Sixteen tasks can show nothing good, and everybody is told so; what they can show is harm.
        assert cycle.outcome in {"UNDERPOWERED", "REGRESSED"}
        assert f"The tripwire's word: {cycle.outcome}" in story
        assert not outcome.promoted and "refused: the tripwire of" in story
        assert "which hide no files and no network" in story and outcome.sandbox == "process"
        assert repository.refs.get("prod") == outcome.base
        assert repository.refs.is_protected("prod")
        assert [move.rollback for move in repository.refs.history("playground")] == [False, False, True]

        assert outcome.candidate is not None
        manifest = repository.load(outcome.candidate)
        assert manifest.assembly.adapters[0].adapter == cycle.digest("trained", "adapter")
        record = repository.adapter_record(manifest.assembly.adapters[0].adapter)
        assert record is not None and record.claim is False
        assert {summary.suite for summary in manifest.evals} == {"basics/fresh", "basics/sentinel"}
        for summary in manifest.evals:
            report = repository.load_record(summary.report, EvalReport)
            assert (report.assembly, report.result.n) == (manifest.assembly.digest, 16)
            assert report.items is not None
            items = archive.get_bytes(report.items).decode().splitlines()
            assert sum('"verdict":"passed"' in item for item in items) == report.result.passed
        guard = repository.load_record(cycle.digest("judged", "report"), GuardReport)
        assert guard.judgement.verdict == cycle.outcome
        assert archive.verify(deep=True).ok
    assert "FAIL" not in outcome.audits[0].verdict.value
    assert len(outcome.audits) == 2


def test_the_gates_of_the_story_are_those_of_a_cycle() -> None:
    sizes = {"sentinel_items", "fresh_items", "looks"}
    changed = {name for name in GuardRules.model_fields if getattr(PLAN.guard, name) != getattr(GuardRules(), name)}
    assert changed == sizes
    # Nothing is promoted that could not have been seen to forget a family: enough items of each of forty.
    items = (PLAN.guard.sentinel_items + PLAN.guard.fresh_items) // 40
    assert 0.5**items <= PLAN.guard.alpha / 5 / 2 / PLAN.guard.looks / 40


def test_prompts_are_ones_a_reader_can_check() -> None:
    for prompt in quickstart.PROMPTS:
        assert re.search(r">>> \w+\(.+\)\n", prompt)
