"""The quickstart's story on a small scale: every step really happens, and its evidence is in the archive."""

from pathlib import Path

import pytest
import torch

from csf_store import Archive
from keystone import load
from keystone.evaluation import Side, SuiteResult, Verdict
from keystone.evaluation.basics import draw_training
from keystone.evaluation.scoring import ItemResult
from keystone.quickstart import Narrator, Settings, difference, run, solution_batches
from manifests import EvalReport, Repository


class Listener(Narrator):
    def __init__(self) -> None:
        self.said: list[str] = []

    def chapter(self, title: str) -> None:
        self.said.append(title)

    def say(self, text: str) -> None:
        self.said.append(text)

    def compare(self, prompt: str, before: str, after: str) -> None:
        self.said.append(prompt + before + after)


def test_the_story_leaves_its_evidence(tmp_path: Path) -> None:
    listener = Listener()
    with Archive.create(tmp_path / "archive") as archive:
        outcome = run(archive, tmp_path, listener, Settings(held_out=12, exercises=16, steps=2, batch=4))
        repository = Repository(archive)
        for measured in (outcome.base, outcome.adapted):
            manifest = repository.load(measured.digest)
            report = repository.load_record(manifest.evals[0].report, EvalReport)
            assert report.assembly == manifest.assembly.digest
            assert report.recipe == measured.loaded.recipe.digest == manifest.recipe.digest  # type: ignore[union-attr]
            assert report.result.n == 12
            assert report.items is not None
            items = archive.get_bytes(report.items).decode().splitlines()
            assert sum('"verdict":"passed"' in item for item in items) == report.result.passed
        assert repository.load(outcome.adapted.digest).assembly.adapters[0].adapter == outcome.adapter
        record = repository.adapter_record(outcome.adapter)
        assert record is not None
        assert record.claim is False
        moves = repository.refs.history("prod")
        assert [move.target for move in moves] == [outcome.base.digest, outcome.adapted.digest, outcome.base.digest]
        assert moves[-1].rollback
        assert archive.verify(deep=True).ok
    assert [report.verdict.value for report in outcome.audits] == ["UNSIGNED", "UNKNOWN"]
    assert sum("of 12" in text for text in listener.said) == 1


def result_of(verdicts: str) -> SuiteResult:
    items = [
        ItemResult(str(index), "f", Side.SEEN_FAMILY, Verdict.PASSED if mark == "+" else Verdict.FAILED, "", 0.0)
        for index, mark in enumerate(verdicts)
    ]
    return SuiteResult("process", tuple(items))


@pytest.mark.parametrize(
    ("before", "after", "said", "p"),
    [
        ("----------", "++++++++++", "better", "0.002"),
        ("++++++++++", "----------", "WORSE", "0.002"),
        ("+-+-+-+-+-", "-+-+-+-+-+", "too little evidence", "1.000"),
        ("----------", "+++++-----", "too little evidence", "0.062"),
        ("++++++++++", "++++++++++", "too little evidence", "1.000"),
    ],
)
def test_the_comparison_claims_no_more_than_the_numbers(before: str, after: str, said: str, p: str) -> None:
    text = difference(result_of(before), result_of(after))
    assert said in text
    assert f"p = {p}" in text


def test_only_solutions_are_learned(nano_archive: Path) -> None:
    tokenizer = load("nano", archive=nano_archive, quantization="none").tokenizer
    tasks = draw_training(6, 1)
    for batch in solution_batches(tokenizer, tasks, 3):
        learned = batch["labels"] != -100
        assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
        assert not (learned & (batch["attention_mask"] == 0)).any()
        texts = {tokenizer.decode(row[mask]) for row, mask in zip(batch["input_ids"], learned, strict=True)}
        assert texts <= {f"{task.solution}<|end|>" for task in tasks}
