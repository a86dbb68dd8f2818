"""OpenAI's API: `/v1/models`, `/v1/chat/completions`, `/v1/completions`; `/v1/responses` is in `responses`.

`max_tokens` is an upper limit as the API has it: an answer that meets the end of the model's context says "length".
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from keystone.serve.asking import MANIFEST_HEADER, client_of, leased, prepared, submit_prompt
from keystone.serve.chat import chat_prompt, text_ids
from keystone.serve.errors import NO_EMBEDDINGS, BadRequestError, NotOfferedError, ServeError
from keystone.serve.fields import parse, read_body
from keystone.serve.generation import Finished, GenerationRequest
from keystone.serve.host import Host, Lease, ModelName
from keystone.serve.openai_fields import ChatFields, CommonFields, CompletionFields
from keystone.serve.openai_shapes import ChatShape, Json, Shape, TextShape
from keystone.serve.streams import AnswerStream, EventResponse, while_connected


def error_body(error: ServeError) -> Json:
    """An error in OpenAI's shape."""
    return {"error": {"message": str(error), "type": error.kind, "param": error.parameter, "code": error.code}}


def openai_routes(host: Host) -> APIRouter:
    """The routes, on the models of a host."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(each) for each in host.names()]})

    @routes.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        with await leased(host, name) as lease:
            served = lease.served
            line = ModelName(name, served.digest, served.manifest, 0, loaded=True)
            return JSONResponse(_model(line), headers={MANIFEST_HEADER: lease.fingerprint})

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        fields = parse(ChatFields, await read_body(request, host.limits.body_bytes))
        fields.check()
        conversation = fields.conversation()
        stream = AnswerStream(await leased(host, fields.model))
        try:
            tokenizer = stream.lease.engine.tokenizer
            prompt = await prepared(conversation.size, lambda: chat_prompt(tokenizer, conversation))
            await submit_prompt(
                request,
                stream,
                prompt,
                sampling=_sampling(stream, fields, scores=fields.logprobs, alternatives=fields.top_logprobs),
                most_tokens=fields.most_tokens,
                form=fields.form(),
                stops=fields.stops,
                choices=fields.n,
            )
            return await _respond(request, stream, fields, ChatShape(stream, fields))
        except BaseException:
            stream.close()
            raise

    @routes.post("/v1/completions")
    async def complete(request: Request) -> Response:
        fields = parse(CompletionFields, await read_body(request, host.limits.body_bytes))
        fields.check()
        prompts = fields.prompts()
        if len(prompts) * fields.n > host.limits.choices:
            raise BadRequestError(
                f"{len(prompts)} prompts with n = {fields.n}; this server allows {host.limits.choices} answers",
                parameter="n",
            )
        stream = AnswerStream(await leased(host, fields.model))
        try:
            size = sum(map(len, prompts))
            ids = await prepared(size, lambda: [_prompt_ids(stream.lease, prompt) for prompt in prompts])
            sampling = _sampling(stream, fields, scores=fields.logprobs is not None, alternatives=fields.logprobs or 0)
            for each in ids:
                stream.submit(
                    GenerationRequest(
                        each,
                        fields.max_tokens,
                        fields.stops,
                        sampling,
                        fields.n,
                        stream.lease.served.variant,
                        client_of(request),
                    )
                )
            return await _respond(request, stream, fields, TextShape(stream, fields, prompts))
        except BaseException:
            stream.close()
            raise

    @routes.post("/v1/embeddings")
    async def embed() -> Response:
        raise NotOfferedError(NO_EMBEDDINGS)

    return routes


def _model(line: ModelName) -> Json:
    parent = line.manifest.parent
    return {
        "id": line.name,
        "object": "model",
        "created": line.created,
        "owned_by": "keystone",
        "root": str(line.manifest.assembly.base),
        "parent": None if parent is None else str(parent),
        "manifest": str(line.digest),
        "loaded": line.loaded,
    }


def _sampling(stream: AnswerStream, fields: CommonFields, *, scores: bool, alternatives: int) -> Any:
    vocabulary = stream.lease.engine.config.vocab_size
    return fields.sampling(vocabulary=vocabulary, scores=scores, alternatives=alternatives)


def _prompt_ids(lease: Lease, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return text_ids(lease.engine.tokenizer, prompt)
    vocabulary = lease.engine.config.vocab_size
    wrong = [token for token in prompt if not 0 <= token < vocabulary]
    if wrong:
        raise BadRequestError(f"prompt: {wrong[0]} is no token of this model", parameter="prompt")
    return tuple(prompt)


async def _respond(request: Request, stream: AnswerStream, fields: CommonFields, shape: Shape) -> Response:
    headers = {MANIFEST_HEADER: stream.lease.fingerprint}
    if fields.stream:
        lines = _sse(stream, shape, fields)
        return EventResponse(lines, media_type="text/event-stream", headers=headers, close=stream.close)
    choices = await while_connected(request, asyncio.create_task(stream.collect()))
    stream.close()
    body = {
        **shape.head,
        "object": shape.kind,
        "choices": [shape.whole(number, choice) for number, choice in enumerate(choices)],
        "usage": shape.usage(sum(choice.tokens for choice in choices)),
    }
    return JSONResponse(body, headers=headers)


async def _sse(stream: AnswerStream, shape: Shape, fields: CommonFields) -> AsyncIterator[str]:
    kind = "chat.completion.chunk" if shape.kind == "chat.completion" else shape.kind
    # All lines of a stream begin alike, and one is written for every token.
    before = f'data: {_encode({**shape.head, "object": kind})[:-1]},"choices":['
    usage = ',"usage":null' if fields.includes_usage else ""
    after = f"]{usage}}}\n\n"
    tokens = 0
    try:
        openings = [shape.opening(number) for number in range(len(stream))]
        first = "".join(f"{before}{_encode(each)}{after}" for each in openings if each is not None)
        if first:
            yield first
        async for bunch in stream.bunches():
            lines = []
            for number, event in bunch:
                if isinstance(event, Finished):
                    tokens += event.tokens
                    lines.append(shape.ending(number, event.reason))
                else:
                    lines.append(shape.piece(number, event))
            yield "".join(f"{before}{_encode(line)}{after}" for line in lines)
    except ServeError as error:
        yield _data(error_body(error))
        return
    if fields.includes_usage:
        yield _data({**shape.head, "object": kind, "choices": [], "usage": shape.usage(tokens)})
    yield "data: [DONE]\n\n"


_encode: Callable[[Json], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _data(body: Json) -> str:
    return f"data: {_encode(body)}\n\n"
