"""How often the guard is right: simulated cycles judged by the real one, beside the usual rule of thumb.

    python bench/gate.py [--cycles N] [--fresh N] [--sentinel N] [--share-luck R] [--json]

Every cycle is judged by `adapters.tripwire.conclude` with the default policy; only the models are simulated. A suite
looks like `basics` does to keystone-nano: 40 families, 30 of them well known and 10 hardly. An item has a difficulty
that all models share, and each model its own luck with it; retraining moves each family a little in any direction, so
that items of one family rise and fall together. What is true is known, so every verdict can be called right or wrong:

- caught: REGRESSED;
- refused: UNDERPOWERED, the honest "cannot tell";
- promoted: IMPROVED or NON-INFERIOR, rightly or wrongly.

The margin-only rule is what most people do: promote unless the score on the same items fell by more than the margin.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace

import click
import numpy as np
import numpy.typing as npt

from adapters.comparison import Contrast, FamilyLoss, contrasts
from adapters.signals import SignalShift, harm_of
from adapters.statistics import Look, SignFlips, chain_e_value, log_bets, mcnemar_worse, normal_quantile, t_quantile
from adapters.statistics.bootstrap import resampled_means
from adapters.tripwire import Standing, conclude
from adapters.tripwire_policy import FRESH_ITEMS, SENTINEL_ITEMS, GuardPolicy
from csf_store import Digest

Array = npt.NDArray[np.float64]

RATES = np.concatenate([np.linspace(0.68, 0.98, 30), (0.02, 0.02, 0.02, 0.05, 0.05, 0.1, 0.1, 0.2, 0.3, 0.45)])
"""The base's pass rate by family: about 66 % over all, as keystone-nano has on `basics`."""

JITTER = 0.15
"""How far retraining moves a family, in standard deviations of item difficulty: about 4 points in the middle."""

RERUNS = 8
LEVELS = {
    "distinct-2": (0.6, 0.08),
    "self-bleu": (0.5, 0.1),
    "compression": (0.5, 0.08),
    "entropy": (0.6, 0.1),
    "kl": (0.0, 0.0),
    "length": (20.0, 5.0),
    "empty": (0.01, 0.03),
    "echo": (0.1, 0.05),
}
"""Signal -> its level for the base, and by how much one item differs between two runs of one model."""


@dataclass(frozen=True)
class Kind:
    """What happens to a candidate: its pass rate, one family, its signals (factors), and whether promotion is right."""

    name: str
    change: float = 0.0
    forgets: bool = False
    signals: tuple[tuple[str, float], ...] = ()
    harmful: bool = False
    useful: bool = False


KINDS = (
    Kind("drop of 10 points", -0.10, harmful=True),
    Kind("drop of 5 points", -0.05, harmful=True),
    Kind("one family forgotten", forgets=True, harmful=True),
    Kind("mode collapse", signals=(("distinct-2", 0.65), ("entropy", 0.55), ("self-bleu", 1.5)), harmful=True),
    Kind("verbosity", signals=(("length", 1.6),), harmful=True),
    Kind("no change"),
    Kind("gain of 5 points", 0.05, useful=True),
    Kind("gain of 10 points", 0.10, useful=True),
)


@dataclass(frozen=True)
class Design:
    """Items a family, and how much of an item's fate is its own difficulty rather than a model's luck."""

    fresh: int
    sentinel: int
    shared: float

    def policy(self) -> GuardPolicy:
        """The default policy, for draws of this size."""
        families = len(RATES)
        return GuardPolicy(
            name="bench",
            sentinel=Digest.of(b"simulated"),
            fresh_suite="simulated",
            fresh_items=families * self.fresh,
            sentinel_items=families * self.sentinel,
        )


@dataclass(frozen=True)
class Row:
    """One line of the table; shares of cycles, or of chains."""

    kind: str
    caught: float
    refused: float
    improved: float
    not_inferior: float
    margin_only: float

    @property
    def promoted(self) -> float:
        """IMPROVED or NON-INFERIOR."""
        return self.improved + self.not_inferior


def z_of(rates: Array) -> Array:
    # From pass rate to threshold; jitter pulls rates towards a half, and the factor takes that out again.
    quantile = np.vectorize(normal_quantile, otypes=[np.float64])
    return quantile(np.clip(rates, 0.002, 0.998)) * np.sqrt(1 + JITTER**2)


def changed(change: float) -> Array:
    """Family rates after a change of the mean: all lose, or all win, in proportion to what they can."""
    room = RATES if change < 0 else 1 - RATES
    return RATES + change / room.mean() * room


class Draw:
    """The items of many cycles: their difficulties, and who passes them. Shapes (B, F, n)."""

    def __init__(self, rng: np.random.Generator, batch: int, items: int, shared: float) -> None:
        self._rng, self._noise = rng, np.float32(np.sqrt(1 - shared))
        self._items = rng.standard_normal((batch, len(RATES), items), dtype=np.float32) * np.float32(np.sqrt(shared))

    def passed(self, z: Array) -> npt.NDArray[np.int8]:
        """Results of models with these thresholds, (B, F) to (B, F, n)."""
        luck = self._rng.standard_normal(self._items.shape, dtype=np.float32) * self._noise
        return (self._items + luck < z[..., None]).astype(np.int8)


class Judge:
    """Many cycles at once, through the guard's own functions."""

    def __init__(self, design: Design, seed: int) -> None:
        self.design, self.policy = design, design.policy()
        self.rng = np.random.default_rng(seed)
        self.flips = SignFlips(len(RATES), seed=self.policy.seed)

    def standings(
        self,
        name: str,
        fresh: npt.NDArray[np.int8],
        frozen: npt.NDArray[np.int8],
        moved: Signals,
        looks: list[list[Look]],
    ) -> list[Standing]:
        """Candidates against one reference: item differences (B, F, n) on both sets, signals, and histories."""
        policy, families = self.policy, len(RATES)
        numbers = []
        for each in (fresh, frozen):
            items = families * each.shape[-1]
            columns = contrasts(each.mean(axis=-1), margin=policy.margin, flips=self.flips)
            numbers.append([Contrast(items, families, *map(float, row)) for row in zip(*columns, strict=True)])
        both = np.concatenate([fresh, frozen], axis=-1)
        lost, gained = (both < 0).sum(axis=-1), (both > 0).sum(axis=-1)
        bets = log_bets(fresh.mean(axis=-1))
        unwatched = families if 0.5 ** both.shape[-1] > policy.family_alpha(families) else 0
        found = []
        for row in range(len(fresh)):
            p = [mcnemar_worse(int(a), int(b)) for a, b in zip(lost[row], gained[row], strict=True)]
            worst = int(np.argmin(p))
            family = FamilyLoss(str(worst), int(lost[row, worst]), int(gained[row, worst]), both.shape[-1], p[worst])
            mine = tuple(map(float, bets[row]))
            e_value = chain_e_value(looks[row], mine, looks=policy.looks)
            shifts = moved.shifts(row)
            found.append(Standing(name, numbers[0][row], numbers[1][row], family, unwatched, e_value, mine, shifts))
        return found


class Signals:
    """Signals of many candidates against references on the sentinel prompts, calibrated on simulated reruns."""

    def __init__(self, judge: Judge, batch: int, kind: Kind) -> None:
        rng, policy = judge.rng, judge.policy
        items, families = judge.design.sentinel, len(RATES)
        factors = dict(kind.signals)
        self._rows: list[list[SignalShift]] = [[] for _ in range(batch)]
        self.noise: dict[str, Array] = {}
        for rule in policy.signals:
            level, spread = LEVELS[rule.name]
            # Training moves every signal a little; a few percent are meant and must not trip.
            factor = factors.get(rule.name, 1.0) * (1 + 0.03 * rng.standard_normal((batch, 1)))
            runs = rng.standard_normal((batch, 2, families)) * spread / np.sqrt(items)
            drift = 0.1 * np.abs(rng.standard_normal((batch, 1))) if rule.name == "kl" else 0.0
            means = level * (factor - 1) + drift + runs[:, 0] - runs[:, 1]
            errors = resampled_means(means, resamples=400, seed=policy.seed).std(axis=-1, ddof=1)
            levels = (rng.standard_normal((batch, RERUNS, families)) * spread / np.sqrt(items)).mean(axis=-1)
            side = policy.signal_alpha / (2 if rule.harm == "either" else 1)
            noise = t_quantile(1 - side, RERUNS - 1) * levels.std(axis=-1, ddof=1) * np.sqrt(2)
            tolerance = rule.tolerance * abs(level) if rule.relative else rule.tolerance
            for row in range(batch):
                change = float(means[row].mean())
                # Noise is the policy's, and differs between simulated calibrations: fold its excess into the harm.
                error = float(errors[row])
                chance = normal_quantile(1 - policy.signal_alpha / 2) * error
                harm = harm_of(rule, change) - max(float(noise[row]) - chance, 0.0)
                shift = SignalShift(rule.name, level, level + change, harm, error, change, change, tolerance)
                self._rows[row].append(shift)

    def shifts(self, row: int) -> tuple[SignalShift, ...]:
        """One candidate's."""
        return tuple(self._rows[row])


def thresholds(rng: np.random.Generator, batch: int, rates: Array) -> Array:
    """Thresholds of retrained models, (B, F)."""
    return z_of(rates) + JITTER * rng.standard_normal((batch, len(RATES)))


def single(kind: Kind, design: Design, cycles: int, seed: int) -> tuple[Row, float]:
    """Cycles of one kind, each by itself, against an incumbent as good as the base. Also the share of items flipped."""
    judge = Judge(design, seed)
    rng = judge.rng
    candidate = thresholds(rng, cycles, changed(kind.change))
    if kind.forgets:
        candidate[np.arange(cycles), rng.integers(0, 30, cycles)] = z_of(np.array(0.05))
    base, incumbent = thresholds(rng, cycles, RATES), thresholds(rng, cycles, RATES)
    sides: dict[str, list[npt.NDArray[np.int8]]] = {"base": [], "incumbent": []}
    for items in (design.fresh, design.sentinel):
        draw = Draw(rng, cycles, items, design.shared)
        mine = draw.passed(candidate)
        sides["base"].append(mine - draw.passed(base))
        sides["incumbent"].append(mine - draw.passed(incumbent))
    empty: list[list[Look]] = [[] for _ in range(cycles)]
    moved = Signals(judge, cycles, kind)
    found = [judge.standings(name, fresh, frozen, moved, empty) for name, (fresh, frozen) in sides.items()]
    verdicts = Counter(conclude(judge.policy, pair).verdict for pair in zip(*found, strict=True))
    usual = sides["incumbent"][0].mean(axis=(1, 2)) >= -judge.policy.margin
    churn = float((sides["incumbent"][0] != 0).mean())
    return _row(kind.name, verdicts, cycles, float(usual.mean())), churn


def _row(name: str, verdicts: Counter[str], cycles: int, usual: float) -> Row:
    order = ("REGRESSED", "UNDERPOWERED", "IMPROVED", "NON-INFERIOR")
    return Row(name, *(verdicts[each] / cycles for each in order), usual)


@dataclass(frozen=True)
class Chain:
    """Chains of cycles: how many tripped, after how many cycles in the middle, and how far below the base they led.

    `fell` and `fell_most` are the mean and the 95th percentile of how far the last promoted model truly is behind.
    """

    kind: str
    rule: str
    tripped: float
    median_trip: float
    improved: float
    promotions: float
    fell: float
    fell_most: float
    beyond_margin: float


def chain(name: str, step: float, design: Design, chains: int, seed: int, *, guarded: bool) -> Chain:
    """Chains of candidates that are each `step` better than their incumbent, until they trip."""
    judge = Judge(design, seed)
    rng, policy = judge.rng, judge.policy
    frozen = Draw(rng, chains, design.sentinel, design.shared)
    base = np.tile(z_of(RATES), (chains, 1))
    base_frozen = frozen.passed(base)
    skill, incumbent, incumbent_frozen = np.zeros(chains), base.copy(), base_frozen.copy()
    history: dict[str, list[list[Look]]] = {ref: [[] for _ in range(chains)] for ref in policy.references}
    alive, ended = np.ones(chains, dtype=bool), np.full(chains, np.inf)
    promotions, improved = np.zeros(chains), np.zeros(chains, dtype=bool)
    for look in range(policy.looks):
        rates = np.stack([changed(round(float(each) + step, 6)) for each in skill])
        candidate = z_of(rates) + JITTER * rng.standard_normal(base.shape)
        draw = Draw(rng, chains, design.fresh, design.shared)
        mine, mine_frozen = draw.passed(candidate), frozen.passed(candidate)
        fresh = {"base": mine - draw.passed(base), "incumbent": mine - draw.passed(incumbent)}
        sentinel = {"base": mine_frozen - base_frozen, "incumbent": mine_frozen - incumbent_frozen}
        if guarded:
            moved = Signals(judge, chains, Kind(name))
            found = {ref: judge.standings(ref, fresh[ref], sentinel[ref], moved, history[ref]) for ref in fresh}
            words = [conclude(policy, pair) for pair in zip(*found.values(), strict=True)]
            kept = np.array([word.status == "clear" for word in words])
            trips = np.array([word.status == "tripped" for word in words])
            improved |= alive & np.array([word.verdict == "IMPROVED" for word in words])
            for ref, standings in found.items():
                for row, standing in enumerate(standings):
                    history[ref][row].append(Look(standing.bets, bool(kept[row])))
        else:
            kept = fresh["incumbent"].mean(axis=(1, 2)) >= -policy.margin
            trips = ~kept & False
        ended[alive & trips] = look + 1
        alive &= ~trips
        kept &= alive
        promotions += kept
        skill = np.where(kept, skill + step, skill)
        incumbent = np.where(kept[:, None], candidate, incumbent)
        incumbent_frozen = np.where(kept[:, None, None], mine_frozen, incumbent_frozen)
    trip = np.isfinite(ended)
    return Chain(
        kind=name,
        rule="guard" if guarded else "margin only",
        tripped=float(trip.mean()),
        median_trip=float(np.median(ended[trip])) if trip.any() else float("nan"),
        improved=float(improved.mean()),
        promotions=float(promotions.mean()),
        fell=float(-skill.mean()),
        fell_most=float(np.quantile(-skill, 0.95)),
        beyond_margin=float((skill < -policy.margin - 1e-9).mean()),
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def single_table(rows: list[Row]) -> None:
    print("| what truly happened | caught | refused: UNDERPOWERED | wrongly promoted | rightly promoted | IMPROVED |"
          " margin only promotes |\n|---|---|---|---|---|---|---|")  # fmt: skip
    truth = {kind.name: kind for kind in KINDS}
    for row in rows:
        kind = truth[row.kind]
        wrong = percent(row.promoted) if kind.harmful else "-"
        right = "-" if kind.harmful else percent(row.promoted)
        print(f"| {row.kind} | {percent(row.caught)} | {percent(row.refused)} | {wrong} | {right} |"
              f" {percent(row.improved)} | {percent(row.margin_only)} |")  # fmt: skip


def chain_table(rows: list[Chain]) -> None:
    print("| chain of 20 cycles | rule | tripped | at cycle (median) | ever IMPROVED | promotions | behind the"
          " base at the end: mean, 95 % | by more than the margin |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for row in rows:
        print(f"| {row.kind} | {row.rule} | {percent(row.tripped)} | {row.median_trip:.0f} | {percent(row.improved)} |"
              f" {row.promotions:.1f} | {100 * row.fell:.1f}, {100 * row.fell_most:.1f} points |"
              f" {percent(row.beyond_margin)} |")  # fmt: skip


SIZES = (4, 10, 20, 30)


def size_table(rows: list[tuple[int, Row]]) -> None:
    print("| fresh items | what truly happened | caught | refused | promoted |\n|---|---|---|---|---|")
    for items, row in rows:
        print(f"| {items} | {row.kind} | {percent(row.caught)} | {percent(row.refused)} | {percent(row.promoted)} |")


@click.command()
@click.option("--cycles", default=1000, show_default=True, help="Simulated cycles, and chains, of each kind.")
@click.option("--fresh", default=FRESH_ITEMS, show_default=True, help="Fresh items a family.")
@click.option("--sentinel", default=SENTINEL_ITEMS, show_default=True, help="Sentinel items a family.")
@click.option("--share-luck", "shared", default=0.9, show_default=True, help="How much of an item's fate models share.")
@click.option("--seed", default=1, show_default=True)
@click.option("--chains/--no-chains", default=True, show_default=True)
@click.option("--sizes/--no-sizes", default=True, show_default=True, help="Also try other sizes of the fresh draw.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def main(
    *, cycles: int, fresh: int, sentinel: int, shared: float, seed: int, chains: bool, sizes: bool, as_json: bool
) -> None:
    """Simulate cycles of every kind and judge them with the guard."""
    design, started = Design(fresh, sentinel, shared), time.process_time()
    rows, churns = zip(*(single(kind, design, cycles, seed) for kind in KINDS), strict=True)
    long: list[Chain] = []
    if chains:
        for name, step in (("no change", 0.0), ("slow drift of 1 point a cycle", -0.01)):
            long += [chain(name, step, design, cycles, seed, guarded=guarded) for guarded in (True, False)]
    tried = [
        (items * len(RATES), single(kind, replace(design, fresh=items), cycles, seed)[0])
        for items in SIZES if sizes for kind in KINDS if kind.change or kind.name == "no change"
    ]  # fmt: skip
    if as_json:
        for row in (*rows, *long):
            print(json.dumps(asdict(row)))
        return
    policy = design.policy()
    print(f"{cycles} cycles of each kind; {policy.fresh_items} fresh and {policy.sentinel_items} sentinel items in"
          f" {len(RATES)} families; margin {policy.margin}, alpha {policy.alpha}, {policy.looks} looks;"
          f" two equal models differ on {percent(churns[5])} of the items; seed {seed};"
          f" {time.process_time() - started:.0f} s of processor time\n")  # fmt: skip
    single_table(list(rows))
    if long:
        print()
        chain_table(long)
    if tried:
        print()
        size_table(tried)


if __name__ == "__main__":
    main()
