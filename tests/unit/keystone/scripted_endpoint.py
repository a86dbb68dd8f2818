"""An endpoint of another engine, played by a function: over a real socket, or without one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from keystone.endpoints import ClientLimits, EndpointClient, EndpointModel, parse_address

Reply = tuple[int, Mapping[str, str], bytes]
Script = Callable[[str, dict[str, object]], Reply]


def answered(fields: object, status: int = 200, **headers: str) -> Reply:
    return status, headers, json.dumps(fields).encode()


def completing(rule: Callable[[str], str]) -> Script:
    """OpenAI's `/v1/completions` with one model that answers by a rule from the prompt."""

    def script(path: str, body: dict[str, object]) -> Reply:
        if path == "/v1/models":
            return answered({"data": [{"id": "rival"}]})
        if path == "/v1/completions":
            return answered({"choices": [{"text": rule(str(body["prompt"]))}]})
        return answered({"error": "no such page"}, 404)

    return script


async def no_pause(_: float) -> None:
    """Tests do not wait."""


def scripted_client(script: Script, *, url: str = "http://engine.example", **limits: float) -> EndpointClient:
    async def handle(request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        status, headers, body = script(request.url.path, json.loads(content) if content else {})
        return httpx.Response(status, headers=dict(headers), stream=httpx.ByteStream(body))

    return EndpointClient(
        parse_address(url, model="rival"),
        limits=ClientLimits(**limits),  # type: ignore[arg-type]
        transport=httpx.MockTransport(handle),
        pause=no_pause,
    )


def scripted_model(script: Script, **options: float) -> EndpointModel:
    return EndpointModel(scripted_client(script, **options))


@contextmanager
def endpoint(script: Script) -> Iterator[str]:
    """The same behind a real port; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            content = self.rfile.read(length)
            status, headers, body = script(self.path, json.loads(content) if content else {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815 - the names that the standard library looks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
