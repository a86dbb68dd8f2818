"""One request to an engine, and what comes back: pieces of text, then one ending for each answer.

The engine's thread calls `deliver` with events. Whoever listens must be quick and may live in another thread; a
listener that fails counts as gone.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from keystone.serve.call_reader import ToolCall
from keystone.serve.errors import ServeError
from keystone.serve.grammar import Grammar
from keystone.serve.prefixes import Variant
from keystone.serve.sampling import Sampling, TokenScore

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: of each answer; None for as many as the context has room for.
        stops: strings that end an answer and are not part of it.
        sampling: how tokens are drawn.
        choices: how many answers.
        variant: the adapters to answer with.
        client: who asks; clients take turns in the queue.
        ignore_end: whether end tokens are tokens like others; for measurements.
        grammar: what each answer may say; None for anything.
        marks: special tokens that belong to an answer's text, which has none otherwise.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    choices: int = 1
    variant: Variant = ()
    client: str = ""
    ignore_end: bool = False
    grammar: Grammar | None = None
    marks: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """More of one answer: text, and calls that are whole; `scores` are of the tokens whose text is sent by now."""

    choice: int
    text: str
    scores: tuple[TokenScore, ...] = ()
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Finished:
    """One answer is complete. `tokens` counts what was generated, an end token included."""

    choice: int
    reason: FinishReason
    tokens: int


@dataclass(frozen=True)
class Failed:
    """The request is over, whatever was left of it."""

    error: ServeError


Event = Piece | Finished | Failed


@dataclass
class Timing:
    """Moments of a request, in seconds of one monotonic clock; None until they come.

    Attributes:
        finished: its newest token so far; the last one, once it is over.
        reused: tokens of the prompt that were known from an earlier one.
    """

    submitted: float
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None
    reused: int = 0


@dataclass
class Generation:
    """A request on its way. `cancel` may be called from any thread, any number of times."""

    request: GenerationRequest
    deliver: Callable[[Event], None]
    timing: Timing
    deadline: float
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Stop working on it at the next step; nothing is delivered any more."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled.is_set()
