"""Families over strings and lists of strings."""

from __future__ import annotations

from collections.abc import Callable

from keystone.evaluation.basics.dice import Dice
from keystone.evaluation.basics.drafts import TEXT_NAMES, WORDS_NAMES, Draft, crossed, text_inputs, words_inputs
from keystone.evaluation.basics.text_pieces import LETTERS, MARKS, text_expression, text_predicate

_NOUNS = ("words", "strings", "names", "entries", "list")


def _name(d: Dice, *verbs: str) -> str:
    return f"{d.pick(verbs)}_{d.pick(_NOUNS)}"


def word_filter(d: Dice) -> Draft:
    """Keep the words that a condition holds for."""
    p, ws = text_predicate(d), d.pick(WORDS_NAMES)
    statement = d.pick(
        (
            f"Return the strings in {ws} that {p.plural}.",
            f"Return a list of all strings in {ws} that {p.plural}.",
            f"Keep only the strings in {ws} that {p.plural}.",
        )
    )
    body = (f"return [w for w in {ws} if {p.on('w')}]",)
    name = _name(d, "keep", "select", "filter", "pick")
    return Draft(name, (ws,), statement, body, lambda v: [w for w in v if p.holds(w)], *words_inputs(d, p.edges))


def word_map(d: Dice) -> Draft:
    """Edit every word."""
    e, ws = text_expression(d), d.pick(WORDS_NAMES)
    statement = d.pick(
        (
            f"Return a list with {e.said('w')} for each w in {ws}.",
            f"For every w in {ws}, give {e.said('w')}.",
            f"Replace each w in {ws} by {e.said('w')}.",
        )
    )
    body = (f"return [{e.on('w')} for w in {ws}]",)
    name = _name(d, "map", "change", "edit", "transform")
    return Draft(name, (ws,), statement, body, lambda v: [e.value(w) for w in v], *words_inputs(d, e.edges))


def word_filter_map(d: Dice) -> Draft:
    """Edit the words that a condition holds for."""
    p, e, ws = text_predicate(d), text_expression(d), d.pick(WORDS_NAMES)
    statement = d.pick(
        (
            f"Return a list with {e.said('w')} for each w in {ws} that {p.singular}.",
            f"For every w in {ws} that {p.singular}, give {e.said('w')}.",
        )
    )
    body = (f"return [{e.on('w')} for w in {ws} if {p.on('w')}]",)
    inputs = words_inputs(d, (*p.edges, *e.edges, *crossed(p.edges, e.edges)))
    name = _name(d, "map", "select", "edit")
    return Draft(name, (ws,), statement, body, lambda v: [e.value(w) for w in v if p.holds(w)], *inputs)


def word_all(d: Dice) -> Draft:
    """Whether a condition holds for every word."""
    p, ws = text_predicate(d), d.pick(WORDS_NAMES)
    statement = d.pick(
        (
            f"Return whether every string in {ws} {p.singular}.",
            f"Tell if all strings in {ws} {p.plural}.",
            f"Return True if each string in {ws} {p.singular}, else False.",
        )
    )
    body = (f"return all({p.on('w')} for w in {ws})",)
    name = _name(d, "all", "every", "only")
    return Draft(
        name, (ws,), statement, body, lambda v: not [w for w in v if not p.holds(w)], *words_inputs(d, p.edges)
    )


def word_total(d: Dice) -> Draft:
    """The total length of the words that a condition holds for."""
    p, ws = text_predicate(d), d.pick(WORDS_NAMES)
    statement = d.pick(
        (
            f"Return the total length of the strings in {ws} that {p.plural}.",
            f"Add up the lengths of all strings in {ws} that {p.plural}.",
        )
    )
    body = (f"return sum(len(w) for w in {ws} if {p.on('w')})",)
    name = _name(d, "total", "length_of", "measure")
    return Draft(
        name, (ws,), statement, body, lambda v: sum(len(w) for w in v if p.holds(w)), *words_inputs(d, p.edges)
    )


def word_any(d: Dice) -> Draft:
    """Held out. Whether a condition holds for some word: `any` is seen for lists of numbers."""
    p, ws = text_predicate(d), d.pick(WORDS_NAMES)
    statement = d.pick(
        (
            f"Return whether any string in {ws} {p.singular}.",
            f"Return True if some string in {ws} {p.singular}, else False.",
        )
    )
    body = (f"return any({p.on('w')} for w in {ws})",)
    name = _name(d, "any", "has", "some")
    return Draft(name, (ws,), statement, body, lambda v: bool([w for w in v if p.holds(w)]), *words_inputs(d, p.edges))


def word_count(d: Dice) -> Draft:
    """Held out. Count the words that a condition holds for: counting is seen for lists of numbers."""
    p, ws = text_predicate(d), d.pick(WORDS_NAMES)
    statement = d.pick((f"Count the strings in {ws} that {p.plural}.", f"Return how many strings in {ws} {p.plural}."))
    body = (f"return sum(1 for w in {ws} if {p.on('w')})",)
    name = _name(d, "count", "tally", "number_of")
    return Draft(name, (ws,), statement, body, lambda v: len([w for w in v if p.holds(w)]), *words_inputs(d, p.edges))


def word_first(d: Dice) -> Draft:
    """Held out. The first word that a condition holds for: the loop is seen for lists of numbers."""
    p, ws, mark = text_predicate(d), d.pick(WORDS_NAMES), d.pick(("none", "", "missing", *MARKS))
    statement = d.pick(
        (
            f"Return the first string in {ws} that {p.singular}, or '{mark}' if there is none.",
            f"Find the first string in {ws} that {p.singular}; return '{mark}' if none does.",
        )
    )
    body = (f"for w in {ws}:", f"    if {p.on('w')}:", "        return w", f'return "{mark}"')
    name = _name(d, "first", "find", "find_in")
    return Draft(
        name, (ws,), statement, body, lambda v: [*(w for w in v if p.holds(w)), mark][0], *words_inputs(d, p.edges)
    )


def text_edit(d: Dice) -> Draft:
    """Two edits of one string, joined."""
    e, f, s = text_expression(d), text_expression(d), d.pick(TEXT_NAMES)
    statement = d.pick(
        (
            f"Return {e.said(s)}, joined with {f.said(s)}.",
            f"Join {e.said(s)} and {f.said(s)}.",
            f"Concatenate {e.said(s)} and {f.said(s)}.",
        )
    )
    body = (f"return {e.on(s)} + {f'({f.on(s)})' if ' + ' in f.code else f.on(s)}",)
    name = d.pick(("edit", "format", "decorate", "rewrite", "join")) + d.pick(("_text", "_string", "_word", "_parts"))
    return Draft(name, (s,), statement, body, lambda x: e.value(x) + f.value(x), *text_inputs(d, (*e.edges, *f.edges)))


def text_conditional(d: Dice) -> Draft:
    """One edit when a condition holds, another one otherwise."""
    p, e, f, s = text_predicate(d), text_expression(d), text_expression(d), d.pick(TEXT_NAMES)
    statement = d.pick(
        (
            f"Return {e.said(s)} if {s} {p.singular}, otherwise {f.said(s)}.",
            f"If {s} {p.singular}, return {e.said(s)}; else return {f.said(s)}.",
        )
    )
    body = (f"if {p.on(s)}:", f"    return {e.on(s)}", f"return {f.on(s)}")
    inputs = text_inputs(d, (*p.edges, *e.edges, *f.edges, *crossed(p.edges, (*e.edges, *f.edges))))
    name = d.pick(("edit", "fix", "convert", "adjust")) + d.pick(("_text", "_string", "_word"))
    return Draft(name, (s,), statement, body, lambda x: e.value(x) if p.holds(x) else f.value(x), *inputs)


def char_count(d: Dice) -> Draft:
    """Count letters out of a set."""
    letters, s = "".join(d.sample(LETTERS, d.between(2, 4))), d.pick(TEXT_NAMES)
    code, words, value = _counting(d, letters, s)
    statement = d.pick((f"Count the {words}.", f"Return how many {words} there are.", f"Return the number of {words}."))
    return Draft(
        _char_name(d, "count", "tally"), (s,), statement, (f"return {code}",), value, *_char_inputs(d, letters)
    )


def _counting(d: Dice, letters: str, s: str) -> tuple[str, str, Callable[[str], int]]:
    k = d.between(2, 9)
    match d.below(4):
        case 0:
            return (
                f'sum(1 for ch in {s} if ch in "{letters}")',
                f"characters of {s} that are in '{letters}'",
                lambda x: len([ch for ch in x if ch in letters]),
            )
        case 1:
            return (
                f'sum(1 for ch in {s} if ch not in "{letters}")',
                f"characters of {s} that are not in '{letters}'",
                lambda x: len([ch for ch in x if ch not in letters]),
            )
        case 2:
            return (
                f'{s}.count("{letters[0]}") * {k}',
                f"'{letters[0]}' characters in {s}, times {k},",
                lambda x: k * len([ch for ch in x if ch == letters[0]]),
            )
        case _:
            return (
                f'{s}.count("{letters[0]}") + {s}.count("{letters[1]}")',
                f"'{letters[0]}' and '{letters[1]}' characters in {s}",
                lambda x: len([ch for ch in x if ch in letters[:2]]),
            )


def char_filter(d: Dice) -> Draft:
    """Remove, keep or repeat the letters of a set."""
    letters, s = "".join(d.sample(LETTERS, d.between(2, 4))), d.pick(TEXT_NAMES)
    mark = d.pick(MARKS)
    code, words, value = _cleaning(d, letters, s, mark)
    return Draft(
        _char_name(d, "clean", "strip", "reduce"),
        (s,),
        f"{words}.",
        (f"return {code}",),
        value,
        *_char_inputs(d, letters),
    )


def _cleaning(d: Dice, letters: str, s: str, mark: str) -> tuple[str, str, Callable[[str], str]]:
    match d.below(3):
        case 0:
            return (
                f'"".join(ch for ch in {s} if ch not in "{letters}")',
                d.pick(
                    (
                        f"Return {s} without the characters in '{letters}'",
                        f"Remove all characters of '{letters}' from {s}",
                    )
                ),
                lambda x: "".join([ch for ch in x if ch not in letters]),
            )
        case 1:
            return (
                f'"".join(ch for ch in {s} if ch in "{letters}")',
                d.pick(
                    (
                        f"Return only the characters of {s} that are in '{letters}'",
                        f"Keep the characters of '{letters}' in {s}",
                    )
                ),
                lambda x: "".join([ch for ch in x if ch in letters]),
            )
        case _:
            return (
                f'"".join("{mark}" if ch in "{letters}" else ch for ch in {s})',
                d.pick(
                    (
                        f"Replace each character of {s} that is in '{letters}' by '{mark}'",
                        f"Return {s} with every character of '{letters}' changed to '{mark}'",
                    )
                ),
                lambda x: "".join([mark if ch in letters else ch for ch in x]),
            )


def _char_name(d: Dice, *verbs: str) -> str:
    return d.pick(verbs) + d.pick(("_letters", "_characters", "_text"))


def _char_inputs(d: Dice, letters: str) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    hidden, shown = text_inputs(d, (letters, letters[0] * 3 + "x", alphabet, alphabet[::-1] * 2, letters.upper()))
    mixed = (
        "".join(d.pick((letters, alphabet))[0] + d.pick(alphabet) for _ in range(4)),
        *(str(a[0]) for a in shown[:2]),
    )
    return tuple((str(a[0]),) for a in hidden), tuple((text,) for text in mixed)
