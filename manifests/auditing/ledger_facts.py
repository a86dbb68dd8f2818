"""What the lines of a ledger say, read once and hashed again, with no cache in between.

Everything the audit needs of the past is here: when a record first arrived, who was trusted, where every ref has been.
If a line was altered, the facts end before it and `problem` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from csf_store import Archive, Checkpoint, CsfError, Digest, Kind, LedgerEntry, RefMove
from manifests.events import LedgerEvents


@dataclass
class LedgerFacts(LedgerEvents):
    """The fold of all events up to the first that cannot be believed.

    Attributes:
        entries: the events.
        moves: every move of every ref.
        attestations: assembly -> the attestations of it that were kept.
        manifests: manifest -> number of the event that first pinned it.
        checkpoint: size and root of what was read.
        problem: what is wrong with the lines.
        notes: what is unusual and harmless.
    """

    entries: list[LedgerEntry] = field(default_factory=list)
    moves: dict[str, list[RefMove]] = field(default_factory=dict)
    attestations: dict[str, list[Digest]] = field(default_factory=dict)
    manifests: dict[str, int] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def take(self, entry: LedgerEntry) -> None:
        """Take in the next event."""
        super().take(entry)
        self.entries.append(entry)
        fields = entry.fields
        if entry.event == "evidence" and fields.get("kind") == "attestation":
            record = str(fields.get("record"))
            if self.evidence.get(record) == entry.seq:
                self.attestations.setdefault(str(fields.get("assembly")), []).append(Digest.parse(record))
        elif entry.event == "pin" and fields.get("kind") == Kind.MANIFEST:
            self.manifests.setdefault(str(fields.get("digest")), entry.seq)
        elif entry.event == "ref.set":
            to = fields.get("to")
            target = Digest.parse(to) if isinstance(to, str) else None
            self.moves.setdefault(str(fields.get("ref")), []).append(RefMove(entry.seq, entry.time, target, fields))


def read_ledger(archive: Archive) -> LedgerFacts:
    """Read every line again."""
    facts = LedgerFacts()
    told = _cached_moves(archive)
    try:
        for entry in archive.ledger.entries():
            facts.take(entry)
        found = archive.ledger.audit()
    except CsfError as error:
        facts.problems = (str(error),)
        return facts
    facts.checkpoint = found.checkpoint
    facts.problems = (*found.findings, *_moved_without_event(told, facts.moves))
    facts.notes = found.notes
    return facts


def _cached_moves(archive: Archive) -> Mapping[str, tuple[RefMove, ...]]:
    """Where the ledger's cache says the refs have been: what everybody but an auditor goes by."""
    try:
        return {name: tuple(moves) for name, moves in archive.ledger.refs().items()}
    except CsfError:
        return {}  # reading the lines will say what is wrong with them


def _moved_without_event(
    told: Mapping[str, tuple[RefMove, ...]], moves: Mapping[str, list[RefMove]]
) -> tuple[str, ...]:
    problems = []
    for name, seen in sorted(told.items()):
        real = [(move.seq, move.target) for move in moves.get(name, ())][: len(seen)]
        if [(move.seq, move.target) for move in seen] != real:
            at = seen[-1].target
            problems.append(f"ref {name!r} was moved to {at} without an event: ledger.sqlite says so, no line does")
    return tuple(problems)
