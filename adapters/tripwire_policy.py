"""The guard's rules, fixed before the run: what is compared, how large a fall counts, and how often one may be wrong.

A rule made up after the results are known can say anything. So a policy is a document: it is hashed, recorded in the
ledger before a candidate is trained, and named by everything that is judged by it. To change a margin is to record
another policy, and every earlier report still says which one it went by.

**How errors are shared out.** `alpha` is the chance of any false alarm of any kind over all `looks` of a chain. It is
split evenly over the five guards; those that judge each cycle by itself divide their share by looks, references and
what they look at (Bonferroni: it holds however the looks depend on each other, and on a frozen set they do), the chain
guard only by references, since bets need no correction for looking. `promote_alpha` is the chance that one candidate
which is truly worse by `margin` or more is let through; the word IMPROVED is spent over the looks as well.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from manifests import DigestField, Document, register_kind

Harm: TypeAlias = Literal["lower", "higher", "either"]
"""Which way a signal must not go."""

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+/-]{0,127}$")]
"""A name: ASCII without spaces."""

Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Size = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]

GUARDS = ("fresh", "sentinel", "family", "chain", "signals")
"""What can trip: a fall on the fresh draw, on the sentinel set, in one family, over the chain, or a signal."""

SENTINEL_ITEMS = 10
FRESH_ITEMS = 20
"""Items a family; `python bench/gate.py` shows what other sizes would do."""


class Rules(BaseModel):
    """A piece of a policy or report: frozen, strict, and closed to fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class SignalRule(Rules):
    """One signal of diversity or drift.

    Attributes:
        name: as `signals` computes it.
        harm: which way it must not go.
        tolerance: how far it may go that way, in its own unit, or as a share of the reference's value.
        relative: whether the tolerance is such a share.
        noise: how far apart two runs of the base fall by chance, from `calibrate`.
    """

    name: Label
    harm: Harm
    tolerance: Size
    relative: bool = False
    noise: Size = 0.0


DEFAULT_SIGNALS = (
    SignalRule(name="distinct-2", harm="lower", tolerance=0.15, relative=True),
    SignalRule(name="self-bleu", harm="higher", tolerance=0.1),
    SignalRule(name="compression", harm="lower", tolerance=0.15, relative=True),
    SignalRule(name="entropy", harm="lower", tolerance=0.25, relative=True),
    SignalRule(name="kl", harm="higher", tolerance=0.5),
    SignalRule(name="length", harm="either", tolerance=0.25, relative=True),
    SignalRule(name="empty", harm="higher", tolerance=0.03),
    SignalRule(name="echo", harm="higher", tolerance=0.1),
)
"""Tolerances are choices, not measurements: training is meant to change a model. Noise comes from `calibrate`."""


@register_kind
class GuardPolicy(Document):
    """The rules of one chain of cycles.

    Attributes:
        sentinel: digest of the frozen items that every cycle looks at and that can only block.
        fresh_suite: the suite that fresh draws are taken from.
        sentinel_items: fewest items of the sentinel set.
        fresh_items: fewest items of a fresh draw.
        margin: the largest fall of the pass rate that still counts as none.
        alpha: chance of any false alarm over all looks.
        promote_alpha: chance that one candidate worse by the margin is let through.
        power: with which the minimal effect is stated.
        looks: cycles that this policy is good for.
        references: what a candidate is compared with; a further one (the best so far) may be named.
        family_drop: a single family may not fall by more; null where items have no families.
        unwatched: families that may have too few items for that to be seen.
        signals: see `SignalRule`.
        seed: of sign patterns and resamples, so that a report can be computed again.
    """

    kind: Literal["guard-policy"] = "guard-policy"
    v: Literal[1] = 1
    name: Label
    sentinel: DigestField
    fresh_suite: Label
    sentinel_items: Annotated[int, Field(ge=1, le=10**6)] = 40 * SENTINEL_ITEMS
    fresh_items: Annotated[int, Field(ge=1, le=10**6)] = 40 * FRESH_ITEMS
    margin: Share = 0.04
    alpha: Share = 0.05
    promote_alpha: Share = 0.05
    power: Share = 0.8
    looks: Annotated[int, Field(ge=1, le=1000)] = 20
    references: Annotated[tuple[Label, ...], Field(min_length=2)] = ("base", "incumbent")
    family_drop: Share | None = 0.4
    unwatched: Annotated[int, Field(ge=0, le=10**6)] = 2
    signals: tuple[SignalRule, ...] = DEFAULT_SIGNALS
    seed: Annotated[int, Field(ge=0, le=2**32)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, names in (("reference", self.references), ("signal", tuple(rule.name for rule in self.signals))):
            if len(names) != len(set(names)):
                raise ValueError(f"a {what} is named twice")
        for needed in ("base", "incumbent"):
            # Against the incumbent alone, a point a cycle is lost for ever; against the base alone, all that was won.
            if needed not in self.references:
                raise ValueError(f"a policy always compares with the {needed}")
        return self

    @property
    def guard_alpha(self) -> float:
        """One guard's share for one reference, over all looks."""
        return self.alpha / len(GUARDS) / len(self.references)

    @property
    def look_alpha(self) -> float:
        """The level at which a fall on the fresh draw, or on the sentinel set, trips in one cycle."""
        return self.guard_alpha / self.looks

    def family_alpha(self, families: int) -> float:
        """The level at which one of so many families trips in one cycle."""
        return self.look_alpha / max(1, families)

    @property
    def signal_alpha(self) -> float:
        """The level at which one signal trips in one cycle."""
        return self.look_alpha / max(1, len(self.signals))

    @property
    def chain_limit(self) -> float:
        """The e-value at which the chain trips."""
        return 1 / self.guard_alpha

    @property
    def improved_alpha(self) -> float:
        """The level at which one cycle may be called IMPROVED."""
        return self.promote_alpha / self.looks
