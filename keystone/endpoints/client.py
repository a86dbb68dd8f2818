"""One bounded HTTP exchange with a server that may be slow, wrong or hostile.

Every exchange has a deadline for the whole of it, a bound on the bytes that are read, and ends in a JSON object or an
error that names the endpoint. Redirects are not followed and no compressed answer is unpacked: both would let a server
spend what is not its own. What may pass by itself, a full queue or a server that restarts, is tried again, with pauses
that double.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httpx

from keystone.endpoints.address import Address
from keystone.errors import EndpointError, EndpointRefusedError

Pause = Callable[[float], Awaitable[None]]
Fields = Mapping[str, object]

_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHOWN: Final = 200


@dataclass(frozen=True)
class ClientLimits:
    """What one exchange may take.

    Attributes:
        connect_seconds: until the server takes the connection.
        seconds: of one try, from the first byte sent to the last byte read.
        answer_bytes: of one answer.
        tries: of one exchange, the first included.
        first_pause: seconds before the second try; it doubles from then on.
        longest_pause: the most, whatever the server asks for in `Retry-After`.
    """

    connect_seconds: float = 10.0
    seconds: float = 300.0
    answer_bytes: int = 4 << 20
    tries: int = 5
    first_pause: float = 0.5
    longest_pause: float = 30.0


class _TryAgainError(Exception):
    """This try failed in a way that may pass."""

    def __init__(self, error: EndpointError, pause: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause = pause


class EndpointClient:
    """Exchanges with one endpoint.

    Args:
        address: whom to ask.
        limits: of each exchange.
        token: a bearer token, for this endpoint only.
        transport: how bytes travel; for tests.
        pause: how to wait between tries; for tests.
    """

    def __init__(
        self,
        address: Address,
        *,
        limits: ClientLimits | None = None,
        token: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self.address = address
        self.limits = limits or ClientLimits()
        self._token = token
        self._transport = transport
        self._pause = pause

    async def exchange(self, method: str, path: str, fields: Fields | None, *, seconds: float | None = None) -> Fields:
        """Ask once, and again where that makes sense.

        Args:
            method: GET or POST.
            path: below the endpoint's URL.
            fields: the body; None for none.
            seconds: for all tries together; default, the limit of each.

        Raises:
            EndpointRefusedError: the server says no and means it: it has no such path or model, or wants a token.
            EndpointError: it cannot be reached, takes too long, or does not answer with a JSON object.
        """
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        pause = self.limits.first_pause
        for number in range(self.limits.tries):
            left = self.limits.seconds if end is None else min(self.limits.seconds, end - loop.time())
            try:
                return await self._once(method, path, fields, max(left, 0.0))
            except _TryAgainError as failed:
                wait = min(pause if failed.pause is None else failed.pause, self.limits.longest_pause)
                if number + 1 == self.limits.tries or (end is not None and loop.time() + wait >= end):
                    raise failed.error from None
                await self._pause(wait)
                pause *= 2
        raise EndpointError(f"{self.address.url} was never asked: its limits allow no try")

    async def _once(self, method: str, path: str, fields: Fields | None, seconds: float) -> Fields:
        url = self.address.url
        try:
            async with asyncio.timeout(seconds):
                return await self._send(method, path, fields)
        except TimeoutError:
            raise EndpointError(f"{url}{path} did not answer within {seconds:.3g} seconds") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _TryAgainError(EndpointError(f"{url} cannot be reached: {error or 'no connection'}")) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            found = EndpointError(f"{url}{path} broke off: {type(error).__name__} {str(error)[:_SHOWN]}")
            raise _TryAgainError(found) from error

    async def _send(self, method: str, path: str, fields: Fields | None) -> Fields:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        timeout = httpx.Timeout(self.limits.seconds, connect=self.limits.connect_seconds)
        async with (
            httpx.AsyncClient(
                transport=self._transport,
                verify=_certificates() if self.address.url.startswith("https:") else False,
                trust_env=not self.address.is_local,
                follow_redirects=False,
                timeout=timeout,
            ) as client,
            client.stream(method, self.address.url + path, json=fields, headers=headers) as response,
        ):
            body = await self._body(path, response)
            if response.status_code in _AGAIN:
                raise _TryAgainError(self._said(path, response, body), _retry_after(response))
            if response.status_code != 200:
                raise EndpointRefusedError(str(self._said(path, response, body)), status=response.status_code)
            return self._object(path, body)

    async def _body(self, path: str, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise EndpointError(f"{self.address.url}{path} answers in a compressed form that was not asked for")
        parts, size = [], 0
        async for part in response.aiter_raw():
            size += len(part)
            if size > self.limits.answer_bytes:
                raise EndpointError(
                    f"{self.address.url}{path} answers with more than {self.limits.answer_bytes} bytes; the rest was"
                    " not read"
                )
            parts.append(part)
        return b"".join(parts)

    def _said(self, path: str, response: httpx.Response, body: bytes) -> EndpointError:
        said = " ".join(body.decode("utf-8", "replace").split())[:_SHOWN]
        shown = "".join(letter if letter.isprintable() else " " for letter in said)
        return EndpointError(f"{self.address.url}{path} answers {response.status_code}: {shown or 'nothing'}")

    def _object(self, path: str, body: bytes) -> Fields:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise EndpointError(f"{self.address.url}{path} does not answer with JSON: {error}") from error
        if not isinstance(found, dict):
            raise EndpointError(f"{self.address.url}{path} answers with a JSON {type(found).__name__}, not an object")
        return found


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()
