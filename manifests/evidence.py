"""What is known of a model, as documents of their own: eval reports, training records, adapter records.

A manifest holds summaries; the documents here hold what the summaries stand on, and the audit compares the two. Every
piece of evidence names the pair (assembly digest, recipe digest) that it was measured on, so a score cannot be moved to
other weights, nor from bf16 to nf4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from csf_store import Digest
from manifests.document import Document, Part
from manifests.fields import Count, DigestField, Labels, Line, ModuleName, Name, Positive, Real, frozen_mapping


def _ordered(digests: tuple[Digest, ...]) -> tuple[Digest, ...]:
    return tuple(sorted(set(digests)))


def _ordered_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


DigestSet = Annotated[tuple[DigestField, ...], AfterValidator(_ordered)]
"""Digests without order or repeats, written sorted."""

ModuleSet = Annotated[tuple[ModuleName, ...], AfterValidator(_ordered_names)]
"""Module names without order or repeats, written sorted."""


class Interval(Part):
    """An interval around a score: `low <= score <= high` at `level`, by a named method (`wilson`, `bootstrap`)."""

    low: Real
    high: Real
    level: Annotated[Real, Field(gt=0, lt=1)]
    method: Name

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"an interval runs from low to high, not from {self.low} to {self.high}")
        return self


class Score(Part):
    """One number measured on one suite. `passed` is the count of items for metrics that count items, else null."""

    suite: Name
    suite_digest: DigestField
    metric: Name
    n: Positive
    passed: Count | None
    score: Real
    interval: Interval | None = None

    @model_validator(mode="after")
    def _check_score(self) -> Self:
        if self.passed is not None:
            if self.passed > self.n:
                raise ValueError(f"{self.passed} of {self.n} items cannot pass")
            # A count and a share of one measurement must be the same number, to the last bit, wherever it is computed.
            if self.score != self.passed / self.n:
                raise ValueError(f"score {self.score} is not {self.passed}/{self.n}")
        if self.interval is not None and not self.interval.low <= self.score <= self.interval.high:
            raise ValueError(f"score {self.score} lies outside its interval {self.interval.low}..{self.interval.high}")
        return self


class EvalReport(Document):
    """One evaluation run. `items` is the blob of per-item results that the score can be recomputed from."""

    kind: Literal["eval-report"] = "eval-report"
    v: Literal[1] = 1
    assembly: DigestField
    recipe: DigestField
    result: Score
    items: DigestField | None = None
    seeds: tuple[Count, ...] = ()
    settings: Labels = Field(default_factory=dict)

    def links(self) -> tuple[Digest, ...]:
        """The per-item results. The assembly is bound by digest, and linked by the manifests that hold it."""
        return (self.items,) if self.items is not None else ()


class TrainingConfig(Part):
    """Everything that steers a LoRA run; with the data, the libraries and the machine it decides the result.

    `targets` are the last parts of module names (`q_proj`), or full names. The rate warms up linearly, then falls to
    zero on a cosine.
    """

    targets: Annotated[ModuleSet, Field(min_length=1)]
    rank: Positive = 8
    alpha: Annotated[Real, Field(gt=0)] = 16.0
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    steps: Positive = 100
    warmup_steps: Count = 10
    learning_rate: Annotated[Real, Field(gt=0)] = 1e-3
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    seed: Count = 0


class TrainingRecord(Document):
    """How an adapter came to be: what it was trained on, how, and that the base came out as it went in.

    `base_before` and `base_after` are tensor-set digests (see `tensor_set_digest`) of the model in memory, in the dtype
    it was trained in; `adapter_tensors` is that of the resulting adapter as saved, which ties this record to a tree.
    `data` are the data sets by digest, `experience` the Convergence Records among them, `gate` the source gate's report
    that let them in (null where nothing was gated), `batches` is the tensor-set digest of the exact batches, and
    `losses` has one number a step.
    """

    kind: Literal["training-record"] = "training-record"
    v: Literal[1] = 1
    base: DigestField
    parent: DigestField | None = None
    base_before: DigestField
    base_after: DigestField
    adapter_tensors: DigestField
    data: DigestSet
    experience: DigestSet = ()
    gate: DigestField | None = None
    batches: DigestField
    examples: Positive
    config: TrainingConfig
    losses: Annotated[tuple[Real, ...], Field(min_length=1)]
    final_loss: Real
    device: Line
    threads: Positive
    capability: Line
    libraries: Annotated[
        Mapping[Name, Name], AfterValidator(frozen_mapping), PlainSerializer(dict, return_type=dict[str, str])
    ]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.final_loss != self.losses[-1] or len(self.losses) != self.config.steps:
            raise ValueError(f"{len(self.losses)} losses for {self.config.steps} steps, or a final loss not the last")
        return self

    def links(self) -> tuple[Digest, ...]:
        """Base, parent, gate report and Convergence Records; data sets may live elsewhere and are named, not held."""
        optional = [link for link in (self.parent, self.gate) if link is not None]
        return tuple(sorted({self.base, *optional, *self.experience}))


class AdapterRecord(Document):
    """What is said of an adapter tree: the base it belongs to, its shape, and whether a training record proves it.

    `rank` and `alpha` are those of `adapter_config.json`; `targets` are the modules its tensors adapt, by full name.
    """

    kind: Literal["adapter-record"] = "adapter-record"
    v: Literal[1] = 1
    adapter: DigestField
    base: DigestField
    parent: DigestField | None = None
    rank: Positive
    alpha: Real
    targets: Annotated[ModuleSet, Field(min_length=1)]
    training: DigestField | None = None
    claim: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.claim == (self.training is not None):
            raise ValueError("a record is a claim exactly when no training record stands behind it")
        if self.parent == self.adapter:
            raise ValueError(f"adapter {self.adapter} cannot be its own parent")
        return self

    def links(self) -> tuple[Digest, ...]:
        """The adapter tree, its base, its parent and its training record."""
        optional = [link for link in (self.parent, self.training) if link is not None]
        return tuple(sorted({self.adapter, self.base, *optional}))
