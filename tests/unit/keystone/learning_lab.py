"""A tiny archived base, a few training tasks, records of them, and a model that answers as it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from small_checkpoints import family_model, save
from torch import nn

from adapters import Claim, Confidence, ConvergenceRecord, Evidence, RecordSource
from csf_store import Archive, Digest
from keystone.cli import main
from keystone.evaluation import Sandbox, Task
from keystone.evaluation.basics import draw_held_out, draw_training
from keystone.evaluation.record_checks import CHECKER, check_of
from keystone.evaluation.suites import item_of_task
from keystone.experience import Gated, gate, known_holdouts
from keystone.training import TrainSettings
from manifests import Manifest, Recipe, Repository

TASKS = draw_training(12, 3)
HELD = draw_held_out(40, 2)
HOLDOUTS = known_holdouts(basics=40)
SETTINGS = TrainSettings(rank=2, steps=6, batch_size=3, warmup_steps=2, learning_rate=5e-3, seed=7, checkpoint_every=2)


@dataclass
class Scripted:
    """Answers with what it is told, in order, and counts how often it is asked."""

    manifest: Manifest
    digest: Digest
    answers: Sequence[str]
    recipe: Recipe = field(default_factory=lambda: Recipe(dtype="float32"))
    model: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))
    tokenizer: Any = None
    asked: int = 0
    fail_at: int | None = None

    def complete(self, prompts: Sequence[str], **_: object) -> list[str]:
        if self.asked == self.fail_at:
            raise KeyboardInterrupt
        self.asked += 1
        start = (self.asked - 1) * len(prompts)
        return list(self.answers[start : start + len(prompts)])


@dataclass
class Lab:
    """An archive with the tiny base as `one`, and a sandbox."""

    repository: Repository
    sandbox: Sandbox
    path: Path

    @property
    def base(self) -> Digest:
        return self.repository.resolve("one")

    def record(self, task: Task, **changes: object) -> Digest:
        """A stored record of a task's own solution; `part__field` changes one field, `kind` whom it is from."""
        item = item_of_task(task)
        check = self.repository.archive.put_bytes(check_of(item)).digest
        total = len(item.cases)
        parts: dict[str, dict[str, object]] = {
            "claim": {"suite": task.suite, "task": task.name, "prompt": task.prompt, "answer": task.solution},
            "evidence": {"ground": "tests-passed", "check": check, "checker": CHECKER},
            "confidence": {"passed": total, "total": total},
            "source": {"kind": "model", "name": "tiny", "licence": "Apache-2.0", "assembly": Digest.of(b"model")},
        }
        for name, value in changes.items():
            part, _, key = name.partition("__")
            parts[part][key] = value
        return self.repository.put_record(
            ConvergenceRecord(
                claim=Claim(**parts["claim"]),  # type: ignore[arg-type]
                evidence=Evidence(**parts["evidence"]),  # type: ignore[arg-type]
                confidence=Confidence(**parts["confidence"]),  # type: ignore[arg-type]
                source=RecordSource(**parts["source"]),  # type: ignore[arg-type]
            )
        )

    def external(self, task: Task) -> Digest:
        return self.record(task, source__kind="external", source__assembly=None, source__name="a-set@1")

    def gated(self, *records: Digest) -> Gated:
        return gate(self.repository, records, sandbox=self.sandbox, holdouts=HOLDOUTS)


def make_lab(root: Path, sandbox: Sandbox, *arguments: str) -> Lab:
    """A new archive with a base of two layers."""
    directory = save(family_model("llama", tie_word_embeddings=True), root / "one")
    done = CliRunner().invoke(main, ["--archive", str(root / "archive"), "import", str(directory), *arguments])
    assert done.exit_code == 0, done.output
    return Lab(Repository(Archive.open(root / "archive")), sandbox, root / "archive")
