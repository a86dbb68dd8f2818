"""What all APIs do with a request on its way to an engine."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from keystone.serve.chat import ChatPrompt
from keystone.serve.generation import GenerationRequest
from keystone.serve.grammar import Grammar, JsonForm
from keystone.serve.host import Host, Lease
from keystone.serve.sampling import Sampling
from keystone.serve.streams import AnswerStream

T = TypeVar("T")
_QUICK = 4096  # characters; less than a millisecond's work for a tokenizer
MANIFEST_HEADER = "X-Keystone-Manifest"


def client_of(request: Request) -> str:
    """Who asks: the name of the token, else the address."""
    known = request.scope.get("keystone.client")
    return known if isinstance(known, str) else (request.client.host if request.client else "")


async def leased(host: Host, name: str) -> Lease:
    """A lease on a model; loading, where it is needed, does not hold up other requests."""
    found = host.lease_loaded(name)
    return await asyncio.to_thread(host.lease, name) if found is None else found


async def prepared(size: int, work: Callable[[], T]) -> T:
    """Templates and tokenizers at work: at once for so few characters, else beside the event loop.

    A thread of its own costs a short prompt more than its tokens do.
    """
    return work() if size <= _QUICK else await asyncio.to_thread(work)


async def submit_prompt(
    request: Request,
    stream: AnswerStream,
    prompt: ChatPrompt,
    *,
    sampling: Sampling,
    most_tokens: int | None,
    form: JsonForm | None,
    stops: tuple[str, ...] = (),
    choices: int = 1,
) -> None:
    """Queue a rendered conversation, under the adapters of the stream's lease.

    Args:
        request: where it came from.
        stream: where answers go.
        prompt: with its tools and the stop strings that its template implies.
        sampling: how to draw.
        most_tokens: of each answer; None for as many as there is room for.
        form: what an answer has to be, where it calls no tool.
        stops: strings that end an answer, too.
        choices: how many answers.

    Raises:
        ServeError: what `Engine.submit` raises, and `UnsupportedValueError` for a schema that cannot be held to.
    """
    stream.box = prompt.box
    stream.submit(
        GenerationRequest(
            prompt.ids,
            most_tokens,
            (*stops, *prompt.stops),
            sampling,
            choices,
            stream.lease.served.variant,
            client_of(request),
            grammar=await _grammar(stream, form),
            marks={} if prompt.box is None else {token: text for text, token in prompt.box.marks.items()},
        )
    )


async def _grammar(stream: AnswerStream, form: JsonForm | None) -> Grammar | None:
    """What answers may say: calls of the stream's tools, JSON of a form, either, or anything.

    Raises:
        UnsupportedValueError: a schema has what an answer cannot be held to.
    """
    box, grammars = stream.box, stream.lease.engine.grammars
    if box is not None:
        return await asyncio.to_thread(box.grammar, grammars, form)
    return None if form is None else await asyncio.to_thread(grammars.json, form)
