"""One model before the guard: what it passes, and what its samples look like.

Pass rates are measured greedily, one attempt an item, executed in the sandbox. Signals come from samples at the plan's
temperature: their texts for diversity, length and echo, and one more forward pass over them for the entropy of the
model's next-token distributions and their divergence from the bare base's, on one sample of each prompt. The base
needs no second model: it is the same model with its adapters switched off.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters import Sample, SampledItem, SignalTable, measure_signals
from csf_store import Digest
from keystone.cycle.documents import SignalReport, put_signals
from keystone.cycle.plan import CyclePlan, SamplingRules
from keystone.evaluation.journal import Journal
from keystone.evaluation.recording import item_lines, scores
from keystone.evaluation.running import Settings, evaluate, journal_key
from keystone.evaluation.sandbox import Sandbox
from keystone.evaluation.suite_format import CodeItem, item_line
from keystone.evaluation.suites import Suite
from keystone.loader import LoadedModel
from manifests import EvalReport, Repository

Progress = Callable[[int], None]

_SCORED = 16
"""Samples scored together: their logits are whole, tokens times vocabulary, twice."""


def code_suite(name: str, items: Sequence[CodeItem]) -> Suite:
    """Items as a suite; its digest covers everything that decides a result."""
    return Suite(name, tuple(items), Digest.of("".join(item_line(item) + "\n" for item in items).encode()))


def answer(
    repository: Repository,
    loaded: LoadedModel,
    suite: Suite,
    plan: CyclePlan,
    *,
    sandbox: Sandbox,
    state: Path,
    progress: Progress | None = None,
) -> Digest:
    """Let a model solve a suite, and store what came of it, item by item.

    Batches are kept in a journal as they come, so a killed run asks nothing twice.

    Returns:
        The digest of an eval report, bound to assembly and recipe.
    """
    settings = Settings(batch_size=plan.sampling.batch, max_new_tokens=plan.sampling.max_new_tokens)
    with Journal(state / "answers", journal_key(loaded, suite, settings, sandbox.name)) as journal:
        results = evaluate(loaded, suite, settings, sandbox=sandbox, journal=journal, progress=progress)
        (score,) = scores(suite, settings, results)
        lines = item_lines(suite, settings, results, score.metric)
        text = "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines)
        report = EvalReport(
            assembly=loaded.manifest.assembly.digest,
            recipe=loaded.recipe.digest,
            result=score,
            items=repository.archive.put_bytes(text.encode()).digest,
            seeds=(settings.seed,),
            settings={"decoding": "greedy", "sandbox": sandbox.name},
        )
        digest = repository.put_record(report)
        journal.remove()
    return digest


def signals_of(
    loaded: LoadedModel, items: Sequence[CodeItem], rules: SamplingRules, *, seed: int, progress: Progress | None = None
) -> SignalTable:
    """Sample a model and measure the signals of collapse and drift.

    Args:
        loaded: the model, with adapters or bare.
        items: whose prompts to sample.
        rules: how many samples, how warm.
        seed: of the samples.
        progress: told how many samples were drawn.
    """
    prompts = [item.prompt for item in items for _ in range(rules.samples)]
    texts = loaded.complete(
        prompts,
        max_new_tokens=rules.max_new_tokens,
        temperature=rules.temperature,
        seed=seed,
        batch_size=rules.batch,
        progress=progress,
    )
    encode = loaded.tokenizer
    asked = [list(encode(item.prompt)["input_ids"]) for item in items]
    said = [list(encode(text, add_special_tokens=False)["input_ids"]) for text in texts]
    # One sample of each prompt is scored for all of them: a pass over every sample would double the price.
    scored = list(_divergences(loaded.model, asked, said[:: rules.samples], rules.batch))
    drawn = [
        Sample(tuple(tokens), text, *scored[place // rules.samples])
        for place, (tokens, text) in enumerate(zip(said, texts, strict=True))
    ]
    return measure_signals(
        [
            SampledItem(
                item.name,
                item.family,
                tuple(asked[place]),
                tuple(drawn[place * rules.samples : (place + 1) * rules.samples]),
            )
            for place, item in enumerate(items)
        ]
    )


def put_signal_report(
    repository: Repository, loaded: LoadedModel, suite: Suite, table: SignalTable, *, seed: int
) -> Digest:
    """Store a table of signals with what it is about."""
    report = SignalReport(
        assembly=loaded.manifest.assembly.digest,
        recipe=loaded.recipe.digest,
        suite_digest=suite.digest,
        seed=seed,
        items=put_signals(repository.archive, table),
    )
    return repository.put_record(report)


def _divergences(
    model: Any, asked: Sequence[Sequence[int]], said: Sequence[Sequence[int]], size: int
) -> Iterator[tuple[float, float]]:
    """Of each sample, means over its tokens and its end: entropy, and KL divergence from the bare base, in nats."""
    device, size = next(model.parameters()).device, min(size, _SCORED)
    with torch.inference_mode():
        for start in range(0, len(said), size):
            rows = [[*a, *b] for a, b in zip(asked[start : start + size], said[start : start + size], strict=True)]
            firsts = [len(a) - 1 for a in asked[start : start + size]]
            width = max(map(len, rows))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
            mine = _log_probabilities(model, ids, mask)
            with _bare(model) as adapted:
                base = _log_probabilities(model, ids, mask) if adapted else mine
            for place, (row, first) in enumerate(zip(rows, firsts, strict=True)):
                logs, theirs = mine[place, first : len(row)], base[place, first : len(row)]
                shares = logs.exp()
                entropy = float(-(shares * logs).sum(-1).mean())
                kl = float((shares * (logs - theirs)).sum(-1).mean()) if adapted else 0.0
                yield entropy, max(kl, 0.0)


def _log_probabilities(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits.float().log_softmax(-1)


@contextlib.contextmanager
def _bare(model: Any) -> Iterator[bool]:
    """The model without its adapters while the block runs; False where it has none."""
    if not hasattr(model, "disable_adapter"):
        yield False
        return
    with model.disable_adapter():
        yield True
