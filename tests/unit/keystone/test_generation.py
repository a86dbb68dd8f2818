"""Batched decoding and measuring: an answer must not depend on who shares its batch, nor a number on the cut."""

import json
import math
from pathlib import Path

import pytest
import torch

from csf_store import Archive
from keystone import LoadedModel, load
from keystone.evaluation import ItemResult, Side, SuiteResult, Verdict
from keystone.evaluation.basics import draw_held_out
from keystone.evaluation.measuring import WINDOW, bits_per_byte, store_report
from keystone.generation import complete
from manifests import EvalReport, Repository

PROMPTS = [
    "def f(x):\n",
    "import os\n\n\nclass Walker:\n    def __init__(self):\n",
    "x = 1\n",
    "",
    "for i in range(3):\n",
]


@pytest.fixture(scope="module")
def loaded(nano_archive: Path) -> LoadedModel:
    found = load("nano", archive=nano_archive, quantization="none")
    found.model.float()
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_answer_does_not_depend_on_the_batch(loaded: LoadedModel, batch_size: int) -> None:
    together = complete(loaded.model, loaded.tokenizer, PROMPTS, max_new_tokens=10, batch_size=batch_size)
    alone = [complete(loaded.model, loaded.tokenizer, [prompt], max_new_tokens=10)[0] for prompt in PROMPTS]
    assert together == alone


def test_a_seed_gives_the_same_sample_and_leaves_the_callers_randomness_alone(loaded: LoadedModel) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    samples = [loaded.complete(PROMPTS[:2], max_new_tokens=12, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]


def test_progress_counts_every_prompt(loaded: LoadedModel) -> None:
    counts: list[int] = []
    loaded.complete(PROMPTS, max_new_tokens=1, batch_size=2, progress=counts.append)
    assert sum(counts) == len(PROMPTS)


def test_no_prompts_no_answers(loaded: LoadedModel) -> None:
    assert loaded.complete([]) == []


def test_bits_per_byte_counts_every_token_once(loaded: LoadedModel) -> None:
    text = "def walk(path):\n    return sorted(path)\n" * 20
    ids = torch.tensor(loaded.tokenizer(text)["input_ids"])
    assert len(ids) > WINDOW + 1
    bits = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, WINDOW):
            logits = loaded.model(ids[None, start : start + WINDOW]).logits[0].double().log_softmax(-1)
            for offset, row in enumerate(logits):
                if start + offset + 1 < len(ids):
                    bits -= float(row[ids[start + offset + 1]]) / math.log(2)
    measured = bits_per_byte(loaded.model, loaded.tokenizer, [text])
    assert measured == pytest.approx(bits / len(text.encode()), rel=1e-4)


def test_a_report_is_bound_to_what_was_measured(own_nano_archive: Path) -> None:
    tasks = draw_held_out(4, 1)
    items = [
        ItemResult(task.name, task.family, Side.SEEN_FAMILY, verdict, "", 0.0)
        for task, verdict in zip(tasks, [Verdict.PASSED, Verdict.FAILED, Verdict.ERROR, Verdict.PASSED], strict=True)
    ]
    with Archive.open(own_nano_archive) as archive:
        repository = Repository(archive)
        measured = load("nano", archive=archive, quantization="int8")
        summary = store_report(repository, measured, tasks, SuiteResult("process", tuple(items)))
        report = repository.load_record(summary.report, EvalReport)
        assert (report.assembly, report.recipe) == (measured.manifest.assembly.digest, measured.recipe.digest)
        assert (summary.passed, summary.n, summary.score) == (2, 4, 0.5)
        assert report.items is not None
        lines = [json.loads(line) for line in archive.get_bytes(report.items).splitlines()]
        assert [line["verdict"] for line in lines] == ["passed", "failed", "error", "passed"]
        revised = measured.manifest.revised(evals=(summary,), parent=measured.digest)
        assert repository.load(repository.put(revised)).evals == (summary,)
