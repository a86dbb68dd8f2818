"""What a cycle has done so far, as its ledger tells it.

Every step that is done is one `cycle` event: which cycle, which step, and the digests of what it made. A cycle is the
fold of its events and has no other memory, so whoever looks after a kill sees exactly what was done, and does the rest.
An event is appended under the ledger's lock and only if the step is not there yet: no step is done twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from csf_store import JSON, Archive, Digest
from keystone.errors import InvalidInputError

EVENT: Final = "cycle"

Outcome: TypeAlias = Literal["IMPROVED", "NON-INFERIOR", "REGRESSED", "UNDERPOWERED", "REFUSED"]
"""The tripwire's verdict, or REFUSED where there was nothing that may train."""

Fields: TypeAlias = Mapping[str, JSON]


@dataclass(frozen=True)
class Cycle:
    """One cycle as it stands.

    Attributes:
        name: `REF/NUMBER`.
        ref: the ref it works for.
        number: from 1.
        seq: the event that began it.
        time: when that was.
        steps: step -> what its event says, in the order they were done.
        places: step -> its event's number.
    """

    name: str
    ref: str
    number: int
    seq: int
    time: str
    steps: Mapping[str, Fields] = field(default_factory=dict)
    places: Mapping[str, int] = field(default_factory=dict)

    def digest(self, step: str, name: str) -> Digest:
        """A digest that a step's event names.

        Raises:
            InvalidInputError: when it does not.
        """
        value = self.steps.get(step, {}).get(name)
        if not isinstance(value, str):
            raise InvalidInputError(
                f"cycle {self.name}: step {step!r} names no {name}; `keystone cycle status` shows it"
            )
        return Digest.parse(value)

    def find(self, step: str, name: str) -> Digest | None:
        """The same, or None."""
        value = self.steps.get(step, {}).get(name)
        return Digest.parse(value) if isinstance(value, str) else None

    def text(self, step: str, name: str) -> str:
        """Any field of a step as text, empty where there is none."""
        value = self.steps.get(step, {}).get(name)
        return "" if value is None else str(value)

    @property
    def outcome(self) -> str | None:
        """How it ended; None while it has not."""
        return self.text("finished", "outcome") or None

    @property
    def is_finished(self) -> bool:
        """Whether it stopped, at the operator or before."""
        return "finished" in self.steps


class CycleLog:
    """The cycles in the ledger of an archive.

    Args:
        archive: an open archive.
    """

    def __init__(self, archive: Archive) -> None:
        self._ledger = archive.ledger

    def cycles(self, ref: str | None = None) -> tuple[Cycle, ...]:
        """All cycles, or one ref's, oldest first."""
        steps: dict[str, dict[str, Fields]] = {}
        places: dict[str, dict[str, int]] = {}
        began: dict[str, tuple[str, int, int, str]] = {}
        for entry in self._ledger.entries():
            name, step, owner = (entry.fields.get(key) for key in ("cycle", "step", "ref"))
            if entry.event != EVENT or not isinstance(name, str) or not isinstance(step, str):
                continue
            began.setdefault(name, (str(owner), int(name.rsplit("/", 1)[-1]), entry.seq, entry.time))
            known = steps.setdefault(name, {})
            if step not in known:  # the first counts; a second could only come from somebody else's program
                known[step] = {k: v for k, v in entry.fields.items() if k not in {"cycle", "step", "ref"}}
                places.setdefault(name, {})[step] = entry.seq
        found = (Cycle(name, *about, steps[name], places[name]) for name, about in began.items())
        return tuple(cycle for cycle in found if ref in {None, cycle.ref})

    def get(self, name: str) -> Cycle:
        """One cycle as it stands now.

        Raises:
            InvalidInputError: there is none of that name.
        """
        for cycle in self.cycles():
            if cycle.name == name:
                return cycle
        raise InvalidInputError(f"there is no cycle {name!r}; `keystone cycle status` lists those there are")

    def refs(self) -> tuple[str, ...]:
        """Refs that a cycle ever ran for, in that order."""
        return tuple(dict.fromkeys(cycle.ref for cycle in self.cycles()))

    def record(self, name: str, ref: str, step: str, fields: Fields) -> bool:
        """Say that a step is done.

        Returns:
            False when it was said before; nothing is written then.
        """
        with self._ledger.locked() as tx:
            if any(step == known for known in self._steps_of(name)):
                return False
            tx.append(EVENT, cycle=name, ref=ref, step=step, **fields)
        return True

    def _steps_of(self, name: str) -> Iterator[str]:
        for entry in self._ledger.entries():
            if entry.event == EVENT and entry.fields.get("cycle") == name:
                yield str(entry.fields.get("step"))
