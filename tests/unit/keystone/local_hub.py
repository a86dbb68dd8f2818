"""A model hub on this machine: the few routes that huggingface_hub asks for, over real HTTP."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Serves a directory as `org/tiny`, whose branch `main` is at `COMMIT`.

    Attributes:
        asked: every file that was fetched, in order.
        break_after: once, end a file's transfer after so many bytes.
        ranges: the ranges asked for.
    """

    def __init__(self, files: Path) -> None:
        self.files = files
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.break_after: int | None = None
        self.endpoint = ""

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.files).as_posix() for path in self.files.rglob("*") if path.is_file())


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub that its server carries."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    @property
    def hub(self) -> LocalHub:
        return self.server.hub  # type: ignore[attr-defined]

    def answer(self, *, body: bool) -> None:
        if found := re.fullmatch(r"/api/models/org/tiny(/revision/([^/?]+))?(\?.*)?", self.path):
            if found[2] not in {None, "main", COMMIT}:
                self.fail("RevisionNotFound")
                return
            siblings = [{"rfilename": name} for name in self.hub.names()]
            self.send(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode(), body=body)
        elif found := re.fullmatch(rf"/org/tiny/resolve/{COMMIT}/(.+)", self.path):
            if body:
                self.hub.asked.append(found[1])
            self.send((self.hub.files / found[1]).read_bytes(), body=body)
        else:
            self.fail("RepoNotFound")

    def fail(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data: bytes, *, body: bool) -> None:
        start, total = 0, len(data)
        tag = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            self.hub.ranges.append(found[0])
            start = int(found[1])
            data = data[start:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not body:
            return
        stop = self.hub.break_after
        if stop is not None and len(data) > stop:
            self.hub.break_after = None
            self.close_connection = True
            data = data[:stop]
        self.wfile.write(data)


@contextmanager
def serving(hub: LocalHub) -> Iterator[LocalHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
