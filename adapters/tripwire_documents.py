"""The guard's word in the documents that manifests and audits read.

A manifest's tripwire names a `TripwireReport`, and an audit judges that report again by its `TripwirePolicy`: one rule,
one number, one limit. Each guard of ours comes down to such a number (a p-value, an e-value, a loss that is proven, a
signal's harm beyond chance and tolerance), so the simple documents say the same as the full `GuardReport`, and an audit
needs to know nothing of statistics to see that nobody promoted against them.

The policy is made for one cycle, since its rules are about the draw that was committed to. Put the guard policy, then
this one, into the archive before the run; a report about anything earlier would not pass an audit. UNDERPOWERED is
neither clear nor tripped and gives no report: the manifest stays `untested`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adapters.errors import InvalidEvidenceError
from adapters.guard_report import GuardReport
from adapters.tripwire import Standing
from adapters.tripwire_policy import GuardPolicy
from csf_store import Digest
from manifests import EvalReport, Score, TripwireMeasure, TripwirePolicy, TripwireReport, TripwireRule, judge_tripwire


@dataclass(frozen=True, slots=True)
class TripwireEvidence:
    """What to store for a report: the numbers first, one document each, then the report over them."""

    numbers: tuple[EvalReport, ...]
    report: TripwireReport


def tripwire_policy(policy: GuardPolicy, *, commitment: Digest) -> TripwirePolicy:
    """The rules of one cycle as a manifest's audit judges them.

    Args:
        policy: the guard's own rules.
        commitment: the fresh draw that was committed to.
    """
    fresh, frozen = policy.fresh_suite, f"sentinel/{policy.name}"
    rules = []
    for name in policy.references:
        rules += [
            _rule(fresh, commitment, f"p-worse.{name}", higher=policy.look_alpha),
            _rule(fresh, commitment, f"p-inferior.{name}", lower=policy.promote_alpha),
            _rule(fresh, commitment, f"e-value.{name}", lower=policy.chain_limit),
            _rule(frozen, policy.sentinel, f"p-worse.{name}", higher=policy.look_alpha),
        ]
        if policy.family_drop is not None:
            rules.append(_rule(fresh, commitment, f"family-loss.{name}", lower=policy.family_drop))
        rules += [_rule(frozen, policy.sentinel, f"{rule.name}.{name}", lower=0.0) for rule in policy.signals]
    note = f"One cycle of guard policy {policy.digest}, fresh draw {commitment}."
    return TripwirePolicy(name=policy.name, rules=tuple(rules), note=note)


def tripwire_evidence(
    policy: GuardPolicy, report: GuardReport, *, incumbent: Digest | None, began: str
) -> TripwireEvidence | None:
    """A guard report as the documents that a manifest names; None for UNDERPOWERED.

    The full report is named as their detail: put it into the archive before them.

    Args:
        policy: the guard's own rules.
        report: the guard's word.
        incumbent: the incumbent's manifest, null for a new ref.
        began: the ledger when the run began, `SIZE:ROOT`.

    Raises:
        InvalidEvidenceError: when the report is about another policy, or the two forms would not say the same.
    """
    if report.policy != policy.digest:
        raise InvalidEvidenceError(f"the report went by policy {report.policy}, this is {policy.digest}")
    if report.judgement.status == "untested":
        return None
    rules = tripwire_policy(policy, commitment=report.commitment)
    digests = {(rule.suite, rule.metric): rule.suite_digest for rule in rules.rules}
    numbers = tuple(
        EvalReport(
            assembly=report.assembly,
            recipe=report.recipe,
            result=Score(
                suite=suite, suite_digest=digests[suite, metric], metric=metric, n=items, passed=None, score=value
            ),
            settings={"guard-report": str(report.digest)},
        )
        for standing in report.standings
        for suite, metric, items, value in _numbers(policy, standing)
    )
    measures = tuple(
        TripwireMeasure(
            suite=each.result.suite,
            suite_digest=each.result.suite_digest,
            metric=each.result.metric,
            value=each.result.score,
            report=each.digest,
        )
        for each in numbers
    )
    tripped = judge_tripwire(rules, measures)
    if bool(tripped) != (report.judgement.status == "tripped"):
        raise InvalidEvidenceError(
            f"the guard says {report.judgement.verdict}, and by its numbers {len(tripped)} rules trip; the report was"
            " changed, or lies exactly on a limit"
        )
    return TripwireEvidence(
        numbers,
        TripwireReport(
            assembly=report.assembly,
            recipe=report.recipe,
            policy=rules.digest,
            incumbent=incumbent,
            began=began,
            measures=measures,
            tripped=tuple(tripped),
            status="tripped" if tripped else "clear",
            detail=report.digest,
        ),
    )


def _rule(
    suite: str, digest: Digest, metric: str, *, higher: float | None = None, lower: float | None = None
) -> TripwireRule:
    if higher is not None:
        return TripwireRule(suite=suite, suite_digest=digest, metric=metric, better="higher", limit=higher)
    return TripwireRule(suite=suite, suite_digest=digest, metric=metric, better="lower", limit=lower)


def _numbers(policy: GuardPolicy, standing: Standing) -> Iterator[tuple[str, str, int, float]]:
    name, fresh, frozen = standing.reference, policy.fresh_suite, f"sentinel/{policy.name}"
    items, sentinels = standing.fresh.items, standing.sentinel.items
    yield fresh, f"p-worse.{name}", items, standing.fresh.p_worse
    yield fresh, f"p-inferior.{name}", items, standing.fresh.p_inferior
    yield fresh, f"e-value.{name}", items, standing.e_value
    yield frozen, f"p-worse.{name}", sentinels, standing.sentinel.p_worse
    worst = standing.family
    proven = worst.p <= policy.family_alpha(standing.fresh.families)
    if policy.family_drop is not None:
        yield fresh, f"family-loss.{name}", worst.items, worst.drop if proven else 0.0
    rules = {rule.name: rule for rule in policy.signals}
    for signal in standing.signals:
        beyond = signal.surely(policy.signal_alpha, noise=rules[signal.name].noise) - signal.tolerance
        yield frozen, f"{signal.name}.{name}", sentinels, beyond
