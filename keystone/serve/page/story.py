"""The ledger as sentences, newest first, a page at a time; the words are `keystone log`'s."""

from __future__ import annotations

from csf_store import Archive
from keystone.story import Teller
from manifests import JsonObject

MOST_EVENTS = 200
"""Events in one answer."""

ECHO = "kept"
"""Pins that only keep what another event tells of."""


def story(archive: Archive, *, before: int | None, count: int) -> JsonObject:
    """Some events; `start` is the number of the oldest that was looked at.

    Args:
        archive: open.
        before: only events with a smaller number; None for the newest.
        count: at most so many, and at most `MOST_EVENTS`.
    """
    size = archive.ledger.size
    end = size if before is None else max(0, min(before, size))
    start = max(0, end - min(count, MOST_EVENTS))
    teller = Teller(archive)  # it remembers where refs are, so each page gets its own
    told: list[JsonObject] = []
    for entry in archive.ledger.entries(start):
        if entry.seq >= end:
            break
        sentence = teller.tell(entry)
        if sentence.kind != ECHO:
            told.append({"seq": entry.seq, "time": entry.time, "kind": sentence.kind, "text": sentence.text})
    return {"size": size, "start": start, "events": told[::-1]}
