"""Measuring a loaded model: pass rate on tasks, bits per byte on text, and the report that binds a score to weights."""

import json
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from keystone.evaluation.basics import tasks_digest
from keystone.evaluation.sandbox import Sandbox
from keystone.evaluation.scoring import SuiteResult, score
from keystone.evaluation.task import Task
from keystone.loader import LoadedModel
from manifests import EvalReport, EvalSummary, Interval, Repository, Score

Progress = Callable[[int], None]

LONGEST_SOLUTION = 64
"""Tokens a solution of `basics` may take; canonical ones need at most 44."""
WINDOW = 256
"""Tokens of text scored at a time for bits per byte; nano was trained on rows of this length."""


def pass_rate(
    loaded: LoadedModel,
    tasks: Sequence[Task],
    sandbox: Sandbox,
    *,
    batch_size: int = 50,
    progress: Progress | None = None,
) -> SuiteResult:
    """Let a model solve tasks greedily, one attempt each, and execute what it wrote in the sandbox.

    Args:
        loaded: the model.
        tasks: what to solve.
        sandbox: where generated code runs; never in this process.
        batch_size: tasks decoded together.
        progress: told how many tasks were decoded.
    """
    completions = loaded.complete(
        [task.prompt for task in tasks], max_new_tokens=LONGEST_SOLUTION, batch_size=batch_size, progress=progress
    )
    return score(tasks, completions, sandbox)


def bits_per_byte(model: nn.Module, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """How many bits the model needs for a byte of text, predicted in windows of `WINDOW` tokens.

    Each text begins with the tokenizer's own beginning token where it has one. A text's first token is context only.

    Args:
        model: a causal model.
        tokenizer: its tokenizer.
        texts: held-out texts.

    Returns:
        Summed negative log2 likelihood over the UTF-8 bytes of all predicted tokens.
    """
    measured = [text_bits(model, tokenizer, text) for text in texts]
    return sum(bits for bits, _ in measured) / sum(size for _, size in measured)


def text_bits(model: nn.Module, tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[float, int]:
    """Bits the model needs for one text, and the bytes of the text; see `bits_per_byte`."""
    bits = 0.0
    device = next(model.parameters()).device
    ids = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, WINDOW):
            row = torch.tensor(ids[start : start + WINDOW + 1], device=device)
            logits: Tensor = model(row[None, :-1], use_cache=False).logits[0].float()
            bits += float(functional.cross_entropy(logits, row[1:], reduction="sum")) / math.log(2)
    return bits, len(text.encode())


def store_report(
    repository: Repository, loaded: LoadedModel, tasks: Sequence[Task], result: SuiteResult
) -> EvalSummary:
    """Store per-item results and the report over them; give the line a manifest carries.

    The report is bound to the assembly and the recipe that were measured.
    """
    items = [{"name": item.task, "family": item.family, "verdict": str(item.verdict)} for item in result.items]
    lines = "".join(json.dumps(item, sort_keys=True, separators=(",", ":")) + "\n" for item in items)
    blob = repository.archive.put_bytes(lines.encode()).digest
    overall = result.overall
    measured = Score(
        suite=tasks[0].suite,
        suite_digest=tasks_digest(tasks),
        metric="pass@1",
        n=overall.total,
        passed=overall.passed,
        score=overall.passed / overall.total,
        interval=Interval(low=overall.low, high=overall.high, level=0.95, method="wilson"),
    )
    recipe = loaded.recipe.digest
    report = EvalReport(
        assembly=loaded.manifest.assembly.digest,
        recipe=recipe,
        result=measured,
        items=blob,
        settings={"sandbox": result.sandbox, "decoding": "greedy"},
    )
    fields = {name: getattr(measured, name) for name in Score.model_fields}
    return EvalSummary(**fields, report=repository.put_record(report), recipe=recipe)
