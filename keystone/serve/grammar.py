"""What an answer may say, token by token: JSON of a schema, or the grammar of a tool call.

The automaton is llguidance's. Before each token it says which ones may follow, all others are masked, and an end
token may follow only where the text is complete. So an answer that ends by itself is what was asked for; one that is
cut off by a limit says "length".

llguidance ignores keywords that it has never heard of, as JSON Schema allows for annotations. Here each of them is
refused by name, since a client that writes one expects it to hold.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import llguidance.hf
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from transformers import PreTrainedTokenizerFast

from keystone.serve.errors import ModelFailedError, UnsupportedValueError
from keystone.serve.sampling import Row

Schema = Mapping[str, Any] | bool
ANY_OBJECT: Schema = {"type": "object"}

_HELD = frozenset(
    {
        *("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions"),
        *("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
_SAYS_NOTHING = frozenset(
    {
        *("title", "description", "default", "examples", "$schema", "$id", "$comment", "$anchor"),
        *("deprecated", "readOnly", "writeOnly", "discriminator"),
    }
)
_ONE, _MANY, _NAMED = (
    ("items", "additionalProperties", "additionalItems"),
    ("anyOf", "oneOf", "allOf", "prefixItems"),
    ("properties", "patternProperties", "$defs", "definitions"),
)
# A model may break lines and indent, but not write blanks for ever.
_BLANKS = {"whitespace_flexible": True, "whitespace_pattern": r"\n? {0,16}"}


@dataclass(frozen=True)
class JsonForm:
    """JSON that an answer has to be.

    Attributes:
        schema: a subset of JSON Schema.
        parameter: the request's field that holds it, for messages.
    """

    schema: Schema
    parameter: str


class Guide:
    """One answer's way through a grammar.

    Args:
        matcher: this answer's own; nobody else steps it.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, logits_V: Row) -> Row:  # noqa: N803 - the shape is in the name
        """The logits, with minus infinity for every token that may not follow.

        Args:
            logits_V: `[V]`; left as it is.

        Raises:
            ModelFailedError: the automaton gave up, mostly because the grammar is too large.
        """
        allowed = self._matcher.compute_logit_bias()
        self._check()
        return np.where(np.frombuffer(allowed, dtype=np.uint8) != 0, logits_V, np.float32("-inf"))

    def accept(self, token: int) -> bool:
        """Go on by a token; True when the text is complete and nothing may follow."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ModelFailedError(f"the grammar of this answer broke: {self._matcher.get_error()[:200]}")


@dataclass(frozen=True)
class Grammar:
    """A grammar, compiled for one tokenizer; any number of answers may follow it."""

    _start: LLMatcher

    def guide(self) -> Guide:
        """A way of its own for one answer."""
        return Guide(self._start.deep_copy())


class Grammars:
    """Compiles grammars for one model. Calls from several threads are fine.

    Args:
        tokenizer: the model's.
        vocabulary: how many logits the model gives, which may be more than the tokenizer has tokens.
        ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, ends: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(ends)
        self._lock = Lock()
        self._known: LLTokenizer | None = None

    def json(self, form: JsonForm) -> Grammar:
        """JSON that a schema describes.

        Raises:
            UnsupportedValueError: the schema uses what cannot be held to, which is named; or nothing can satisfy it.
        """
        check_schema(form.schema, where=form.parameter)
        return self._compiled(
            LLMatcher.grammar_from_json_schema(json.dumps(with_few_blanks(form.schema))), form.parameter
        )

    def lark(self, text: str, *, parameter: str) -> Grammar:
        """A grammar in llguidance's Lark notation.

        Raises:
            UnsupportedValueError: as `json`, for schemas inside.
        """
        return self._compiled(LLMatcher.grammar_from_lark(text), parameter)

    def _compiled(self, grammar: str, parameter: str) -> Grammar:
        matcher = LLMatcher(self._of_tokenizer(), grammar, log_level=0)
        if matcher.is_error():
            said = matcher.get_error().partition("<state>")[0].strip()
            raise UnsupportedValueError(f"{parameter}: {said[:300]}", parameter=parameter)
        return Grammar(matcher)

    def _of_tokenizer(self) -> LLTokenizer:
        # Reading a large vocabulary takes up to a second: once a model, and only if somebody asks.
        with self._lock:
            if self._known is None:
                ends = self._ends or None
                self._known = llguidance.hf.from_tokenizer(self._tokenizer, self._vocabulary, ends)
            return self._known


def check_schema(schema: object, *, where: str) -> None:
    """Refuse keywords that would not hold, wherever they stand.

    Raises:
        UnsupportedValueError: naming the keyword and its place.
    """
    waiting: list[tuple[object, str]] = [(schema, where)]
    while waiting:
        here, place = waiting.pop()
        if isinstance(here, bool):
            continue
        if not isinstance(here, Mapping):
            raise UnsupportedValueError(f"{place}: a schema is an object or a boolean", parameter=where)
        strange = sorted(key for key in here if key not in _HELD | _SAYS_NOTHING)
        if strange:
            raise UnsupportedValueError(
                f"{place}: the keyword {strange[0][:60]!r} is not supported; an answer could not be held to it",
                parameter=where,
            )
        waiting += [(here[key], f"{place}.{key}") for key in _ONE if isinstance(here.get(key), Mapping)]
        for key in _MANY:
            if isinstance(each := here.get(key), list):
                waiting += [(inner, f"{place}.{key}.{number}") for number, inner in enumerate(each)]
        for key in _NAMED:
            if isinstance(named := here.get(key), Mapping):
                waiting += [(inner, f"{place}.{key}.{name}") for name, inner in named.items()]


def with_few_blanks(schema: Schema) -> Schema:
    """A schema in the form that the automaton is given, here or inside a Lark grammar: no blanks for ever."""
    if isinstance(schema, Mapping):
        return {**schema, "x-guidance": _BLANKS}
    return {"x-guidance": _BLANKS} if schema else False
