"""Who is trusted, and since when: the fold of `key.trust` and `key.revoke` events.

A signature has no clock that anybody must believe. What counts is the sequence number of the ledger event that brought
it in: the key must have been trusted before that event and not revoked before it. A revocation may say `since`, an
earlier number from which on the key was in wrong hands; then nothing signed from there on counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from csf_store import JSON, Archive, Digest, LedgerEntry
from manifests.errors import KeyNotFoundError, RefusedError
from manifests.signing.keys import PublicKey

TRUST, REVOKE = "key.trust", "key.revoke"


class Standing(StrEnum):
    """What a ledger says of a key at some event."""

    TRUSTED = "trusted"
    REVOKED_LATER = "trusted then, revoked since"
    REVOKED = "revoked"
    NOT_YET = "not trusted then"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TrustSpan:
    """One key from one event to another: trusted after `start`, up to `end` (None: still)."""

    key: PublicKey
    start: int
    end: int | None = None
    revoked_at: int | None = None
    reason: str | None = None


class TrustBook:
    """Every key a ledger ever spoke of."""

    def __init__(self, entries: Iterable[LedgerEntry] = ()) -> None:
        self._spans: dict[Digest, list[TrustSpan]] = {}
        self.faults: list[tuple[int, str]] = []
        """Key events that say what cannot be: number and sentence. They change nothing."""
        for entry in entries:
            self.take(entry)

    def take(self, entry: LedgerEntry) -> None:
        """Take in the next event of the ledger."""
        if entry.event == TRUST:
            self._trust(entry)
        elif entry.event == REVOKE:
            self._revoke(entry)

    def _trust(self, entry: LedgerEntry) -> None:
        name, raw, told = (entry.fields.get(field) for field in ("name", "public", "key"))
        try:
            key = PublicKey(str(name), bytes.fromhex(str(raw)))
        except ValueError:
            key = PublicKey(str(name), b"")
        if len(key.raw) != 32 or str(key.id) != told:
            self.faults.append((entry.seq, f"event {entry.seq} trusts {told} with bytes that are not that key"))
            return
        spans = self._spans.setdefault(key.id, [])
        if not spans or spans[-1].end is not None:
            spans.append(TrustSpan(key, entry.seq))

    def _revoke(self, entry: LedgerEntry) -> None:
        told, since, reason = (entry.fields.get(field) for field in ("key", "since", "reason"))
        spans = next((spans for key, spans in self._spans.items() if str(key) == told), None)
        if spans is None or spans[-1].end is not None:
            self.faults.append((entry.seq, f"event {entry.seq} revokes {told}, which was not trusted"))
            return
        end = since if type(since) is int and 0 <= since <= entry.seq else entry.seq
        said = reason if isinstance(reason, str) else None
        spans[-1] = replace(spans[-1], end=end, revoked_at=entry.seq, reason=said)

    def key(self, key: Digest) -> PublicKey | None:
        """The key of that id, if the ledger ever trusted it."""
        spans = self._spans.get(key)
        return spans[-1].key if spans else None

    def spans(self) -> Mapping[Digest, tuple[TrustSpan, ...]]:
        """Every key with the times it was trusted."""
        return {key: tuple(spans) for key, spans in self._spans.items()}

    def standing(self, key: Digest, seq: int) -> Standing:
        """What was true of a key for what event `seq` brought in."""
        spans = self._spans.get(key)
        if not spans:
            return Standing.UNKNOWN
        before = [span for span in spans if span.start < seq]
        if not before:
            return Standing.NOT_YET
        last = before[-1]
        if last.end is None:
            return Standing.TRUSTED
        return Standing.REVOKED_LATER if seq < last.end else Standing.REVOKED


def trust_key(archive: Archive, key: PublicKey) -> int:
    """Trust a key from now on; the number of the event. A key that is trusted already gets no second event.

    Raises:
        RefusedError: when the key was revoked: a key that was in wrong hands stays out, make a new one.
    """
    with archive.ledger.locked() as tx:
        spans = TrustBook(archive.ledger.entries()).spans().get(key.id)
        if spans and spans[-1].end is None:
            return spans[-1].start
        if spans:
            raise RefusedError(f"key {key.id} was revoked by event {spans[-1].revoked_at}; make and trust a new key")
        return tx.append(TRUST, key=str(key.id), name=key.name, public=key.raw.hex()).seq


def revoke_key(archive: Archive, key: Digest, *, reason: str | None = None, since: int | None = None) -> int:
    """Revoke a key; the number of the event.

    Args:
        archive: whose ledger.
        key: its id.
        reason: a sentence for the ledger.
        since: from which event on its signatures count no more; this one, if not given.

    Raises:
        KeyNotFoundError: when it is not trusted.
        RefusedError: when `since` is an event that has not happened.
    """
    with archive.ledger.locked() as tx:
        spans = TrustBook(archive.ledger.entries()).spans().get(key)
        if not spans or spans[-1].end is not None:
            raise KeyNotFoundError(f"key {key} is not trusted here; `keystone key list` shows which are")
        if since is not None and not 0 <= since <= tx.size:
            raise RefusedError(f"the ledger has {tx.size} events; a key cannot be revoked since number {since}")
        fields: dict[str, JSON] = {"key": str(key)}
        if reason:
            fields["reason"] = reason
        if since is not None:
            fields["since"] = since
        return tx.append(REVOKE, **fields).seq
