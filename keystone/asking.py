"""A running server, asked over HTTP by an auditor: what it serves, and what its live weights hash to.

Only the standard library, so that asking needs neither torch nor a client of anybody's API. The bearer token goes to
the address that was named and nowhere else: redirects are not followed and no proxy is asked. An answer is read up to a
limit and parsed with suspicion; whatever is not an answer is a `ServerSilentError`, which proves nothing either way.
"""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

from csf_store import CsfError, Digest
from keystone.errors import InvalidInputError
from manifests import InvalidDocumentError, NotServedError, ServedModel, ServerAnswer, ServerSilentError

MANIFEST_HEADER = "x-keystone-manifest"
MOST_BYTES = 64 << 20
"""Of an answer; the largest lists every tensor of a model with its digest."""


class Endpoint:
    """A server by its URL; asks as `manifests.Server` wants it.

    Args:
        url: `http://host:port` or `https://...`, with a path if the server is behind one.
        token: sent as a bearer token, if there is one.
        seconds: how long an answer may take; hashing a large model on a slow machine takes a while.

    Raises:
        InvalidInputError: the URL is not one of those.
    """

    def __init__(self, url: str, *, token: str | None = None, seconds: float = 600.0) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidInputError(f"{url!r} is no URL: {error}") from error
        if parts.scheme not in {"http", "https"} or not host or parts.username is not None or parts.query:
            raise InvalidInputError(f"{url!r} is no server's URL; write http://HOST:PORT")
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
            raise InvalidInputError("a bearer token is one line of printable ASCII")
        self._host, self._port, self._secure = host, port, parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._seconds = seconds
        place = f"[{host}]" if ":" in host else host
        self.url = f"{parts.scheme}://{place}{f':{port}' if port else ''}{self._path}"

    def models(self) -> tuple[ServedModel, ...]:
        """What the server says it serves.

        Raises:
            ServerSilentError: it gives no such list.
        """
        _, found = self._json("/v1/models", {})
        lines = found.get("data")
        if not isinstance(lines, list):
            raise ServerSilentError("it gives no list of models: is this a keystone server?")
        models = []
        for line in lines:
            name, manifest = (line.get(key) if isinstance(line, dict) else None for key in ("id", "manifest"))
            if not isinstance(name, str) or not isinstance(manifest, str):
                raise ServerSilentError("its list of models names no manifests: is this a keystone server?")
            models.append(ServedModel(name, manifest, line.get("loaded") is True))
        return tuple(models)

    def attest(self, model: str, nonce: str) -> ServerAnswer:
        """Let the server hash its live weights.

        Raises:
            NotServedError: it does not serve that model.
            ServerSilentError: it cannot be reached, wants another token, or knows no such question.
        """
        headers, body = self._get("/keystone/attest", {"model": model, "nonce": nonce})
        return ServerAnswer(headers.get(MANIFEST_HEADER, ""), body)

    def tensors(self, model: str, nonce: str) -> Mapping[str, Digest]:
        """The same for each tensor alone.

        Raises:
            NotServedError, ServerSilentError: as above.
            InvalidDocumentError: the answer is no table of digests.
        """
        _, found = self._json("/keystone/attest/tensors", {"model": model, "nonce": nonce})
        table = found.get("tensors")
        if not isinstance(table, dict):
            raise InvalidDocumentError("its answer has no table of tensors")
        try:
            return {str(name): Digest.parse(str(text)) for name, text in table.items()}
        except CsfError as error:
            raise InvalidDocumentError(f"its table of tensors has what is no digest: {error}") from error

    def _json(self, path: str, query: Mapping[str, str]) -> tuple[Mapping[str, str], dict[str, object]]:
        headers, body = self._get(path, query)
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ServerSilentError(f"what it answers to {path} is not JSON") from error
        if not isinstance(found, dict):
            raise ServerSilentError(f"what it answers to {path} is no JSON object")
        return headers, found

    def _get(self, path: str, query: Mapping[str, str]) -> tuple[Mapping[str, str], bytes]:
        target = f"{self._path}{path}" + (f"?{urlencode(query)}" if query else "")
        connection = self._connection()
        try:
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            body = response.read(MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise ServerSilentError(f"no answer: {_said(error)}") from error
        finally:
            connection.close()
        if len(body) > MOST_BYTES:
            raise ServerSilentError(f"its answer to {path} is longer than {MOST_BYTES} bytes")
        if response.status != http.client.OK:
            raise _refusal(path, response.status, body)
        return {name.lower(): value for name, value in response.getheaders()}, body

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._seconds, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)


def _said(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name is not known ({error.strerror})"
    return "it took too long" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


def _refusal(path: str, status: int, body: bytes) -> NotServedError | ServerSilentError:
    message, code = _explained(body)
    if code == "model_not_found":
        return NotServedError(message)
    if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
        hint = "give its token with --token-file, or in KEYSTONE_TOKEN"
        return ServerSilentError(f"it does not let us in ({status}): {message}; {hint}")
    if status == http.client.NOT_FOUND:
        return ServerSilentError(f"it does not know {path}: is this a keystone server, of this release?")
    return ServerSilentError(f"status {status} to {path}: {message}")


def _explained(body: bytes) -> tuple[str, str]:
    """Message and code of an error in the shape of OpenAI's API; whatever it says is shown, cut and on one line."""
    try:
        error = json.loads(body)["error"]
        message, code = str(error["message"]), str(error.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        message, code = body[:200].decode("utf-8", "replace"), ""
    return " ".join(message.split())[:400], code
