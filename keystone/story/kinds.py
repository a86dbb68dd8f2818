"""What sort of thing an event is to a reader, decided from the event alone.

The ledger's event names are for programs: a promotion, a rollback and a protection are all `ref.set`. These kinds are
for people, to pick from with `--kind`. Reading a document to find the kind would make a search through a long ledger as
slow as telling all of it, so a kind never needs one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from csf_store import LedgerEntry

STORY_KINDS: Final[Mapping[str, str]] = {
    "made": "the archive itself",
    "put": "files and trees that somebody put",
    "manifest": "manifests: bases imported, adapters composed, evidence attached",
    "adapter": "adapters and the base they belong to",
    "trained": "training runs",
    "evaluated": "scores",
    "tripwire": "tripwire policies and reports",
    "gate": "what the source gate let in",
    "evidence": "every other document",
    "approved": "approvals",
    "signed": "other signatures",
    "key": "keys trusted and revoked",
    "moved": "refs set by hand",
    "promoted": "refs moved with an approval",
    "rolled-back": "refs moved back",
    "protected": "refs that move with an approval alone from then on",
    "unpinned": "what was let go",
    "kept": "pins that only keep what another event tells of",
    "cleaned": "garbage collected, segments repaired",
    "cycle": "steps of guarded cycles",
    "holdout": "hold-out draws committed to and opened",
    "registry": "versions of the model registry",
    "other": "events this release has no words for",
}
"""kind -> what it is about."""

_OF_EVENT: Final[Mapping[str, str]] = {
    "archive.created": "made",
    "adapter.record": "adapter",
    "key.trust": "key",
    "key.revoke": "key",
    "unpin": "unpinned",
    "collected": "cleaned",
    "cycle": "cycle",
    "holdout": "holdout",
    "registry.set": "registry",
}
_OF_DOCUMENT: Final[Mapping[str, str]] = {
    "eval-report": "evaluated",
    "training-record": "trained",
    "tripwire-policy": "tripwire",
    "tripwire-report": "tripwire",
    "source-gate-report": "gate",
}
_OF_PIN: Final[Mapping[str, str]] = {"manifest": "manifest", "record": "kept"}


def kind_of(entry: LedgerEntry) -> str:
    """The kind of an event; `other` for one that a later release may know."""
    fields = entry.fields
    match entry.event:
        case "pin":
            return _OF_PIN.get(str(fields.get("kind")), "put")
        case "evidence":
            return _OF_DOCUMENT.get(str(fields.get("kind")), "evidence")
        case "signed":
            return "approved" if ":predicate:approval:" in str(fields.get("predicate")) else "signed"
        case "ref.set":
            return _kind_of_move(entry)
    return _OF_EVENT.get(entry.event, "other")


def _kind_of_move(entry: LedgerEntry) -> str:
    fields = entry.fields
    if fields.get("rollback") is True:
        return "rolled-back"
    if fields.get("approval") is not None:
        return "promoted"
    return "protected" if fields.get("protected") is True else "moved"
