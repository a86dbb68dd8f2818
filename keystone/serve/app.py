"""The application: both APIs, what an operator looks at, and the guard at the door.

The guard runs before anything reads a body. With tokens, every request but `/health` needs one. Without, the server is
for this machine only: a request under another host name (a page in a browser, whose name was made to point here) is
refused. There are no CORS headers, so no page of another origin can read an answer.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keystone.serve import ollama, openai
from keystone.serve.asking import MANIFEST_HEADER, leased
from keystone.serve.chat import text_ids
from keystone.serve.errors import (
    BadRequestError,
    BusyError,
    ForbiddenHostError,
    ModelFailedError,
    ServeError,
    UnauthorizedError,
    UnknownPathError,
    WrongMethodError,
)
from keystone.serve.fields import RequestFields, parse, read_body, refuse_unknown
from keystone.serve.host import Host
from keystone.serve.metrics import Metrics
from keystone.serve.page import OPEN_PATHS, PageSettings, page_routes
from keystone.serve.responses import response_routes
from keystone.serve.text import decode
from keystone.serve.tokens import BearerTokens

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
CLIENT_GONE = 499


class TokenizeFields(RequestFields):
    """`POST /tokenize`."""

    model: str
    prompt: Annotated[str, Field(min_length=1)]


class LoadFields(RequestFields):
    """`POST /keystone/load` and `/keystone/unload`."""

    model: str


class Guard:
    """Decides who may come in, and counts who did.

    Args:
        app: what is behind the door.
        tokens: the known ones; None for a server that only this machine may ask.
        metrics: where responses are counted.
    """

    def __init__(self, app: ASGIApp, tokens: BearerTokens | None, metrics: Metrics) -> None:
        self._app = app
        self._tokens = tokens
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), CLIENT_GONE

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, counted)
                return
            await self._app(scope, receive, counted)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # never the client's own words
            self._metrics.answered(path, status, time.monotonic() - started)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if self._tokens is not None:
                if scope["path"] != "/health" and scope["path"] not in OPEN_PATHS:
                    scope["keystone.client"] = self._tokens.holder(headers.get(b"authorization", ""))
            elif _host_name(headers.get(b"host", "")) not in LOOPBACK_NAMES:
                raise ForbiddenHostError(
                    "without tokens this server answers only to localhost; see `keystone serve --help`"
                )
        except ServeError as error:
            return error_response(scope["path"], error)
        return None


def _host_name(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def error_response(path: str, error: ServeError) -> Response:
    """An error in the shape of the API whose path was asked for."""
    body = ollama.error_body(error) if path.startswith("/api/") else openai.error_body(error)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else {}
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, error.status, headers)


def make_app(
    host: Host,
    *,
    tokens: BearerTokens | None = None,
    drain_seconds: float = 30.0,
    page: PageSettings | None = None,
    council: APIRouter | None = None,
) -> FastAPI:
    """The application on the models of a host, which is closed when the server stops.

    Args:
        host: started.
        tokens: who may ask; None for a server that only this machine may ask.
        drain_seconds: how long what runs may take to finish when the server stops.
        page: what the operator's page may do; default: look.
        council: its route, where councils may be asked for.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(lambda: host.close(seconds=drain_seconds))

    app = FastAPI(
        title="Keystone", version=version("keystone-sigma0"), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.include_router(openai.openai_routes(host))
    app.include_router(response_routes(host))
    app.include_router(ollama.ollama_routes(host))
    app.include_router(page_routes(host.archive, page))
    if council is not None:
        app.include_router(council)
    _operator_routes(app, host, metrics)
    _error_handlers(app)
    app.add_middleware(Guard, tokens=tokens, metrics=metrics)
    return app


def _operator_routes(app: FastAPI, host: Host, metrics: Metrics) -> None:
    @app.api_route("/", methods=["GET", "HEAD"])
    async def root() -> Response:
        return PlainTextResponse("keystone is running\n")

    @app.get("/health")
    async def health() -> Response:
        problems = host.problems()
        models = [{"manifest": str(served.digest), "leases": served.leases} for served in host.loaded()]
        return JSONResponse({"status": "degraded" if problems else "ok", "problems": list(problems), "models": models})

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return PlainTextResponse(metrics.text(host), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        fields = parse(TokenizeFields, await read_body(request, host.limits.body_bytes))
        refuse_unknown(fields, neutral=(), defaults={})
        with await leased(host, fields.model) as lease:
            tokenizer = lease.engine.tokenizer
            ids = await asyncio.to_thread(text_ids, tokenizer, fields.prompt)
            body = {
                "tokens": list(ids),
                "texts": [decode(tokenizer, [token], special=True) for token in ids],
                "count": len(ids),
                "max_model_len": lease.engine.config.max_position_embeddings,
            }
            return JSONResponse(body, headers={MANIFEST_HEADER: lease.fingerprint})

    @app.post("/keystone/load")
    async def load(request: Request) -> Response:
        fields = parse(LoadFields, await read_body(request, host.limits.body_bytes))
        with await leased(host, fields.model) as lease:
            body = {"model": fields.model, "manifest": lease.fingerprint, "seconds": round(lease.load_seconds, 3)}
            return JSONResponse(body, headers={MANIFEST_HEADER: lease.fingerprint})

    @app.post("/keystone/unload")
    async def unload(request: Request) -> Response:
        fields = parse(LoadFields, await read_body(request, host.limits.body_bytes))
        return JSONResponse({"model": fields.model, "unloaded": await asyncio.to_thread(host.unload, fields.model)})

    @app.get("/keystone/attest")
    async def attest(model: str = "", nonce: str = "") -> Response:
        _check_nonce(nonce)
        with await leased(host, model) as lease:
            statement = await asyncio.to_thread(host.attest, lease.served, nonce)
            headers = {MANIFEST_HEADER: lease.fingerprint}
            return Response(statement.to_bytes(), media_type="application/json", headers=headers)

    @app.get("/keystone/attest/tensors")
    async def attest_tensors(model: str = "", nonce: str = "") -> Response:
        _check_nonce(nonce)
        with await leased(host, model) as lease:
            found = await asyncio.to_thread(host.attest_each, lease.served, nonce)
            body = {"nonce": nonce, "tensors": {name: str(digest) for name, digest in found.items()}}
            return JSONResponse(body, headers={MANIFEST_HEADER: lease.fingerprint})


def _check_nonce(nonce: str) -> None:
    if re.fullmatch("[0-9a-f]{64}", nonce) is None:
        raise BadRequestError("nonce: give 32 fresh random bytes as 64 hex digits", parameter="nonce")


def _error_handlers(app: FastAPI) -> None:
    def handles(kind: type[Exception], known: Callable[[Any], ServeError]) -> None:
        async def handle(request: Request, error: Exception) -> Response:
            return error_response(request.url.path, known(error))

        app.add_exception_handler(kind, handle)

    handles(ServeError, lambda error: error)
    handles(HTTPException, _of_http)
    handles(Exception, lambda error: ModelFailedError(f"an internal error: {type(error).__name__}"))

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ClientDisconnect, gone)


def _of_http(error: HTTPException) -> ServeError:
    if error.status_code == 404:
        return UnknownPathError(
            "there is no such endpoint; this server has /v1 (OpenAI), /api (Ollama), /health, /metrics"
        )
    if error.status_code == 405:
        return WrongMethodError("this endpoint takes another HTTP method")
    return BadRequestError(str(error.detail))
