"""Bearer tokens for endpoints that want one: a file of the user's own, never the registry.

The file is a JSON object from origin (`https://api.example.org`) to token. A token goes to its own origin only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from platformdirs import user_config_path

from keystone.endpoints.address import Address
from keystone.errors import InvalidInputError

VARIABLE = "KEYSTONE_ENDPOINT_TOKENS"


def tokens_file() -> Path:
    """Where the tokens are."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else user_config_path("keystone") / "endpoint-tokens.json"


def token_for(address: Address) -> str | None:
    """The token for an endpoint, if the user has one.

    Raises:
        InvalidInputError: the file is there and is no table of tokens.
    """
    path = tokens_file()
    try:
        held = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} cannot be read as JSON: {type(error).__name__}") from error
    if not isinstance(held, dict) or not all(isinstance(each, str) and each.isprintable() for each in held.values()):
        raise InvalidInputError(f"{path} is no JSON object from origins to tokens")
    parts = urlsplit(address.url)
    found: str | None = held.get(f"{parts.scheme}://{parts.netloc}")
    return found
