"""The shared grammar of `basics`: predicates and expressions, each as code, as English and as a Python callable.

A family combines pieces into a function. Because seen and held-out families use the same pieces, what is new in a
held-out family is only the combination; and because every piece carries its own callable, a reference implementation
is assembled without ever running the canonical solution's text.

`@` stands for the variable in code and in English. `edges` are the inputs at which an off-by-one shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from keystone.evaluation.basics.dice import Dice

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Predicate(Generic[T]):
    """A condition on one value; `singular` and `plural` are verb phrases ("is even", "are even")."""

    code: str
    singular: str
    plural: str
    holds: Callable[[T], bool]
    edges: tuple[T, ...]

    def on(self, variable: str) -> str:
        """The condition's source for a variable of that name."""
        return self.code.replace("@", variable)


@dataclass(frozen=True, slots=True)
class Expression(Generic[T, R]):
    """A value computed from one value; `words` is a noun phrase ("@ times 3 plus 4").

    `kinks` are inputs without which a constant of the expression would not matter: a family that applies it only
    where a condition holds must see to it that the condition holds there (`min(x, 37)` for an x below 15 is just x).
    """

    code: str
    words: str
    value: Callable[[T], R]
    edges: tuple[T, ...]
    kinks: tuple[T, ...] = ()

    def on(self, variable: str) -> str:
        """The expression's source for a variable of that name."""
        return self.code.replace("@", variable)

    def said(self, variable: str) -> str:
        """The expression in English for a variable of that name."""
        return self.words.replace("@", variable)


def _is(code: str, adjective: str, holds: Callable[[int], bool], *edges: int) -> Predicate[int]:
    return Predicate(code, f"is {adjective}", f"are {adjective}", holds, edges)


def _greater(d: Dice) -> Predicate[int]:
    c = d.between(-9, 60)
    return _is(
        f"@ > {c}", f"{d.pick(('greater than', 'above', 'larger than'))} {c}", lambda x: x > c, c - 1, c, c + 1, c + 2
    )


def _less(d: Dice) -> Predicate[int]:
    c = d.between(-9, 60)
    return _is(
        f"@ < {c}", f"{d.pick(('less than', 'below', 'smaller than'))} {c}", lambda x: x < c, c - 2, c - 1, c, c + 1
    )


def _at_least(d: Dice) -> Predicate[int]:
    c = d.between(-9, 60)
    return _is(f"@ >= {c}", f"{d.pick(('at least', 'no less than'))} {c}", lambda x: x >= c, c - 2, c - 1, c, c + 1)


def _at_most(d: Dice) -> Predicate[int]:
    c = d.between(-9, 60)
    return _is(f"@ <= {c}", f"{d.pick(('at most', 'no more than'))} {c}", lambda x: x <= c, c - 1, c, c + 1, c + 2)


def _multiple(d: Dice) -> Predicate[int]:
    k = d.between(2, 12)
    word = "even" if k == 2 else f"{d.pick(('divisible by', 'a multiple of'))} {k}"
    edges = (0, 1, k, k + 1, k - 1, 2 * k, -k, 5 * k, 7 * k)
    phrase = word.replace("a multiple", "multiples")
    return Predicate(f"@ % {k} == 0", f"is {word}", f"are {phrase}", lambda x: x % k == 0, edges)


def _remainder(d: Dice) -> Predicate[int]:
    k = d.between(2, 12)
    r = d.between(1, k - 1)
    tail = f"a remainder of {r} when divided by {k}" if d.below(2) else f"remainder {r} modulo {k}"
    singular, plural = (f"leaves {tail}", f"leave {tail}") if "when" in tail else (f"has {tail}", f"have {tail}")
    edges = (0, r, r - 1, r + 1, r + k, r - k, k, r + 5 * k, r + 7 * k)
    return Predicate(f"@ % {k} == {r}", singular, plural, lambda x: x % k == r, edges)


def _within(d: Dice) -> Predicate[int]:
    a = d.between(-9, 40)
    b = a + d.between(2, 25)
    phrase = d.pick((f"between {a} and {b} inclusive", f"in the range {a} to {b}"))
    return _is(f"{a} <= @ <= {b}", phrase, lambda x: a <= x <= b, a - 2, a - 1, a, a + 1, b - 1, b, b + 1, b + 2)


def _outside(d: Dice) -> Predicate[int]:
    a = d.between(-9, 40)
    b = a + d.between(2, 25)
    phrase = d.pick((f"outside the range {a} to {b}", f"less than {a} or greater than {b}"))
    return _is(f"@ < {a} or @ > {b}", phrase, lambda x: x < a or x > b, a - 2, a - 1, a, a + 1, b - 1, b, b + 1, b + 2)


def _different(d: Dice) -> Predicate[int]:
    c = d.between(-9, 60)
    return _is(f"@ != {c}", d.pick((f"not {c}", f"different from {c}")), lambda x: x != c, c - 1, c, c + 1)


def _magnitude(d: Dice) -> Predicate[int]:
    c = d.between(2, 40)
    phrase = d.pick((f"greater than {c} in absolute value", f"more than {c} away from zero"))
    return _is(f"abs(@) > {c}", phrase, lambda x: abs(x) > c, c, c + 1, c + 2, -c, -c - 1, -c - 2, c - 1)


def _small(d: Dice) -> Predicate[int]:
    c = d.between(3, 40)
    phrase = d.pick((f"less than {c} in absolute value", f"less than {c} away from zero"))
    return _is(f"abs(@) < {c}", phrase, lambda x: abs(x) < c, c, c + 1, c - 1, c - 2, -c, -c - 1, 1 - c, 2 - c)


_NUMBER_PREDICATES = (
    *(_greater, _less, _at_least, _at_most, _multiple, _multiple, _remainder, _within, _outside),
    *(_different, _magnitude, _small),
)


def number_predicate(d: Dice) -> Predicate[int]:
    """A condition on one integer."""
    return d.pick(_NUMBER_PREDICATES)(d)


def _affine(d: Dice) -> Expression[int, int]:
    a, b = d.between(2, 12), d.between(1, 30)
    if d.below(2):
        return Expression(
            f"@ * {a} + {b}", d.pick((f"@ times {a} plus {b}", f"{a} times @ plus {b}")), lambda x: x * a + b, (0, 1)
        )
    return Expression(
        f"@ * {a} - {b}", d.pick((f"@ times {a} minus {b}", f"{a} times @ minus {b}")), lambda x: x * a - b, (0, 1)
    )


def _scaled_sum(d: Dice) -> Expression[int, int]:
    a, b = d.between(1, 30), d.between(2, 12)
    return Expression(f"(@ + {a}) * {b}", f"the sum of @ and {a}, times {b}", lambda x: (x + a) * b, (0, -a))


def _shift(d: Dice) -> Expression[int, int]:
    c = d.between(1, 60)
    match d.below(3):
        case 0:
            return Expression(f"@ + {c}", d.pick((f"@ plus {c}", f"@ increased by {c}")), lambda x: x + c, (0, 1))
        case 1:
            return Expression(f"@ - {c}", d.pick((f"@ minus {c}", f"@ decreased by {c}")), lambda x: x - c, (0, c))
        case _:
            return Expression(f"{c} - @", d.pick((f"{c} minus @", f"@ subtracted from {c}")), lambda x: c - x, (0, c))


def _product(d: Dice) -> Expression[int, int]:
    c = d.between(2, 30)
    return Expression(f"@ * {c}", d.pick((f"@ times {c}", f"@ multiplied by {c}")), lambda x: x * c, (0, 1))


def _power(d: Dice) -> Expression[int, int]:
    p, c = d.between(2, 3), d.between(1, 30)
    noun = "square" if p == 2 else "cube"
    if d.below(2):
        return Expression(f"@ ** {p} + {c}", f"the {noun} of @ plus {c}", lambda x: x**p + c, (0, 2, -1))
    return Expression(f"@ ** {p} - {c}", f"the {noun} of @ minus {c}", lambda x: x**p - c, (0, 2, -1))


def _distance(d: Dice) -> Expression[int, int]:
    c = d.between(1, 60)
    phrase = d.pick((f"the distance between @ and {c}", f"the absolute difference of @ and {c}"))
    return Expression(f"abs(@ - {c})", phrase, lambda x: abs(x - c), (c - 1, c, c + 1, 0), (c - 2, c + 2))


def _quotient(d: Dice) -> Expression[int, int]:
    k = d.between(2, 15)
    phrase = d.pick((f"@ divided by {k} rounded down", f"the integer quotient of @ and {k}"))
    return Expression(f"@ // {k}", phrase, lambda x: x // k, (0, k - 1, k, -1, 7 * k, 7 * k - 1, 60 * k), (k - 1, k))


def _residue(d: Dice) -> Expression[int, int]:
    k = d.between(2, 15)
    phrase = d.pick((f"@ modulo {k}", f"the remainder of @ divided by {k}"))
    return Expression(f"@ % {k}", phrase, lambda x: x % k, (0, k - 1, k, k + 1, -1), (k - 1, k))


def _floor(d: Dice) -> Expression[int, int]:
    c = d.between(-9, 40)
    phrase = d.pick((f"the larger of @ and {c}", f"@ or {c} if that is larger"))
    return Expression(f"max(@, {c})", phrase, lambda x: max(x, c), (c - 2, c - 1, c, c + 1), (c - 2, c - 1, c + 1))


def _ceiling(d: Dice) -> Expression[int, int]:
    c = d.between(-9, 40)
    phrase = d.pick((f"the smaller of @ and {c}", f"@ or {c} if that is smaller"))
    return Expression(f"min(@, {c})", phrase, lambda x: min(x, c), (c - 1, c, c + 1, c + 2), (c - 1, c + 1, c + 2))


_MONOTONE_EXPRESSIONS = (_affine, _affine, _scaled_sum, _shift, _product, _quotient)
_NUMBER_EXPRESSIONS = (
    _affine,
    _affine,
    _scaled_sum,
    _shift,
    _product,
    _power,
    _distance,
    _quotient,
    _residue,
    _floor,
    _ceiling,
)


def number_expression(d: Dice) -> Expression[int, int]:
    """An integer computed from one integer."""
    return d.pick(_NUMBER_EXPRESSIONS)(d)


def monotone_expression(d: Dice) -> Expression[int, int]:
    """An integer computed from one integer that takes arbitrarily small and large values."""
    return d.pick(_MONOTONE_EXPRESSIONS)(d)


def number_expression_where(d: Dice, holds: Callable[[int], bool]) -> Expression[int, int]:
    """An expression all of whose constants matter when it is applied only where `holds`."""
    expression = number_expression(d)
    while not all(holds(kink) for kink in expression.kinks):
        expression = number_expression(d)
    return expression
