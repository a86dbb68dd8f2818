"""The grammar of ref names: what is one, and what could be read as a digest and is none.

Names are `part/part`, each part lower-case ASCII letters, digits, `.`, `_`, `-`, starting with a letter or digit, 128
characters in all. Where a person names a manifest, what is inside this grammar is a ref and nothing else.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from manifests.errors import InvalidNameError

_PART = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LIKE_A_DIGEST = re.compile(r"[0-9a-f]{8,64}")
MAX_NAME = 128


def check_ref_name(name: str) -> str:
    """The name itself, when it is one.

    Raises:
        InvalidNameError: naming the part that breaks the grammar.
    """
    if len(name) > MAX_NAME:
        raise InvalidNameError(f"the ref name {name[:40]!r}... has {len(name)} characters, the limit is {MAX_NAME}")
    for part in name.split("/"):
        if not _PART.fullmatch(part) or part.endswith(".") or ".." in part:
            raise InvalidNameError(
                f"{name!r} is not a ref name: {part!r} should be lower-case ASCII letters, digits, '.', '_' or '-',"
                " starting with a letter or digit; parts are joined by '/'"
            )
    if _LIKE_A_DIGEST.fullmatch(name):
        raise InvalidNameError(f"{name!r} is not a ref name: it reads like a digest prefix")
    return name


def is_ref_name(name: str) -> bool:
    """Whether a text is inside the grammar of ref names."""
    try:
        check_ref_name(name)
    except InvalidNameError:
        return False
    return True


RefName = Annotated[str, AfterValidator(check_ref_name)]
"""A ref name in a document."""
