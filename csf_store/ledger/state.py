"""What the ledger's events add up to: which digests are pinned, and where every ref has pointed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from csf_store.digest import Digest
from csf_store.errors import CorruptError, InvalidInputError

_JSON: TypeAlias = "bool | int | float | str | Sequence[_JSON] | Mapping[str, _JSON] | None"


class Pin(NamedTuple):
    """A reason to keep a digest: as what it is pinned, under which name, by which event."""

    digest: Digest
    kind: str
    name: str | None
    seq: int
    time: str


class RefMove(NamedTuple):
    """One move of a ref.

    Attributes:
        seq: number of the event.
        time: time of the event.
        target: where the ref points from then on; None when it was removed.
        fields: everything the event says.
    """

    seq: int
    time: str
    target: Digest | None
    fields: Mapping[str, _JSON]


def _digest(fields: Mapping[str, _JSON], key: str) -> Digest:
    value = fields.get(key)
    if not isinstance(value, str):
        raise InvalidInputError(f"its field {key!r} must be a digest, not {value!r}")
    return Digest.parse(value)


def check_event(event: str, fields: Mapping[str, _JSON]) -> None:
    """Checks the fields of the events this package understands; all others are free.

    Raises:
        InvalidInputError: naming the field.
    """
    if event in ("pin", "unpin"):
        _digest(fields, "digest")
    if event == "pin" and not (isinstance(fields.get("kind"), str) and isinstance(fields.get("name"), str | None)):
        raise InvalidInputError("a pin needs a kind, and a name that is text or null")
    if event == "ref.set":
        if not isinstance(fields.get("ref"), str) or not fields["ref"]:
            raise InvalidInputError("ref.set needs a ref that is not empty")
        for key in ("from", "to"):
            if key not in fields:
                raise InvalidInputError(f"ref.set needs {key!r}, a digest or null")
            if fields[key] is not None:
                _digest(fields, key)


class LedgerState:
    """Pins and refs, event by event: what a run of events adds up to, or, started in the middle, what it changes.

    Attributes:
        pins: what was pinned and not unpinned since.
        cleared: digests of which the run unpinned what was pinned before it.
        refs: the moves of each ref.
    """

    def __init__(self) -> None:
        self.pins: dict[Digest, dict[tuple[str, str | None], Pin]] = {}
        self.cleared: set[Digest] = set()
        self.refs: dict[str, list[RefMove]] = {}

    def apply(self, seq: int, time: str, event: str, fields: Mapping[str, _JSON]) -> None:
        """Takes in the next event.

        Raises:
            CorruptError: if an event of a known type does not have its fields.
        """
        try:
            check_event(event, fields)
        except InvalidInputError as error:
            raise CorruptError(f"ledger line {seq}, {event}: {error}; it was not written by this program") from error
        if event == "pin":
            digest, kind, name = _digest(fields, "digest"), str(fields["kind"]), fields.get("name")
            name = name if isinstance(name, str) else None
            self.pins.setdefault(digest, {}).setdefault((kind, name), Pin(digest, kind, name, seq, time))
        elif event == "unpin":
            digest = _digest(fields, "digest")
            self.pins.pop(digest, None)
            self.cleared.add(digest)
        elif event == "ref.set":
            target = _digest(fields, "to") if fields["to"] is not None else None
            self.refs.setdefault(str(fields["ref"]), []).append(RefMove(seq, time, target, fields))

    def pinned(self) -> tuple[Pin, ...]:
        """What is pinned, in the order of pinning."""
        every = (pin for pins in self.pins.values() for pin in pins.values())
        return tuple(sorted(every, key=lambda pin: pin.seq))
