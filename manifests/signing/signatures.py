"""Every signature on one thing, as the ledger brought them in, and what each is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csf_store import Archive, CsfError, Digest, LedgerEntry
from manifests.errors import ManifestError
from manifests.signing.envelopes import SIGNED, Envelope, Judged, load_envelope
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
    entries: Sequence[LedgerEntry] | None = None,
    known: Mapping[Digest, PublicKey] | None = None,
) -> tuple[FoundSignature, ...]:
    """Every envelope about a digest, in the order of arrival.

    Args:
        archive: where they are.
        subject: a manifest, a report, an assembly, or an envelope itself.
        entries: the events of the ledger, if the caller has read them already.
        known: further public keys by id, such as those of the reader's own key directory.
    """
    events = entries if entries is not None else list(archive.ledger.entries())
    book = TrustBook(events)
    found = []
    for entry in events:
        subjects = entry.fields.get("subjects")
        told = isinstance(subjects, Sequence) and str(subject) in subjects
        if entry.event == SIGNED and (told or entry.fields.get("envelope") == str(subject)):
            found.append(_judged(archive, entry, subject, book, known))
    return tuple(found)


def _judged(
    archive: Archive,
    entry: LedgerEntry,
    subject: Digest,
    book: TrustBook,
    known: Mapping[Digest, PublicKey] | None,
) -> FoundSignature:
    digest = Digest.parse(str(entry.fields.get("envelope")))
    try:
        envelope = load_envelope(archive, digest)
    except (CsfError, ManifestError) as error:
        return FoundSignature(digest, entry.seq, None, problem=f"the envelope cannot be read: {error}")
    if subject != digest and all(each != subject for _, each in envelope.statement.subjects):
        return FoundSignature(digest, entry.seq, envelope, problem=f"the envelope does not speak of {subject}")
    return FoundSignature(digest, entry.seq, envelope, envelope.judge(entry.seq, book, known))
