"""What the ledger's events add up to: who was trusted when, what arrived when, what was signed, what tripped.

Promoting, rolling back, signing and storing evidence each ask several such questions, and every answer is somewhere in
the same lines. So the lines are folded once for each open archive, and a later question reads only what came since.
That the lines are still those that were folded is seen by the last one's hash, which covers all before it; if they are
not, the fold begins anew.

An audit does not ask here: it reads and hashes every line itself (see `auditing.ledger_facts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from csf_store import Archive, LedgerEntry
from manifests.signing.trust import TrustBook

SIGNED = "signed"
"""The event that brings an envelope in."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An envelope and the number of the event that brought it in."""

    envelope: str
    seq: int


@dataclass
class LedgerEvents:
    """The fold of all events so far.

    Attributes:
        book: who was trusted when.
        evidence: record -> number of the event that first told of it.
        signed: envelope -> number of the event that brought it in.
        about: subject or envelope -> every event that says an envelope is about it, in order.
        tripwires: (assembly, recipe) -> number and status of the last tripwire report.
        last: the event that was folded last.
    """

    book: TrustBook = field(default_factory=TrustBook)
    evidence: dict[str, int] = field(default_factory=dict)
    signed: dict[str, int] = field(default_factory=dict)
    about: dict[str, list[Arrival]] = field(default_factory=dict)
    tripwires: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    last: LedgerEntry | None = None

    @classmethod
    def of(cls, archive: Archive) -> LedgerEvents:
        """The fold of an archive's events, made anew."""
        found = cls()
        for entry in archive.ledger.entries():
            found.take(entry)
        return found

    def take(self, entry: LedgerEntry) -> None:
        """Take in the next event."""
        self.last = entry
        self.book.take(entry)
        fields = entry.fields
        if entry.event == "evidence":
            self.evidence.setdefault(str(fields.get("record")), entry.seq)
            if fields.get("kind") == "tripwire-report":
                pair = str(fields.get("assembly")), str(fields.get("recipe"))
                self.tripwires[pair] = entry.seq, str(fields.get("status"))
        elif entry.event == SIGNED:
            envelope, subjects = str(fields.get("envelope")), fields.get("subjects")
            self.signed.setdefault(envelope, entry.seq)
            named = [str(each) for each in subjects] if isinstance(subjects, Sequence) else []
            for name in dict.fromkeys([*named, envelope]):
                self.about.setdefault(name, []).append(Arrival(envelope, entry.seq))


_folded: WeakKeyDictionary[Archive, LedgerEvents] = WeakKeyDictionary()


def events_of(archive: Archive) -> LedgerEvents:
    """What the events of an archive add up to now, drafts of a transaction under way included.

    Raises:
        csf_store.CorruptError: naming the first line that was altered.
    """
    found = _folded.get(archive)
    if found is None or found.last is None or not _is_there(archive, found.last):
        found = LedgerEvents.of(archive)
    elif found.last.seq + 1 < archive.ledger.size:
        for entry in archive.ledger.entries(found.last.seq + 1):
            found.take(entry)
    _folded[archive] = found
    return found


def _is_there(archive: Archive, last: LedgerEntry) -> bool:
    ledger = archive.ledger
    return last.seq < ledger.size and ledger.entry(last.seq).leaf == last.leaf
