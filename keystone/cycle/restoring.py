"""Back to the last good adapter, without being asked.

A candidate that tripped was never on the ref if everybody kept to the rules. This is for when they did not, and for
when what the ref holds turns out to be bad after all: the ref then goes back to the newest earlier target that was
good (a clear tripwire, or the bare frozen base), every byte of it verified first.
"""

from __future__ import annotations

from csf_store import Digest
from keystone.errors import RefusedError
from manifests import Manifest, Repository


def restore(repository: Repository, ref: str, tripped: Digest | None) -> Digest:
    """See that a ref holds nothing that tripped.

    Args:
        repository: where the ref is.
        ref: the ref.
        tripped: the assembly that tripped just now, if one did.

    Returns:
        Where the ref is afterwards; it did not move if what it held is good.

    Raises:
        manifests.RollbackRefusedError: where it would go back to does not verify.
    """
    current = repository.refs.get(ref)
    manifest = repository.load(current)
    if manifest.assembly.digest != tripped and manifest.tripwire.status != "tripped":
        return current
    target = last_good(repository, ref, without=manifest.assembly.digest)
    return _target(repository.refs.rollback(ref, to=target, reason="the collapse tripwire tripped").target, ref)


def last_good(repository: Repository, ref: str, *, without: Digest) -> Digest:
    """The newest earlier target of a ref that is good and not of the assembly `without`, else its bare base."""
    history = repository.refs.history(ref)
    for target in dict.fromkeys(event.target for event in reversed(history) if event.target is not None):
        good = repository.refs.why_not_good(target) is None
        if good and repository.load(target).assembly.digest != without:
            return target
    manifest = repository.load(repository.refs.get(ref))
    bare = manifest.assembly.revised(adapters=())
    return repository.put(Manifest(assembly=bare, code_source=manifest.code_source, source=manifest.source))


def _target(target: Digest | None, ref: str) -> Digest:
    if target is None:
        raise RefusedError(f"ref {ref!r} points nowhere after its rollback; set it by hand: keystone ref set {ref}")
    return target
