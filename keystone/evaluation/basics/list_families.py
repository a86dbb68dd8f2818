"""Families over a list of integers: seen ones, and held-out ones that join pieces seen apart."""

from __future__ import annotations

from collections.abc import Callable

from keystone.evaluation.basics.dice import Dice
from keystone.evaluation.basics.drafts import LIST_NAMES, SWEEP, Draft, list_inputs
from keystone.evaluation.basics.pieces import number_expression, number_expression_where, number_predicate

_NOUNS = ("values", "numbers", "items", "list", "data")


def _name(d: Dice, *verbs: str) -> str:
    return f"{d.pick(verbs)}_{d.pick(_NOUNS)}"


def list_filter(d: Dice) -> Draft:
    """Keep what a condition holds for."""
    p, xs = number_predicate(d), d.pick(LIST_NAMES)
    statement = d.pick(
        (
            f"Return the numbers in {xs} that {p.plural}.",
            f"Return a list of all elements of {xs} that {p.plural}.",
            f"Keep only the numbers in {xs} that {p.plural}.",
        )
    )
    body = (f"return [x for x in {xs} if {p.on('x')}]",)
    name = _name(d, "keep", "select", "filter", "pick")
    return Draft(name, (xs,), statement, body, lambda v: [x for x in v if p.holds(x)], *list_inputs(d, p.edges))


def list_map(d: Dice) -> Draft:
    """Compute an expression for each element."""
    e, xs = number_expression(d), d.pick(LIST_NAMES)
    statement = d.pick(
        (
            f"Return a list with {e.said('x')} for each x in {xs}.",
            f"For every x in {xs}, compute {e.said('x')}.",
            f"Replace each x in {xs} by {e.said('x')}.",
        )
    )
    body = (f"return [{e.on('x')} for x in {xs}]",)
    name = _name(d, "map", "change", "convert", "transform")
    return Draft(name, (xs,), statement, body, lambda v: [e.value(x) for x in v], *list_inputs(d, e.edges))


def list_count(d: Dice) -> Draft:
    """Count what a condition holds for."""
    p, xs = number_predicate(d), d.pick(LIST_NAMES)
    statement = d.pick(
        (
            f"Count the numbers in {xs} that {p.plural}.",
            f"Return how many elements of {xs} {p.plural}.",
            f"Return the number of elements in {xs} that {p.plural}.",
        )
    )
    body = (f"return sum(1 for x in {xs} if {p.on('x')})",)
    name = _name(d, "count", "tally", "number_of")
    return Draft(name, (xs,), statement, body, lambda v: len([x for x in v if p.holds(x)]), *list_inputs(d, p.edges))


def list_sum_map(d: Dice) -> Draft:
    """Sum an expression over the elements."""
    e, xs = number_expression(d), d.pick(LIST_NAMES)
    statement = d.pick(
        (
            f"Return the sum of {e.said('x')} for each x in {xs}.",
            f"Add up {e.said('x')} over all x in {xs}.",
        )
    )
    body = (f"return sum({e.on('x')} for x in {xs})",)
    name = _name(d, "sum", "total", "add")
    return Draft(name, (xs,), statement, body, lambda v: sum(e.value(x) for x in v), *list_inputs(d, e.edges))


def list_any(d: Dice) -> Draft:
    """Whether a condition holds for some element."""
    p, xs = number_predicate(d), d.pick(LIST_NAMES)
    statement = d.pick(
        (
            f"Return whether any number in {xs} {p.singular}.",
            f"Tell if at least one element of {xs} {p.singular}.",
            f"Return True if some number in {xs} {p.singular}, else False.",
        )
    )
    body = (f"return any({p.on('x')} for x in {xs})",)
    name = _name(d, "any", "has", "some")
    return Draft(name, (xs,), statement, body, lambda v: bool([x for x in v if p.holds(x)]), *list_inputs(d, p.edges))


def list_first(d: Dice) -> Draft:
    """The first element that a condition holds for, by a loop."""
    p, xs, c = number_predicate(d), d.pick(LIST_NAMES), d.between(-9, 40)
    statement = d.pick(
        (
            f"Return the first number in {xs} that {p.singular}, or {c} if there is none.",
            f"Find the first element of {xs} that {p.singular}; return {c} if none does.",
        )
    )
    body = (f"for x in {xs}:", f"    if {p.on('x')}:", "        return x", f"return {c}")
    name = _name(d, "first", "find", "find_in")
    return Draft(
        name, (xs,), statement, body, lambda v: [*(x for x in v if p.holds(x)), c][0], *list_inputs(d, p.edges)
    )


def list_choose(d: Dice) -> Draft:
    """One expression or another for each element."""
    p, xs = number_predicate(d), d.pick(LIST_NAMES)
    e, f = number_expression_where(d, p.holds), number_expression_where(d, lambda x: not p.holds(x))
    statement = d.pick(
        (
            f"For each x in {xs}, give {e.said('x')} if x {p.singular}, otherwise {f.said('x')}.",
            f"Return a list with {e.said('x')} for each x in {xs} that {p.singular}, and {f.said('x')} for the others.",
        )
    )
    body = (f"return [{e.on('x')} if {p.on('x')} else {f.on('x')} for x in {xs}]",)
    inputs = list_inputs(d, (*p.edges, *e.edges, *f.edges))
    name = _name(d, "adjust", "choose", "update")
    return Draft(name, (xs,), statement, body, lambda v: [e.value(x) if p.holds(x) else f.value(x) for x in v], *inputs)


def list_max_map(d: Dice) -> Draft:
    """The largest or smallest value of an expression, with a default."""
    e, xs, c = number_expression(d), d.pick(LIST_NAMES), d.between(-9, 40)
    function, adjective = d.pick((("max", "largest"), ("min", "smallest")))
    best = max if function == "max" else min
    statement = d.pick(
        (
            f"Return the {adjective} value of {e.said('x')} for x in {xs}, or {c} if {xs} is empty.",
            f"Find the {adjective} of {e.said('x')} over all x in {xs}; return {c} for an empty list.",
        )
    )
    body = (f"return {function}(({e.on('x')} for x in {xs}), default={c})",)
    name = _name(d, adjective, "best", "extreme")
    return Draft(
        name, (xs,), statement, body, lambda v: best([e.value(x) for x in v], default=c), *list_inputs(d, e.edges)
    )


def list_slice(d: Dice) -> Draft:
    """Cut, order and join."""
    xs = d.pick(LIST_NAMES)
    code, words, value, lengths = _slicing(d, xs)
    statement = d.pick((f"Return {words}.", f"Get {words}.", f"Give {words}."))
    inputs = tuple(([d.between(-20, 70) for _ in range(n)],) for n in (0, 1, 2, *lengths, *lengths))
    examples = tuple(([d.between(-9, 60) for _ in range(min(max(lengths), 6))],) for _ in range(3))
    return Draft(
        _name(d, "cut", "slice", "part_of", "take"), (xs,), statement, (f"return {code}",), value, inputs, examples
    )


def _slicing(  # noqa: PLR0911 - a table of alternatives
    d: Dice, xs: str
) -> tuple[str, str, Callable[[list[int]], list[int]], tuple[int, ...]]:
    a, c = d.between(1, 7), d.between(-9, 60)
    b = a + d.between(1, 6)
    around = (a - 1, a, a + 1, a + 2, b - 1, b, b + 1, b + 3)
    match d.below(8):
        case 0:
            return (
                f"{xs}[{a}:{b}]",
                f"the elements of {xs} from index {a} up to but not including {b}",
                lambda v: v[a:b],
                around,
            )
        case 1:
            return f"{xs}[-{a}:]", f"the last {a} elements of {xs}", lambda v: v[-a:], around
        case 2:
            return (
                f"{xs}[:{a}] + [{c}]",
                f"the first {a} elements of {xs} followed by {c}",
                lambda v: [*v[:a], c],
                around,
            )
        case 3:
            return (
                f"[{c}] + {xs}[{a}:]",
                f"a list with {c} and then {xs} without its first {a} elements",
                lambda v: [c, *v[a:]],
                around,
            )
        case 4:
            return f"sorted({xs})[:{a}]", f"the {a} smallest elements of {xs} in order", lambda v: sorted(v)[:a], around
        case 5:
            return (
                f"sorted({xs})[-{a}:]",
                f"the {a} largest elements of {xs} in ascending order",
                lambda v: sorted(v)[-a:],
                around,
            )
        case 6:
            return (
                f"{xs}[::{a + 1}]",
                f"every element of {xs} whose index is a multiple of {a + 1}",
                lambda v: v[:: a + 1],
                (*around, 17),
            )
        case _:
            return (
                f"{xs}[{a}:][::-1]",
                f"{xs} without its first {a} elements, in reverse",
                lambda v: v[a:][::-1],
                around,
            )


def list_fold(d: Dice) -> Draft:
    """Carry one number through the list."""
    xs, start = d.pick(LIST_NAMES), d.between(-9, 40)
    code, words, step = _step(d)
    statement = d.pick(
        (
            f"Start with {start} and for each x in {xs} replace total by {words}; return total.",
            f"Set total to {start}, then for every x in {xs} make total {words}, and return it.",
        )
    )
    body = (f"total = {start}", f"for x in {xs}:", f"    total = {code}", "return total")

    def reference(values: list[int]) -> int:
        total = start
        for x in values:
            total = step(total, x)
        return total

    return Draft(
        _name(d, "fold", "reduce", "run", "accumulate"), (xs,), statement, body, reference, *list_inputs(d, (0, 1))
    )


def _step(d: Dice) -> tuple[str, str, Callable[[int, int], int]]:
    a, m = d.between(2, 9), d.between(11, 99)
    match d.below(6):
        case 0:
            return f"total * {a} + x", f"total times {a} plus x", lambda t, x: t * a + x
        case 1:
            return f"total + x * {a}", f"total plus x times {a}", lambda t, x: t + x * a
        case 2:
            return f"(total + x) % {m}", f"total plus x, modulo {m}", lambda t, x: (t + x) % m
        case 3:
            return f"max(total - {a}, x)", f"the larger of total minus {a} and x", lambda t, x: max(t - a, x)
        case 4:
            return (
                f"abs(total - x) + {a}",
                f"the absolute difference of total and x plus {a}",
                lambda t, x: abs(t - x) + a,
            )
        case _:
            return f"total - x + {a}", f"total minus x plus {a}", lambda t, x: t - x + a


def list_filter_map(d: Dice) -> Draft:
    """Held out. Filter, then compute: seen for words and for dicts, and in two halves for lists."""
    p, xs = number_predicate(d), d.pick(LIST_NAMES)
    e = number_expression_where(d, p.holds)
    statement = d.pick(
        (
            f"Return a list with {e.said('x')} for each x in {xs} that {p.singular}.",
            f"For every x in {xs} that {p.singular}, compute {e.said('x')}.",
        )
    )
    body = (f"return [{e.on('x')} for x in {xs} if {p.on('x')}]",)
    inputs = list_inputs(d, (*p.edges, *e.edges))
    name = _name(d, "map", "select", "convert")
    return Draft(name, (xs,), statement, body, lambda v: [e.value(x) for x in v if p.holds(x)], *inputs)


def list_sum_where(d: Dice) -> Draft:
    """Held out. Sum what a condition holds for: seen for the values of a dict."""
    p, xs = number_predicate(d), d.pick(LIST_NAMES)
    statement = d.pick(
        (f"Return the sum of the numbers in {xs} that {p.plural}.", f"Add up all elements of {xs} that {p.plural}.")
    )
    body = (f"return sum(x for x in {xs} if {p.on('x')})",)
    name = _name(d, "sum", "total", "add")
    return Draft(name, (xs,), statement, body, lambda v: sum(x for x in v if p.holds(x)), *list_inputs(d, p.edges))


def list_all(d: Dice) -> Draft:
    """Held out. Whether a condition holds for every element: `all` is seen for words, `any` for lists."""
    p, xs = number_predicate(d), d.pick(LIST_NAMES)
    statement = d.pick(
        (
            f"Return whether every number in {xs} {p.singular}.",
            f"Return True if each number in {xs} {p.singular}, else False.",
        )
    )
    body = (f"return all({p.on('x')} for x in {xs})",)
    name = _name(d, "all", "every", "only")
    return Draft(name, (xs,), statement, body, lambda v: not [x for x in v if not p.holds(x)], *list_inputs(d, p.edges))


def list_max_where(d: Dice) -> Draft:
    """Held out. The largest of what a condition holds for, with a default."""
    p, xs, c = number_predicate(d), d.pick(LIST_NAMES), d.between(-9, 40)
    function, adjective = d.pick((("max", "largest"), ("min", "smallest")))
    best = max if function == "max" else min
    statement = d.pick(
        (
            f"Return the {adjective} number in {xs} that {p.singular}, or {c} if there is none.",
            f"Find the {adjective} element of {xs} that {p.singular}; return {c} if none does.",
        )
    )
    body = (f"return {function}((x for x in {xs} if {p.on('x')}), default={c})",)
    name = _name(d, adjective, "best", "extreme")
    return Draft(
        name, (xs,), statement, body, lambda v: best([x for x in v if p.holds(x)], default=c), *list_inputs(d, p.edges)
    )


def list_capped_sum(d: Dice) -> Draft:
    """Held out, and the hardest: filter, compute, sum and cap."""
    p, xs, c = number_predicate(d), d.pick(LIST_NAMES), d.between(20, 90)
    e = number_expression_where(d, p.holds)
    while not any(p.holds(x) and e.value(x) > 0 for x in SWEEP):
        p = number_predicate(d)
        e = number_expression_where(d, p.holds)
    statement = f"Return the sum of {e.said('x')} for each x in {xs} that {p.singular}, but at most {c}."
    body = (f"return min({c}, sum({e.on('x')} for x in {xs} if {p.on('x')}))",)
    (inputs, examples) = list_inputs(d, (*p.edges, *e.edges))
    growing = [x for x in SWEEP if p.holds(x) and e.value(x) > 0]
    capped = tuple(([x] * (c // e.value(x) + 2),) for x in d.sample(growing, min(3, len(growing))))
    return Draft(
        *(_name(d, "capped", "limited", "bounded"), (xs,), statement, body),
        reference=lambda v: min(c, sum(e.value(x) for x in v if p.holds(x))),
        inputs=inputs + capped,
        examples=examples,
    )
