"""The collapse tripwire as documents: a policy fixed before the run, and a report that anybody can judge again.

A policy is a list of rules, each about one metric on one suite: a limit that the candidate must reach, a margin by
which it may fall behind the incumbent, or both. A report holds what was measured and what tripped. What trips follows
from policy and measures alone, so the audit computes it again; and `began`, the size and root of the ledger when the
run began, shows that the policy was written down before anything was measured.

A rule without its measure has tripped. A guard that could be passed by not looking would be none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from csf_store import Digest
from manifests.document import Document, Part
from manifests.fields import DigestField, LedgerPoint, Line, Name, Real, Text

Better: TypeAlias = Literal["higher", "lower"]


class TripwireRule(Part):
    """One metric and what it must not do.

    `limit` is absolute. `margin` is how far the candidate may be behind the incumbent, in units of the metric.
    """

    suite: Name
    suite_digest: DigestField
    metric: Name
    better: Better
    limit: Real | None = None
    margin: Annotated[Real, Field(ge=0)] | None = None

    @property
    def title(self) -> str:
        """How reports name it."""
        return f"{self.suite} {self.metric}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.limit is None and self.margin is None:
            raise ValueError(f"the rule on {self.title} has neither a limit nor a margin, so it could never trip")
        return self


def _ordered_rules(rules: tuple[TripwireRule, ...]) -> tuple[TripwireRule, ...]:
    ordered = tuple(sorted(set(rules), key=lambda rule: (rule.suite, rule.metric)))
    if len({rule.title for rule in ordered}) != len(ordered):
        raise ValueError("two rules are about the same suite and metric; make them one")
    return ordered


class TripwirePolicy(Document):
    """What a candidate must not do. Put it into the archive before the run: the ledger remembers when."""

    kind: Literal["tripwire-policy"] = "tripwire-policy"
    v: Literal[1] = 1
    name: Name
    rules: Annotated[tuple[TripwireRule, ...], Field(min_length=1), AfterValidator(_ordered_rules)]
    note: Text = ""


class TripwireMeasure(Part):
    """What was measured for one rule, and the eval reports that say so."""

    suite: Name
    suite_digest: DigestField
    metric: Name
    value: Real
    report: DigestField
    incumbent_value: Real | None = None
    incumbent_report: DigestField | None = None

    @property
    def title(self) -> str:
        """The rule it belongs to."""
        return f"{self.suite} {self.metric}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.incumbent_value is None) != (self.incumbent_report is None):
            raise ValueError(f"{self.title}: the incumbent's value and its report are given together or not at all")
        return self


def _ordered_measures(measures: tuple[TripwireMeasure, ...]) -> tuple[TripwireMeasure, ...]:
    ordered = tuple(sorted(set(measures), key=lambda measure: (measure.suite, measure.metric)))
    if len({measure.title for measure in ordered}) != len(ordered):
        raise ValueError("two measures are of the same suite and metric; which one counts cannot be known")
    return ordered


def _ordered_titles(titles: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(titles)))


class TripwireReport(Document):
    """One run of the tripwire on one assembly and recipe, against one incumbent or none.

    `tripped` names the rules that tripped, `suite metric` each. `detail` is the full report that the measures were
    taken from, where a guard wrote one.
    """

    OPTIONAL = frozenset({"detail"})

    kind: Literal["tripwire-report"] = "tripwire-report"
    v: Literal[1] = 1
    assembly: DigestField
    recipe: DigestField
    policy: DigestField
    incumbent: DigestField | None = None
    began: LedgerPoint
    measures: Annotated[tuple[TripwireMeasure, ...], AfterValidator(_ordered_measures)]
    tripped: Annotated[tuple[Line, ...], AfterValidator(_ordered_titles)] = ()
    status: Literal["clear", "tripped"]
    detail: DigestField | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.status == "tripped") != bool(self.tripped):
            raise ValueError(f"status {self.status!r} with {len(self.tripped)} tripped rules")
        return self

    def links(self) -> tuple[Digest, ...]:
        """The policy, the incumbent, the full report, and every eval report a measure is taken from."""
        found = {self.policy, *(measure.report for measure in self.measures)}
        found |= {m.incumbent_report for m in self.measures if m.incumbent_report is not None}
        return tuple(sorted(found | {link for link in (self.incumbent, self.detail) if link is not None}))


def judge(policy: TripwirePolicy, measures: Sequence[TripwireMeasure]) -> Mapping[str, str]:
    """What trips: the title of each rule that does, and why in one sentence. Empty when all is clear.

    Args:
        policy: the rules.
        measures: what was measured; those that no rule asks for are ignored.
    """
    found = {measure.title: measure for measure in measures}
    tripped = {}
    for rule in policy.rules:
        reason = _reason(rule, found.get(rule.title))
        if reason is not None:
            tripped[rule.title] = reason
    return tripped


def _reason(rule: TripwireRule, measure: TripwireMeasure | None) -> str | None:
    if measure is None:
        return "it was not measured"
    if measure.suite_digest != rule.suite_digest:
        return f"it was measured on suite {measure.suite_digest}, the rule is about {rule.suite_digest}"
    sign = 1.0 if rule.better == "higher" else -1.0
    if rule.limit is not None and sign * measure.value < sign * rule.limit:
        return f"{measure.value} does not reach the limit of {rule.limit}"
    if rule.margin is not None:
        if measure.incumbent_value is None:
            return "there is a margin, and no value of an incumbent to compare with"
        if sign * (measure.incumbent_value - measure.value) > rule.margin:
            return f"{measure.value} is behind the incumbent's {measure.incumbent_value} by more than {rule.margin}"
    return None
