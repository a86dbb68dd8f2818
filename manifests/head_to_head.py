"""Two models on the same items: who won, as a document that anybody can count again.

A score typed in by hand says nothing, and neither does a score from somebody else's page. What lets a model lead is a
comparison made here: both sides answered the same items under the same settings, the same sandbox judged, and a paired
test whose limits were fixed before says what that shows. The document holds the numbers and names the per-item results
of both sides, so the verdict is not believed but computed again. It is worth something once an operator signed it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from csf_store import Digest
from manifests.canonical import Json
from manifests.document import Document, Part
from manifests.fields import Count, DigestField, Labels, Line, Location, Name, Positive, Real
from manifests.signing.in_toto import Statement

HEAD_TO_HEAD = "urn:keystone-sigma0:predicate:head-to-head:1"

ContestVerdict: TypeAlias = Literal["IMPROVED", "NON-INFERIOR", "REGRESSED", "UNDERPOWERED"]
"""Of the candidate against the opponent; only `IMPROVED` is a win."""

Probability = Annotated[Real, Field(ge=0, le=1)]
Share = Annotated[Real, Field(gt=0, lt=1)]


class Contestant(Part):
    """One side: what answered, how it was asked, and what came of it.

    A model of this archive is named by assembly and recipe, one behind an endpoint by URL and the name it has there;
    what an endpoint runs under that name is its owner's word. `items` is the blob of per-item results.
    """

    assembly: DigestField | None = None
    recipe: DigestField | None = None
    endpoint: Location | None = None
    model: Line | None = None
    api: Name
    style: Name
    passed: Count
    items: DigestField

    @model_validator(mode="after")
    def _check(self) -> Self:
        local, remote = (self.assembly, self.recipe), (self.endpoint, self.model)
        here, there = (local, remote) if self.endpoint is None else (remote, local)
        if None in here or there != (None, None):
            raise ValueError("a side is either an assembly with its recipe, or an endpoint with the model's name there")
        return self

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two sides the same model."""
        if self.assembly is not None:
            return str(self.assembly), str(self.recipe)
        return str(self.endpoint), str(self.model)


class ContestRules(Part):
    """Fixed before anything is asked.

    A fall by `margin` must be excluded before anything good is said. `alpha` is spread over all looks at this pair on
    this suite, `alpha / (look * (look + 1))` for each, so that trying again does not help; `seed` is of the sign flips.
    """

    margin: Share = 0.05
    alpha: Share = 0.05
    look: Positive = 1
    seed: Count = 0

    @property
    def level(self) -> float:
        """What this look may spend."""
        return self.alpha / (self.look * (self.look + 1))


class HeadToHead(Document):
    """A candidate against an opponent on one suite; differences are candidate minus opponent."""

    kind: Literal["head-to-head"] = "head-to-head"
    v: Literal[1] = 1
    candidate: Contestant
    opponent: Contestant
    suite: Name
    suite_digest: DigestField
    n: Positive
    units: Positive
    rules: ContestRules
    difference: Annotated[Real, Field(ge=-1, le=1)]
    error: Annotated[Real, Field(ge=0)]
    p_worse: Probability
    p_better: Probability
    p_inferior: Probability
    minimal_effect: Annotated[Real, Field(ge=0)]
    verdict: ContestVerdict
    settings: Labels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if max(self.candidate.passed, self.opponent.passed) > self.n:
            raise ValueError(f"{self.candidate.passed} and {self.opponent.passed} of {self.n} items cannot pass")
        if self.candidate.identity == self.opponent.identity:
            raise ValueError("a model cannot be its own opponent")
        if self.verdict != contest_verdict(self.rules, self.p_worse, self.p_better, self.p_inferior):
            raise ValueError(f"the verdict {self.verdict} is not what its own numbers and rules give")
        return self

    @property
    def won(self) -> bool:
        """Whether the candidate may lead on account of this."""
        return self.verdict == "IMPROVED"

    def links(self) -> tuple[Digest, ...]:
        """Both sides' results. Assemblies are bound by digest and live as long as their manifests."""
        return tuple(sorted({self.candidate.items, self.opponent.items}))


def contest_verdict(rules: ContestRules, p_worse: float, p_better: float, p_inferior: float) -> ContestVerdict:
    """What three p-values come to under the rules; harm is looked for first, and doubt is no win."""
    if p_worse <= rules.level:
        return "REGRESSED"
    if p_inferior > rules.level:
        return "UNDERPOWERED"
    return "IMPROVED" if p_better <= rules.level else "NON-INFERIOR"


def head_to_head_statement(digest: Digest, report: HeadToHead) -> Statement:
    """What is signed of a head-to-head: the document itself, as the predicate; its subjects are report and assemblies.

    Args:
        digest: of the report.
        report: the report.
    """
    subjects = [("head-to-head", digest)]
    for name, side in (("candidate", report.candidate), ("opponent", report.opponent)):
        if side.assembly is not None:
            subjects.append((name, side.assembly))
    predicate: dict[str, Json] = dict(report.to_json())
    return Statement(tuple(subjects), HEAD_TO_HEAD, predicate)
