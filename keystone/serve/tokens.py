"""Bearer tokens: random, shown once, kept as hashes.

A token has 256 random bits, so one round of SHA-256 is all a stolen file would have to be protected by: there is
nothing to guess. The file is readable by its owner only and replaced as a whole.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from csf_store import replace_file
from keystone.errors import InvalidInputError
from keystone.serve.errors import UnauthorizedError

_PREFIX = "ks-"


def digest_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class BearerTokens:
    """The tokens of one file.

    Args:
        hashes: the name of each token's holder, and the hash of the token.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def read(cls, path: Path) -> "BearerTokens":
        """Read a file; one that does not exist holds none.

        Raises:
            InvalidInputError: the file is not one of ours.
        """
        try:
            fields = json.loads(path.read_bytes())
        except FileNotFoundError:
            return cls({})
        except ValueError as error:
            raise InvalidInputError(f"{path} is not JSON: {error}") from error
        held = fields.get("sha256") if isinstance(fields, dict) else None
        if not isinstance(held, dict) or not all(isinstance(value, str) for value in held.values()):
            raise InvalidInputError(f'{path} has no "sha256" table of names and hashes')
        return cls(held)

    def issue(self, name: str) -> str:
        """Make a token for somebody; the old one of that name stops counting. It cannot be shown again."""
        token = _PREFIX + secrets.token_urlsafe(32)
        self._hashes[name] = digest_of(token)
        return token

    def write(self, path: Path) -> None:
        """Write the hashes, and nothing else, for the owner's eyes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"sha256": self._hashes}, indent=2).encode(), private=True)

    def holder(self, authorization: str) -> str:
        """Whose token an `Authorization` header carries.

        Raises:
            UnauthorizedError: it carries none that is known.
        """
        scheme, _, token = authorization.partition(" ")
        offered = digest_of(token.strip())
        found = [name for name, held in self._hashes.items() if hmac.compare_digest(held, offered)]
        if scheme.lower() != "bearer" or not found:
            raise UnauthorizedError("this server wants a bearer token that it knows; see `keystone serve --new-token`")
        return found[0]
