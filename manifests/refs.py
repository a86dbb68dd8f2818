"""Refs: names that move between manifests, and the ledger that remembers every move.

The ledger is the only truth. A ref is the fold of its `ref.set` events, so "what was `prod` at time T" needs no second
book. Every move is a compare-and-swap: the mover states where the ref is, and a ref that has meanwhile moved is not
moved again. Names are `part/part`, each part lower-case ASCII letters, digits, `.`, `_`, `-`, starting with a letter
or digit, 128 characters in all; what could be read as a digest is not a name.

**Rollback** goes to the target the ref held before the one it holds now: the newest earlier target that differs from
the present one. A rollback is a move like any other, marked `rollback: true`, so rolling back a rollback undoes it:
after A, B, C a first rollback gives B, a second gives C again. To go further back, name the target: `to=` accepts any
earlier target of this ref, and any manifest that runs the bare frozen base of the present one.

A **protected** ref, one that is served from, moves forward only with an approval (`promote`), and rolls back only to
what was good: an earlier target whose tripwire is clear, or a bare frozen base. Going back needs no signature: whoever
sees a model misbehave at night must not have to find a key first. Protection is never taken off again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from csf_store import Archive, CsfError, Digest, RefMove
from manifests.approvals import approval_problem, find_approval, ledger_problem
from manifests.errors import (
    ApprovalRefusedError,
    InvalidNameError,
    ManifestError,
    NotFoundError,
    ProtectedRefError,
    RefConflictError,
    RefNotFoundError,
    RollbackRefusedError,
)
from manifests.events import events_of
from manifests.loading import load_manifest, objects_of
from manifests.ref_names import check_ref_name


@dataclass(frozen=True, slots=True)
class RefEvent:
    """One move of one ref, as the ledger tells it. `target` is None where the name was taken away."""

    name: str
    seq: int
    time: datetime
    target: Digest | None
    previous: Digest | None
    reason: str | None
    rollback: bool
    approval: Digest | None = None
    protects: bool = False


class Refs:
    """The refs of one archive."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def names(self) -> tuple[str, ...]:
        """Every name that points somewhere now, sorted."""
        return tuple(sorted(name for name, moves in self._moves().items() if moves and moves[-1].target is not None))

    def find(self, name: str) -> Digest | None:
        """Where a name points, or None when it points nowhere."""
        history = self.history(name)
        return history[-1].target if history else None

    def is_protected(self, name: str) -> bool:
        """Whether a name moves forward only with an approval."""
        return any(event.protects for event in self.history(name))

    def get(self, name: str) -> Digest:
        """Where a name points.

        Raises:
            RefNotFoundError: when it was never set.
        """
        target = self.find(name)
        if target is None:
            known = ", ".join(self.names()) or "none yet"
            raise RefNotFoundError(f"no ref {name!r} in {self._archive.path}; refs here: {known}")
        return target

    def history(self, name: str) -> tuple[RefEvent, ...]:
        """Every move of a name, oldest first; empty when it was never set."""
        check_ref_name(name)
        return tuple(_event(name, move) for move in self._archive.ledger.ref(name))

    def at(self, name: str, time: datetime) -> Digest:
        """Where a name pointed at a moment: after the last move at or before it.

        Raises:
            RefNotFoundError: when it pointed nowhere then.
            InvalidNameError: when `time` has no time zone, and so names no moment.
        """
        if time.tzinfo is None:
            raise InvalidNameError(f"{time.isoformat()} has no time zone; write 2026-01-31T12:00:00Z")
        before = [event for event in self.history(name) if event.time <= time]
        if not before or before[-1].target is None:
            raise RefNotFoundError(f"ref {name!r} pointed nowhere at {time.isoformat()}; see `keystone ref log {name}`")
        return before[-1].target

    def set(self, name: str, target: Digest, *, expected: Digest | None, reason: str | None = None) -> RefEvent:
        """Move a name by compare-and-swap.

        Args:
            name: the ref.
            target: a manifest in this archive. Moving a ref to where it is already appends nothing.
            expected: where the caller saw the ref; None for "not there yet".
            reason: a sentence for the ledger.

        Raises:
            ProtectedRefError: when the ref moves only with an approval.
            RefConflictError: when the ref is not at `expected`.
            NotFoundError: when the target is not a manifest of this archive.
            InvalidDocumentError: when the target is no well-formed manifest.
        """
        check_ref_name(name)
        with self._archive.keeping():  # the target must not be collected between the look and the move
            load_manifest(self._archive, target)
            with self._archive.ledger.locked() as tx:
                history = self.history(name)
                if self.is_protected(name):
                    raise ProtectedRefError(
                        f"ref {name!r} is protected: it moves with an approval, `keystone approve` and `keystone"
                        " promote`; going back is `keystone rollback`"
                    )
                current = self._expect(name, history, expected)
                if current == target:
                    return history[-1]
                tx.append("ref.set", **_fields(name, current, target, reason, {}))
        return self.history(name)[-1]

    @staticmethod
    def _expect(name: str, history: Sequence[RefEvent], expected: Digest | None) -> Digest | None:
        current = history[-1].target if history else None
        if current != expected:
            raise RefConflictError(
                f"ref {name!r} is at {current or 'no manifest'}, not at {expected or 'no manifest'}: somebody"
                f" moved it first; look at `keystone ref log {name}` and decide again"
            )
        return current

    def protect(self, name: str, *, reason: str | None = None) -> RefEvent:
        """Let a name move only with an approval from now on, whether it points somewhere already or not."""
        check_ref_name(name)
        with self._archive.ledger.locked() as tx:
            history = self.history(name)
            if not self.is_protected(name):
                current = history[-1].target if history else None
                tx.append("ref.set", **_fields(name, current, current, reason, {"protected": True}))
        return self.history(name)[-1]

    def promote(self, name: str, target: Digest, *, approval: Digest, reason: str | None = None) -> RefEvent:
        """Move a name forward with an approval, which is thereby spent.

        Args:
            name: the ref.
            target: a manifest in this archive.
            approval: the envelope in which the approval was signed.
            reason: a sentence for the ledger.

        Raises:
            ApprovalRefusedError: naming why the approval does not allow this.
            NotFoundError, InvalidDocumentError: when the target is no manifest of this archive.
        """
        check_ref_name(name)
        archive = self._archive
        with archive.keeping():
            manifest = load_manifest(archive, target)
            if manifest.tripwire.status == "tripped":
                raise ApprovalRefusedError(f"the tripwire of {target} tripped; nobody can approve that")
            if manifest.assembly.adapters and manifest.tripwire.status != "clear":
                raise ApprovalRefusedError(
                    f"the tripwire of {target} has not cleared it; only a clear tripwire may be promoted, see `keystone"
                    " cycle run`"
                )
            with archive.ledger.locked() as tx:
                found = find_approval(archive, approval)
                moves = archive.ledger.ref(name)
                problem = approval_problem(approval, found.approval, name, manifest, moves)
                problem = problem or ledger_problem(archive, found.approval.ledger)
                if problem is None and not found.counts:
                    said = "; ".join(each.text for each in found.signatures) or "the ledger has not seen it"
                    problem = f"no trusted key signed it: {said}"
                if problem is not None:
                    raise ApprovalRefusedError(f"approval {approval} does not move {name!r} to {target}: {problem}")
                current = moves[-1].target if moves else None
                tx.append("ref.set", **_fields(name, current, target, reason, {"approval": str(approval)}))
        return self.history(name)[-1]

    def rollback_target(self, name: str) -> Digest:
        """Where a rollback of this ref would go: its newest earlier target that is not the present one.

        On a protected ref, the newest of those that was good.

        Raises:
            RefNotFoundError: when the ref was never set.
            RollbackRefusedError: when it never pointed anywhere else, or nowhere good.
        """
        history = self.history(name)
        if not history:
            self.get(name)
        current = history[-1].target
        earlier = [event.target for event in reversed(history) if event.target not in {None, current}]
        protected = self.is_protected(name)
        for target in dict.fromkeys(earlier):
            if target is not None and not (protected and self.why_not_good(target)):
                return target
        if earlier:
            raise RollbackRefusedError(
                f"ref {name!r} is protected, and nothing it pointed at before was good: a clear tripwire, or a bare"
                " base; give a manifest of the bare base with --to"
            )
        raise RollbackRefusedError(
            f"ref {name!r} has only ever been at {current}: there is nothing to go back to; give a bare base with --to"
        )

    def why_not_good(self, target: Digest) -> str | None:
        """Why a manifest is no safe place to go back to, or None: a clear tripwire, or a bare frozen base."""
        try:
            manifest = load_manifest(self._archive, target)
        except (CsfError, ManifestError) as error:
            return str(error)
        if not manifest.assembly.adapters:
            return None
        if manifest.tripwire.status != "clear":
            return f"its tripwire is {manifest.tripwire.status}"
        pair = str(manifest.assembly.digest), str(manifest.tripwire.recipe)
        seq, status = events_of(self._archive).tripwires.get(pair, (0, "untold"))
        if status == "tripped":
            return f"its tripwire tripped later, with event {seq}"
        return None

    def rollback(self, name: str, *, to: Digest | None = None, reason: str | None = None) -> RefEvent:
        """Move a ref back to its last target, or to `to`, in one step; see the rule at the top of this module.

        Raises:
            RefNotFoundError: when the ref was never set.
            RollbackRefusedError: when there is no such target, or it does not load and verify. The ref stays.
            RefConflictError: when the ref moved while the target was being verified.
        """
        history = self.history(name)
        target = self._back_to(name, history, to)
        current = history[-1].target
        with self._archive.keeping():
            self.check_sound(target)
            with self._archive.ledger.locked() as tx:
                now = self.history(name)
                if now[-1].seq != history[-1].seq:
                    raise RefConflictError(
                        f"ref {name!r} moved to {now[-1].target} while its rollback was being verified"
                    )
                tx.append("ref.set", **_fields(name, current, target, reason, {"rollback": True}))
        return self.history(name)[-1]

    def rehearse(self, name: str, *, to: Digest | None = None) -> Digest:
        """Where a rollback would go, with every byte of it verified; nothing moves. Raises what `rollback` raises."""
        target = self._back_to(name, self.history(name), to)
        self.check_sound(target)
        return target

    def _back_to(self, name: str, history: Sequence[RefEvent], to: Digest | None) -> Digest:
        target = self.rollback_target(name) if to is None else to
        if not history:
            self.get(name)
        current = history[-1].target
        if target == current:
            raise RollbackRefusedError(f"ref {name!r} is at {target} already; name another target")
        if to is not None and to not in {event.target for event in history}:
            self._check_bare_base(name, to, current)
        if to is not None and self.is_protected(name) and (why := self.why_not_good(to)):
            raise RollbackRefusedError(f"ref {name!r} is protected and does not go back to {to}: {why}")
        return target

    def check_sound(self, target: Digest) -> None:
        """Prove that a manifest loads and that every object it stands on hashes to its address.

        Raises:
            RollbackRefusedError: naming the manifest and the first thing wrong with it.
        """
        try:
            manifest = load_manifest(self._archive, target)
            objects = [digest for digest, _ in objects_of(self._archive, target, manifest)]
            report = self._archive.verify(objects, deep=True)
        except (CsfError, ManifestError) as error:
            raise RollbackRefusedError(f"{target} is not a sound target: {error}") from error
        if not report.ok:
            finding = report.findings[0]
            raise RollbackRefusedError(
                f"{target} is not a sound target: {finding.what} ({finding.digest}, segment {finding.segment}, offset"
                f" {finding.offset}); repair the archive, or name another target with --to"
            )

    def _check_bare_base(self, name: str, to: Digest, current: Digest | None) -> None:
        try:
            assembly = load_manifest(self._archive, to).assembly
            base = load_manifest(self._archive, current).assembly.base if current is not None else assembly.base
        except NotFoundError as error:
            raise RollbackRefusedError(f"cannot roll {name!r} back to {to}: {error}") from error
        if assembly.adapters or assembly.base != base:
            raise RollbackRefusedError(
                f"{to} was never the target of {name!r} and does not run the bare base {base}; a rollback goes to an"
                " earlier target or to the bare base, anything else is `keystone ref set`"
            )

    def _moves(self) -> Mapping[str, tuple[RefMove, ...]]:
        return {name: tuple(moves) for name, moves in self._archive.ledger.refs().items()}


def _event(name: str, move: RefMove) -> RefEvent:
    previous, reason, approval = (move.fields.get(field) for field in ("from", "reason", "approval"))
    return RefEvent(
        name=name,
        seq=move.seq,
        time=datetime.fromisoformat(move.time),
        target=move.target,
        previous=Digest.parse(previous) if isinstance(previous, str) else None,
        reason=reason if isinstance(reason, str) else None,
        rollback=move.fields.get("rollback") is True,
        approval=Digest.parse(approval) if isinstance(approval, str) else None,
        protects=move.fields.get("protected") is True,
    )


def _fields(
    name: str, current: Digest | None, target: Digest | None, reason: str | None, marks: Mapping[str, bool | str]
) -> dict[str, str | bool | None]:
    fields: dict[str, str | bool | None] = {
        "ref": name,
        "from": str(current) if current is not None else None,
        "to": str(target) if target is not None else None,
        **marks,
    }
    if reason:
        fields["reason"] = reason
    return fields
