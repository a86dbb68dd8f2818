"""Every signature on one thing, as the ledger brought them in, and what each is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csf_store import Archive, CsfError, Digest
from manifests.errors import ManifestError
from manifests.events import Arrival, LedgerEvents, events_of
from manifests.signing.envelopes import Envelope, Judged, load_envelope
from manifests.signing.keys import PublicKey
from manifests.signing.trust import TrustBook


@dataclass(frozen=True, slots=True)
class FoundSignature:
    """An envelope that the ledger says is about something.

    `problem` is what keeps it from being read, or from being about what the ledger says; then nothing was judged.
    """

    envelope: Digest
    seq: int
    statement: Envelope | None
    signatures: tuple[Judged, ...] = ()
    problem: str | None = None


def signatures_of(
    archive: Archive,
    subject: Digest,
    *,
    events: LedgerEvents | None = None,
    known: Mapping[Digest, PublicKey] | None = None,
) -> tuple[FoundSignature, ...]:
    """Every envelope about a digest, in the order of arrival.

    Args:
        archive: where they are.
        subject: a manifest, a report, an assembly, or an envelope itself.
        events: what the ledger says, if the caller has read it already.
        known: further public keys by id, such as those of the reader's own key directory.
    """
    told = events if events is not None else events_of(archive)
    return tuple(_judged(archive, each, subject, told.book, known) for each in told.about.get(str(subject), ()))


def _judged(
    archive: Archive,
    arrival: Arrival,
    subject: Digest,
    book: TrustBook,
    known: Mapping[Digest, PublicKey] | None,
) -> FoundSignature:
    digest = Digest.parse(arrival.envelope)
    try:
        envelope = load_envelope(archive, digest)
    except (CsfError, ManifestError) as error:
        return FoundSignature(digest, arrival.seq, None, problem=f"the envelope cannot be read: {error}")
    if subject != digest and all(each != subject for _, each in envelope.statement.subjects):
        return FoundSignature(digest, arrival.seq, envelope, problem=f"the envelope does not speak of {subject}")
    return FoundSignature(digest, arrival.seq, envelope, envelope.judge(arrival.seq, book, known))
