"""From an application to a listening server, and back: bind, announce, serve, drain."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from keystone.errors import RefusedError, StorageError

BACKLOG = 512
# How long a thread may keep the interpreter while another waits for it. Python's 5 ms are as long as a small model's
# step, and the engine's thread would wait that long whenever it comes back from torch while a response is written.
SWITCH_SECONDS = 0.0005


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        StorageError: the system says no, mostly because the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise StorageError(f"cannot listen on {host} port {port}: {error}; choose another with --port") from error


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    return host in ("localhost", "::1") or host.startswith("127.")


def check_exposure(host: str, tokens: int) -> None:
    """Refuse to serve other machines without tokens.

    Raises:
        RefusedError: that is what was asked for.
    """
    if not is_loopback(host) and not tokens:
        raise RefusedError(
            f"{host} can be reached from other machines, and there is no token yet; make one with --new-token NAME"
        )


def url_of(listening: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_for(app: ASGIApp, *, drain_seconds: float) -> uvicorn.Server:
    """A server that stops taking connections on SIGTERM or SIGINT and lets requests in flight finish."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, int(drain_seconds)),
            lifespan="on",
        )
    )


def serve(app: ASGIApp, listening: socket.socket, *, drain_seconds: float, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes."""
    ready(url_of(listening))
    sys.setswitchinterval(SWITCH_SECONDS)
    server_for(app, drain_seconds=drain_seconds).run(sockets=[listening])


@contextmanager
def background(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, drain_seconds: float = 5.0) -> Iterator[str]:
    """A server in a thread of its own, for as long as the block lasts; yields its URL."""
    listening = listen(host, port)
    server = server_for(app, drain_seconds=drain_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="keystone-http", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield url_of(listening)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
