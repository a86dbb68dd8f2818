"""`Repository`: an archive seen as manifests, records and refs.

The archive knows bytes and links, this module knows what they mean. It writes a document only when everything the
document names is in the archive in the kind it is named as, so a manifest that can be read can also be loaded and
audited; and it lets no two records put one adapter on two bases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from csf_store import Archive, Digest, Kind
from manifests import canonical, lineage
from manifests.canonical import Json
from manifests.document import Document
from manifests.errors import BaseMismatchError, LineageError, MissingLinkError, NotCanonicalError, RefusedError
from manifests.events import events_of
from manifests.evidence import AdapterRecord
from manifests.finding import ALL, ManifestQuery
from manifests.loading import link_kind, load_document, load_manifest
from manifests.ref_names import is_ref_name
from manifests.refs import Refs
from manifests.schema import LineageStep, Manifest

D = TypeVar("D", bound=Document)

_PINNED = frozenset({"tripwire-policy", "guard-policy", "attestation"})
"""Kinds of records that stay although no manifest names them."""


class Repository:
    """The manifests, records and refs of one open archive."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.refs = Refs(archive)
        # A digest means one document for ever, so each is read once however often its adapter is asked about.
        self._links: dict[Digest, frozenset[Digest]] = {}
        self._adapter_records: dict[Digest, AdapterRecord | None] = {}

    def put(self, manifest: Manifest) -> Digest:
        """Store a manifest and pin it; storing it again changes nothing.

        Raises:
            InvalidDocumentError: when it was put together in a way that skipped its rules.
            MissingLinkError: when the archive lacks something the manifest names.
            BaseMismatchError: when an adapter's record names another base.
            LineageError: when the lineage in the manifest is not the one the records tell.
        """
        self._check_links(manifest, {link: link_kind(manifest, link) for link in manifest.links()})
        traced = self.trace((use.adapter for use in manifest.assembly.adapters), base=manifest.assembly.base)
        if {(step.adapter, step.parent) for step in traced} != {(s.adapter, s.parent) for s in manifest.lineage}:
            raise LineageError(
                "the lineage in this manifest is not the one its adapter records tell; take it from Repository.trace"
            )
        for step in manifest.lineage:
            record = self.load_record(step.record, AdapterRecord)
            if (record.adapter, record.base, record.parent) != (step.adapter, manifest.assembly.base, step.parent):
                raise LineageError(f"record {step.record} does not say what the lineage says of adapter {step.adapter}")
        with self.archive.keeping():  # garbage collection must not come between the two
            stored = self.archive.put_bytes(_sealed(manifest), kind=Kind.MANIFEST, links=manifest.links())
            self.archive.pin(stored.digest, kind=Kind.MANIFEST)
        return stored.digest

    def load(self, digest: Digest) -> Manifest:
        """Read a manifest; see `manifests.loading.load_document` for the errors."""
        return load_manifest(self.archive, digest)

    def resolve(self, text: str) -> Digest:
        """The manifest a person means: a ref name first if it is one, else a digest or a unique prefix of 8+ hex.

        Raises:
            RefNotFoundError, csf_store.NotFoundError, csf_store.AmbiguousPrefixError: when nothing, or more than one
                manifest, is meant.
        """
        if is_ref_name(text):
            return self.refs.get(text)
        return self.archive.resolve(text, kind=Kind.MANIFEST)

    def manifests(self) -> Iterator[Digest]:
        """The digest of every manifest here, in digest order."""
        yield from (Digest(raw) for raw, kind in self.archive.listing() if kind == Kind.MANIFEST)

    def find(self, query: ManifestQuery = ALL) -> Iterator[tuple[Digest, Manifest]]:
        """Every manifest that fits, in digest order."""
        texts = query.texts()
        for digest in self.manifests():
            data = self.archive.get_bytes(digest, kind=Kind.MANIFEST)
            if all(text in data for text in texts):
                manifest = self.load(digest)
                if query.fits(manifest):
                    yield digest, manifest

    def put_record(self, document: Document) -> Digest:
        """Store a record (a report, a training record). It lives while a manifest or an adapter record links to it.

        The ledger notes its first arrival as `evidence`, so that later nobody can say it was there before. Policies and
        attestations are pinned too: a policy must outlive the run it was made for, and nothing links to an attestation.

        Raises:
            RefusedError: for a manifest or an adapter record, which have rules of their own.
            MissingLinkError: when the archive lacks something the record names.
        """
        if isinstance(document, (Manifest, AdapterRecord)):
            raise RefusedError(f"a {document.kind_name()} is stored with its own put, which checks more")
        self._check_links(document, dict.fromkeys(document.links()))
        data = _sealed(document)
        with self.archive.keeping():
            known = self.archive.contains(Digest.of(data), kind=Kind.RECORD)
            digest = self.archive.put_bytes(data, kind=Kind.RECORD, links=document.links()).digest
            if not (known and self._is_told(digest)):
                self.archive.ledger.append("evidence", **_told(document, digest))
            if document.kind_name() in _PINNED:
                self.archive.pin(digest, kind=Kind.RECORD)
        return digest

    def _is_told(self, record: Digest) -> bool:
        return str(record) in events_of(self.archive).evidence

    def load_record(self, digest: Digest, record_type: type[D]) -> D:
        """Read a record of a known type; see `manifests.loading.load_document` for the errors."""
        return load_document(self.archive, digest, record_type)

    def put_adapter_record(self, record: AdapterRecord) -> Digest:
        """Store what is said of an adapter, and pin it. A proof replaces a claim; a later claim changes nothing.

        Raises:
            BaseMismatchError: when the adapter is recorded on another base already; both are named.
            LineageError: when it is recorded with another parent already.
            MissingLinkError: when the archive lacks the adapter, the base, the parent or the training record.
        """
        kinds: dict[Digest, Kind | None] = dict.fromkeys(record.links(), Kind.TREE)
        if record.training is not None:
            kinds[record.training] = Kind.RECORD
        self._check_links(record, kinds)
        # Looking and writing happen under the ledger's lock: two processes with two bases must not both succeed.
        with self.archive.keeping():
            with self.archive.ledger.locked() as tx:
                for found, known in self._records_of(record.adapter):
                    _check_agrees(record, known)
                    if found == record.digest or (record.claim and not known.claim):
                        digest = found
                        break
                else:
                    data = _sealed(record)
                    digest = self.archive.put_bytes(data, kind=Kind.RECORD, links=record.links()).digest
                    tx.append("adapter.record", adapter=str(record.adapter), base=str(record.base), record=str(digest))
            self.archive.pin(digest, kind=Kind.RECORD)
        return digest

    def adapter_record(self, adapter: Digest) -> AdapterRecord | None:
        """What is said of an adapter tree: the record with a proof if there is one, else the claim, else None.

        Raises:
            BaseMismatchError, LineageError: when records in the archive contradict each other.
        """
        found = self.find_adapter_record(adapter)
        return found[1] if found is not None else None

    def find_adapter_record(self, adapter: Digest) -> lineage.FoundRecord | None:
        """`adapter_record`, with the digest the record is stored under."""
        records = self._records_of(adapter)
        for _, record in records[1:]:
            _check_agrees(record, records[0][1])
        return records[0] if records else None

    def trace(self, adapters: Iterable[Digest], *, base: Digest) -> tuple[LineageStep, ...]:
        """The lineage of some adapters on a base, ready for `Manifest.lineage`; see `manifests.lineage.trace`."""
        return lineage.trace(adapters, base=base, lookup=self.find_adapter_record)

    def _records_of(self, adapter: Digest) -> list[lineage.FoundRecord]:
        """Every record of one adapter, proofs first, then by digest, so that all readers choose the same."""
        found: list[lineage.FoundRecord] = []
        for raw, kind in self.archive.listing():
            if kind != Kind.RECORD or adapter not in self._links_of(Digest(raw)):
                continue
            record = self._as_adapter_record(Digest(raw))
            if record is not None and record.adapter == adapter:
                found.append((Digest(raw), record))
        return sorted(found, key=lambda item: (item[1].claim, item[0]))

    def _links_of(self, digest: Digest) -> frozenset[Digest]:
        if digest not in self._links:
            self._links[digest] = frozenset(self.archive.record(digest, Kind.RECORD).body.links)
        return self._links[digest]

    def _as_adapter_record(self, digest: Digest) -> AdapterRecord | None:
        if digest not in self._adapter_records:
            self._adapter_records[digest] = self._read_adapter_record(digest)
        return self._adapter_records[digest]

    def _read_adapter_record(self, digest: Digest) -> AdapterRecord | None:
        try:
            value = canonical.parse(self.archive.get_bytes(digest, kind=Kind.RECORD))
        except NotCanonicalError:
            return None  # a record may be any document; one that is not ours says nothing about adapters
        if value.get("kind") != AdapterRecord.kind_name():
            return None
        return self.load_record(digest, AdapterRecord)

    def _check_links(self, document: Document, kinds: dict[Digest, Kind] | dict[Digest, Kind | None]) -> None:
        for link, kind in kinds.items():
            if not self.archive.contains(link, kind=kind):
                what = kind.value if kind is not None else "object"
                raise MissingLinkError(
                    f"this {document.kind_name()} names {what} {link}, which {self.archive.path} does not hold;"
                    " put it first"
                )


def _sealed(document: Document) -> bytes:
    """The bytes to store, read back first: `model_copy(update=...)` makes documents that no rule has seen."""
    data = document.to_bytes()
    type(document).from_bytes(data)
    return data


def _told(document: Document, digest: Digest) -> dict[str, Json]:
    """What the ledger says of a record: enough to know what it is about without reading it."""
    fields = document.to_json()
    about = {key: fields[key] for key in ("assembly", "recipe", "status") if isinstance(fields.get(key), str)}
    return {"kind": document.kind_name(), "record": str(digest), **about}


def _check_agrees(record: AdapterRecord, known: AdapterRecord) -> None:
    if record.base != known.base:
        raise BaseMismatchError(
            f"adapter {record.adapter} is recorded on base {known.base}; it cannot be claimed for base {record.base}"
        )
    if record.parent != known.parent:
        raise LineageError(
            f"adapter {record.adapter} is recorded with parent {known.parent or 'none'}; it cannot be claimed to"
            f" descend from {record.parent or 'the base itself'}"
        )
