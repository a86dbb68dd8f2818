"""The page's routes, and what protects the one that changes something.

Reading is `GET`. What acts is `POST`, and has to show that this very page sent it: an `Origin` that is this server's
own address, a JSON body, and a token that only a page of this origin can have read (there are no CORS headers). A form
or a script of another site has none of the three. Who may come at all is the guard's business, as for every other
route.

Rolling back is `Refs.rollback` and nothing else, so a protected ref goes back only to what was good, exactly as on the
command line; there is no route that sets or promotes a ref. A server whose page is read-only refuses it, and that is
what `keystone serve` starts: a token for asking a model is no right to move a ref.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from csf_store import Archive, CsfError, Digest
from keystone.serve.errors import BadRequestError, ServeError, UnknownPathError
from keystone.serve.fields import RequestFields, parse, read_body, refuse_unknown
from keystone.serve.page.audits import Audits
from keystone.serve.page.facts import Facts
from keystone.serve.page.lineage import lineage_graph
from keystone.serve.page.story import MOST_EVENTS, story
from manifests import JsonObject, ManifestError, Repository, is_ref_name

Rights = Literal["read-only", "operator"]
TOKEN_HEADER = "x-keystone-page"  # noqa: S105 - its name, not its value
_BODY = 8192
_DIGEST = re.compile(r"b3:[0-9a-f]{64}")
_ASSETS = {
    "/ui": ("page.html", "text/html; charset=utf-8"),
    "/ui/page.css": ("page.css", "text/css; charset=utf-8"),
    "/ui/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/ui/drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
}
OPEN_PATHS = frozenset(_ASSETS)
"""Paths that say nothing about the archive: a browser cannot send a bearer token with the page itself."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

T = TypeVar("T")


class PageRefusedError(ServeError):
    """The request did not come from this server's own page, or the page may only look."""

    exit_code = 10
    status = 403
    kind = "invalid_request_error"
    code = "page_refused"


class ArchiveSaysNoError(ServeError):
    """A rule of the archive forbids it: the ref stays where it is."""

    exit_code = 10
    status = 409
    kind = "invalid_request_error"
    code = "refused_by_a_rule"


@dataclass(frozen=True, slots=True)
class PageSettings:
    """What the page may do.

    Attributes:
        rights: `operator` may roll refs back; `read-only` only looks.
        memory: where audits remember what was proven, as `keystone audit` does; None: each audit starts from nothing.
    """

    rights: Rights = "read-only"
    memory: Path | None = None


class RollbackFields(RequestFields):
    """`POST /ui/rollback`: what the person saw and confirmed."""

    ref: str
    expected: str
    to: str
    reason: Annotated[str, Field(max_length=500)] = ""


class AuditFields(RequestFields):
    """`POST /ui/audit`."""

    target: str


def page_routes(archive: Archive, settings: PageSettings | None = None) -> APIRouter:
    """The page and the data behind it.

    Args:
        archive: open for as long as the routes are served.
        settings: what it may do; default: look, and audit without a memory.
    """
    routes = APIRouter()
    chosen = settings or PageSettings()
    _asset_routes(routes)
    _reading_routes(routes, archive, chosen, token := secrets.token_urlsafe(32))
    _acting_routes(routes, archive, chosen, token)
    return routes


def _asset_routes(routes: APIRouter) -> None:
    def serve(path: str) -> None:
        name, media_type = _ASSETS[path]
        content = (files("keystone.serve.page") / name).read_bytes()

        @routes.get(path)
        async def asset() -> Response:
            return Response(content, media_type=media_type, headers=_HEADERS)

    for path in _ASSETS:
        serve(path)


def _reading_routes(routes: APIRouter, archive: Archive, settings: PageSettings, token: str) -> None:
    facts = Facts(archive)
    state_now = once_per_event(archive, facts.state)
    graph_now = once_per_event(archive, lambda: lineage_graph(Repository(archive)))

    @routes.get("/ui/data/state")
    async def state(have: int = -1) -> Response:
        if have == archive.ledger.size:
            return Response(status_code=204, headers=_HEADERS)
        found = await _asked(state_now)
        return _json({**found, "rights": settings.rights, "token": token})

    @routes.get("/ui/data/manifest/{digest}")
    async def manifest(digest: str) -> Response:
        return _json(await _asked(lambda: facts.detail(_digest(digest))))

    @routes.get("/ui/data/lineage")
    async def lineage() -> Response:
        return _json(await _asked(graph_now))

    @routes.get("/ui/data/story")
    async def events(before: int | None = None, count: int = 40) -> Response:
        if not 1 <= count <= MOST_EVENTS:
            raise BadRequestError(f"count: 1 to {MOST_EVENTS}", parameter="count")
        return _json(await _asked(lambda: story(archive, before=before, count=count)))


def _acting_routes(routes: APIRouter, archive: Archive, settings: PageSettings, token: str) -> None:
    audits = Audits(archive, settings.memory)
    repository = Repository(archive)

    @routes.post("/ui/audit")
    async def audit(request: Request) -> Response:
        check_own_page(request, token)
        fields = parse(AuditFields, await read_body(request, _BODY))
        refuse_unknown(fields, neutral=(), defaults={})
        if not is_ref_name(fields.target):
            _digest(fields.target)
        return _json(audits.start(fields.target).to_json(), status=202)

    @routes.get("/ui/audit/{key}")
    async def audit_job(key: str) -> Response:
        job = audits.find(key)
        if job is None:
            raise UnknownPathError("there is no such audit any more; start another")
        return _json(job.to_json())

    @routes.post("/ui/rollback")
    async def rollback(request: Request) -> Response:
        check_own_page(request, token)
        if settings.rights != "operator":
            raise PageRefusedError(
                "this server's page is read-only; use `keystone rollback`, or start `keystone ui` without --read-only"
            )
        fields = parse(RollbackFields, await read_body(request, _BODY))
        refuse_unknown(fields, neutral=(), defaults={})
        event = await _asked(lambda: roll_back(repository, fields))
        return _json(event)


def once_per_event(archive: Archive, make: Callable[[], JsonObject]) -> Callable[[], JsonObject]:
    """The same answer until the ledger grows: what many open pages ask for is computed once, by one of them."""
    lock = threading.Lock()
    held: tuple[int, JsonObject] | None = None

    def answer() -> JsonObject:
        nonlocal held
        with lock:
            size = archive.ledger.size
            if held is None or held[0] != size:
                held = (size, make())
            return held[1]

    return answer


def roll_back(repository: Repository, fields: RollbackFields) -> JsonObject:
    """Move a ref back to what a person confirmed, if it still is where they saw it.

    Raises:
        BadRequestError: a name or digest that is none.
        ArchiveSaysNoError: the ref has moved meanwhile.
        manifests.ManifestError: what `Refs.rollback` raises; the ref stays.
    """
    if not is_ref_name(fields.ref):
        raise BadRequestError("ref: no such name", parameter="ref")
    expected, to = _digest(fields.expected), _digest(fields.to)
    now = repository.refs.get(fields.ref)
    if now != expected:
        raise ArchiveSaysNoError(f"{fields.ref} is at {now} by now; look again before you decide")
    event = repository.refs.rollback(fields.ref, to=to, reason=fields.reason.strip() or None)
    return {"ref": event.name, "seq": event.seq, "target": str(event.target), "previous": str(event.previous)}


def check_own_page(request: Request, token: str) -> None:
    """Refuse what this server's own page cannot have sent.

    Raises:
        PageRefusedError: naming what is missing.
    """
    headers = request.headers
    own = f"{request.url.scheme}://{headers.get('host', '')}"
    if headers.get("origin") != own or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise PageRefusedError("only this server's own page may do that: the request comes from another origin")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise PageRefusedError("only this server's own page may do that: it sends application/json")
    if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), token.encode()):
        raise PageRefusedError("the page is older than this server; reload it")


async def _asked(question: Callable[[], T]) -> T:
    """An answer from the archive, found in a thread; what the archive says no to becomes the client's to read."""
    try:
        return await asyncio.to_thread(question)
    except (CsfError, ManifestError) as error:
        raise ArchiveSaysNoError(str(error)) from error


def _digest(text: str) -> Digest:
    if not _DIGEST.fullmatch(text):
        raise BadRequestError("a digest is written b3: and 64 hex digits")
    return Digest.parse(text)


def _json(body: Mapping[str, object], *, status: int = 200) -> Response:
    return JSONResponse(dict(body), status, _HEADERS)
