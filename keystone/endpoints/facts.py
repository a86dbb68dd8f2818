"""What an endpoint says of a model without generating: that it is there, its context, its memory.

All of it is the endpoint's word. Memory is taken for a fact only where the engine counts it itself (Ollama's
`/api/ps`); nothing is computed from a name, and nothing is typed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from keystone.endpoints.client import EndpointClient, Fields
from keystone.errors import EndpointError, EndpointRefusedError

_MOST = 2**53 - 1


@dataclass(frozen=True)
class EndpointFacts:
    """What is known of a model at an endpoint; None where it does not say.

    Attributes:
        listed: whether the endpoint lists the model.
        vram_bytes: memory it holds on a card now.
        ctx_tokens: the longest context.
        tool_calling: whether it takes tools.
    """

    listed: bool
    vram_bytes: int | None = None
    ctx_tokens: int | None = None
    tool_calling: bool | None = None


def describe(client: EndpointClient, *, seconds: float = 30.0) -> EndpointFacts:
    """Ask an endpoint about its model.

    Raises:
        EndpointError: it cannot be reached, or lists no models in either API.
    """
    return asyncio.run(_describe(client, seconds))


async def _describe(client: EndpointClient, seconds: float) -> EndpointFacts:
    model = client.address.model
    openai = await _get(client, "GET", "/v1/models", None, seconds)
    tags = await _get(client, "GET", "/api/tags", None, seconds)
    if openai is None and tags is None:
        raise EndpointError(f"{client.address.url} lists its models neither at /v1/models nor at /api/tags")
    entry = next((each for each in _objects(openai, "data") if each.get("id") == model), None)
    tag = next((each for each in _objects(tags, "models") if _called(each, model)), None)
    shown: Fields | None = None
    running: Fields | None = None
    if tag is not None:
        shown = await _get(client, "POST", "/api/show", {"model": model}, seconds)
        loaded = await _get(client, "GET", "/api/ps", None, seconds)
        running = next((each for each in _objects(loaded, "models") if _called(each, model)), None)
    return EndpointFacts(
        listed=entry is not None or tag is not None,
        vram_bytes=_positive((running or {}).get("size_vram")),
        ctx_tokens=_context(entry, shown, running),
        tool_calling=_tools(shown),
    )


async def _get(client: EndpointClient, method: str, path: str, body: Fields | None, seconds: float) -> Fields | None:
    try:
        return await client.exchange(method, path, body, seconds=seconds)
    except EndpointRefusedError as error:
        if error.status in (401, 403):
            raise
        return None  # it has no such page


def _objects(found: Fields | None, key: str) -> Iterator[Fields]:
    listed = (found or {}).get(key)
    if isinstance(listed, list):
        yield from (each for each in listed if isinstance(each, dict))


def _called(entry: Fields, model: str) -> bool:
    names = (entry.get("name"), entry.get("model"))
    return any(isinstance(name, str) and model in (name, name.removesuffix(":latest")) for name in names)


def _context(entry: Fields | None, shown: Fields | None, running: Fields | None) -> int | None:
    about = (shown or {}).get("model_info")
    lengths = (
        [value for key, value in about.items() if str(key).endswith(".context_length")]
        if isinstance(about, dict)
        else []
    )
    told = ((running or {}).get("context_length"), (entry or {}).get("max_model_len"), *lengths)
    return next((found for found in map(_positive, told) if found is not None), None)


def _tools(shown: Fields | None) -> bool | None:
    told = (shown or {}).get("capabilities")
    return "tools" in told if isinstance(told, list) else None


def _positive(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= _MOST else None
