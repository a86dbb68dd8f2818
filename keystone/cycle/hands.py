"""What a cycle needs done by models: the machine decides when, hands do it.

`keystone.cycle.running` owns the order of steps, the ledger and the verdict, and knows no model. Hands know the models
and nothing of the order. So the order can be tested, killed and resumed at every step without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapters import HoldoutEvent, SignalTable
from csf_store import Digest
from keystone.cycle.documents import CycleRecords
from manifests import Recipe


@dataclass(frozen=True)
class Trained:
    """A candidate: a manifest with one adapter more than the incumbent's, and that adapter."""

    adapter: Digest
    manifest: Digest


@dataclass(frozen=True)
class Gated:
    """What may train.

    Attributes:
        report: the source gate's, over exactly these records, none refused.
        records: what was let in.
        refusals: the report that named others to be left out, if there were any.
    """

    report: Digest
    records: CycleRecords
    refusals: Digest | None = None


class Hands(Protocol):
    """Everything that takes a model. Equal arguments give equal digests, so that a step done half is done again."""

    def sentinel(self) -> Digest:
        """Digest of the frozen set."""

    def reruns(self, base: Digest) -> Sequence[SignalTable]:
        """The bare base's signals on the sentinel prompts, sampled anew each time with another seed."""

    def recipe(self, manifest: Digest) -> Recipe:
        """How the numbers of a manifest are held here."""

    def draw(self, seed: int, count: int, without: frozenset[str]) -> Sequence[str]:
        """Names of fresh held-out items; pure, as `adapters.HoldoutBook` asks."""

    def frozen(self) -> frozenset[str]:
        """Names of the sentinel items, which no draw may hold."""

    def collect(self, incumbent: Digest, *, seed: int, opened: Sequence[HoldoutEvent]) -> CycleRecords:
        """Sample answers to practice tasks, keep what passes and is no hold-out; the records are stored.

        Args:
            incumbent: the manifest that answers.
            seed: of tasks and samples.
            opened: every draw that was opened; what they hold may not train.
        """

    def gate(self, records: CycleRecords, *, opened: Sequence[HoldoutEvent]) -> Gated:
        """Have the source gate judge a training set; its report is stored.

        Raises:
            adapters.SourceRefusedError: too many may not train, or none is left.
        """

    def train(self, incumbent: Digest, records: CycleRecords, gate: Digest, *, seed: int, work: Path) -> Trained:
        """Train an adapter on the frozen base; resumes from what it left in `work`.

        Raises:
            adapters.BaseChangedError, adapters.TrainingFailedError: the run is no good.
        """

    def answer_sentinel(self, manifest: Digest) -> Digest:
        """Let a model answer the frozen set; its eval report, stored."""

    def answer_fresh(self, manifest: Digest, seed: int, names: Sequence[str]) -> Digest:
        """Let a model answer a fresh draw; its eval report, stored."""

    def signals(self, manifest: Digest) -> Digest:
        """Sample a model on the sentinel prompts; its signal report, stored."""
