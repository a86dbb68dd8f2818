"""Records as they enter the archive, and the batch that remembers how.

Every Convergence Record is a record of its own with an `evidence` event in the ledger. A *batch* is the document over
one collection or one file: which records it brought, how many answers were drawn, passed, repeated others or came too
near a hold-out, each of those by name. The batch is pinned, so the records stay until somebody unpins it; records that
trained an adapter stay with that adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from adapters import ConvergenceRecord
from csf_store import Digest, Kind
from manifests import DigestField, Document, Repository, register_kind

Count = Annotated[int, Field(ge=0, le=10**9)]
Text = Annotated[str, Field(max_length=1024)]


def _ordered(digests: tuple[Digest, ...]) -> tuple[Digest, ...]:
    return tuple(sorted(set(digests)))


@register_kind
class ExperienceBatch(Document):
    """What one collection or one file brought.

    Attributes:
        origin: `collected` from a model's answers, or `added` from outside.
        suite: where the tasks come from.
        records: those that were kept.
        assembly: of the model that answered.
        recipe: how its numbers were held.
        file: the blob of the file that was added.
        tasks: how many were asked.
        samples: answers drawn for each.
        seed: of the sampling.
        sampled: answers in all.
        passed: of those, how many satisfied their tests.
        duplicates: of those, how many taught the same as another.
        contaminated: (task, why): passed, and was left out for a hold-out it is or resembles.
        refused: (item, why): of a file, and not kept.
    """

    kind: Literal["experience-batch"] = "experience-batch"
    v: Literal[1] = 1
    origin: Literal["collected", "added"]
    suite: Text
    records: Annotated[tuple[DigestField, ...], AfterValidator(_ordered)] = ()
    assembly: DigestField | None = None
    recipe: DigestField | None = None
    file: DigestField | None = None
    tasks: Count
    samples: Count = 1
    seed: Count | None = None
    sampled: Count
    passed: Count
    duplicates: Count = 0
    contaminated: tuple[tuple[Text, Text], ...] = ()
    refused: tuple[tuple[Text, Text], ...] = ()

    def links(self) -> tuple[Digest, ...]:
        """The records, and the file they came from."""
        return tuple(sorted({*self.records, *([self.file] if self.file is not None else [])}))


@dataclass(frozen=True, slots=True)
class Contaminated:
    """An answer that passed and may not train: its task, and the hold-out it is or resembles."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An item of a file that was not kept, and why."""

    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What came of a collection, or of a file.

    Attributes:
        records: those that were kept: stored, on the ledger, in the order they were found.
        sampled: answers drawn, or items in the file.
        passed: of those, how many satisfied their tests when they were executed.
        duplicates: of those, how many teach the same as another record, an earlier one included.
        contaminated: of those, which were left out for a hold-out.
        refused: items of a file that do not stand up, named.
        batch: the document that says all this.
    """

    records: tuple[Digest, ...]
    sampled: int
    passed: int
    duplicates: int
    contaminated: tuple[Contaminated, ...]
    batch: Digest
    refused: tuple[Refused, ...] = ()


def put_records(repository: Repository, records: Sequence[ConvergenceRecord]) -> tuple[Digest, ...]:
    """Store records, each on the ledger; one that is there already is not told again."""
    archive = repository.archive
    told = {str(each.fields.get("record")) for each in archive.ledger.entries() if each.event == "evidence"}
    found = []
    for record in records:
        digest = record.digest
        if str(digest) not in told or not archive.contains(digest, kind=Kind.RECORD):
            repository.put_record(record)
            told.add(str(digest))
        found.append(digest)
    return tuple(found)


def put_batch(repository: Repository, batch: ExperienceBatch) -> Digest:
    """Store a batch and pin it, and with it its records."""
    digest = repository.put_record(batch)
    repository.archive.pin(digest, kind=Kind.RECORD, name=f"experience {batch.origin} {batch.suite}"[:200])
    return digest


def load_records(repository: Repository, records: Iterable[Digest]) -> list[ConvergenceRecord]:
    """Read Convergence Records by digest.

    Raises:
        manifests.ManifestError, csf_store.CsfError: one is not there, or is none.
    """
    return [repository.load_record(digest, ConvergenceRecord) for digest in records]
