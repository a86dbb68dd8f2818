"""What a council did with one task: who was asked, what each said, what the tests said of that, and who won.

A council's answer is worth as much as the tests that it passed. So the document holds every proposal with the verdict
of the sandbox, the failed ones and the members that could not answer among them, and it says so when nothing passed.
The answer itself, with what proves it, is a Convergence Record that `record` names.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from csf_store import Digest
from manifests.document import Document, Part
from manifests.evidence import DigestSet
from manifests.fields import Count, DigestField, Labels, Line, Location, Name

Proposed: TypeAlias = Literal["passed", "failed", "error", "timeout", "refused", "unanswered"]
"""The sandbox's verdict, or `unanswered`: the member gave nothing to judge."""

Agreement: TypeAlias = Literal["none-verified", "one", "unanimous", "split", "tied"]
"""How the verified answers relate: none; one answer; all the same program; several programs; several equally good."""


class Seat(Part):
    """A member: one of this archive by manifest, assembly and recipe, or one behind an endpoint."""

    id: Line
    manifest: DigestField | None = None
    assembly: DigestField | None = None
    recipe: DigestField | None = None
    endpoint: Location | None = None
    model: Line | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        local = (self.manifest, self.assembly, self.recipe)
        known = None not in local if self.endpoint is None else local == (None, None, None) and bool(self.model)
        if not known:
            raise ValueError(f"member {self.id!r} is a manifest with assembly and recipe, or a model at an endpoint")
        return self


class Proposal(Part):
    """One answer of one member; `answer` is the blob with its words, null where there were none."""

    member: Count
    sample: Count
    seed: Count
    verdict: Proposed
    detail: Line = ""
    answer: DigestField | None = None
    program: DigestField | None = None


class Deliberation(Document):
    """A council's work on one task.

    `task`, `check` and `context` are blobs: the words of the task, the check that was executed (see `record`), and what
    earlier records the members were shown, which `cited` names. `winner` is the place of a proposal in `proposals`.
    """

    kind: Literal["deliberation"] = "deliberation"
    v: Literal[1] = 1
    task: DigestField
    check: DigestField
    members: Annotated[tuple[Seat, ...], Field(min_length=1, max_length=64)]
    proposals: Annotated[tuple[Proposal, ...], Field(max_length=4096)] = ()
    cited: DigestSet = ()
    context: DigestField | None = None
    mode: Literal["first", "best"]
    agreement: Agreement
    winner: Count | None = None
    record: DigestField
    sandbox: Name
    settings: Labels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(each.member >= len(self.members) for each in self.proposals):
            raise ValueError("a proposal is of a member that is not at the table")
        passed = [number for number, each in enumerate(self.proposals) if each.verdict == "passed"]
        if (self.winner is None) != (not passed) or (self.winner is not None and self.winner not in passed):
            raise ValueError("the winner is one of the proposals that passed, and there is one exactly if any did")
        if (self.agreement == "none-verified") != (not passed):
            raise ValueError(f"agreement {self.agreement} and {len(passed)} verified answers do not go together")
        return self

    @property
    def verified(self) -> bool:
        """Whether any answer passed the tests."""
        return self.winner is not None

    def links(self) -> tuple[Digest, ...]:
        """Task, check, answers, the record, and what was cited; members are bound by digest."""
        found = {self.task, self.check, self.record, *self.cited}
        for proposal in self.proposals:
            found |= {each for each in (proposal.answer, proposal.program) if each is not None}
        return tuple(sorted(found | ({self.context} if self.context is not None else set())))
