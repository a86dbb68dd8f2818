"""What is said of adapters that were not trained here: of a merged one its parents, of an imported one its claims.

An adapter record knows one parent, the adapter that was trained on. A merge has several and no training, so it gets a
document of its own. The numbers in it are not believed either: `check_merge` reads the parents and computes them again.
An import's record holds what the files said of themselves, marked as the claim it is.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csf_store import Digest, Kind
from manifests import AdapterUse, DigestField, Document, Repository

_Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Words = Annotated[str, Field(max_length=512)]


class AdapterMerge(Document):
    """How an adapter was put together from others.

    `largest_error` is the largest absolute entry of what the adapter adds less what its parents add at their weights,
    over all modules; `relative_error` is the Frobenius norm of that difference over the norm of the parents' sum.
    """

    kind: Literal["adapter-merge"] = "adapter-merge"
    v: Literal[1] = 1
    adapter: DigestField
    base: DigestField
    parents: Annotated[tuple[AdapterUse, ...], Field(min_length=1)]
    method: Literal["concatenation", "svd"]
    rank: Annotated[int, Field(ge=1)]
    largest_error: _Number
    relative_error: _Number

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.adapter in {use.adapter for use in self.parents}:
            raise ValueError(f"adapter {self.adapter} cannot be merged from itself")
        return self

    def links(self) -> tuple[Digest, ...]:
        """The adapter, its parents and their base."""
        return tuple(sorted({self.adapter, self.base, *(use.adapter for use in self.parents)}))


class AdapterImport(Document):
    """Where an adapter came from and what its files claim; nothing here has been proven.

    `location` is a hub address with its commit, or `directory`. `claimed_base` and `claimed_revision` are what
    `adapter_config.json` names as its base, `licence` what its card says.
    """

    kind: Literal["adapter-import"] = "adapter-import"
    v: Literal[1] = 1
    adapter: DigestField
    base: DigestField
    location: _Words
    claimed_base: _Words | None = None
    claimed_revision: _Words | None = None
    licence: _Words | None = None

    def links(self) -> tuple[Digest, ...]:
        """The adapter and the base it was put on."""
        return tuple(sorted({self.adapter, self.base}))


def keep(repository: Repository, record: AdapterMerge | AdapterImport) -> Digest:
    """Store a record and pin it: no manifest links to it."""
    with repository.archive.keeping():
        digest = repository.put_record(record)
        repository.archive.pin(digest, kind=Kind.RECORD)
    return digest


def merges(repository: Repository) -> tuple[AdapterMerge, ...]:
    """Every merge the ledger tells of, in its order."""
    return tuple(repository.load_record(digest, AdapterMerge) for digest in _told(repository, "adapter-merge"))


def merge_of(repository: Repository, adapter: Digest) -> AdapterMerge | None:
    """How this adapter was merged, or None: it was not. The first record counts, as the ledger has it."""
    return next((record for record in merges(repository) if record.adapter == adapter), None)


def imports_of(repository: Repository, adapter: Digest) -> tuple[AdapterImport, ...]:
    """Everywhere this adapter was imported from."""
    found = (repository.load_record(digest, AdapterImport) for digest in _told(repository, "adapter-import"))
    return tuple(record for record in found if record.adapter == adapter)


def _told(repository: Repository, kind: str) -> tuple[Digest, ...]:
    """The records of a kind, as the ledger noted them; one that was collected since is left out."""
    archive = repository.archive
    found: dict[Digest, None] = {}
    for entry in archive.ledger.entries():
        if entry.event == "evidence" and entry.fields.get("kind") == kind:
            digest = Digest.parse(str(entry.fields["record"]))
            if archive.contains(digest, kind=Kind.RECORD):
                found[digest] = None
    return tuple(found)
