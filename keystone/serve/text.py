"""Tokens into text as they come, so that what was sent never has to be taken back.

A character of UTF-8 may be split over tokens; until it is whole, a decoder shows U+FFFD in its place. `Detokeniser`
holds such an ending back and sends everything before it. `StopFilter` holds back what could become a stop string, and
sends nothing of one that did.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
# A character has at most four bytes, and some decoders show one mark for each byte of an unfinished one.
_UNFINISHED = 3
# A model that writes broken bytes for ever must not make every step decode all of them again.
_WINDOW = 32


class Decoder(Protocol):
    """What of a tokenizer is needed here."""

    @property
    def backend_tokenizer(self) -> Any:
        """What decodes; the methods around it take ten times as long as it does."""


def decode(tokenizer: Decoder, ids: Sequence[int], *, special: bool = False) -> str:
    """The text of some tokens, special ones left out unless asked for, spaces as they are."""
    text: str = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=not special)
    return text


class Detokeniser:
    """The text of one answer, token by token.

    Two windows overlap: the text of the older one is known and sent, the newer one adds to it. A decoder that treats a
    first token differently (a leading space) does so in both, and it cancels out.

    Args:
        tokenizer: whose tokens they are.
        marks: special tokens that are to be seen, with their texts; all others are left out.
    """

    def __init__(self, tokenizer: Decoder, marks: Mapping[int, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._marks = marks or {}
        self._ids: list[int] = []
        self._settled = 0  # how many of `_ids` have all their text sent
        self._shown = 0  # characters of the window's text that were sent

    def feed(self, token: int) -> str:
        """The text that one more token makes certain; empty while a character is not whole."""
        if token in self._marks:
            before = self.flush()
            self._ids, self._settled, self._shown = [], 0, 0
            return before + self._marks[token]
        self._ids.append(token)
        text = decode(self._tokenizer, self._ids)
        held = len(text) - len(text.rstrip(REPLACEMENT))
        if held and len(self._ids) - self._settled < _WINDOW:
            certain = text[: len(text) - min(held, _UNFINISHED)]
            fresh = certain[self._shown :]
            self._shown = max(self._shown, len(certain))
            return fresh
        fresh = text[self._shown :]
        self._settle()
        return fresh

    def flush(self) -> str:
        """What was held back, at the end: a character that never became whole shows as U+FFFD."""
        text = decode(self._tokenizer, self._ids)
        fresh = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return fresh

    def _settle(self) -> None:
        self._ids = self._ids[self._settled :]
        self._settled = len(self._ids)
        self._shown = len(decode(self._tokenizer, self._ids))


class StopFilter:
    """Text on its way to the client, cut before the first stop string.

    Attributes:
        stopped: the stop string that was met, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped: str | None = None

    def feed(self, text: str) -> str:
        """What of the text so far may be sent."""
        if self.stopped is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.stopped = min(found)
            self._held = ""
            return text[:place]
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text

    def flush(self) -> str:
        """What was held back, once it is certain that no stop string comes of it."""
        text, self._held = self._held, ""
        return text
