"""What both APIs do with a request on its way to an engine."""

import asyncio

from fastapi import Request

from keystone.serve.host import Host, Lease
from keystone.serve.tools import Toolbox

MANIFEST_HEADER = "X-Keystone-Manifest"


def client_of(request: Request) -> str:
    """Who asks: the name of the token, else the address."""
    known = request.scope.get("keystone.client")
    return known if isinstance(known, str) else (request.client.host if request.client else "")


async def leased(host: Host, name: str) -> Lease:
    """A lease on a model; loading, where it is needed, does not hold up other requests."""
    found = host.lease_loaded(name)
    return await asyncio.to_thread(host.lease, name) if found is None else found


def marks_of(box: Toolbox | None) -> dict[int, str]:
    """The special tokens that an answer with these tools shows."""
    return {} if box is None else {token: text for text, token in box.marks.items()}
