"""What digests are called: a short digest, and the refs that ever held it.

Names are looked up when a sentence needs them and kept, so a story of ten lines reads ten documents. A document that is
no longer there, or no longer what its digest says, is no reason to stop: the event is then told without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TypeVar

from csf_store import JSON, Archive, CsfError, Digest
from manifests import (
    Document,
    Envelope,
    Judged,
    Manifest,
    ManifestError,
    Repository,
    TrustBook,
    load_envelope,
)

D = TypeVar("D", bound=Document)

_MOST_ASSEMBLIES = 500
"""Manifests that are read to learn which refs an assembly runs under; the ones that refs held last."""


class Names:
    """Names and documents of one archive.

    Args:
        archive: an open archive.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._repository = Repository(archive)

    def manifest(self, value: JSON) -> str:
        """A manifest by its short digest, and the refs that ever held it."""
        return _called(value, self._refs.get(str(value), ()))

    def assembly(self, value: JSON) -> str:
        """An assembly by its short digest, and the refs under which it ever ran."""
        return _called(value, self._assemblies.get(str(value), ()))

    @cached_property
    def _refs(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = {}
        for name, moves in self.archive.ledger.refs().items():
            for move in moves:
                if move.target is not None:
                    found.setdefault(str(move.target), {})[name] = None
        return {digest: tuple(names) for digest, names in found.items()}

    @cached_property
    def _assemblies(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = {}
        for digest in list(self._refs)[-_MOST_ASSEMBLIES:]:
            manifest = self.load_manifest(digest)
            if manifest is not None:
                found.setdefault(str(manifest.assembly.digest), {}).update(dict.fromkeys(self._refs[digest]))
        return {assembly: tuple(names) for assembly, names in found.items()}

    @cached_property
    def _book(self) -> TrustBook:
        return TrustBook(self.archive.ledger.entries())

    def key(self, value: JSON) -> str:
        """A key by the name it was trusted under, or by its short digest."""
        try:
            known = self._book.key(Digest.parse(str(value)))
        except CsfError:
            known = None
        return known.name if known is not None else f"the unknown key {short(value)}"

    def judged(self, envelope: Envelope, seq: int) -> tuple[Judged, ...]:
        """What each signature is worth that came in with an event."""
        return envelope.judge(seq, self._book)

    def load_manifest(self, value: JSON) -> Manifest | None:
        """A manifest, or None where it cannot be read."""
        try:
            return self._repository.load(Digest.parse(str(value)))
        except (CsfError, ManifestError):
            return None

    def load_record(self, value: JSON, kind: type[D]) -> D | None:
        """A record of a kind, or None where it cannot be read."""
        try:
            return self._repository.load_record(Digest.parse(str(value)), kind)
        except (CsfError, ManifestError):
            return None

    def load_envelope(self, value: JSON) -> Envelope | None:
        """An envelope, or None where it cannot be read."""
        try:
            return load_envelope(self.archive, Digest.parse(str(value)))
        except (CsfError, ManifestError):
            return None


def short(value: JSON) -> str:
    """A digest as people write it; anything else as it is, cut where it gets long."""
    text = str(value)
    if text.startswith("b3:") and len(text) == 67:
        return text[:15]
    return text if len(text) <= 80 else f"{text[:77]}..."


def _called(value: JSON, refs: tuple[str, ...]) -> str:
    return f"{short(value)} ({', '.join(refs)})" if refs else short(value)
