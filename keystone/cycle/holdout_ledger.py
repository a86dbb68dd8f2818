"""The book of hold-outs, kept in an archive's ledger, and the key that draws come from.

Each commitment and each opening of a draw is one `holdout` event; the book (`adapters.HoldoutBook`) is replayed from
them and has no other memory. An event is appended under the ledger's lock and only if no other hold-out event came
first, so two processes never consume one item twice.

A commitment hides its seed and salt until the draw is opened, and a process may be killed between the two. So they are
not drawn at random and written down, they are computed: BLAKE3 keyed with 32 random bytes that were made once and lie
in the operator's state directory, outside the archive. Whoever has the archive alone cannot know a draw that is not
opened; whoever has the key can always go on.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from blake3 import blake3

from adapters import HoldoutEvent, Secret
from csf_store import Archive, Digest, LedgerEntry, create_file
from keystone.errors import InvalidInputError, StorageError

EVENT: Final = "holdout"
_KEY_BYTES: Final = 32
_SEED_BITS: Final = 48


class LedgerJournal:
    """`adapters.Journal` in the ledger of an archive.

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
                self._events.append(_event(entry))
        return tuple(self._events)

    def append(self, event: HoldoutEvent, *, after: int) -> bool:
        """Keep one more if there are still only `after`; see `adapters.Journal`."""
        with self._ledger.locked() as tx:
            if len(self.events()) != after:
                return False
            tx.append(EVENT, **_fields(event))
        return True


class DrawKey:
    """What seeds and salts of draws are computed from.

    Args:
        folder: where the key is kept; made when missing.
        archive: the archive that the draws are for.

    Raises:
        StorageError: the file system said no.
        InvalidInputError: the file there is no key.
    """

    def __init__(self, folder: Path, archive: Archive) -> None:
        self._path = folder / f"draws-{archive.id.hex()}.key"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._path.exists():
                create_file(self._path, secrets.token_bytes(_KEY_BYTES), private=True)
            self._key = self._path.read_bytes()
        except OSError as error:
            raise StorageError(f"{self._path} cannot be kept: {error.strerror}") from error
        if len(self._key) != _KEY_BYTES:
            raise InvalidInputError(f"{self._path} is no key of {_KEY_BYTES} bytes; put back the one that was there")

    def secret(self, draw: str) -> Secret:
        """Seed and salt of a draw: the same on every call."""
        seed = int.from_bytes(blake3(f"seed {draw}".encode(), key=self._key).digest(), "big") >> (256 - _SEED_BITS)
        return Secret(draw, seed, blake3(f"salt {draw}".encode(), key=self._key).hexdigest())


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


def _event(entry: LedgerEntry) -> HoldoutEvent:
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
    raise InvalidInputError(f"ledger line {entry.seq} is a {EVENT} event that this release cannot read; update it")
