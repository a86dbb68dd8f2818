"""Families over a dict from words to integers."""

from __future__ import annotations

from keystone.evaluation.basics.dice import Dice
from keystone.evaluation.basics.drafts import DICT_NAMES, Draft, dict_inputs
from keystone.evaluation.basics.pieces import number_expression, number_expression_where, number_predicate
from keystone.evaluation.basics.text_pieces import word

_NOUNS = ("entries", "table", "dict", "pairs", "mapping")


def _name(d: Dice, *verbs: str) -> str:
    return f"{d.pick(verbs)}_{d.pick(_NOUNS)}"


def dict_filter(d: Dice) -> Draft:
    """Keep the entries whose value a condition holds for."""
    p, t = number_predicate(d), d.pick(DICT_NAMES)
    statement = d.pick(
        (
            f"Return the entries of {t} whose values {p.plural}.",
            f"Keep only the entries of {t} with values that {p.plural}.",
        )
    )
    body = (f"return {{k: v for k, v in {t}.items() if {p.on('v')}}}",)
    name = _name(d, "keep", "select", "filter", "pick")
    return Draft(
        name, (t,), statement, body, lambda m: {k: v for k, v in m.items() if p.holds(v)}, *dict_inputs(d, p.edges)
    )


def dict_map(d: Dice) -> Draft:
    """Compute an expression for each value."""
    e, t = number_expression(d), d.pick(DICT_NAMES)
    statement = d.pick(
        (
            f"Return a dict with {e.said('v')} for each value v of {t}.",
            f"Replace each value v in {t} by {e.said('v')}.",
        )
    )
    body = (f"return {{k: {e.on('v')} for k, v in {t}.items()}}",)
    name = _name(d, "map", "change", "convert", "transform")
    return Draft(name, (t,), statement, body, lambda m: {k: e.value(v) for k, v in m.items()}, *dict_inputs(d, e.edges))


def dict_filter_map(d: Dice) -> Draft:
    """Filter the values, then compute."""
    p, t = number_predicate(d), d.pick(DICT_NAMES)
    e = number_expression_where(d, p.holds)
    statement = d.pick(
        (
            f"Return a dict with {e.said('v')} for each value v of {t} that {p.singular}.",
            f"For every value v in {t} that {p.singular}, give its key {e.said('v')}.",
        )
    )
    body = (f"return {{k: {e.on('v')} for k, v in {t}.items() if {p.on('v')}}}",)
    inputs = dict_inputs(d, (*p.edges, *e.edges))
    name = _name(d, "map", "select", "convert")
    return Draft(name, (t,), statement, body, lambda m: {k: e.value(v) for k, v in m.items() if p.holds(v)}, *inputs)


def dict_keys(d: Dice) -> Draft:
    """The keys whose value a condition holds for."""
    p, t = number_predicate(d), d.pick(DICT_NAMES)
    statement = d.pick(
        (f"Return the keys of {t} whose values {p.plural}.", f"List all keys in {t} with values that {p.plural}.")
    )
    body = (f"return [k for k, v in {t}.items() if {p.on('v')}]",)
    name = _name(d, "keys_of", "list", "names_in")
    return Draft(
        name, (t,), statement, body, lambda m: [k for k, v in m.items() if p.holds(v)], *dict_inputs(d, p.edges)
    )


def dict_sum_where(d: Dice) -> Draft:
    """Sum the values that a condition holds for."""
    p, t = number_predicate(d), d.pick(DICT_NAMES)
    statement = d.pick(
        (
            f"Return the sum of the values in {t} that {p.plural}.",
            f"Add up all values of {t} that {p.plural}.",
        )
    )
    body = (f"return sum(v for v in {t}.values() if {p.on('v')})",)
    name = _name(d, "sum", "total", "add")
    return Draft(
        name, (t,), statement, body, lambda m: sum(v for v in m.values() if p.holds(v)), *dict_inputs(d, p.edges)
    )


def dict_lookup(d: Dice) -> Draft:
    """Compute with the value at one key, or with a default."""
    t, key, c, e = d.pick(DICT_NAMES), word(d, 1, 2), d.between(0, 40), number_expression(d)
    while len({e.value(c - 1), e.value(c), e.value(c + 1)}) < 3:
        c, e = d.between(0, 40), number_expression(d)
    statement = d.pick(
        (
            f"Let v be the value of '{key}' in {t}, or {c} if it is missing; return {e.said('v')}.",
            f"Look up '{key}' in {t} as v with default {c} and return {e.said('v')}.",
        )
    )
    body = (f'v = {t}.get("{key}", {c})', f"return {e.on('v')}")
    inputs, examples = dict_inputs(d, e.edges)
    keyed = tuple(({key: edge, word(d, 1, 2) + "x": 5},) for edge in (*e.edges, 3, 17, -8, 44))
    shown = tuple(({word(d, 1, 2) + "n": 4, key: d.between(1, 30)},) for _ in range(2))
    return Draft(_name(d, "look_up", "read", "get_from"), (t,), statement, body, lambda m: e.value(m.get(key, c)),
                 inputs + keyed, shown + examples)  # fmt: skip


def dict_count(d: Dice) -> Draft:
    """Held out. Count the values that a condition holds for: counting is seen for lists, summing for dicts."""
    p, t = number_predicate(d), d.pick(DICT_NAMES)
    statement = d.pick((f"Count the values in {t} that {p.plural}.", f"Return how many values of {t} {p.plural}."))
    body = (f"return sum(1 for v in {t}.values() if {p.on('v')})",)
    name = _name(d, "count", "tally", "number_of")
    return Draft(
        name, (t,), statement, body, lambda m: len([v for v in m.values() if p.holds(v)]), *dict_inputs(d, p.edges)
    )


def dict_choose(d: Dice) -> Draft:
    """Held out. One expression or another for each value: seen for lists, where a dict has only been mapped."""
    p, t = number_predicate(d), d.pick(DICT_NAMES)
    e, f = number_expression_where(d, p.holds), number_expression_where(d, lambda v: not p.holds(v))
    statement = f"For each value v in {t}, give its key {e.said('v')} if v {p.singular}, otherwise {f.said('v')}."
    body = (f"return {{k: {e.on('v')} if {p.on('v')} else {f.on('v')} for k, v in {t}.items()}}",)
    inputs = dict_inputs(d, (*p.edges, *e.edges, *f.edges))
    name = _name(d, "adjust", "choose", "update")
    return Draft(
        name,
        (t,),
        statement,
        body,
        lambda m: {k: e.value(v) if p.holds(v) else f.value(v) for k, v in m.items()},
        *inputs,
    )
