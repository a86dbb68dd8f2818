"""The pieces of the grammar that work on strings; see `pieces` for what a piece is."""

from __future__ import annotations

from keystone.evaluation.basics.dice import Dice
from keystone.evaluation.basics.pieces import Expression, Predicate

LETTERS = "abcdefghiklmnoprstuw"
SYLLABLES = (
    *("ba", "be", "co", "da", "di", "en", "er", "fa", "go", "in", "ka", "la", "lo", "ma", "mi"),
    *("no", "on", "pe", "ra", "re", "ri", "sa", "so", "ta", "ti", "to", "un", "va", "we", "ya"),
)
MARKS = ("!", "?", "-", "_", ".", "#", "*", "+")


def word(d: Dice, low: int = 1, high: int = 4) -> str:
    """A pronounceable lower-case word of `low` to `high` syllables."""
    return "".join(d.pick(SYLLABLES) for _ in range(d.between(low, high)))


def _fragment(d: Dice) -> str:
    match d.below(3):
        case 0:
            return d.pick(LETTERS)
        case 1:
            return d.pick(LETTERS) + d.pick("aeiou")
        case _:
            return d.pick("aeiou") + d.pick(LETTERS)


def _starts(d: Dice) -> Predicate[str]:
    p = _fragment(d)
    verb, verbs = d.pick((("starts with", "start with"), ("begins with", "begin with")))
    edges = (p, p + "on", "x" + p, p[::-1] + "ta", p[0] + "z", "z" + p[1:], "", p.upper())
    return Predicate(
        f"@.startswith({p!r})".replace("'", '"'), f"{verb} '{p}'", f"{verbs} '{p}'", lambda s: s.startswith(p), edges
    )


def _ends(d: Dice) -> Predicate[str]:
    p = _fragment(d)
    verb, verbs = d.pick((("ends with", "end with"), ("ends in", "end in")))
    edges = (p, "on" + p, p + "x", "ta" + p[::-1], "z" + p[-1], p[:-1] + "z", "", p.upper())
    return Predicate(
        f"@.endswith({p!r})".replace("'", '"'), f"{verb} '{p}'", f"{verbs} '{p}'", lambda s: s.endswith(p), edges
    )


def _contains(d: Dice) -> Predicate[str]:
    p = _fragment(d)
    edges = (p, f"x{p}x", "x" + p, p + "x", "", p[:1] + "z" + p[1:] if len(p) > 1 else "z")
    return Predicate(f'"{p}" in @', f"contains '{p}'", f"contain '{p}'", lambda s: p in s, edges)


def _lacks(d: Dice) -> Predicate[str]:
    p = _fragment(d)
    edges = (p, f"x{p}x", "x" + p, p + "x", "", p[:1] + "z" + p[1:] if len(p) > 1 else "z")
    return Predicate(f'"{p}" not in @', f"does not contain '{p}'", f"do not contain '{p}'", lambda s: p not in s, edges)


def _lengths(c: int) -> tuple[str, ...]:
    return tuple("abcdefghijklmnop"[:n] for n in range(max(0, c - 2), c + 3))


def _longer(d: Dice) -> Predicate[str]:
    c = d.between(1, 9)
    tail = d.pick((f"longer than {c} letters", f"longer than {c} characters"))
    return Predicate(f"len(@) > {c}", f"is {tail}", f"are {tail}", lambda s: len(s) > c, _lengths(c))


def _shorter(d: Dice) -> Predicate[str]:
    c = d.between(2, 9)
    tail = d.pick((f"shorter than {c} letters", f"shorter than {c} characters"))
    return Predicate(f"len(@) < {c}", f"is {tail}", f"are {tail}", lambda s: len(s) < c, _lengths(c))


def _exact(d: Dice) -> Predicate[str]:
    c = d.between(1, 9)
    verb, verbs = d.pick((("has exactly", "have exactly"), ("has", "have")))
    return Predicate(
        f"len(@) == {c}", f"{verb} {c} letters", f"{verbs} {c} letters", lambda s: len(s) == c, _lengths(c)
    )


def _repeats(d: Dice) -> Predicate[str]:
    p, c = d.pick(LETTERS), d.between(2, 3)
    edges = ("", p, p * (c - 1), p * c, f"x{p}" * c, p * (c + 1), f"x{p}" * (c - 1))
    tail = f"'{p}' at least {c} times"
    code = f'@.count("{p}") >= {c}'
    return Predicate(code, f"contains {tail}", f"contain {tail}", lambda s: s.count(p) >= c, edges)


_TEXT_PREDICATES = (_starts, _ends, _contains, _lacks, _longer, _shorter, _exact, _repeats)


def text_predicate(d: Dice) -> Predicate[str]:
    """A condition on one string."""
    return d.pick(_TEXT_PREDICATES)(d)


_TEXT_EDGES = ("", "a", "banana", "Re-do")


def _suffixed(d: Dice) -> Expression[str, str]:
    p = d.pick((d.pick(MARKS), word(d, 1, 1)))
    phrase = d.pick((f"@ followed by '{p}'", f"@ with '{p}' added at the end"))
    return Expression(f'@ + "{p}"', phrase, lambda s: s + p, _TEXT_EDGES)


def _prefixed(d: Dice) -> Expression[str, str]:
    p = d.pick((d.pick(MARKS), word(d, 1, 1)))
    phrase = d.pick((f"'{p}' followed by @", f"@ with '{p}' added at the front"))
    return Expression(f'"{p}" + @', phrase, lambda s: p + s, _TEXT_EDGES)


def _cased(d: Dice) -> Expression[str, str]:
    match d.below(3):
        case 0:
            return Expression("@.upper()", d.pick(("@ in upper case", "@ in capital letters")), str.upper, _TEXT_EDGES)
        case 1:
            return Expression("@.capitalize()", "@ with its first letter capitalized", str.capitalize, _TEXT_EDGES)
        case _:
            return Expression("@[::-1]", d.pick(("@ reversed", "the reverse of @")), lambda s: s[::-1], _TEXT_EDGES)


def _repeated(d: Dice) -> Expression[str, str]:
    k = d.between(2, 6)
    return Expression(f"@ * {k}", f"@ repeated {k} times", lambda s: s * k, _TEXT_EDGES)


def _cut(d: Dice) -> Expression[str, str]:
    k = d.between(1, 6)
    edges = _lengths(k)
    noun = "letter" if k == 1 else f"{k} letters"
    match d.below(4):
        case 0:
            return Expression(f"@[:{k}]", f"the first {noun} of @", lambda s: s[:k], edges)
        case 1:
            return Expression(f"@[{k}:]", f"@ without its first {noun}", lambda s: s[k:], edges)
        case 2:
            return Expression(f"@[-{k}:]", f"the last {noun} of @", lambda s: s[-k:], edges)
        case _:
            return Expression(f"@[:-{k}]", f"@ without its last {noun}", lambda s: s[:-k], edges)


def _replaced(d: Dice) -> Expression[str, str]:
    old, new = d.sample(LETTERS, 2)
    phrase = d.pick((f"@ with every '{old}' replaced by '{new}'", f"@ with '{old}' changed to '{new}'"))
    return Expression(
        f'@.replace("{old}", "{new}")', phrase, lambda s: s.replace(old, new), ("", old, f"x{old}{new}{old}", new)
    )


_TEXT_EXPRESSIONS = (_suffixed, _prefixed, _cased, _repeated, _cut, _cut, _replaced, _replaced)


def text_expression(d: Dice) -> Expression[str, str]:
    """A string computed from one string."""
    return d.pick(_TEXT_EXPRESSIONS)(d)
