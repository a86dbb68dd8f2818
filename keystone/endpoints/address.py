"""Where a model of another engine is: a URL, and the name it has there.

An address is stored in the ledger for ever and printed on terminals, so it holds no password, no query and nothing that
cannot be seen. `http://host:11434#qwen2.5-coder:7b` is one; the part behind `#` is the model.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from keystone.errors import InvalidInputError

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,199}")
_LONGEST = 512


@dataclass(frozen=True, slots=True)
class Address:
    """A model at an endpoint.

    Attributes:
        url: scheme, host, port and path, without a trailing slash or `/v1`.
        model: its name there.
    """

    url: str
    model: str

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, and so in this machine's memory."""
        return is_this_machine(urlsplit(self.url).hostname or "")


def is_address(text: str) -> bool:
    """Whether a person means an endpoint."""
    return text.startswith(("http://", "https://"))


def parse_address(text: str, *, model: str | None = None) -> Address:
    """An address as a person writes it.

    Args:
        text: `URL#MODEL`, or a URL.
        model: the model, where the URL has no `#` part.

    Raises:
        InvalidInputError: naming what is wrong; the text itself is repeated without its user part.
    """
    url, mark, named = text.partition("#")
    if mark and model and named != model:
        raise InvalidInputError(f"the address says model {named[:80]!r}, and {model[:80]!r} is asked for; say one")
    model = named if mark else model
    shown = re.sub(r"//[^/@]*@", "//...@", url)[:80]
    if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise InvalidInputError(
            f"{shown!r} is no URL: it is ASCII without spaces and has at most {_LONGEST} characters"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInputError(f"{shown!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InvalidInputError(f"{shown!r} is no http:// or https:// URL with a host")
    if parts.username is not None or parts.password is not None:
        raise InvalidInputError(
            f"{shown!r} holds a user or a password, and addresses are kept for ever; put a token into the file that"
            " KEYSTONE_ENDPOINT_TOKENS names"
        )
    if parts.query:
        raise InvalidInputError(f"{shown!r} has a query; an endpoint is a URL without one")
    if not model or not _MODEL.fullmatch(model):
        raise InvalidInputError(f"{shown!r}: say which model is meant, as URL#MODEL")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Address(f"{parts.scheme}://{parts.netloc.lower()}{path}", model)


def is_this_machine(host: str) -> bool:
    """Whether a host name is this machine's own, as far as that can be told without asking the network."""
    name = host.lower().rstrip(".")
    if name in ("localhost", socket.gethostname().lower()) or name.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback or (mapped or found).is_unspecified
