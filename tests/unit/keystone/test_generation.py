"""Batched decoding and measuring: an answer must not depend on who shares its batch, nor a number on the cut."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from csf_store import Archive
from keystone import LoadedModel, load
from keystone.evaluation import ItemResult, Side, SuiteResult, Verdict
from keystone.evaluation.basics import draw_held_out
from keystone.evaluation.measuring import WINDOW, bits_per_byte, store_report
from keystone.generation import Sampling, complete, end_ids
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


def test_greedy_gives_the_tokens_of_generate(loaded: LoadedModel) -> None:
    answers = loaded.complete(PROMPTS[:3], max_new_tokens=20)
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])
        made = loaded.model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        assert answer == loaded.tokenizer.decode(made, skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_sample_depends_on_the_seed_and_not_on_the_batch(loaded: LoadedModel, batch_size: int) -> None:
    settings = {"max_new_tokens": 10, "temperature": 0.9, "top_p": 0.8, "seed": 4}
    together = loaded.complete(PROMPTS, **settings)
    assert loaded.complete(PROMPTS, batch_size=batch_size, **settings) == together
    assert len(set(loaded.complete(PROMPTS[:1] * 4, **{**settings, "temperature": 2.0}))) > 1


def test_answers_end_at_an_end_token_and_leave_the_batch(loaded: LoadedModel) -> None:
    """Rows leave when half have ended: whoever stays gets the answer it would get alone."""
    prompts = [task.prompt for task in draw_held_out(6, 3, families="seen")] + PROMPTS[:2]
    widths: list[int] = []
    hook = loaded.model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    together = loaded.complete(prompts, max_new_tokens=40)
    hook.remove()
    assert widths[0] == 8
    assert 0 < widths[-1] <= 4
    assert together == [loaded.complete([prompt], max_new_tokens=40)[0] for prompt in prompts]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_answers_end_before_a_stop_sequence(loaded: LoadedModel, batch_size: int) -> None:
    whole = loaded.complete(PROMPTS, max_new_tokens=30)
    stop = ["\n    ", "nowhere to be found", ""]
    steps: list[int] = []
    hook = loaded.model.register_forward_pre_hook(lambda *_: steps.append(1))
    stopped = loaded.complete(PROMPTS, max_new_tokens=30, stop=stop, batch_size=batch_size)
    hook.remove()
    assert stopped == [text.split(stop[0])[0] for text in whole]
    assert stopped != whole
    if batch_size == 1:
        assert len(steps) < 30 * len(PROMPTS)


def test_every_place_that_names_an_end_token_counts(loaded: LoadedModel) -> None:
    model, tokenizer = nn.Module(), copy.deepcopy(loaded.tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=[5, 6])  # type: ignore[assignment]
    model.config = loaded.model.config
    assert end_ids(model, tokenizer) == {5, 6, loaded.tokenizer.eos_token_id}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    written = "{% for m in messages %}{{ m.role }}\n{{ m.content }}END\n{% endfor %}"
    tokenizer.chat_template = written.replace("END", "<|turn|>")
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    assert end_ids(model, tokenizer) == {5, 6, loaded.tokenizer.eos_token_id, turn}
    for other in (
        written.replace("END", ""),
        written.replace("END", " and so on"),
        "{{ raise_exception('no') }}",
        "{{ messages[0].content }}",
    ):
        tokenizer.chat_template = other
        assert turn not in end_ids(model, tokenizer)


def test_the_next_token_is_drawn_from_the_nucleus() -> None:
    """Against shares counted out: draws spread evenly over [0, 1) give each token its share of the nucleus."""
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    draws = (torch.arange(10_000) + 0.5) / 10_000
    logits = probabilities.log().expand(len(draws), -1)

    def shares(top_p: float, temperature: float = 1.0) -> list[float]:
        chosen = Sampling(temperature, top_p).choose(logits, draws)
        return [round(float((chosen == token).float().mean()), 3) for token in range(5)]

    assert shares(1.0) == pytest.approx([0.1, 0.4, 0.05, 0.25, 0.2], abs=2e-3)
    assert shares(0.6) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], abs=2e-3)
    assert shares(0.66) == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85], abs=2e-3)
    assert shares(0.0) == [0, 1, 0, 0, 0]
    squared = probabilities.square() / probabilities.square().sum()
    assert shares(1.0, temperature=0.5) == pytest.approx(squared.tolist(), abs=2e-3)


def test_no_tokens_asked_for_none_given(loaded: LoadedModel) -> None:
    assert loaded.complete(PROMPTS[:2], max_new_tokens=0) == ["", ""]


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
