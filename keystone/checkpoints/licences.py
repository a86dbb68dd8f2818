"""What a checkpoint says of itself in words: its licence and what it claims to come from.

A model card is a claim by whoever uploaded it. The licence becomes an SPDX expression, `NOASSERTION` where nobody says
which it is; what else it claims is kept in labels that say it was not verified.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from manifests import CLAIMED, hub_claims

UNKNOWN = "NOASSERTION"
"""SPDX for: nobody told us."""

MAX_FRONT_MATTER = 64 << 10
MAX_CLAIM = 200

_SPDX_OF_HUB: Mapping[str, str] = {
    "apache-2.0": "Apache-2.0", "mit": "MIT", "bsd": "LicenseRef-bsd", "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause", "gpl-3.0": "GPL-3.0-only", "gpl-2.0": "GPL-2.0-only", "agpl-3.0": "AGPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only", "mpl-2.0": "MPL-2.0", "cc-by-4.0": "CC-BY-4.0", "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0", "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
    "cc0-1.0": "CC0-1.0", "unlicense": "Unlicense", "isc": "ISC", "artistic-2.0": "Artistic-2.0", "wtfpl": "WTFPL",
    "bsl-1.0": "BSL-1.0", "epl-2.0": "EPL-2.0", "eupl-1.2": "EUPL-1.2", "zlib": "Zlib", "ncsa": "NCSA",
}  # fmt: skip
"""The Hub's licence names that have an SPDX identifier; the others become `LicenseRef-<name>`."""

_TEXTS = (
    (re.compile(r"Apache License\s+Version 2\.0, January 2004"), "Apache-2.0"),
    (re.compile(r"\bMIT License\b.*Permission is hereby granted, free of charge", re.DOTALL), "MIT"),
)
_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\r?\n(.*?)\r?\n---\s*(\r?\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Card:
    """What a model card's header says.

    Attributes:
        licence: an SPDX expression, or None where it does not say.
        claims: what it says of its licence, ancestors, data and scores, by the Hub's field names.
    """

    licence: str | None = None
    claims: Mapping[str, str] = field(default_factory=dict)


def spdx(licence: str | None, *, name: str | None = None) -> str | None:
    """A licence in the Hub's or GGUF's words as an SPDX expression; None where there is nothing to go by."""
    text = (licence or "").strip()
    if text.lower() in _SPDX_OF_HUB:
        return _SPDX_OF_HUB[text.lower()]
    if text.lower() in {"other", ""} and name:
        text = name.strip()
    if not text or text.lower() in {"other", "unknown", "noassertion", "none"}:
        return None
    if text in _SPDX_OF_HUB.values():
        return text
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[:80]
    return f"LicenseRef-{slug}" if slug else None


def hub_licence(expression: str) -> tuple[str, str | None]:
    """An SPDX expression in the Hub's words: its name for a licence, and for `other` what it is called."""
    if expression == UNKNOWN:
        return "unknown", None
    for name, identifier in _SPDX_OF_HUB.items():
        if identifier == expression:
            return name, None
    return "other", expression.removeprefix("LicenseRef-")


def read_card(text: str) -> Card:
    """The header of a model card; an unreadable one says nothing."""
    found = _FRONT_MATTER.match(text[:MAX_FRONT_MATTER])
    if found is None or re.search(r"(^|[\s\[,:-])[&*][A-Za-z0-9]", found[1]):
        return Card()  # anchors and aliases have no place in a card, and a few bytes of them make gigabytes
    try:
        fields = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return Card()
    if not isinstance(fields, dict):
        return Card()
    claims = {key: said for key, text in hub_claims(fields).items() if (said := plain(text))}
    licence, name = (fields.get(key) for key in ("license", "license_name"))
    return Card(
        spdx(licence if isinstance(licence, str) else None, name=name if isinstance(name, str) else None), claims
    )


def licence_of_text(text: str) -> str | None:
    """The licence a `LICENSE` file is the text of, where it is one of two that everybody uses."""
    return next((identifier for pattern, identifier in _TEXTS if pattern.search(text[: 64 << 10])), None)


def plain(text: str) -> str:
    """Somebody else's words made fit for a label: printable ASCII on one line, and short."""
    return re.sub(r"\s+", " ", re.sub(r"[^ -~]", "?", text)).strip()[:MAX_CLAIM]


def claim_labels(card: Card) -> dict[str, str]:
    """The labels that keep a card's claims, each saying that it is no more than that."""
    return {f"{CLAIMED}{key}": f"{value} (unverified)" for key, value in sorted(card.claims.items())}
