"""Finds tool calls in an answer while it is written.

A call is passed on when it is whole and names a tool that was offered; whatever else looks like one stays text, as the
model wrote it. Text that could become the opening of a call is held back until it is certain.
"""

import json
import secrets
import string
from dataclasses import dataclass
from typing import Any

from keystone.serve.tools import Json, Toolbox

_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class ToolCall:
    """A call that an answer made.

    Attributes:
        number: its place among the answer's calls.
        key: names the call, so that a later message can answer it.
    """

    number: int
    key: str
    name: str
    arguments: Json


Found = tuple[str, tuple[ToolCall, ...]]
"""Text that is part of no call, and calls that are whole."""


class CallReader:
    """Reads one answer.

    Args:
        box: the tools that may be called, and how.
    """

    def __init__(self, box: Toolbox) -> None:
        self.made = 0
        self._form = box.form
        self._names = {tool.name for tool in box.tools}
        self._text = ""
        self._opened: str | None = None  # what opened the call that is being read; None outside of calls
        self._begun = False

    def feed(self, text: str) -> Found:
        """More of the answer; what of it is certain."""
        self._text += text
        said, made = "", []
        while True:
            if self._opened is None:
                said += self._outside()
            closing = self._form.closing
            if self._opened is None or closing is None or closing not in self._text:
                break
            body, self._text = self._text.split(closing, 1)
            found = self._calls(body)
            said += "" if found else f"{self._opened}{body}{closing}"
            made += found
            self._opened = None
        return self._kept(said), tuple(made)

    def flush(self) -> Found:
        """What was held back, once the answer is over; a model may stop without closing its last call."""
        text, self._text = self._text, ""
        if self._opened is None:
            return self._kept(text), ()
        found = self._calls(text)
        return ("", tuple(found)) if found else (self._opened + text, ())

    def _outside(self) -> str:
        """Text up to where a call opens."""
        form, text = self._form, self._text
        if form.bare and not self._begun:
            if not text.strip():
                return ""
            self._begun = True
            if text.lstrip().startswith("{"):
                self._opened = ""
                return ""
        before, opening, after = text.partition(form.opening)
        if opening:
            self._opened, self._text = opening, after
            return before
        for size in range(min(len(form.opening) - 1, len(text)), 0, -1):
            if form.opening.startswith(text[-size:]):
                self._text = text[-size:]
                return text[:-size]
        self._text = ""
        return text

    def _kept(self, said: str) -> str:
        """Blanks between calls are not worth sending."""
        return said if said.strip() or not self.made else ""

    def _calls(self, body: str) -> list[ToolCall]:
        try:
            parsed: Any = json.loads(body) if self._form.listed else self._each(body)
        except (ValueError, RecursionError):
            return []
        found = [self._call(each) for each in parsed] if isinstance(parsed, list) else []
        whole = [each for each in found if each is not None]
        if len(whole) < len(found):
            return []
        first, self.made = self.made, self.made + len(whole)
        return [ToolCall(first + number, _key(), *call) for number, call in enumerate(whole)]

    def _each(self, body: str) -> list[Any]:
        """Calls one after the other: objects, or names with their arguments.

        Raises:
            ValueError: something else is among them.
        """
        if self._form.joint is None:
            return _several(body)
        found: list[Any] = []
        while body:
            name, joint, rest = body.partition(self._form.joint)
            if not joint:
                raise ValueError("a name without arguments")
            name = name.partition(self._form.label)[0] if self._form.label else name
            arguments, end = json.JSONDecoder().raw_decode(rest.lstrip())
            found.append({"name": name.strip(), "arguments": arguments})
            body = rest.lstrip()[end:].strip()
            if body and not body.startswith(self._form.opening):
                raise ValueError("text between two calls")
            body = body.removeprefix(self._form.opening)
        return found

    def _call(self, parsed: object) -> tuple[str, Json] | None:
        if not isinstance(parsed, dict):
            return None
        name = parsed.get("name")
        if not isinstance(name, str) or name not in self._names:
            return None
        # Models of one form were often trained on the other's key, too.
        arguments = parsed.get("arguments", parsed.get("parameters", {}))
        return (name, arguments) if isinstance(arguments, dict) else None


def _several(body: str) -> list[Any]:
    """JSON values one after the other, with a semicolon or blanks between them."""
    decoder, values, body = json.JSONDecoder(), [], body.strip()
    while body:
        value, end = decoder.raw_decode(body)
        values.append(value)
        body = body[end:].lstrip("; \t\r\n")
    return values


def _key() -> str:
    """A name for a call: nine letters and digits, the form that Mistral's templates insist on; others take any."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
