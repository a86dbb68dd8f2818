"""Families over one or two integers. All of them are seen in training."""

from __future__ import annotations

from collections.abc import Callable

from keystone.evaluation.basics.dice import Dice
from keystone.evaluation.basics.drafts import PAIR_NAMES, SCALAR_NAMES, SWEEP, Draft, number_inputs
from keystone.evaluation.basics.pieces import Predicate, monotone_expression, number_expression_where, number_predicate


def conditional(d: Dice) -> Draft:
    """One expression when a condition holds, another one otherwise."""
    p = number_predicate(d)
    e, f = number_expression_where(d, p.holds), number_expression_where(d, lambda x: not p.holds(x))
    n = d.pick(SCALAR_NAMES)
    statement = d.pick(
        (
            f"Return {e.said(n)} if {n} {p.singular}, otherwise {f.said(n)}.",
            f"If {n} {p.singular}, return {e.said(n)}; else return {f.said(n)}.",
            f"Give {e.said(n)} when {n} {p.singular} and {f.said(n)} when not.",
        )
    )
    inputs, examples = number_inputs(d, (*p.edges, *e.edges, *f.edges))
    body = (f"if {p.on(n)}:", f"    return {e.on(n)}", f"return {f.on(n)}")
    name = (
        d.pick(("adjust", "choose", "convert", "transform", "update", "rate")) + "_" + d.pick(("value", "number", "it"))
    )
    return Draft(name, (n,), statement, body, lambda x: e.value(x) if p.holds(x) else f.value(x), inputs, examples)


def clamp(d: Dice) -> Draft:
    """An expression limited to a range."""
    e, n = monotone_expression(d), d.pick(SCALAR_NAMES)
    low = d.between(-20, 30)
    high = low + d.between(5, 60)
    statement = d.pick(
        (
            f"Return {e.said(n)}, limited to the range {low} to {high}.",
            f"Compute {e.said(n)} and keep it between {low} and {high}.",
            f"Clamp {e.said(n)} to at least {low} and at most {high}.",
        )
    )
    inputs, examples = number_inputs(d, (*e.edges, *range(low - 2, low + 3), *range(high - 2, high + 3), -200, 200))
    body = (f"return max({low}, min({high}, {e.on(n)}))",)
    name = d.pick(("clamp", "limit", "bound", "restrict")) + d.pick(("_value", "_number", "_to_range", "_result"))
    return Draft(name, (n,), statement, body, lambda x: max(low, min(high, e.value(x))), inputs, examples)


def classify(d: Dice) -> Draft:
    """Three labels by two thresholds."""
    n = d.pick(SCALAR_NAMES)
    low = d.between(-9, 40)
    high = low + d.between(3, 40)
    labels = d.pick(
        (
            *(("low", "mid", "high"), ("small", "medium", "large"), ("cold", "warm", "hot"), ("poor", "fair", "good")),
            *(("slow", "normal", "fast"), ("light", "middle", "heavy"), ("short", "average", "tall")),
        )
    )
    if d.below(2):
        labels = (labels[2], labels[1], labels[0])
    a, b, c = labels
    statement = d.pick(
        (
            f"Return '{a}' if {n} is below {low}, '{b}' if {n} is below {high}, otherwise '{c}'.",
            f"Label {n}: '{a}' under {low}, '{b}' under {high}, and '{c}' from {high} on.",
        )
    )
    inputs, examples = number_inputs(d, (low - 1, low, low + 1, high - 2, high - 1, high, high + 1, low - 9, high + 9))
    body = (f"if {n} < {low}:", f'    return "{a}"', f"if {n} < {high}:", f'    return "{b}"', f'return "{c}"')
    name = d.pick(("label", "classify", "grade", "describe", "level"))
    return Draft(name, (n,), statement, body, lambda x: a if x < low else b if x < high else c, inputs, examples)


def check(d: Dice) -> Draft:
    """Two conditions joined by `and` or `or`."""
    p, q, n = number_predicate(d), number_predicate(d), d.pick(SCALAR_NAMES)
    while not _independent(p, q):
        p, q = number_predicate(d), number_predicate(d)
    joiner = d.pick(("and", "or"))
    sides = [f"({side.on(n)})" if " or " in side.code else side.on(n) for side in (p, q)]
    statement = d.pick(
        (
            f"Return whether {n} {p.singular} {joiner} {q.singular}.",
            f"Tell if {n} {p.singular} {joiner} {q.singular}.",
            f"Return True if {n} {p.singular} {joiner} {q.singular}, else False.",
        )
    )
    inputs, examples = number_inputs(d, (*p.edges, *q.edges))
    if joiner == "and":
        return Draft(_check_name(d), (n,), statement, (f"return {sides[0]} and {sides[1]}",),
                     lambda x: p.holds(x) and q.holds(x), inputs, examples)  # fmt: skip
    return Draft(_check_name(d), (n,), statement, (f"return {sides[0]} or {sides[1]}",),
                 lambda x: p.holds(x) or q.holds(x), inputs, examples)  # fmt: skip


def _independent(p: Predicate[int], q: Predicate[int]) -> bool:
    """Whether all four outcomes of two conditions occur, so that neither makes the other pointless."""
    return len({(p.holds(x), q.holds(x)) for x in SWEEP}) == 4


def _check_name(d: Dice) -> str:
    return d.pick(("is", "check", "accept", "test")) + "_" + d.pick(("valid", "good", "allowed", "special"))


def combine(d: Dice) -> Draft:
    """Arithmetic on two numbers."""
    x, y = d.pick(PAIR_NAMES)
    code, words, value = _combination(d, x, y)
    statement = d.pick((f"Return {words}.", f"Compute {words}.", f"Calculate {words}."))
    numbers = [d.between(-30, 60) for _ in range(14)]
    inputs = (
        (0, 0),
        (1, 0),
        (0, 1),
        (5, 5),
        (-3, 4),
        *((x, 3) for x in SWEEP),
        *zip(numbers[::2], numbers[1::2], strict=True),
    )
    examples = tuple((d.between(1, 20), d.between(1, 20)) for _ in range(3))
    name = d.pick(("combine", "mix", "compute", "total", "score")) + d.pick(("", "_pair", "_two", "_values"))
    return Draft(name, (x, y), statement, (f"return {code}",), value, inputs, examples)


def _combination(  # noqa: PLR0911 - a table of alternatives
    d: Dice, x: str, y: str
) -> tuple[str, str, Callable[[int, int], int]]:
    a, b, c = d.between(2, 12), d.between(2, 12), d.between(1, 40)
    match d.below(8):
        case 0:
            return f"{x} * {a} + {y} * {b}", f"{a} times {x} plus {b} times {y}", lambda p, q: p * a + q * b
        case 1:
            return f"{x} * {a} - {y} * {b}", f"{a} times {x} minus {b} times {y}", lambda p, q: p * a - q * b
        case 2:
            return f"{x} * {y} + {c}", f"the product of {x} and {y} plus {c}", lambda p, q: p * q + c
        case 3:
            return (
                f"({x} + {y}) * {a} - {c}",
                f"the sum of {x} and {y} times {a}, minus {c}",
                lambda p, q: (p + q) * a - c,
            )
        case 4:
            return (
                f"abs({x} - {y}) * {a}",
                f"the absolute difference of {x} and {y} times {a}",
                lambda p, q: abs(p - q) * a,
            )
        case 5:
            return (
                f"max({x}, {y}) * {a} + {c}",
                f"the larger of {x} and {y} times {a} plus {c}",
                lambda p, q: max(p, q) * a + c,
            )
        case 6:
            return (
                f"min({x}, {y}) * {a} - {c}",
                f"the smaller of {x} and {y} times {a} minus {c}",
                lambda p, q: min(p, q) * a - c,
            )
        case _:
            return (
                f"({x} - {y}) // {a} + {c}",
                f"{x} minus {y}, divided by {a} rounded down, plus {c}",
                lambda p, q: (p - q) // a + c,
            )
