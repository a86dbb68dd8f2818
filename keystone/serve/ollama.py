"""Ollama's API: chat, generate, tags, show, ps, version. What would change the archive is refused by name.

`generate` applies the chat template to the prompt when the model has one, as Ollama does; `raw` leaves it alone.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from keystone.serve.asking import MANIFEST_HEADER, leased, submit_prompt
from keystone.serve.call_reader import ToolCall
from keystone.serve.chat import ChatPrompt, Conversation, Message, chat_prompt, text_ids
from keystone.serve.errors import NO_EMBEDDINGS, BadRequestError, NotOfferedError, ServeError
from keystone.serve.fields import parse, read_body
from keystone.serve.generation import Finished, Piece
from keystone.serve.host import Host, Lease
from keystone.serve.ollama_fields import (
    ChatFields,
    GenerateFields,
    ModelFields,
    OllamaFields,
    keep_seconds,
)
from keystone.serve.ollama_models import Json, loaded, now, shown, tag
from keystone.serve.sampling import TokenScore
from keystone.serve.streams import AnswerStream, EventResponse, while_connected
from keystone.serve.text import REPLACEMENT, decode

_Shape = Callable[[str, Sequence[ToolCall]], Json]
_NANO = 1_000_000_000
# Clients ask for a version to know which fields they may use: the one whose API this is, then our own.
SPOKEN = "0.12.0"
_WRITING = ("pull", "push", "create", "copy", "delete")


def error_body(error: ServeError) -> Json:
    """An error in Ollama's shape."""
    return {"error": str(error)}


def ollama_routes(host: Host) -> APIRouter:
    """The routes, on the models of a host."""
    routes = APIRouter()

    @routes.api_route("/api/version", methods=["GET", "HEAD"])
    async def show_version() -> Response:
        return JSONResponse({"version": f"{SPOKEN}+keystone.{version('keystone-sigma0')}"})

    @routes.api_route("/api/tags", methods=["GET", "HEAD"])
    async def tags() -> Response:
        lines = await asyncio.to_thread(host.names)
        return JSONResponse({"models": [tag(host, line) for line in lines]})

    @routes.get("/api/ps")
    async def running() -> Response:
        names = {line.digest: line.name for line in reversed(await asyncio.to_thread(host.names))}
        return JSONResponse({"models": [loaded(host, served, names) for served in host.loaded()]})

    @routes.post("/api/show")
    async def show(request: Request) -> Response:
        fields = parse(ModelFields, await read_body(request, host.limits.body_bytes))
        with await leased(host, fields.wanted) as lease:
            return JSONResponse(shown(lease), headers={MANIFEST_HEADER: lease.fingerprint})

    @routes.post("/api/generate")
    async def generate(request: Request) -> Response:
        fields = parse(GenerateFields, await read_body(request, host.limits.body_bytes))
        prompt = _generate_prompt(fields) if fields.prompt else None
        return await _answer(host, request, fields, prompt_of=prompt, shape=_generated)

    @routes.post("/api/chat")
    async def chat(request: Request) -> Response:
        fields = parse(ChatFields, await read_body(request, host.limits.body_bytes))
        said = fields.conversation()

        def prompt(lease: Lease) -> ChatPrompt:
            return chat_prompt(lease.engine.tokenizer, said)

        return await _answer(host, request, fields, prompt_of=prompt if fields.messages else None, shape=_said)

    _refusals(routes)
    return routes


def _refusals(routes: APIRouter) -> None:
    """What the API has and this server has not, on purpose."""

    @routes.post("/api/embed")
    @routes.post("/api/embeddings")
    async def embed() -> Response:
        raise NotOfferedError(NO_EMBEDDINGS)

    for name in _WRITING:
        methods = ["DELETE"] if name == "delete" else ["POST"]
        routes.add_api_route(f"/api/{name}", _refusal(name), methods=methods)


def _refusal(name: str) -> Callable[[], Any]:
    async def refuse() -> Response:
        raise NotOfferedError(
            f"/api/{name} is not offered: models come into the archive with `keystone import` and `keystone adapter`"
        )

    return refuse


def _generate_prompt(fields: GenerateFields) -> Callable[[Lease], ChatPrompt]:
    def prompt(lease: Lease) -> ChatPrompt:
        tokenizer = lease.engine.tokenizer
        if fields.raw or (not tokenizer.chat_template and not fields.system):
            if fields.system and fields.raw:
                raise BadRequestError("system has no place in a raw prompt", parameter="system")
            return ChatPrompt(text_ids(tokenizer, fields.prompt))
        system = [Message("system", fields.system)] if fields.system else []
        return chat_prompt(tokenizer, Conversation([*system, Message("user", fields.prompt)]))

    return prompt


def _generated(text: str, _: Sequence[ToolCall]) -> Json:
    return {"response": text}


def _said(text: str, calls: Sequence[ToolCall]) -> Json:
    message: Json = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    return {"message": message}


async def _answer(
    host: Host,
    request: Request,
    fields: OllamaFields,
    *,
    prompt_of: Callable[[Lease], ChatPrompt] | None,
    shape: _Shape,
) -> Response:
    """Answer, or only load or unload where there is no prompt."""
    keep = None if fields.keep_alive is None else keep_seconds(fields.keep_alive)
    stream = AnswerStream(await leased(host, fields.model))
    try:
        engine = stream.lease.engine
        fields.check(engine.config.max_position_embeddings)
        if keep is not None:
            host.keep(stream.lease.served, keep)
        head = {"model": fields.model, "created_at": now(), "manifest": stream.lease.fingerprint}
        headers = {MANIFEST_HEADER: stream.lease.fingerprint}
        if prompt_of is None:
            stream.close()
            return JSONResponse(
                {**head, **shape("", ()), "done": True, "done_reason": "unload" if keep == 0 else "load"},
                headers=headers,
            )
        prompt = await asyncio.to_thread(prompt_of, stream.lease)
        limit = fields.options.most_tokens
        if fields.options.num_ctx is not None:
            room = fields.options.num_ctx - len(prompt.ids)
            if room < 1:
                raise BadRequestError(
                    f"the prompt has {len(prompt.ids)} tokens and num_ctx is {fields.options.num_ctx}"
                )
            limit = room if limit is None else min(limit, room)
        await submit_prompt(
            request,
            stream,
            prompt,
            sampling=fields.options.sampling(scores=fields.logprobs, alternatives=fields.top_logprobs),
            most_tokens=limit,
            form=fields.form(),
            stops=fields.options.stops,
        )
        if fields.stream:
            lines = _lines(stream, fields, head, shape)
            return EventResponse(lines, media_type="application/x-ndjson", headers=headers, close=stream.close)
        (choice,) = await while_connected(request, asyncio.create_task(stream.collect()))
        body = {
            **head,
            **shape(choice.text, choice.calls),
            **_scored(stream, fields, choice.scores),
            **_closing(stream, choice.reason, choice.tokens),
        }
        stream.close()
        return JSONResponse(body, headers=headers)
    except BaseException:
        stream.close()
        raise


async def _lines(stream: AnswerStream, fields: OllamaFields, head: Json, shape: _Shape) -> AsyncIterator[str]:
    try:
        async for bunch in stream.bunches():
            yield "".join(_line(stream, fields, {**head, "created_at": now()}, shape, event) for _, event in bunch)
    except ServeError as error:
        yield _ndjson(error_body(error))


def _line(stream: AnswerStream, fields: OllamaFields, head: Json, shape: _Shape, event: Piece | Finished) -> str:
    if isinstance(event, Finished):
        return _ndjson({**head, **shape("", ()), **_closing(stream, event.reason, event.tokens)})
    return _ndjson({**head, **shape(event.text, event.calls), **_scored(stream, fields, event.scores), "done": False})


def _scored(stream: AnswerStream, fields: OllamaFields, scores: Sequence[TokenScore]) -> Json:
    if not fields.logprobs:
        return {}
    tokenizer = stream.lease.engine.tokenizer

    def token(number: int, logprob: float) -> Json:
        text = decode(tokenizer, [number], special=True)
        known = {} if REPLACEMENT in text else {"bytes": list(text.encode())}
        return {"token": text, "logprob": max(logprob, -9999.0), **known}

    return {
        "logprobs": [
            {**token(each.token, each.logprob), "top_logprobs": [token(*other) for other in each.alternatives]}
            for each in scores
        ]
    }


def _closing(stream: AnswerStream, reason: str, tokens: int) -> Json:
    """The last line's counts and times, in nanoseconds."""
    (generation,) = stream.generations
    timing = generation.timing
    started = timing.submitted if timing.started is None else timing.started
    first = started if timing.first_token is None else timing.first_token
    finished = first if timing.finished is None else timing.finished
    load = stream.lease.load_seconds
    return {
        "done": True,
        "done_reason": "length" if reason == "length" else "stop",
        "total_duration": int((finished - timing.submitted + load) * _NANO),
        "load_duration": int(load * _NANO),
        "prompt_eval_count": len(generation.request.prompt),
        "prompt_eval_duration": int((first - started) * _NANO),
        "eval_count": tokens,
        "eval_duration": int((finished - first) * _NANO),
    }


_encode: Callable[[Json], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _ndjson(body: Json) -> str:
    return _encode(body) + "\n"
