"""The Hub's names for things: which repository a base came from, and where that is on the web."""

from __future__ import annotations

import re

from manifests.schema import Source

_HUB_ID = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_URL = re.compile(r"https?://[!-~]+")

CLAIMED = "claimed/"
"""What a label's name begins with that holds somebody else's word; nothing here counts it as evidence."""


def hub_id(source: Source) -> str | None:
    """The Hub repository a base came from, or None."""
    found = _HUB_ID.fullmatch(source.location) if source.kind == "hub" else None
    return found[1] if found else None


def source_url(source: Source) -> str | None:
    """Where on the web a base came from, or None where its location is no place on the web."""
    found = _HUB_ID.fullmatch(source.location) if source.kind == "hub" else None
    if found is not None:
        revision = f"/tree/{found[2]}" if found[2] else ""
        return f"https://huggingface.co/{found[1]}{revision}"
    return source.location if _URL.fullmatch(source.location) else None
