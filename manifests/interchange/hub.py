"""The Hub's words: which repository a base came from, where that is on the web, and what its card claims.

A claim is kept in a label whose name begins with `claimed/` and whose text ends in `(unverified)`. Labels carry no
authority: no audit, gate or search for scores looks at them. What was measured here is in reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from manifests.schema import Manifest, Source

_HUB_ID = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_URL = re.compile(r"https?://[!-~]+")

CLAIMED = "claimed/"
"""What a label's name begins with that holds somebody else's word; nothing here counts it as evidence."""

MAX_SCORES = 16
"""Claimed scores that are kept; a card can list hundreds."""


def hub_id(source: Source) -> str | None:
    """The Hub repository a base came from, or was grown from, or None."""
    found = _hub_place(source)
    return found[1] if found else None


def _hub_place(source: Source) -> re.Match[str] | None:
    """A base with added loops keeps the location of the one it was made from, with its scheme."""
    on_hub = source.kind == "hub" or source.location.startswith("hf://")
    return _HUB_ID.fullmatch(source.location) if on_hub else None


def source_url(source: Source) -> str | None:
    """Where on the web a base came from, or None where its location is no place on the web."""
    found = _hub_place(source)
    if found is not None:
        revision = f"/tree/{found[2]}" if found[2] else ""
        return f"https://huggingface.co/{found[1]}{revision}"
    return source.location if _URL.fullmatch(source.location) else None


def hub_claims(card: Mapping[str, object]) -> dict[str, str]:
    """What the header of a model card says of licence, ancestors, data and scores, a line each.

    All of it is the word of whoever uploaded the card, `verified: true` included: nobody here measured it. Scores come
    as `model-index/1`, `model-index/2` and so on, and in words, so that nothing takes them for evidence.

    Args:
        card: the header as its YAML says it; any value may be anything.
    """
    claims = {}
    for key in ("base_model", "base_model_relation", "license", "license_name", "datasets"):
        value = card.get(key)
        if texts := [item for item in _items(value if isinstance(value, list) else [value]) if isinstance(item, str)]:
            claims[key] = ", ".join(texts)
    scores = [line for model in _items(card.get("model-index")) for line in _scores(model)]
    claims |= {f"model-index/{number}": line for number, line in enumerate(scores[:MAX_SCORES], start=1)}
    if len(scores) > MAX_SCORES:
        claims["model-index/more"] = f"{len(scores) - MAX_SCORES} more scores in the card"
    return claims


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _scores(model: object) -> Iterator[str]:
    """`HumanEval, pass@1 = 0.45` for every metric of every result."""
    for result in _items(model.get("results")) if isinstance(model, dict) else ():
        if not isinstance(result, dict):
            continue
        dataset = _called(result.get("dataset")) or "an unnamed suite"
        for metric in _items(result.get("metrics")):
            value = metric.get("value") if isinstance(metric, dict) else None
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                yield f"{dataset}, {_called(metric) or 'an unnamed metric'} = {value}"


def _called(thing: object) -> str | None:
    names = [thing.get(key) for key in ("name", "type")] if isinstance(thing, dict) else []
    return next((name for name in names if isinstance(name, str) and name), None)


def claims_of(manifest: Manifest) -> dict[str, str]:
    """What a manifest keeps of what its source's publisher says, by the Hub's names for it."""
    return {name.removeprefix(CLAIMED): text for name, text in manifest.labels.items() if name.startswith(CLAIMED)}
