"""OpenAI's Responses API: `POST /v1/responses`, without memory.

Some clients speak nothing else unless told. What they send is a conversation like any other, and what they get are the
same answers under other names.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from keystone.serve.asking import MANIFEST_HEADER, leased, prepared, submit_prompt
from keystone.serve.chat import chat_prompt
from keystone.serve.errors import NotOfferedError, ServeError
from keystone.serve.fields import parse, read_body
from keystone.serve.host import Host
from keystone.serve.openai_shapes import Json
from keystone.serve.response_writer import ResponseWriter
from keystone.serve.responses_fields import ResponseFields
from keystone.serve.streams import AnswerStream, EventResponse, while_connected


def response_routes(host: Host) -> APIRouter:
    """The routes, on the models of a host."""
    routes = APIRouter()

    @routes.post("/v1/responses")
    async def respond(request: Request) -> Response:
        fields = parse(ResponseFields, await read_body(request, host.limits.body_bytes))
        fields.check()
        conversation, form = fields.conversation(), fields.text.form()
        stream = AnswerStream(await leased(host, fields.model))
        try:
            tokenizer = stream.lease.engine.tokenizer
            prompt = await prepared(conversation.size, lambda: chat_prompt(tokenizer, conversation))
            await submit_prompt(
                request, stream, prompt, sampling=fields.sampling(), most_tokens=fields.max_output_tokens, form=form
            )
            writer = ResponseWriter(stream, fields, conversation)
            headers = {MANIFEST_HEADER: stream.lease.fingerprint}
            if fields.stream:
                events = _sse(stream, writer)
                return EventResponse(events, media_type="text/event-stream", headers=headers, close=stream.close)
            body = await while_connected(request, asyncio.create_task(_whole(stream, writer)))
            stream.close()
            return JSONResponse(body, headers=headers)
        except BaseException:
            stream.close()
            raise

    async def absent() -> Response:
        raise NotOfferedError("nothing is kept between requests here, so no response can be asked for again")

    routes.add_api_route("/v1/responses/{name:path}", absent, methods=["GET", "POST", "DELETE"])
    return routes


async def _whole(stream: AnswerStream, writer: ResponseWriter) -> Json:
    last: Json = {}
    async for bunch in stream.bunches():
        for _, event in bunch:
            last = next(reversed(writer.take(event)), last)
    body: Json = last["response"]
    return body


async def _sse(stream: AnswerStream, writer: ResponseWriter) -> AsyncIterator[str]:
    yield _lines(writer.opening())
    try:
        async for bunch in stream.bunches():
            yield _lines([made for _, event in bunch for made in writer.take(event)])
    except ServeError as error:
        yield _lines(writer.failed(error))


_encode: Callable[[Json], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _lines(events: list[Json]) -> str:
    return "".join(f"event: {event['type']}\ndata: {_encode(event)}\n\n" for event in events)
