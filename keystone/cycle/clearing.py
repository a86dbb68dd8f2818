"""What may be approved and promoted at all: only what a tripwire has cleared."""

from __future__ import annotations

from csf_store import Digest
from keystone.errors import RefusedError
from manifests import Repository


def require_clear(repository: Repository, target: Digest) -> None:
    """Refuse what no tripwire has cleared; a bare frozen base needs none.

    Raises:
        RefusedError: naming what its tripwire says.
    """
    manifest = repository.load(target)
    if manifest.assembly.adapters and manifest.tripwire.status != "clear":
        raise RefusedError(
            f"the tripwire of {target} is {manifest.tripwire.status}; only what is clear is approved and promoted, see"
            " `keystone cycle run`"
        )
