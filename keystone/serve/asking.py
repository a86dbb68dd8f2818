"""What both APIs do with a request on its way to an engine."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from keystone.serve.grammar import Grammar, JsonForm
from keystone.serve.host import Host, Lease
from keystone.serve.streams import AnswerStream
from keystone.serve.tools import Toolbox

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


def marks_of(box: Toolbox | None) -> dict[int, str]:
    """The special tokens that an answer with these tools shows."""
    return {} if box is None else {token: text for text, token in box.marks.items()}


async def grammar_of(stream: AnswerStream, form: JsonForm | None) -> Grammar | None:
    """What answers may say: calls of the stream's tools, JSON of a form, either, or anything.

    Raises:
        UnsupportedValueError: a schema has what an answer cannot be held to.
    """
    box, grammars = stream.box, stream.lease.engine.grammars
    if box is not None:
        return await asyncio.to_thread(box.grammar, grammars, form)
    return None if form is None else await asyncio.to_thread(grammars.json, form)


async def prepared(size: int, work: Callable[[], T]) -> T:
    """Templates and tokenizers at work: at once for so few characters, else beside the event loop.

    A thread of its own costs a short prompt more than its tokens do.
    """
    return work() if size <= _QUICK else await asyncio.to_thread(work)
