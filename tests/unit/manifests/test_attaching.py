"""Evidence of this assembly goes into a new manifest; evidence of anything else does not."""

from __future__ import annotations

import pytest
from manifest_house import RECIPE, House, signer

from csf_store import Digest, Kind
from manifests import NotFoundError, RefusedError, attach


def test_evidence_arrives_one_by_one(house: House) -> None:
    repository = house.repository
    start = house.manifest().revised(recipe=RECIPE)
    digest = repository.put(start)
    wired = house.wired(start)
    assert wired.tripwire.report is not None
    more = attach(repository, digest, [wired.evals[0].report, wired.tripwire.report])
    assert more == wired.revised(parent=digest)
    second = repository.put(more)
    approval = house.approve("prod", second, signer())
    approved = attach(repository, second, [approval])
    assert approved.approvals == (approval,) and approved.parent == second
    assert attach(repository, second, [wired.evals[0].report]).evals == more.evals


def test_evidence_of_something_else_is_refused(house: House) -> None:
    repository = house.repository
    start = house.manifest().revised(recipe=RECIPE)
    other = house.wired(house.manifest(house.adapter("other")))
    digest = repository.put(start)
    assert other.tripwire.report is not None
    for record in (other.evals[0].report, other.tripwire.report):
        with pytest.raises(RefusedError, match="is of assembly"):
            attach(repository, digest, [record])
    approval = house.approve("prod", repository.put(other), signer())
    with pytest.raises(RefusedError, match="is of assembly"):
        attach(repository, digest, [approval])
    with pytest.raises(RefusedError, match="takes in reports"):
        attach(repository, digest, [digest])
    noise = house.archive.put_bytes(b"noise", kind=Kind.RECORD).digest
    with pytest.raises(RefusedError, match="neither a report nor an approval"):
        attach(repository, digest, [noise])
    with pytest.raises(NotFoundError):
        attach(repository, digest, [Digest.of(b"?")])
