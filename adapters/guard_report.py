"""One run of the guard as a document: what was compared, every number the verdict rests on, and the verdict.

A report can be judged again by anybody who has the policy: `recheck` takes the numbers and computes verdict, reasons
and minimal effect anew. It also carries this cycle's bets, so that the next cycle's chain is built from reports and
needs no other memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from adapters.errors import HoldoutError, InvalidEvidenceError
from adapters.holdouts import OpenedDraw
from adapters.statistics import Look
from adapters.tripwire import Judgement, Measured, Standing, conclude, stand
from adapters.tripwire_policy import GuardPolicy, Label, Rules
from csf_store import Digest
from manifests import DigestField, Document, register_kind


class ReferenceModel(Rules):
    """A model that the candidate was compared with, by its name in the policy."""

    name: Label
    assembly: DigestField


@register_kind
class GuardReport(Document):
    """The guard's word on one candidate.

    Attributes:
        policy: the rules, recorded before the run.
        assembly: the candidate.
        recipe: how its numbers were held.
        draw: name of the fresh draw that it consumed.
        commitment: what was committed to before the run.
        references: what it was compared with.
        look: which look of the chain this is, from 1.
        standings: the numbers.
        judgement: the verdict.
    """

    kind: Literal["guard-report"] = "guard-report"
    v: Literal[1] = 1
    policy: DigestField
    assembly: DigestField
    recipe: DigestField
    draw: Label
    commitment: DigestField
    references: tuple[ReferenceModel, ...]
    look: Annotated[int, Field(ge=1)]
    standings: tuple[Standing, ...]
    judgement: Judgement

    def links(self) -> tuple[Digest, ...]:
        """The policy; assemblies are bound by digest."""
        return (self.policy,)


def judge(
    policy: GuardPolicy,
    draw: OpenedDraw,
    candidate: Measured,
    references: Mapping[str, tuple[Digest, Measured]],
    *,
    recipe: Digest,
    history: Mapping[str, Sequence[Look]],
    sentinel: Digest,
) -> GuardReport:
    """Judge a candidate on the draw it consumed.

    Args:
        policy: the rules.
        draw: proof that the fresh draw was committed to under this policy and consumed by this candidate.
        candidate: its results.
        references: assembly and results of every model the policy compares with.
        recipe: how the candidate's numbers were held.
        history: earlier looks of this chain, by reference, as `histories` gives them.
        sentinel: digest of the sentinel set that was answered.

    Raises:
        HoldoutError: when the draw belongs to another policy, or other items were answered.
        InvalidEvidenceError: results that do not belong together, or a missing reference.
        InvalidPolicyError: when the policy's looks are used up.
    """
    if draw.policy != policy.digest:
        raise HoldoutError(f"draw {draw.draw!r} was committed to under policy {draw.policy}, not {policy.digest}")
    if draw.suite != policy.fresh_suite:
        raise HoldoutError(f"draw {draw.draw!r} is from {draw.suite}; the policy asks for {policy.fresh_suite}")
    if odd := sorted({outcome.item for outcome in candidate.fresh} ^ set(draw.items)):
        raise HoldoutError(
            f"item {odd[0]!r} was answered and not drawn, or drawn and not answered ({len(odd)} such items); a verdict"
            f" is about all of draw {draw.draw!r}"
        )
    if sentinel != policy.sentinel:
        raise InvalidEvidenceError(f"sentinel set {sentinel} was answered; the policy fixed {policy.sentinel}")
    if references.keys() != set(policy.references):
        raise InvalidEvidenceError(
            f"results of {', '.join(references) or 'no reference'}; the policy asks for {', '.join(policy.references)}"
        )
    lengths = {len(history.get(name, ())) for name in policy.references}
    if len(lengths) != 1:
        raise InvalidEvidenceError("the chain has more looks against one reference than against another")
    standings = tuple(
        stand(policy, name, candidate, references[name][1], history.get(name, ())) for name in policy.references
    )
    return GuardReport(
        policy=policy.digest,
        assembly=draw.candidate,
        recipe=recipe,
        draw=draw.draw,
        commitment=draw.commitment,
        references=tuple(ReferenceModel(name=name, assembly=references[name][0]) for name in policy.references),
        look=lengths.pop() + 1,
        standings=standings,
        judgement=conclude(policy, standings),
    )


def recheck(policy: GuardPolicy, report: GuardReport) -> None:
    """Compute the verdict again from the report's numbers.

    Raises:
        InvalidEvidenceError: when the report is about another policy, or says something else than its numbers do.
    """
    if report.policy != policy.digest:
        raise InvalidEvidenceError(f"the report went by policy {report.policy}, this is {policy.digest}")
    found = conclude(policy, report.standings)
    if found != report.judgement:
        raise InvalidEvidenceError(
            f"the report says {report.judgement.verdict}, its numbers say {found.verdict}; it was changed, or another"
            " release wrote it"
        )


def histories(reports: Iterable[tuple[GuardReport, bool]]) -> Mapping[str, tuple[Look, ...]]:
    """The chain so far, by reference, for the next look.

    Args:
        reports: earlier reports of one policy, oldest first, each with whether its candidate was promoted.

    Raises:
        InvalidEvidenceError: when the reports go by several policies, or are not looks 1, 2, 3 and so on.
    """
    looks: dict[str, list[Look]] = {}
    policies = set()
    for number, (report, kept) in enumerate(reports, start=1):
        policies.add(report.policy)
        if len(policies) > 1 or report.look != number:
            raise InvalidEvidenceError(
                f"report {report.digest} is look {report.look} of policy {report.policy}; expected look {number} of one"
                " chain, with none left out"
            )
        for standing in report.standings:
            looks.setdefault(standing.reference, []).append(Look(standing.bets, kept))
    return {name: tuple(each) for name, each in looks.items()}
