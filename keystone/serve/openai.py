"""OpenAI's API: `/v1/models`, `/v1/chat/completions`, `/v1/completions`.

`max_tokens` is an upper limit as the API has it: an answer that meets the end of the model's context says "length".
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from keystone.serve.chat import chat_prompt, text_ids
from keystone.serve.errors import BadRequestError, ServeError
from keystone.serve.fields import parse, read_body
from keystone.serve.generation import Finished, GenerationRequest
from keystone.serve.grammar import Grammar
from keystone.serve.host import Host, Lease, ModelName
from keystone.serve.openai_fields import ChatFields, CommonFields, CompletionFields
from keystone.serve.sampling import TokenScore
from keystone.serve.streams import AnswerStream, Choice, EventResponse, while_connected
from keystone.serve.text import REPLACEMENT, Decoder, decode

MANIFEST_HEADER = "X-Keystone-Manifest"
Json = dict[str, Any]


def error_body(error: ServeError) -> Json:
    """An error in OpenAI's shape."""
    return {"error": {"message": str(error), "type": error.kind, "param": error.parameter, "code": error.code}}


def client_of(request: Request) -> str:
    """Who asks: the name of the token, else the address."""
    known = request.scope.get("keystone.client")
    return known if isinstance(known, str) else (request.client.host if request.client else "")


async def leased(host: Host, name: str) -> Lease:
    """A lease on a model; loading, where it is needed, does not hold up other requests."""
    found = host.lease_loaded(name)
    return await asyncio.to_thread(host.lease, name) if found is None else found


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
        messages = [message.plain(number) for number, message in enumerate(fields.messages)]
        stream = AnswerStream(await leased(host, fields.model))
        try:
            tokenizer = stream.lease.engine.tokenizer
            prompt = await asyncio.to_thread(chat_prompt, tokenizer, messages)
            made = GenerationRequest(
                prompt.ids,
                fields.most_tokens,
                (*fields.stops, *prompt.stops),
                _sampling(stream, fields, scores=fields.logprobs, alternatives=fields.top_logprobs),
                fields.n,
                stream.lease.served.variant,
                client_of(request),
                grammar=await asyncio.to_thread(_grammar, stream.lease, fields),
            )
            stream.submit(made)
            return await _respond(request, stream, fields, _ChatShape(stream, fields))
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
            ids = [await asyncio.to_thread(_prompt_ids, stream.lease, prompt) for prompt in prompts]
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
            return await _respond(request, stream, fields, _TextShape(stream, fields, prompts))
        except BaseException:
            stream.close()
            raise

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


def _grammar(lease: Lease, fields: ChatFields) -> Grammar | None:
    return None if fields.response_format is None else fields.response_format.grammar(lease.engine.grammars)


def _prompt_ids(lease: Lease, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return text_ids(lease.engine.tokenizer, prompt)
    vocabulary = lease.engine.config.vocab_size
    wrong = [token for token in prompt if not 0 <= token < vocabulary]
    if wrong:
        raise BadRequestError(f"prompt: {wrong[0]} is no token of this model", parameter="prompt")
    return tuple(prompt)


class _Shape:
    """How one kind of completion is written down; the two differ in names and nesting."""

    def __init__(self, stream: AnswerStream, fields: CommonFields, kind: str, prefix: str) -> None:
        self.stream = stream
        self.fields = fields
        self.kind = kind
        self.tokenizer: Decoder = stream.lease.engine.tokenizer
        self.head: Json = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": fields.model,
            "system_fingerprint": stream.lease.fingerprint,
        }

    def whole(self, number: int, choice: Choice) -> Json:
        raise NotImplementedError

    def opening(self, number: int) -> Json | None:
        raise NotImplementedError

    def piece(self, number: int, text: str, scores: Sequence[TokenScore]) -> Json:
        raise NotImplementedError

    def ending(self, number: int, reason: str) -> Json:
        raise NotImplementedError

    def usage(self, completion_tokens: int) -> Json:
        prompt = self.stream.prompt_tokens
        reused = sum(generation.timing.reused for generation in self.stream.generations)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": reused},
        }


class _ChatShape(_Shape):
    def __init__(self, stream: AnswerStream, fields: ChatFields) -> None:
        super().__init__(stream, fields, "chat.completion", "chatcmpl")
        self._scored = fields.logprobs

    def whole(self, number: int, choice: Choice) -> Json:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        scores = self._scores(choice.scores)
        return {"index": number, "message": message, "logprobs": scores, "finish_reason": choice.reason}

    def opening(self, number: int) -> Json | None:
        return self._delta(number, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def piece(self, number: int, text: str, scores: Sequence[TokenScore]) -> Json:
        return self._delta(number, {"content": text}, self._scores(scores), None)

    def ending(self, number: int, reason: str) -> Json:
        return self._delta(number, {}, None, reason)

    @staticmethod
    def _delta(number: int, delta: Json, scores: Json | None, reason: str | None) -> Json:
        return {"index": number, "delta": delta, "logprobs": scores, "finish_reason": reason}

    def _scores(self, scores: Sequence[TokenScore]) -> Json | None:
        if not self._scored:
            return None
        content = []
        for each in scores:
            line = self._token(each.token, each.logprob)
            line["top_logprobs"] = [self._token(token, logprob) for token, logprob in each.alternatives]
            content.append(line)
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> Json:
        text = decode(self.tokenizer, [token], special=True)
        # A token that is part of a character has no text of its own, and its bytes are not known here.
        return {
            "token": text,
            "logprob": max(logprob, -9999.0),
            "bytes": None if REPLACEMENT in text else list(text.encode()),
        }


class _TextShape(_Shape):
    def __init__(self, stream: AnswerStream, fields: CompletionFields, prompts: Sequence[str | list[int]]) -> None:
        super().__init__(stream, fields, "text_completion", "cmpl")
        self._scored = fields.logprobs is not None
        self._echo = fields.echo
        self._prompts = prompts
        self._choices = fields.n
        self._written: dict[int, int] = {}

    def whole(self, number: int, choice: Choice) -> Json:
        line = self.piece(number, choice.text, choice.scores)
        line["text"] = self._before(number) + choice.text
        line["finish_reason"] = choice.reason
        return line

    def opening(self, number: int) -> Json | None:
        return self.piece(number, self._before(number), ()) if self._echo else None

    def piece(self, number: int, text: str, scores: Sequence[TokenScore]) -> Json:
        return {"index": number, "text": text, "logprobs": self._scores(number, scores), "finish_reason": None}

    def ending(self, number: int, reason: str) -> Json:
        return {"index": number, "text": "", "logprobs": None, "finish_reason": reason}

    def _before(self, number: int) -> str:
        if not self._echo:
            return ""
        prompt = self._prompts[number // self._choices]
        return prompt if isinstance(prompt, str) else decode(self.tokenizer, prompt)

    def _scores(self, number: int, scores: Sequence[TokenScore]) -> Json | None:
        if not self._scored:
            return None
        texts = [decode(self.tokenizer, [each.token], special=True) for each in scores]
        offsets = []
        for text in texts:
            offsets.append(self._written.get(number, 0))
            self._written[number] = offsets[-1] + len(text)
        tops = [
            {decode(self.tokenizer, [token], special=True): logprob for token, logprob in each.alternatives}
            for each in scores
        ]
        return {
            "tokens": texts,
            "token_logprobs": [max(each.logprob, -9999.0) for each in scores],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


async def _respond(request: Request, stream: AnswerStream, fields: CommonFields, shape: _Shape) -> Response:
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


async def _sse(stream: AnswerStream, shape: _Shape, fields: CommonFields) -> AsyncIterator[str]:
    kind = "chat.completion.chunk" if shape.kind == "chat.completion" else shape.kind
    usage_slot: Json = {"usage": None} if fields.includes_usage else {}

    def line(*choices: Json, **more: Any) -> str:
        return _data({**shape.head, "object": kind, "choices": list(choices), **usage_slot, **more})

    tokens = 0
    try:
        for number in range(len(stream)):
            if (opening := shape.opening(number)) is not None:
                yield line(opening)
        async for number, event in stream.events():
            if isinstance(event, Finished):
                tokens += event.tokens
                yield line(shape.ending(number, event.reason))
            else:
                yield line(shape.piece(number, event.text, event.scores))
    except ServeError as error:
        yield _data(error_body(error))
        return
    if fields.includes_usage:
        yield line(usage=shape.usage(tokens))
    yield "data: [DONE]\n\n"


_encode: Callable[[Json], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _data(body: Json) -> str:
    return f"data: {_encode(body)}\n\n"
