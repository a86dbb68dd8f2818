"""The story of a ref's cycles, in numbers: read from the ledger and the documents it names, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from adapters import GuardPolicy, GuardReport, Reason, has_improved, wilson
from csf_store import Digest
from keystone.cycle.documents import read_signals
from keystone.cycle.judging import was_promoted
from keystone.cycle.steps import Cycle, CycleLog
from manifests import EvalReport, Repository


@dataclass(frozen=True)
class Rate:
    """A pass rate with its 95 % interval (Wilson)."""

    passed: int
    items: int

    @property
    def value(self) -> float:
        """The share."""
        return self.passed / self.items

    @property
    def low(self) -> float:
        """Of the interval."""
        return wilson(self.passed, self.items)[0]

    @property
    def high(self) -> float:
        """Of the interval."""
        return wilson(self.passed, self.items)[1]

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, n = {self.items})"


@dataclass(frozen=True)
class Gain:
    """What a ref's cycles have come to: the candidate against the bare base, on the same fresh draw.

    A verdict compares with the incumbent, so a chain can go up in steps too small to be called IMPROVED one by one.
    """

    difference: float
    p: float
    shown: bool

    @classmethod
    def of(cls, policy: GuardPolicy, report: GuardReport) -> Gain:
        """From a guard report, at the level of one cycle."""
        standing = next(each for each in report.standings if each.reference == "base")
        return cls(standing.fresh.difference, standing.fresh.p_better, has_improved(policy, standing))

    def __str__(self) -> str:
        word = "IMPROVED" if self.shown else "no gain shown"
        return f"{word} ({self.difference:+.1%}, p = {self.p:.2g})"


@dataclass(frozen=True)
class Chapter:
    """One cycle.

    Attributes:
        cycle: as the ledger tells it.
        fresh: role -> pass rate on the cycle's fresh draw.
        sentinel: role -> pass rate on the frozen set.
        signals: role -> signal -> level.
        tripped: what harm was shown.
        unclear: what could not be excluded.
        gain: over the base; null where nothing was judged.
        effect: the smallest fall that would have tripped, with the policy's power; null where nothing was judged.
        promoted: whether the ref ever held the candidate.
        back: whether it was rolled back from it.
    """

    cycle: Cycle
    fresh: Mapping[str, Rate] = field(default_factory=dict)
    sentinel: Mapping[str, Rate] = field(default_factory=dict)
    signals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tripped: Sequence[Reason] = ()
    unclear: Sequence[Reason] = ()
    gain: Gain | None = None
    effect: float | None = None
    promoted: bool = False
    back: bool = False

    @property
    def outcome(self) -> str:
        """The verdict, or where it stands."""
        return self.cycle.outcome or "unfinished"


def chapters(repository: Repository, ref: str) -> tuple[Chapter, ...]:
    """Every cycle of a ref, oldest first."""
    return tuple(_chapter(repository, cycle) for cycle in CycleLog(repository.archive).cycles(ref))


def lines_of(chapter: Chapter) -> Iterator[str]:
    """One cycle, told in lines."""
    cycle = chapter.cycle
    yield f"{cycle.name}: {chapter.outcome}" + (", and the ref moved to it" if chapter.promoted else "")
    if "collected" in cycle.steps:
        kept, sampled = cycle.text("collected", "kept"), cycle.text("collected", "sampled")
        external = cycle.text("collected", "external") or "0"
        text = f"  trained on {kept} verified answers of {sampled} sampled"
        yield f"{text}, and {external} exercises that no model wrote"
    for what, rates in (("fresh draw", chapter.fresh), ("sentinel set", chapter.sentinel)):
        for role, rate in rates.items():
            yield f"  {what:<12} {role:<9} {rate}"
    if chapter.gain is not None:
        yield f"  against the base, all cycles together: {chapter.gain}"
    if chapter.effect is not None:
        yield f"  a fall of {chapter.effect:.1%} would have been seen"
    for what, reasons in (("tripped", chapter.tripped), ("not excluded", chapter.unclear)):
        for reason in reasons:
            yield f"  {what}: {reason.guard}, against the {reason.reference}: {reason.text}"
    if why := cycle.text("finished", "why"):
        yield f"  {why}"
    if chapter.back:
        yield "  the ref was taken back from this candidate"


def _chapter(repository: Repository, cycle: Cycle) -> Chapter:
    roles = [role for role in ("candidate", "incumbent", "base") if f"answered-{role}" in cycle.steps]
    told: dict[str, Mapping[str, float]] = {}
    for role in roles:
        table = read_signals(repository, cycle.digest(f"answered-{role}", "signals"))
        told[role] = {name: table.level(name) for name in table.values}
    report = gain = None
    if "judged" in cycle.steps:
        report = repository.load_record(cycle.digest("judged", "report"), GuardReport)
        gain = Gain.of(repository.load_record(report.policy, GuardPolicy), report)
    promoted = report is not None and was_promoted(repository, cycle)
    return Chapter(
        cycle=cycle,
        fresh={role: _rate(repository, cycle.digest(f"answered-{role}", "fresh")) for role in roles},
        sentinel={role: _rate(repository, cycle.digest(f"answered-{role}", "sentinel")) for role in roles},
        signals=told,
        tripped=report.judgement.tripped if report is not None else (),
        unclear=report.judgement.open if report is not None else (),
        gain=gain,
        # No item that differs leaves no spread to compute an effect from: that is no sharp eye.
        effect=(report.judgement.minimal_effect or None) if report is not None else None,
        promoted=promoted,
        back=promoted and _was_taken_back(repository, cycle),
    )


def _rate(repository: Repository, report: Digest) -> Rate:
    result = repository.load_record(report, EvalReport).result
    return Rate(round(result.score * result.n), result.n)


def _was_taken_back(repository: Repository, cycle: Cycle) -> bool:
    wanted = cycle.find("trained", "assembly")
    return any(
        event.rollback and event.previous is not None and repository.load(event.previous).assembly.digest == wanted
        for event in repository.refs.history(cycle.ref)
    )
