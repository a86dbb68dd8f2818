"""The book of hold-outs, kept in an archive's ledger, and what an audit asks of it.

Each commitment and each opening of a draw is one `holdout` event; the book (`HoldoutBook`) is replayed from them and
has no other memory. An event is appended under the ledger's lock and only if no other hold-out event came first, so two
processes never consume one item twice.

The book keeps its rules while it is used. `draw_problems` shows afterwards, from the lines alone, that they were kept:
for somebody can write lines without the book.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from adapters.errors import HoldoutError
from adapters.guard_report import GuardReport
from adapters.holdouts import HoldoutEvent, commitment
from csf_store import Archive, Digest, LedgerEntry

EVENT: Final = "holdout"


class LedgerJournal:
    """A `Journal` in the ledger of an archive.

    Args:
        archive: an open archive.
    """

    def __init__(self, archive: Archive) -> None:
        self._ledger = archive.ledger
        self._read = 0
        self._events: list[HoldoutEvent] = []

    def events(self) -> Sequence[HoldoutEvent]:
        """All events, oldest first; only lines that are new since the last call are read."""
        for entry in self._ledger.entries(self._read):
            self._read = entry.seq + 1
            if entry.event == EVENT:
                self._events.append(holdout_event(entry))
        return tuple(self._events)

    def append(self, event: HoldoutEvent, *, after: int) -> bool:
        """Keep one more if there are still only `after`; see `Journal`."""
        with self._ledger.locked() as tx:
            if len(self.events()) != after:
                return False
            tx.append(EVENT, **_fields(event))
        return True


def _fields(event: HoldoutEvent) -> dict[str, str | int | list[str]]:
    fields: dict[str, str | int | list[str]] = {
        "step": event.step,
        "draw": event.draw,
        "suite": event.suite,
        "count": event.count,
        "policy": str(event.policy),
        "commitment": str(event.commitment),
    }
    if event.step == "open":
        fields |= {
            "candidate": str(event.candidate),
            "seed": int(event.seed or 0),
            "salt": event.salt or "",
            "items": list(event.items),
        }
    return fields


def holdout_event(entry: LedgerEntry) -> HoldoutEvent:
    """What a `holdout` line says.

    Raises:
        HoldoutError: it says nothing that this release knows.
    """
    fields: Mapping[str, object] = entry.fields
    match fields:
        case {
            "step": "commit",
            "draw": str(draw),
            "suite": str(suite),
            "count": int(count),
            "policy": str(policy),
            "commitment": str(sealed),
        }:
            return HoldoutEvent("commit", draw, suite, count, Digest.parse(policy), Digest.parse(sealed))
        case {
            "step": "open",
            "draw": str(draw),
            "suite": str(suite),
            "count": int(count),
            "policy": str(policy),
            "commitment": str(sealed),
            "candidate": str(candidate),
            "seed": int(seed),
            "salt": str(salt),
            "items": [*items],
        }:
            opened = (Digest.parse(candidate), seed, salt, tuple(map(str, items)))
            fixed = (draw, suite, count, Digest.parse(policy), Digest.parse(sealed))
            return HoldoutEvent("open", *fixed, *opened)
    raise HoldoutError(f"ledger line {entry.seq} is a {EVENT} event that this release cannot read; update it")


def draw_problems(report: GuardReport, entries: Iterable[LedgerEntry], *, began: int, arrived: int) -> Iterator[str]:
    """Why the draw that a verdict stands on was not a fresh one; nothing where it was.

    Args:
        report: the verdict.
        entries: all lines of the ledger.
        began: number of the event before which the draw had to be committed to: the run's first, where that is known.
        arrived: number of the event that told of the report.

    Raises:
        HoldoutError: a line cannot be read.
    """
    told = [(entry.seq, holdout_event(entry)) for entry in entries if entry.event == EVENT]
    mine = [(seq, event) for seq, event in told if event.draw == report.draw]
    steps = [event.step for _, event in mine]
    if "commit" not in steps:
        yield f"nobody committed to draw {report.draw!r} before the run"
    if sorted(steps) != ["commit", "open"]:
        yield f"draw {report.draw!r} was committed to {steps.count('commit')} times, opened {steps.count('open')} times"
        return
    (sealed, fixed), (shown, drawn) = sorted(mine, key=lambda each: each[1].step)
    if sealed >= began:
        yield f"draw {report.draw!r} was committed to by event {sealed}, after the run began at event {began}"
    if not sealed < shown < arrived:
        yield f"draw {report.draw!r} was opened by event {shown}, and not between events {sealed} and {arrived}"
    if (fixed.policy, fixed.commitment) != (report.policy, report.commitment):
        yield f"draw {report.draw!r} was committed to as {fixed.commitment} under policy {fixed.policy}"
    if drawn.candidate != report.assembly:
        yield f"draw {report.draw!r} was consumed by assembly {drawn.candidate}"
    if commitment(drawn.suite, drawn.count, drawn.seed or 0, drawn.salt or "") != fixed.commitment:
        yield f"suite, count, seed and salt of draw {report.draw!r} are not those that were committed to"
    if len(set(drawn.items)) != drawn.count or any(each.fresh.items != drawn.count for each in report.standings):
        yield f"draw {report.draw!r} is of {drawn.count} items, and the verdict is about others"
    spent = {item: event.draw for seq, event in told if seq < shown for item in event.items}
    if again := sorted(spent.keys() & set(drawn.items)):
        yield f"draw {report.draw!r} holds {again[0]!r}, which draw {spent[again[0]]!r} had consumed"
