"""`POST /council`: a deliberation over HTTP, with the server's own models and the registry's external ones.

A request names members and never addresses: whoever may ask a model must not make this machine call any URL they like.
The tests run in the sandbox, as everywhere. One deliberation runs at a time, within the server's limit of time; the
next one is told to come back. The body has to be declared as JSON, which a page of another origin cannot do unasked.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from csf_store import CsfError
from keystone.council.deliberating import Plan, deliberate
from keystone.council.members import UNKNOWN_LICENCE, EndpointMember, Member, Reply, style_of
from keystone.council.outcome import Outcome, program_text
from keystone.council.tasks import CouncilTask, council_task
from keystone.endpoints import ClientLimits, EndpointClient, EndpointModel, Question, parse_address, token_for
from keystone.endpoints.address import is_address
from keystone.errors import InvalidInputError, RefusedError
from keystone.evaluation import Sandbox
from keystone.registry import ModelRegistry
from keystone.registry.standing import LOCAL
from keystone.serve.asking import client_of
from keystone.serve.chat import ChatPrompt, Conversation, Message, chat_prompt, text_ids
from keystone.serve.errors import BadRequestError, BusyError, ModelFailedError, TimeLimitError
from keystone.serve.fields import RequestFields, parse, read_body, refuse_unknown
from keystone.serve.generation import Event, Failed, Finished, GenerationRequest, Piece
from keystone.serve.host import Host, Lease
from keystone.serve.sampling import Sampling
from manifests import ManifestError, Repository, Seat

MOST_MEMBERS = 8
MOST_SAMPLES = 8
_TRIES = 2  # a council does not wait for those who are not there


class CouncilFields(RequestFields):
    """`POST /council`."""

    task: Annotated[str, Field(min_length=1)]
    tests: Annotated[str, Field(min_length=1)]
    members: Annotated[list[str], Field(min_length=1, max_length=MOST_MEMBERS)]
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 1
    mode: Literal["first", "best"] = "first"
    budget: Annotated[float, Field(gt=0, le=86400)] = 60.0
    function: str | None = None
    search: Annotated[int, Field(ge=0, le=20)] = 0
    max_tokens: Annotated[int, Field(ge=1, le=32768)] = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0


@dataclass(frozen=True)
class HostMember:
    """A model of this server, which goes on serving others meanwhile."""

    name: str
    lease: Lease
    client: str

    @property
    def seat(self) -> Seat:
        """What the lease is on."""
        served = self.lease.served
        assembly, recipe = served.manifest.assembly.digest, served.base.recipe.digest
        return Seat(id=self.name, manifest=served.digest, assembly=assembly, recipe=recipe)

    @property
    def licence(self) -> str:
        """That of its base."""
        source = self.lease.served.manifest.source
        return source.licence if source is not None else UNKNOWN_LICENCE

    def propose(self, question: Question, *, seconds: float) -> Reply:
        """One answer from the engine's batch; cancelled when the time is over."""
        engine = self.lease.engine
        style = style_of("auto", engine.tokenizer)
        if style == "chat":
            prompt = chat_prompt(engine.tokenizer, Conversation([Message("user", question.request)]))
        else:
            prompt = ChatPrompt(text_ids(engine.tokenizer, question.prompt))
        events: queue.Queue[Event] = queue.Queue()
        sampling = Sampling(temperature=question.temperature, top_p=question.top_p, seed=question.seed)
        request = GenerationRequest(
            prompt.ids,
            question.max_tokens,
            prompt.stops,
            sampling,
            variant=self.lease.served.variant,
            client=self.client,
        )
        generation = engine.submit(request, events.put)
        try:
            return Reply(_text(events, time.monotonic() + seconds), style)
        finally:
            generation.cancel()


def council_routes(host: Host, sandbox: Sandbox) -> APIRouter:
    """The route, on the models of a host; `sandbox` stays the caller's."""
    routes = APIRouter()
    busy = asyncio.Lock()

    @routes.post("/council")
    async def council(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise BadRequestError("content-type: a council takes application/json")
        fields = parse(CouncilFields, await read_body(request, host.limits.body_bytes))
        refuse_unknown(fields, neutral=("metadata", "user"), defaults={})
        if busy.locked():
            raise BusyError("a council is sitting already; try again later", retry_after=10)
        async with busy:
            return JSONResponse(await asyncio.to_thread(_deliberate, host, sandbox, fields, client_of(request)))

    return routes


def _deliberate(host: Host, sandbox: Sandbox, fields: CouncilFields, client: str) -> dict[str, object]:
    try:
        task = council_task(fields.task, fields.tests, function=fields.function)
    except InvalidInputError as error:
        raise BadRequestError(str(error), parameter="tests") from error
    budget = min(fields.budget, host.limits.seconds)
    plan = Plan(
        fields.samples, fields.mode, budget, fields.search, fields.max_tokens, fields.temperature, seed=fields.seed
    )
    repository = Repository(host.archive)
    with contextlib.ExitStack() as stack:
        members = _members(host, repository, fields.members, stack, client=client, budget=budget)
        try:
            outcome = deliberate(repository, task, members, sandbox=sandbox, plan=plan)
        except RefusedError as error:
            raise BadRequestError(str(error), parameter="tests") from error
    return _body(task, outcome)


def _members(
    host: Host, repository: Repository, names: list[str], stack: contextlib.ExitStack, *, client: str, budget: float
) -> list[Member]:
    if len(set(names)) != len(names):
        raise BadRequestError("members: one of them is named twice", parameter="members")
    try:
        known = {entry.id: entry for entry in ModelRegistry(repository).load().models}
    except (CsfError, ManifestError) as error:
        raise ModelFailedError(f"the registry cannot be read: {error}") from error
    members: list[Member] = []
    for name in names:
        entry = known.get(name)
        if entry is not None and not entry.is_local:
            address = parse_address(f"{entry.endpoint}#{entry.model}")
            remote = EndpointClient(
                address, limits=ClientLimits(seconds=budget, tries=_TRIES), token=token_for(address)
            )
            members.append(EndpointMember(name, EndpointModel(remote, style="chat")))
        elif entry is None and is_address(name):
            raise BadRequestError(
                "members: an address is not taken from a request; register it with `keystone models add`",
                parameter="members",
            )
        else:
            target = name if entry is None else entry.endpoint.removeprefix(LOCAL)
            members.append(HostMember(name, stack.enter_context(host.lease(target)), client))
    return members


def _text(events: queue.Queue[Event], end: float) -> str:
    parts: list[str] = []
    while True:
        try:
            event = events.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise TimeLimitError("the budget of this council is spent") from None
        match event:
            case Piece(text=text):
                parts.append(text)
            case Finished():
                return "".join(parts)
            case Failed(error=error):
                raise error


def _body(task: CouncilTask, outcome: Outcome) -> dict[str, object]:
    found, winner = outcome.deliberation, outcome.winner
    return {
        "verified": outcome.verified,
        "agreement": found.agreement,
        "winner": None if winner is None else found.members[winner.member].id,
        "program": None if winner is None else program_text(task, winner),
        "members": [member.to_json() for member in found.members],
        "proposals": [
            {
                "member": found.members[each.member].id,
                "sample": each.sample,
                "verdict": each.verdict,
                "detail": each.detail,
            }
            for each in found.proposals
        ],
        "cited": [str(digest) for digest in found.cited],
        "record": str(found.record),
        "deliberation": str(outcome.digest),
    }
