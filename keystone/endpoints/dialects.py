"""One question in the words of whichever API an endpoint has.

A question has two forms: a text to continue, and the same task put as a request. An endpoint that can continue text is
asked to; one that can only chat gets the request, and its answer is read as that of a chat. Which of the two it was
belongs to the record, since they are not the same test. `/v1/completions` is tried first, then `/v1/chat/completions`,
then Ollama's own; the first that is there stays the one for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from keystone.endpoints.client import EndpointClient, Fields
from keystone.errors import EndpointError, EndpointRefusedError

Style: TypeAlias = Literal["completion", "chat"]
Api: TypeAlias = Literal["openai-completions", "openai-chat", "ollama-generate", "ollama-chat"]

CONCURRENT: Final = 4
"""Questions that are on their way at the same time."""
_ABSENT: Final = frozenset({404, 405, 501})


@dataclass(frozen=True)
class Question:
    """What is asked, and how the answer is drawn.

    Attributes:
        prompt: a text to continue.
        request: the same, put as a request.
        max_tokens: the most to generate.
        temperature: 0 is greedy.
        top_p: nucleus size.
        seed: below 2**31, which every engine takes.
    """

    prompt: str
    request: str
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What came back, and by which API; `style` says how it has to be read."""

    text: str
    api: Api
    style: Style


@dataclass(frozen=True)
class _Dialect:
    path: str
    style: Style
    body: Callable[[str, Question], Fields]
    keys: tuple[str | int, ...]


def _completion(model: str, asked: Question) -> Fields:
    return {"model": model, "prompt": asked.prompt, **_openai(asked)}


def _chat(model: str, asked: Question) -> Fields:
    return {"model": model, "messages": [{"role": "user", "content": asked.request}], **_openai(asked)}


def _openai(asked: Question) -> dict[str, object]:
    return {
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": asked.seed,
        "stream": False,
    }


def _ollama_generate(model: str, asked: Question) -> Fields:
    return {"model": model, "prompt": asked.prompt, "raw": True, "stream": False, "options": _options(asked)}


def _ollama_chat(model: str, asked: Question) -> Fields:
    messages = [{"role": "user", "content": asked.request}]
    return {"model": model, "messages": messages, "stream": False, "options": _options(asked)}


def _options(asked: Question) -> dict[str, object]:
    return {
        "num_predict": asked.max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": asked.seed,
    }


_DIALECTS: Mapping[Api, _Dialect] = {
    "openai-completions": _Dialect("/v1/completions", "completion", _completion, ("choices", 0, "text")),
    "openai-chat": _Dialect("/v1/chat/completions", "chat", _chat, ("choices", 0, "message", "content")),
    "ollama-generate": _Dialect("/api/generate", "completion", _ollama_generate, ("response",)),
    "ollama-chat": _Dialect("/api/chat", "chat", _ollama_chat, ("message", "content")),
}
_ORDER: Mapping[Style, tuple[Api, ...]] = {
    "completion": ("openai-completions", "openai-chat", "ollama-generate"),
    "chat": ("openai-chat", "ollama-chat"),
}


class EndpointModel:
    """A model at an endpoint, to be asked.

    Args:
        client: for its endpoint.
        style: `completion` where continuing text is meant, `chat` where a chat is.
    """

    def __init__(self, client: EndpointClient, *, style: Style = "completion") -> None:
        self.client = client
        self._open = list(_ORDER[style])
        self._settled = False

    def ask(self, question: Question, *, seconds: float | None = None) -> Answer:
        """Ask one question; see `EndpointClient.exchange` for the errors."""
        return self.ask_all([question], seconds=seconds)[0]

    def ask_all(self, questions: Sequence[Question], *, seconds: float | None = None) -> list[Answer]:
        """Ask several questions, a few at a time; answers in their order.

        Raises:
            EndpointRefusedError: the endpoint has none of the APIs, or not this model.
            EndpointError: one question found no answer; nothing is said about the others.
        """
        return asyncio.run(self._ask_all(questions, seconds))

    async def _ask_all(self, questions: Sequence[Question], seconds: float | None) -> list[Answer]:
        if not questions:
            return []
        # The first one finds out which API there is; the rest need not try again.
        first = await self._ask(questions[0], seconds)
        gate = asyncio.Semaphore(CONCURRENT)

        async def one(question: Question) -> Answer:
            async with gate:
                return await self._ask(question, seconds)

        try:
            async with asyncio.TaskGroup() as group:
                rest = [group.create_task(one(question)) for question in questions[1:]]
        except* EndpointError as found:
            raise _first(found) from None
        return [first, *(task.result() for task in rest)]

    async def _ask(self, asked: Question, seconds: float | None) -> Answer:
        while True:
            api = self._open[0]
            dialect = _DIALECTS[api]
            body = dialect.body(self.client.address.model, replace(asked, seed=asked.seed % 2**31))
            try:
                found = await self.client.exchange("POST", dialect.path, body, seconds=seconds)
            except EndpointRefusedError as error:
                if error.status in _ABSENT and not self._settled and len(self._open) > 1:
                    del self._open[0]
                    continue
                raise
            self._settled = True
            return Answer(self._text(dialect, found), api, dialect.style)

    def _text(self, dialect: _Dialect, found: object) -> str:
        here = found
        for key in dialect.keys:
            if isinstance(key, int):
                here = here[key] if isinstance(here, list) and len(here) > key else _MISSING
            else:
                here = here.get(key, _MISSING) if isinstance(here, dict) else _MISSING
        if here is None and dialect.style == "chat":
            return ""  # a chat may refuse to say anything
        if not isinstance(here, str):
            where = ".".join(map(str, dialect.keys))
            raise EndpointError(f"{self.client.address.url}{dialect.path} answers without a text in {where}")
        # JSON can spell half a character, which no file and no program can hold.
        return here.encode("utf-8", "replace").decode()


_MISSING: Final = object()


def _first(group: BaseExceptionGroup[EndpointError]) -> EndpointError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found if isinstance(found, EndpointError) else EndpointError(str(found))
