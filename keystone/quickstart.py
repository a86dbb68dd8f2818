"""The main job end to end, on the embedded base, told as it happens.

Put a base, measure it, train a small adapter on it, store that, name both by manifests, load both quantized, let them
answer the same prompts, measure again, move a ref, roll it back, audit. Nothing here is staged: every number printed
was measured in this run, and generated code is executed in the sandbox, never in this process.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from adapters import add_adapter, fit_problem, train_lora, write_adapter
from csf_store import Archive, Digest, Kind
from keystone.checkpoints import assemble_base
from keystone.evaluation import ProcessSandbox, Side, SuiteResult, Task
from keystone.evaluation.basics import draw_held_out, draw_training, tasks_digest
from keystone.evaluation.measuring import pass_rate, store_report
from keystone.loader import LoadedModel, load
from keystone.nano.embedded import import_nano
from keystone.tied_weights import TIED
from manifests import (
    AdapterUse,
    Auditor,
    AuditReport,
    EvalSummary,
    Manifest,
    Repository,
    TrainingConfig,
    TrainingRecord,
    Verdict,
)

REF = "prod"
PROMPTS = (
    '''def keep_large(values):
    """Return a list of all elements of values that are greater than 12.

    >>> keep_large([3, 14, 25])
    [14, 25]
    """
''',
    '''def scale(values):
    """Return a list with 3 times x plus 7 for each x in values.

    >>> scale([2])
    [13]
    """
''',
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Step = Callable[[str, str], None]


@dataclass(frozen=True)
class Settings:
    """How much of everything; the defaults take under two minutes on two cores.

    Attributes:
        held_out: tasks in each measurement, half of them from families that no training text contains.
        exercises: training draws that the adapter learns from.
        steps: optimizer steps, of `batch` exercises each.
        seed: of the draws and of the training.
    """

    held_out: int = 160
    exercises: int = 1600
    steps: int = 60
    batch: int = 16
    learning_rate: float = 2e-3
    rank: int = 8
    seed: int = 7


@dataclass(frozen=True)
class Measured:
    """One model of the story: its manifest, itself loaded and quantized, and what it scored."""

    digest: Digest
    loaded: LoadedModel
    result: SuiteResult
    summary: EvalSummary


@dataclass(frozen=True)
class Outcome:
    """What the story ended with."""

    base: Measured
    adapted: Measured
    adapter: Digest
    audits: tuple[AuditReport, AuditReport]
    seconds: float


class Narrator:
    """Receives the story as it unfolds; the command line draws it, tests may keep silent."""

    def chapter(self, title: str) -> None:
        """A new step begins."""

    def say(self, text: str) -> None:
        """A finding, in one line."""

    def compare(self, prompt: str, before: str, after: str) -> None:
        """The same prompt, answered by the base and with the adapter."""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:  # noqa: ARG002 - for those who draw
        """Something that takes seconds; the yielded function is told how much was done."""
        yield lambda _: None


def run(archive: Archive, work: Path, narrator: Narrator, settings: Settings | None = None) -> Outcome:
    """Live through the whole story.

    Args:
        archive: a new archive.
        work: a directory for the trained adapter before it is stored.
        narrator: who is told.
        settings: how much of everything.
    """
    settings = settings or Settings()
    started = time.monotonic()
    repository = Repository(archive)
    with ProcessSandbox() as sandbox:
        narrator.chapter("Put the embedded base into the archive")
        first = _put_base(archive, narrator)
        half = settings.held_out // 2
        tasks = [
            *draw_held_out(half, settings.seed, families="seen"),
            *draw_held_out(settings.held_out - half, settings.seed, families="held-out"),
        ]

        narrator.chapter("Load it verified and quantized, and measure it on held-out tasks")
        base = _measured(repository, first, tasks, sandbox, narrator)
        repository.refs.set(REF, base.digest, expected=None, reason="the bare frozen base")

        narrator.chapter("Train a small LoRA adapter; the base stays frozen, and that is checked")
        directory, record = _train(archive, base, work, settings, narrator)
        adapter, _ = add_adapter(repository, directory, base=base.loaded.manifest.assembly.base, training=record)
        archive.pin(adapter, kind=Kind.TREE, name="quickstart-lora")
        narrator.say(f"adapter {adapter}")

        narrator.chapter("Name base + adapter by a manifest, load it, measure it on the same tasks")
        second = repository.put(_with_adapter(repository, base, adapter))
        adapted = _measured(repository, second, tasks, sandbox, narrator)
        narrator.say(difference(base.result, adapted.result))

    narrator.chapter("The same prompts, before and after")
    for prompt, before, after in zip(
        PROMPTS, base.loaded.complete(PROMPTS), adapted.loaded.complete(PROMPTS), strict=True
    ):
        narrator.compare(prompt, before, after)

    narrator.chapter("Move the ref, and go back in one step")
    _move_and_return(repository, base.digest, adapted.digest, narrator)

    narrator.chapter("Audit both: every byte re-hashed, the lineage walked to its root")
    auditor = Auditor(archive, fit=fit_problem, tied=TIED)
    audits = tuple(auditor.audit(digest) for digest in (base.digest, adapted.digest))
    for measured, report in zip((base, adapted), audits, strict=True):
        narrator.say(f"{measured.digest.short}  {len(report.lines)} checks  {report.verdict.value}")
        for line in report.lines:
            if line.verdict is not Verdict.PASS:
                narrator.say(f"    {line.verdict.value}  {line.check}: {line.message}")
    return Outcome(base, adapted, adapter, (audits[0], audits[1]), time.monotonic() - started)


def difference(before: SuiteResult, after: SuiteResult) -> str:
    """The paired comparison, as plainly as the numbers allow: who solved what the other did not."""
    won = sum(b.verdict != "passed" and a.verdict == "passed" for b, a in zip(before.items, after.items, strict=True))
    lost = sum(b.verdict == "passed" and a.verdict != "passed" for b, a in zip(before.items, after.items, strict=True))
    changed = won + lost
    # Exact two-sided McNemar: under no change, each discordant task is a fair coin.
    tail = sum(math.comb(changed, k) for k in range(min(won, lost) + 1)) / 2**changed
    p = min(1.0, 2 * tail)
    verdict = "too little evidence for a change" if p >= 0.05 else ("better" if won > lost else "WORSE")
    return f"{won} tasks won, {lost} lost, of {len(before.items)}: {verdict} (exact McNemar p = {p:.3f})"


def _put_base(archive: Archive, narrator: Narrator) -> Digest:
    before = archive.segment_bytes()
    started = time.perf_counter()
    manifest = import_nano(archive)
    seconds = time.perf_counter() - started
    assembly = Repository(archive).load(manifest).assembly
    size = sum(archive.tree(tree).size for tree in (assembly.base, assembly.tokenizer))
    stored = archive.segment_bytes() - before
    narrator.say(f"base      {assembly.base}")
    narrator.say(f"manifest  {manifest}")
    narrator.say(f"{size / 1e6:.1f} MB stored as {stored / 1e6:.1f} MB ({stored / size:.1%}) in {seconds:.2f} s")
    return manifest


def _measured(
    repository: Repository, digest: Digest, tasks: Sequence[Task], sandbox: ProcessSandbox, narrator: Narrator
) -> Measured:
    """Load, measure, and store the evidence as a manifest of its own: the same assembly, now with a score."""
    loaded = load(digest, archive=repository.archive)
    narrator.say(
        f"{loaded.recipe.quantization}: {loaded.read_bytes / 1e6:.1f} MB verified in {loaded.seconds:.2f} s, "
        f"{loaded.weight_bytes / 1e6:.1f} MB in memory"
    )
    with narrator.progress("solving", len(tasks)) as progress:
        result = pass_rate(loaded, tasks, sandbox, progress=progress)
    for side, title in ((Side.SEEN_FAMILY, "seen families"), (Side.UNSEEN_FAMILY, "held-out families")):
        rate = result.by_side[side]
        interval = f"95 % {rate.low:.0%} to {rate.high:.0%}"
        narrator.say(f"{title:<18} {rate.passed:>3} of {rate.total} pass = {rate.value:.0%}  ({interval})")
    summary = store_report(repository, loaded, tasks, result)
    manifest = loaded.manifest.revised(evals=(summary,), recipe=loaded.recipe, parent=digest)
    return Measured(repository.put(manifest), loaded, result, summary)


def _with_adapter(repository: Repository, base: Measured, adapter: Digest) -> Manifest:
    assembly = base.loaded.manifest.assembly
    return Manifest(
        assembly=assembly.revised(adapters=(AdapterUse(adapter=adapter),)),
        code_source=base.loaded.manifest.code_source,
        source=base.loaded.manifest.source,
        lineage=repository.trace([adapter], base=assembly.base),
        parent=base.digest,
    )


def _train(
    archive: Archive, base: Measured, work: Path, settings: Settings, narrator: Narrator
) -> tuple[Path, TrainingRecord]:
    """Train on training draws, loss on the solutions only; returns the adapter's directory and its record."""
    assembly = base.loaded.manifest.assembly
    tasks = draw_training(settings.exercises, settings.seed)
    config = TrainingConfig(
        targets=TARGETS,
        rank=settings.rank,
        alpha=float(2 * settings.rank),
        steps=settings.steps,
        warmup_steps=min(10, settings.steps),
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    with narrator.progress("training", settings.steps) as progress:
        trained = train_lora(
            assemble_base(archive, assembly.base),
            solution_batches(base.loaded.tokenizer, tasks, settings.batch),
            config,
            base=assembly.base,
            data=[tasks_digest(tasks)],
            progress=lambda *_: progress(1),
        )
    losses = trained.record.losses
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    narrator.say(
        f"{settings.steps} steps on {len(tasks)} exercises, mean loss of a tenth of them {first:.3f} to {last:.3f}"
    )
    narrator.say(f"base tensors before = after: {trained.record.base_before.short}")
    return write_adapter(trained.model, work / "quickstart-lora"), trained.record


def solution_batches(
    tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task], size: int
) -> list[dict[str, torch.Tensor]]:
    """Right-padded batches of prompt + solution + end token, with labels on the solution and the end token only."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = []
    for task in tasks:
        prompt = tokenizer(task.prompt)["input_ids"]
        solution = [*tokenizer(task.solution, add_special_tokens=False)["input_ids"], end]
        rows.append((prompt + solution, [-100] * len(prompt) + solution))
    # Rows of like length share a batch, which halves the padding.
    rows.sort(key=lambda row: len(row[0]))
    batches = []
    for start in range(0, len(rows) - size + 1, size):
        batch = rows[start : start + size]
        width = max(len(ids) for ids, _ in batch)
        batches.append(
            {
                "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch]),
                "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch]),
                "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in batch]),
            }
        )
    return batches


def _move_and_return(repository: Repository, base: Digest, adapted: Digest, narrator: Narrator) -> None:
    refs = repository.refs
    refs.set(REF, adapted, expected=base, reason="try the adapter")
    refs.rollback(REF, reason="quickstart shows the way back")
    for event in refs.history(REF):
        verb = "rolled back to" if event.rollback else "set to"
        narrator.say(
            f"{event.time:%H:%M:%S}  {REF} {verb} {event.target.short if event.target else '-'}  ({event.reason})"
        )
