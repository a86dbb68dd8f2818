"""The tripwire: from results of one cycle to a verdict.

| verdict | status | when |
|---|---|---|
| REGRESSED | tripped | any guard shows harm |
| UNDERPOWERED | untested | no harm was shown, but neither was its absence |
| NON-INFERIOR | clear | a fall by the margin is excluded, against every reference |
| IMPROVED | clear | and the candidate beats the incumbent |

Absence of evidence never promotes: UNDERPOWERED is what happens to a candidate that nobody can tell from a worse one,
and the report says how large a fall would have been seen. A guard that could not have tripped (too few families, too
few items, a signal nobody measured) counts against the candidate and not for it.

Five guards, each able to block by itself: a fall on the fresh draw; a fall on the frozen sentinel set; one family
forgotten while the rest hides it; a slow drift over the chain of cycles; and signals of collapse. Only the fresh draw
can promote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from adapters.comparison import Contrast, FamilyLoss, Outcome, contrast, family_losses, pair
from adapters.errors import InvalidEvidenceError
from adapters.signals import SignalShift, SignalTable, shift
from adapters.statistics import Look, chain_e_value, log_bets, minimal_effect
from adapters.statistics.paired import FLIPS
from adapters.tripwire_policy import GuardPolicy

Verdict: TypeAlias = Literal["IMPROVED", "NON-INFERIOR", "REGRESSED", "UNDERPOWERED"]
Status: TypeAlias = Literal["clear", "tripped", "untested"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's results in one cycle.

    Attributes:
        fresh: on the fresh draw.
        sentinel: on the frozen set.
        signals: of its samples on the sentinel prompts.
    """

    fresh: Sequence[Outcome]
    sentinel: Sequence[Outcome]
    signals: SignalTable


@dataclass(frozen=True, slots=True)
class Standing:
    """A candidate against one reference, in numbers.

    Attributes:
        reference: its name in the policy.
        fresh: on the fresh draw.
        sentinel: on the frozen set.
        family: the most suspicious family, fresh and frozen items together.
        unwatched: families too small for their loss to be seen.
        e_value: of the chain that ends in this candidate.
        bets: this cycle's, for the next look at the chain.
        signals: shifts of the signals, by name.
    """

    reference: str
    fresh: Contrast
    sentinel: Contrast
    family: FamilyLoss
    unwatched: int
    e_value: float
    bets: tuple[float, ...]
    signals: tuple[SignalShift, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a verdict is what it is: the guard, the reference it compared with, and one sentence."""

    guard: str
    reference: str
    text: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reasons.

    Attributes:
        verdict: see the module.
        status: what a manifest says.
        tripped: what harm was shown.
        open: what could not be excluded; decides between clear and untested.
        minimal_effect: the smallest fall against the incumbent that this fresh draw would have tripped on, with the
            policy's power.
    """

    verdict: Verdict
    status: Status
    tripped: tuple[Reason, ...]
    open: tuple[Reason, ...]
    minimal_effect: float


def stand(
    policy: GuardPolicy,
    reference: str,
    candidate: Measured,
    other: Measured,
    history: Sequence[Look],
) -> Standing:
    """Compare a candidate with one reference.

    Args:
        policy: the rules.
        reference: the other model's name in the policy.
        candidate: what is judged.
        other: what it is compared with, on the same items.
        history: the earlier looks of this chain against this reference, oldest first.

    Raises:
        InvalidEvidenceError: results that do not belong together.
        InvalidPolicyError: when the policy's looks are used up.
    """
    fresh = pair(candidate.fresh, other.fresh, what=f"fresh draw, against the {reference}")
    sentinel = pair(candidate.sentinel, other.sentinel, what=f"sentinel set, against the {reference}")
    if common := {o.item for o in candidate.fresh} & {o.item for o in candidate.sentinel}:
        raise InvalidEvidenceError(f"item {min(common)!r} is in the fresh draw and in the sentinel set; draw afresh")
    bets = tuple(float(bet) for bet in log_bets(fresh.means))
    losses = family_losses(fresh, sentinel)
    level = policy.family_alpha(len(losses))
    return Standing(
        reference=reference,
        fresh=contrast(fresh, margin=policy.margin, seed=policy.seed),
        sentinel=contrast(sentinel, margin=policy.margin, seed=policy.seed),
        family=losses[0],
        unwatched=sum(0.5**loss.items > level for loss in losses),
        e_value=min(chain_e_value(history, bets, looks=policy.looks), 1e15),
        bets=bets,
        signals=tuple(
            shift(rule, candidate.signals, other.signals, seed=policy.seed)
            for rule in policy.signals
            if rule.name in candidate.signals.values and rule.name in other.signals.values
        ),
    )


def conclude(policy: GuardPolicy, standings: Sequence[Standing]) -> Judgement:
    """The verdict on a candidate, from numbers alone; anybody can compute it again.

    Args:
        policy: the rules.
        standings: one for every reference of the policy.

    Raises:
        InvalidEvidenceError: when a reference is missing, named twice, or not in the policy.
    """
    found: Mapping[str, Standing] = {standing.reference: standing for standing in standings}
    if len(found) != len(standings) or found.keys() != set(policy.references):
        raise InvalidEvidenceError(
            f"compared with {', '.join(sorted(s.reference for s in standings)) or 'nothing'}; the policy"
            f" {policy.name} asks for {', '.join(policy.references)}"
        )
    tripped = [reason for name in policy.references for reason in _tripped(policy, found[name])]
    unclear = [reason for name in policy.references for reason in _open(policy, found[name])]
    incumbent = found["incumbent"].fresh
    effect = minimal_effect(incumbent.error, families=incumbent.families, alpha=policy.look_alpha, power=policy.power)
    verdict: Verdict
    status: Status
    if tripped:
        verdict, status = "REGRESSED", "tripped"
    elif unclear:
        verdict, status = "UNDERPOWERED", "untested"
    else:
        verdict = "IMPROVED" if has_improved(policy, found["incumbent"]) else "NON-INFERIOR"
        status = "clear"
    return Judgement(verdict, status, tuple(tripped), tuple(unclear), min(effect, 2.0))


def has_improved(policy: GuardPolicy, standing: Standing) -> bool:
    """Whether the fresh draw shows a candidate to be better than a reference, at the level of one cycle."""
    return standing.fresh.p_better <= policy.improved_alpha


def _tripped(policy: GuardPolicy, standing: Standing) -> list[Reason]:
    name, reasons = standing.reference, []
    for guard, measured in (("fresh", standing.fresh), ("sentinel", standing.sentinel)):
        if measured.p_worse <= policy.look_alpha:
            text = f"pass rate {measured.difference:+.3f} on {measured.items} items, p = {measured.p_worse:.2g}"
            reasons.append(Reason(guard, name, text))
    worst = standing.family
    if (
        policy.family_drop is not None
        and worst.p <= policy.family_alpha(standing.fresh.families)
        and worst.drop > policy.family_drop
    ):
        text = f"family {worst.family} lost {worst.lost} and gained {worst.gained} of {worst.items}, p = {worst.p:.2g}"
        reasons.append(Reason("family", name, text))
    if standing.e_value >= policy.chain_limit:
        text = f"e-value {standing.e_value:.3g} of the chain reaches {policy.chain_limit:.3g}"
        reasons.append(Reason("chain", name, text))
    shifts = {each.name: each for each in standing.signals}
    for rule in policy.signals:
        reason = _signal_reason(policy, rule.name, rule.noise, shifts.get(rule.name))
        if reason is not None:
            reasons.append(Reason("signals", name, reason))
    return reasons


def _signal_reason(policy: GuardPolicy, name: str, noise: float, found: SignalShift | None) -> str | None:
    if found is None:
        return f"{name} was not measured"  # a guard that could be passed by not looking would be none
    sure = found.surely(policy.signal_alpha, noise=noise)
    if sure > found.tolerance:
        return (
            f"{name} went from {found.reference:.4g} to {found.value:.4g}: surely by {sure:.4g}, and"
            f" {found.tolerance:.4g} is tolerated"
        )
    return None


def _open(policy: GuardPolicy, standing: Standing) -> list[Reason]:
    name, reasons = standing.reference, []
    if standing.fresh.p_inferior > policy.promote_alpha:
        text = (
            f"a fall by {policy.margin:.3g} is not excluded: {standing.fresh.difference:+.3f} with a standard error of"
            f" {standing.fresh.error:.3f}, p = {standing.fresh.p_inferior:.2g}"
        )
        reasons.append(Reason("fresh", name, text))
    for guard, measured, fewest in (
        ("fresh", standing.fresh, policy.fresh_items),
        ("sentinel", standing.sentinel, policy.sentinel_items),
    ):
        if measured.items < fewest:
            reasons.append(Reason(guard, name, f"{measured.items} items, and the policy asks for {fewest}"))
        if smallest_p(measured.families) > policy.look_alpha:
            text = f"with {measured.families} families no result could have tripped"
            reasons.append(Reason(guard, name, text))
    if policy.family_drop is not None and standing.unwatched > policy.unwatched:
        text = f"{standing.unwatched} families have too few items to see them forgotten, {policy.unwatched} may"
        reasons.append(Reason("family", name, text))
    return reasons


def smallest_p(families: int) -> float:
    """The smallest p-value that sign flips of so many families can give."""
    return max(0.5**families, 1 / (FLIPS + 1))
