"""DSSE envelopes: a statement, the signatures over it, and what each signature is worth here.

An envelope is canonical JSON like every document, so its digest names it; the archive keeps it as a record and the
ledger notes its arrival as `signed`. That event's number is the time of the signature (see `trust`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from securesystemslib.dsse import Envelope as DsseEnvelope

from csf_store import Archive, Digest, Kind
from manifests import canonical
from manifests.canonical import Json
from manifests.errors import InvalidDocumentError
from manifests.events import SIGNED, events_of
from manifests.signing.in_toto import Statement
from manifests.signing.keys import PublicKey, SigningKey
from manifests.signing.trust import Standing, TrustBook

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_SIGNATURES = 16


class SignatureState(StrEnum):
    """What a signature is worth."""

    VALID = "valid"
    REVOKED_LATER = "valid: its key was revoked after it"
    REVOKED = "by a key that was revoked before it"
    UNTRUSTED = "by a key that is not trusted"
    UNKNOWN_KEY = "by a key nobody here knows"
    BAD = "not a signature of these bytes"

    @property
    def counts(self) -> bool:
        """Whether it proves that a trusted operator signed."""
        return self in {SignatureState.VALID, SignatureState.REVOKED_LATER}


@dataclass(frozen=True, slots=True)
class Judged:
    """One signature of an envelope and what it is worth."""

    key: Digest
    name: str | None
    state: SignatureState

    @property
    def text(self) -> str:
        """For people: who, and what of it."""
        return f"{self.name or 'nobody known'} ({self.key.short}): {self.state.value}"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A statement and its signatures, (key id, 64 bytes) each."""

    statement: Statement
    signatures: tuple[tuple[Digest, bytes], ...]

    def to_bytes(self) -> bytes:
        """Its RFC 8785 form."""
        signatures: Json = [
            {"keyid": str(key), "sig": base64.b64encode(signature).decode()} for key, signature in self.signatures
        ]
        payload = base64.b64encode(self.statement.to_bytes()).decode()
        return canonical.encode({"payload": payload, "payloadType": PAYLOAD_TYPE, "signatures": signatures})

    @classmethod
    def parse(cls, data: bytes) -> Envelope:
        """Read an envelope.

        Raises:
            NotCanonicalError, InvalidDocumentError: when it is none, or none over an in-toto statement.
        """
        found = canonical.parse(data)
        signatures = found.get("signatures")
        if found.keys() != {"payload", "payloadType", "signatures"} or found["payloadType"] != PAYLOAD_TYPE:
            raise InvalidDocumentError("these bytes are no DSSE envelope over an in-toto statement")
        if not isinstance(signatures, Sequence) or not 0 < len(signatures) <= _SIGNATURES:
            raise InvalidDocumentError(f"an envelope has one to {_SIGNATURES} signatures")
        envelope = cls(Statement.parse(_base64(found["payload"])), tuple(map(_signature, signatures)))
        if envelope.to_bytes() != data:
            raise InvalidDocumentError("this envelope is not in its one form: its base64 has a second spelling")
        return envelope

    def judge(self, seq: int, book: TrustBook, known: Mapping[Digest, PublicKey] | None = None) -> tuple[Judged, ...]:
        """What each signature is worth.

        Args:
            seq: number of the event that brought the envelope in.
            book: whom the ledger trusts.
            known: further public keys by id, known to the reader and not to the ledger.
        """
        message = pae(self.statement.to_bytes())
        return tuple(self._judge_one(each, message, seq, book, known or {}) for each in self.signatures)

    @staticmethod
    def _judge_one(
        signature: tuple[Digest, bytes],
        message: bytes,
        seq: int,
        book: TrustBook,
        known: Mapping[Digest, PublicKey],
    ) -> Judged:
        key_id, raw = signature
        key = book.key(key_id) or known.get(key_id)
        if key is None:
            return Judged(key_id, None, SignatureState.UNKNOWN_KEY)
        if not key.verifies(raw, message):
            return Judged(key_id, key.name, SignatureState.BAD)
        standing = book.standing(key_id, seq)
        state = {
            Standing.TRUSTED: SignatureState.VALID,
            Standing.REVOKED_LATER: SignatureState.REVOKED_LATER,
            Standing.REVOKED: SignatureState.REVOKED,
        }.get(standing, SignatureState.UNTRUSTED)
        return Judged(key_id, key.name, state)


def pae(payload: bytes) -> bytes:
    """The bytes that a DSSE signature is over."""
    found: bytes = DsseEnvelope(payload, PAYLOAD_TYPE, {}).pae()
    return found


def seal(statement: Statement, *keys: SigningKey) -> Envelope:
    """Sign a statement."""
    message = pae(statement.to_bytes())
    return Envelope(statement, tuple((key.public.id, key.sign(message)) for key in keys))


def put_envelope(archive: Archive, envelope: Envelope) -> Digest:
    """Keep an envelope, and note in the ledger that it arrived. Putting it again changes nothing."""
    data = envelope.to_bytes()
    digest = Digest.of(data)
    subjects = [subject for _, subject in envelope.statement.subjects]
    with archive.keeping():
        archive.put_bytes(data, kind=Kind.RECORD, links=sorted({s for s in subjects if archive.contains(s)}))
        archive.pin(digest, kind=Kind.RECORD)
        with archive.ledger.locked() as tx:
            name = str(digest)
            if name not in events_of(archive).signed:
                tx.append(
                    SIGNED,
                    envelope=name,
                    predicate=envelope.statement.predicate_type,
                    subjects=[str(subject) for subject in subjects],
                    keys=[str(key) for key, _ in envelope.signatures],
                )
    return digest


def load_envelope(archive: Archive, digest: Digest) -> Envelope:
    """Read an envelope from the archive.

    Raises:
        csf_store.NotFoundError: when it is not there.
        InvalidDocumentError: when the record is none.
    """
    return Envelope.parse(archive.get_bytes(digest, kind=Kind.RECORD))


def _base64(text: Json) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except binascii.Error as error:
        raise InvalidDocumentError(f"this envelope holds what is not base64: {error}") from error


def _signature(found: Json) -> tuple[Digest, bytes]:
    if not isinstance(found, Mapping) or found.keys() != {"keyid", "sig"} or not isinstance(found["keyid"], str):
        raise InvalidDocumentError("a signature has a keyid and a sig, and nothing else")
    raw = _base64(found["sig"])
    if len(raw) != 64:
        raise InvalidDocumentError(f"an Ed25519 signature has 64 bytes, this one {len(raw)}")
    return Digest.parse(found["keyid"]), raw
