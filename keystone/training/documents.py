"""The training run: what a training record has no room for, so that the run can be made once more.

A `TrainingRecord` proves an adapter. The *run* beside it says how to repeat it: the manifest it went on from, how the
base was held, how examples became batches, which of them came from outside and what share that is, the loss curve as a
blob, and digests of the base in memory and in the archive, before and after. It links to the training record and
is pinned; nothing that is proven depends on it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from csf_store import CsfError, Digest
from keystone.errors import InvalidInputError
from manifests import DigestField, Document, ManifestError, ModuleName, Recipe, Repository, register_kind

Count = Annotated[int, Field(ge=1, le=10**9)]


def _ordered(digests: tuple[Digest, ...]) -> tuple[Digest, ...]:
    return tuple(sorted(set(digests)))


Digests = Annotated[tuple[DigestField, ...], AfterValidator(_ordered)]


@register_kind
class TrainingRun(Document):
    """How an adapter was trained, beside its training record.

    Attributes:
        adapter: the adapter tree.
        training: its training record.
        manifest: what was gone on from: a bare base, or a base and one adapter.
        tokenizer: the tokenizer's tree.
        recipe: how the frozen base was held.
        modules_to_save: modules trained as a whole.
        records: Convergence Records of models.
        external: those from outside.
        external_share: share of the second among all, 0 to 1.
        batch_size: rows in a batch.
        max_tokens: the most that a row may have.
        curve: the blob of the loss curve, one JSON line a step.
        held_before: tensor-set digest of the base as it was held in memory, before.
        held_after: the same, after.
        archived_before: tensor-set digest of the base as the archive gives it, before.
        archived_after: the same, after.
    """

    kind: Literal["training-run"] = "training-run"
    v: Literal[1] = 1
    adapter: DigestField
    training: DigestField
    manifest: DigestField
    tokenizer: DigestField
    recipe: Recipe
    modules_to_save: tuple[ModuleName, ...] = ()
    records: Digests = ()
    external: Digests = ()
    external_share: Annotated[float, Field(ge=0, le=1)]
    batch_size: Count
    max_tokens: Count
    curve: DigestField
    held_before: DigestField
    held_after: DigestField
    archived_before: DigestField
    archived_after: DigestField

    @model_validator(mode="after")
    def _check(self) -> Self:
        total = len(self.records) + len(self.external)
        if not total or self.external_share != len(self.external) / total:
            raise ValueError(f"an external share of {self.external_share} with {len(self.external)} of {total} records")
        if self.held_before != self.held_after or self.archived_before != self.archived_after:
            raise ValueError("the base did not come out of this run as it went in")
        return self

    def links(self) -> tuple[Digest, ...]:
        """Adapter, training record, manifest, tokenizer, curve and records."""
        found = {self.adapter, self.training, self.manifest, self.tokenizer, self.curve, *self.records, *self.external}
        return tuple(sorted(found))


def find_training_run(repository: Repository, adapter: Digest) -> tuple[Digest, TrainingRun] | None:
    """The run that made an adapter, and the digest it is stored under; None where no run is kept.

    Raises:
        InvalidInputError: a run on the ledger cannot be read.
    """
    archive = repository.archive
    for entry in archive.ledger.entries():
        if entry.event != "evidence" or entry.fields.get("kind") != TrainingRun.kind_name():
            continue
        digest = Digest.parse(str(entry.fields["record"]))
        if not archive.contains(digest):
            continue
        try:
            run = repository.load_record(digest, TrainingRun)
        except (CsfError, ManifestError) as error:
            raise InvalidInputError(f"training run {digest} cannot be read: {error}") from error
        if run.adapter == adapter:
            return digest, run
    return None
