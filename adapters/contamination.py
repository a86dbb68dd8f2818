"""Is this training example a hold-out in disguise? Exact by normal form, near by shared shingles.

Two normal forms forget what a copy changes without trying. Of prose: case, punctuation and white space. Of Python:
layout, comments, docstrings and every name the author chose, which become their order of appearance. Equal normal
forms are equal digests, so a renamed or reformatted hold-out is found for sure, among millions.

A copy that somebody edited is near, not equal. Code and prose are cut into overlapping shingles (n tokens in a row; in
code all chosen names are one token here, since one extra name would shift the numbers of all that follow), and the
share of a hold-out's shingles that the example contains is its similarity. Containment and not Jaccard: a hold-out
pasted into a longer file is still there whole. An inverted index counts shared shingles exactly, so there is no
sketching error on top; hold-outs number thousands, not billions.

What it cannot see: the same idea told in other words with another algorithm. On planted copies of `basics` hold-outs it
finds all that were renamed, reworded, reformatted, commented or pasted into a longer file, and 69 of 100 that were
reworded, renamed and rewritten statement by statement; it also turns away one in ten honest siblings that differ from
a hold-out in a constant or two (`tests/unit/adapters/test_source_gate.py`).
"""

from __future__ import annotations

import builtins
import io
import keyword
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from adapters.errors import InvalidPolicyError
from csf_store import Digest
from manifests import canonical_digest

CODE_SHINGLE = 5
PROSE_SHINGLE = 3
CODE_NEAR = 0.9
PROSE_NEAR = 0.65
FEWEST_SHINGLES = 8
"""Fewer say too little: `return x + 1` is in many programs, and is no copy of any."""

_KEPT_NAMES = frozenset(dir(builtins)) | frozenset(keyword.kwlist) | frozenset(keyword.softkwlist)
_WORD = re.compile(r"\w+")
_STATEMENT_ENDS = frozenset({tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT})
_LAYOUT = _STATEMENT_ENDS | {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}

Key = Callable[[str], Digest | None]
"""A further normal form of source code, the function fingerprint of a suite for instance; None where it has none."""


Rule: TypeAlias = "Callable[[str, str], Match | None]"
"""A suite's own word on whether (suite, task) is held out, for suites that hold out more than anybody could list."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One hold-out item: the prompt as prose, and its canonical program."""

    suite: str
    item: str
    prompt: str
    program: str


@dataclass(frozen=True, slots=True)
class Match:
    """A hold-out that an example comes from, how that is known, and how much of it is there (1 when exact)."""

    suite: str
    item: str
    how: str
    similarity: float


class HoldoutIndex:
    """Every hold-out there is, ready to be asked about.

    Args:
        items: the hold-outs of all suites, consumed draws included.
        keys: further normal forms of source code.
        rules: asked about every task by its name, beside the items.
        code_near: similarity of code from which an example counts as a copy, 0 to 1.
        prose_near: the same for prompts.
    """

    def __init__(
        self,
        items: Iterable[HeldOut],
        *,
        keys: Sequence[Key] = (),
        rules: Sequence[Rule] = (),
        code_near: float = CODE_NEAR,
        prose_near: float = PROSE_NEAR,
    ) -> None:
        if not (0 < code_near <= 1 and 0 < prose_near <= 1):
            raise InvalidPolicyError(
                f"similarities run from 0 to 1; {code_near} and {prose_near} cannot both be limits"
            )
        self._items = tuple(items)
        self._keys, self._rules, self._near = tuple(keys), tuple(rules), {"code": code_near, "prose": prose_near}
        self._names = {(item.suite, item.item): number for number, item in enumerate(self._items)}
        self._exact: dict[tuple[str, Digest], int] = {}
        self._postings: dict[str, dict[int, list[int]]] = {"code": {}, "prose": {}}
        self._sizes: dict[str, list[int]] = {"code": [], "prose": []}
        for number, item in enumerate(self._items):
            for form in self._forms(item.prompt, item.program):
                self._exact.setdefault(form, number)
            for what, shingles in _shingles(item.prompt, item.program).items():
                self._sizes[what].append(len(shingles))
                for shingle in shingles:
                    self._postings[what].setdefault(shingle, []).append(number)

    def __len__(self) -> int:
        return len(self._items)

    @cached_property
    def digest(self) -> Digest:
        """Names the items, in whatever order they were given: what a report was checked against."""
        rows = sorted({(item.suite, item.item, item.prompt, item.program) for item in self._items})
        return canonical_digest({"v": 1, "holdouts": [list(row) for row in rows]})

    def match_name(self, suite: str, task: str) -> Match | None:
        """The hold-out that an example says it is, if any: an item of this name, or what a rule holds out."""
        number = self._names.get((suite, task))
        if number is not None:
            return Match(suite, self._items[number].item, "name", 1.0)
        return next((found for rule in self._rules if (found := rule(suite, task)) is not None), None)

    def match(self, prompt: str, program: str) -> Match | None:
        """The hold-out that an example is a copy of, if any; exact matches first.

        Args:
            prompt: the example's prompt, prose and signature.
            program: the whole program, prompt and answer together.
        """
        for form in self._forms(prompt, program):
            number = self._exact.get(form)
            if number is not None:
                found = self._items[number]
                return Match(found.suite, found.item, f"exact {form[0]}", 1.0)
        best: Match | None = None
        for what, shingles in _shingles(prompt, program).items():
            number, similarity = self._nearest(what, shingles)
            if number is not None and similarity >= self._near[what] and (best is None or similarity > best.similarity):
                best = Match(self._items[number].suite, self._items[number].item, f"near {what}", similarity)
        return best

    def _nearest(self, what: str, shingles: frozenset[int]) -> tuple[int | None, float]:
        shared: Counter[int] = Counter()
        for shingle in shingles:
            shared.update(self._postings[what].get(shingle, ()))
        sizes = self._sizes[what]
        shares = (
            (count / sizes[number], -number) for number, count in shared.items() if sizes[number] >= FEWEST_SHINGLES
        )
        similarity, number = max(shares, default=(0.0, 1))
        return (None, 0.0) if number == 1 else (-number, similarity)

    def _forms(self, prompt: str, program: str) -> Iterable[tuple[str, Digest]]:
        words = prose_words(prompt)
        if len(words) >= PROSE_SHINGLE:
            yield "prose", Digest.of(" ".join(words).encode())
        form = code_form(program)
        if form:
            yield "code", Digest.of(form.encode())
        for number, key in enumerate(self._keys):
            found = key(program)
            if found is not None:
                yield f"key {number}", found


def prose_words(text: str) -> list[str]:
    """The words of a text, without case, punctuation or layout."""
    return _WORD.findall(text.casefold())


def code_tokens(source: str) -> list[str]:
    """The tokens of Python source without comments, layout and docstrings; chosen names carry a leading `$`.

    Source that does not tokenize gives what came before the fault; what cannot be read cannot be trained on anyway.
    """
    tokens: list[str] = []
    at_start = True  # of a statement, where a lone string is a docstring
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in _LAYOUT:
                at_start = at_start or token.type in _STATEMENT_ENDS
                continue
            if token.type == tokenize.STRING and at_start:
                continue
            chosen = token.type == tokenize.NAME and token.string not in _KEPT_NAMES
            tokens.append(f"${token.string}" if chosen else token.string)
            at_start = False
    except (tokenize.TokenError, IndentationError, SyntaxError):
        pass
    return tokens


def code_form(source: str) -> str:
    """The normal form of Python source: `code_tokens`, chosen names replaced by their order of appearance."""
    order: dict[str, int] = {}
    tokens = code_tokens(source)
    return "\n".join(f"${order.setdefault(token, len(order))}" if token[0] == "$" else token for token in tokens)


def _shingles(prompt: str, program: str) -> dict[str, frozenset[int]]:
    blank = ["$" if token[0] == "$" else token for token in code_tokens(program)]
    return {"code": _windows(blank, CODE_SHINGLE), "prose": _windows(prose_words(prompt), PROSE_SHINGLE)}


def _windows(tokens: Sequence[str], size: int) -> frozenset[int]:
    # Python's own string hash: it lives as long as the index does, and no longer.
    return frozenset(hash(tuple(tokens[at : at + size])) for at in range(len(tokens) - size + 1))
