"""Evaluate a loaded model on a suite: sample, execute, keep each batch, count.

Jobs are (item, sample) pairs in a fixed order, cut into batches; every batch has a seed of its own, derived from the
run's seed and its place. So a batch gives the same text whether or not earlier ones were done by this process, and a
resumed evaluation equals an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, TypeAlias

from blake3 import blake3

from keystone.errors import InvalidInputError
from keystone.evaluation.candidates import Judged, run_candidates
from keystone.evaluation.extraction import Style, chat_request
from keystone.evaluation.journal import Journal, Line
from keystone.evaluation.measuring import text_bits
from keystone.evaluation.sandbox import Sandbox
from keystone.evaluation.scoring import Verdict
from keystone.evaluation.suite_format import CodeItem, TextItem
from keystone.evaluation.suites import Suite
from keystone.evaluation.task import Value
from keystone.loader import LoadedModel

Progress = Callable[[int], None]
Job: TypeAlias = "tuple[CodeItem | TextItem, int]"
"""An item and the number of the sample."""

LONGEST_ANSWER: Final = 512
"""Tokens an answer may take unless told otherwise; HumanEval's own solutions need fewer than 300."""


@dataclass(frozen=True)
class Settings:
    """How a model is asked; every field decides the result and is part of its record.

    Attributes:
        samples: answers drawn for each item.
        temperature: 0 is greedy, and only makes sense with one sample.
        top_p: nucleus size when sampling.
        seed: of the sampling.
        batch_size: answers decoded together, several of one item among them.
        max_new_tokens: the most to generate for an answer.
        style: `completion` or `chat`, see `keystone.evaluation.extraction`.
    """

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32
    max_new_tokens: int = LONGEST_ANSWER
    style: Style = "completion"

    def check(self) -> None:
        """Refuse what would waste a run.

        Raises:
            InvalidInputError: several greedy samples, which are all the same.
        """
        if self.samples > 1 and self.temperature == 0:
            raise InvalidInputError(
                f"{self.samples} greedy samples of an item are one and the same; give --temperature, 0.8 for instance"
            )


def journal_key(loaded: LoadedModel, suite: Suite, settings: Settings, sandbox: str) -> dict[str, Value]:
    """Everything that decides the results of an evaluation."""
    return {
        "assembly": str(loaded.manifest.assembly.digest),
        "recipe": str(loaded.recipe.digest),
        "device": next(loaded.model.parameters()).device.type,
        "suite": str(suite.digest),
        "sandbox": sandbox,
        "settings": asdict(settings),
    }


def evaluate(
    loaded: LoadedModel,
    suite: Suite,
    settings: Settings,
    *,
    sandbox: Sandbox | None,
    journal: Journal,
    progress: Progress | None = None,
) -> list[Line]:
    """Every result of a suite, in the order of the jobs; those in the journal are not computed again.

    Args:
        loaded: the model.
        suite: code or texts.
        settings: how it is asked.
        sandbox: where answers are executed; not needed for texts.
        journal: where results are kept as they come.
        progress: told how many answers or texts were done, those from the journal included.

    Returns:
        For code, lines with `name`, `family`, `sample`, `verdict`, `detail` and `completion`; for texts, with `name`,
        `family`, `bits` and `bytes`.
    """
    settings.check()
    if suite.kind == "text":
        texts: list[Job] = [(item, 0) for item in suite.items]
        return run_jobs(texts, 1, lambda batch, _: _measured(loaded, batch), journal=journal, progress=progress)
    jobs: list[Job] = [(item, sample) for item in suite.items for sample in range(settings.samples)]
    return run_jobs(
        jobs,
        settings.batch_size,
        lambda batch, start: _answered(loaded, batch, settings, start, sandbox),
        journal=journal,
        progress=progress,
    )


def run_jobs(
    jobs: Sequence[Job],
    size: int,
    work: Callable[[Sequence[Job], int], list[Line]],
    *,
    journal: Journal,
    progress: Progress | None,
) -> list[Line]:
    """Work through jobs in batches, each kept before the next; those in the journal are not done again.

    Args:
        jobs: all of them, in an order that never changes.
        size: of a batch.
        work: the results of one batch, given the place of its first job.
        journal: where results are kept as they come.
        progress: told how many jobs were done, those from the journal included.
    """
    # A batch is kept whole or not at all: its seed belongs to all of it.
    done = len(journal.lines) if len(journal.lines) == len(jobs) else len(journal.lines) // size * size
    results = list(journal.lines[:done])
    if progress is not None and done:
        progress(done)
    for start in range(done, len(jobs), size):
        batch = jobs[start : start + size]
        lines = work(batch, start)
        kept = len(journal.lines) - start  # lines of this batch that an earlier run got to disk before it was killed
        journal.append(lines[max(0, kept) :])
        results += lines
        if progress is not None:
            progress(len(batch))
    return results


def batch_seed(seed: int, start: int) -> int:
    """The seed of the batch that begins with job `start`."""
    return int.from_bytes(blake3(f"{seed}:{start}".encode()).digest(length=7), "big")


def prompt_of(loaded: LoadedModel, item: CodeItem, style: Style) -> str:
    """The text a model continues.

    Raises:
        InvalidInputError: `chat`, and the tokenizer has no template for it.
    """
    if style == "completion":
        return item.prompt
    if not getattr(loaded.tokenizer, "chat_template", None):
        raise InvalidInputError("this model's tokenizer has no chat template; ask it with --style completion")
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": chat_request(item)}], tokenize=False, add_generation_prompt=True
    )
    return str(text)


def _answered(
    loaded: LoadedModel,
    batch: Sequence[Job],
    settings: Settings,
    start: int,
    sandbox: Sandbox | None,
) -> list[Line]:
    if sandbox is None:
        raise InvalidInputError("answers are executed to be judged, which needs a sandbox")
    items = [item for item, _ in batch if isinstance(item, CodeItem)]
    answers = loaded.complete(
        [prompt_of(loaded, item, settings.style) for item in items],
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=batch_seed(settings.seed, start),
        batch_size=settings.batch_size,
    )
    judged = run_candidates(items, answers, sandbox, style=settings.style)
    return [judged_line(*rest) for rest in zip(batch, answers, judged, strict=True)]


def judged_line(job: Job, answer: str, judged: Judged) -> Line:
    """One result, as journals and items keep it."""
    item, sample = job
    return {
        "name": item.name,
        "family": item.family,
        "sample": sample,
        "verdict": str(judged.verdict),
        "detail": judged.detail if judged.verdict is not Verdict.PASSED else "",
        "completion": answer,
    }


def _measured(loaded: LoadedModel, batch: Sequence[Job]) -> list[Line]:
    lines: list[Line] = []
    for item, _ in batch:
        if isinstance(item, TextItem):
            bits, size = text_bits(loaded.model, loaded.tokenizer, item.text)
            lines.append({"name": item.name, "family": item.family, "bits": bits, "bytes": size})
    return lines
