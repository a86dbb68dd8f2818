"""Convergence Records: how verified experience enters the ledger, `[claim, evidence, confidence, source]`.

- **claim**: this answer solves this task.
- **evidence**: what anybody can run again to see it: the ground it stands on and the blob that holds the check.
- **confidence**: what that run showed, as counts and not as a feeling.
- **source**: who produced the answer, under which licence.

A record says what was found when it was made. It is not believed for that: the source gate runs the evidence again
before a record may train (see `source_gate`). What the record must make possible is that it *can* be run again, by
naming everything that takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from adapters.contamination import code_form, prose_words
from adapters.tripwire_policy import Label, Rules
from csf_store import Digest
from manifests import DigestField, Document, register_kind

Ground: TypeAlias = Literal["tests-passed", "grounding-check", "operator-approved", "self-scored", "none"]
"""What a claim stands on. The last two never train; they exist so that a record can say so honestly."""

TrainingGround: TypeAlias = Literal["tests-passed", "grounding-check", "operator-approved"]
"""What a claim must stand on to train."""

_TRAINS: Mapping[Ground, TrainingGround] = {
    "tests-passed": "tests-passed",
    "grounding-check": "grounding-check",
    "operator-approved": "operator-approved",
}

Body = Annotated[str, Field(max_length=2**18)]
"""A prompt or an answer, as it is."""

Count = Annotated[int, Field(ge=0, le=10**9)]


class Claim(Rules):
    """This answer solves this task.

    Attributes:
        suite: where the task comes from.
        task: its name there.
        prompt: what was asked.
        answer: what was answered; for code, `prompt + answer` is the program.
    """

    suite: Label
    task: Annotated[str, Field(min_length=1, max_length=256)]
    prompt: Body
    answer: Body


class Evidence(Rules):
    """What the claim stands on.

    Attributes:
        ground: see `Ground`.
        check: the blob that is run again: hidden tests, a grounding document, a signed decision. Null for no ground.
        checker: the program that ran it, with its version.
        scorer: the assembly of a model that judged the answer, if one did.
    """

    ground: Ground
    check: DigestField | None = None
    checker: Label
    scorer: DigestField | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.check is None) != (self.ground in ("self-scored", "none")):
            raise ValueError(f"ground {self.ground!r}: a check is named exactly when there is one to run again")
        return self

    @property
    def training_ground(self) -> TrainingGround | None:
        """The ground, if it is one that may train."""
        return _TRAINS.get(self.ground)


class Confidence(Rules):
    """How many of the checks passed."""

    passed: Count
    total: Count

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.passed > self.total:
            raise ValueError(f"{self.passed} of {self.total} checks cannot pass")
        return self

    @property
    def complete(self) -> bool:
        """Whether there were checks and all passed."""
        return 0 < self.passed == self.total


class RecordSource(Rules):
    """Who produced the answer.

    Attributes:
        kind: a model, a person, or a data set from outside.
        name: what to call it: a ref, a data set with its revision.
        licence: of the answer, an SPDX expression.
        assembly: of the model, where a model answered.
        recipe: how that model's numbers were held.
        seed: of the sample.
    """

    kind: Literal["model", "person", "external"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    licence: Annotated[str, Field(min_length=1, max_length=256)]
    assembly: DigestField | None = None
    recipe: DigestField | None = None
    seed: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "model") != (self.assembly is not None):
            raise ValueError("an assembly is named exactly when a model answered")
        return self


@register_kind
class ConvergenceRecord(Document):
    """One piece of experience. Its digest names it; a training set is a list of these digests."""

    kind: Literal["convergence-record"] = "convergence-record"
    v: Literal[1] = 1
    claim: Claim
    evidence: Evidence
    confidence: Confidence
    source: RecordSource

    def links(self) -> tuple[Digest, ...]:
        """The check; the assembly is bound by digest and lives as long as its manifests."""
        return (self.evidence.check,) if self.evidence.check is not None else ()

    @property
    def program(self) -> str:
        """Prompt and answer together."""
        return self.claim.prompt + self.claim.answer

    @property
    def content(self) -> Digest:
        """Equal for records that teach the same: same prompt in other words' case, same program in other names."""
        words = " ".join(prose_words(self.claim.prompt))
        return Digest.of(f"{len(words)}:{words}{code_form(self.program)}".encode())


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """What is left, and which record each dropped one repeats."""

    kept: tuple[ConvergenceRecord, ...]
    dropped: tuple[tuple[Digest, Digest], ...]


def deduplicate(records: Iterable[ConvergenceRecord]) -> Deduplicated:
    """Keep the first of all records with the same content.

    A model that passes an easy task in fifty samples would otherwise teach itself that one answer fifty times, which is
    the straight way to collapse.
    """
    first: dict[Digest, ConvergenceRecord] = {}
    dropped = []
    for record in records:
        known = first.setdefault(record.content, record)
        if known is not record:
            dropped.append((record.digest, known.digest))
    return Deduplicated(tuple(first.values()), tuple(dropped))
