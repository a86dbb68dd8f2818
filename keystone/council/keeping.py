"""From a deliberation to training experience: through the source gate, like everything else that may train.

The answer was executed when it was given. It is executed again here, held against every hold-out, and asked for its
licence; what an endpoint said has none until a person states it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapters import ConvergenceRecord, HoldoutIndex
from csf_store import Digest
from keystone.council.tasks import SUITE
from keystone.errors import RefusedError
from keystone.evaluation import Sandbox
from keystone.experience import ExperienceBatch, Gated, gate
from keystone.experience.batches import put_batch
from manifests import Deliberation, Repository


@dataclass(frozen=True)
class Kept:
    """What was kept.

    Attributes:
        record: the Convergence Record that may train.
        batch: the experience batch that keeps it.
        gated: what the source gate said.
    """

    record: Digest
    batch: Digest
    gated: Gated


def keep(
    repository: Repository,
    deliberation: Digest,
    *,
    sandbox: Sandbox,
    holdouts: Callable[[], HoldoutIndex],
    licence: str | None = None,
) -> Kept:
    """Let a verified answer become experience.

    Args:
        repository: where it is.
        deliberation: whose answer.
        sandbox: where its evidence is executed again.
        holdouts: makes the index of what may not be learned; only asked where there is something to hold against it.
        licence: of an answer that came from an endpoint, stated by whoever keeps it.

    Raises:
        RefusedError: nothing was verified, the licence is not the caller's to state, or the gate refuses.
        csf_store.CsfError, manifests.ManifestError: there is no such deliberation.
    """
    found = repository.load_record(deliberation, Deliberation)
    if not found.verified:
        raise RefusedError(f"deliberation {deliberation.short} verified nothing, so there is nothing to learn from it")
    digest = found.record
    record = repository.load_record(digest, ConvergenceRecord)
    if licence is not None:
        if record.source.kind == "model":
            raise RefusedError("a model of this archive answered: its base's licence holds, and nobody states another")
        source = record.source.model_copy(update={"licence": licence})
        record = record.revised(source=type(source).model_validate(source.model_dump()))
        digest = repository.put_record(record)
    gated = gate(repository, [digest], sandbox=sandbox, holdouts=holdouts())
    if gated.rejected:
        raise RefusedError(f"the source gate refuses {digest.short}: {gated.rejected[0].reason}")
    batch = ExperienceBatch(
        origin="collected",
        suite=SUITE,
        records=(digest,),
        assembly=record.source.assembly,
        recipe=record.source.recipe,
        tasks=1,
        samples=max(1, len(found.proposals)),
        sampled=max(1, len(found.proposals)),
        passed=1,
    )
    with repository.archive.keeping():
        stored = put_batch(repository, batch)
    return Kept(digest, stored, gated)
