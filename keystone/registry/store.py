"""The registry in the archive: one document at a time, every earlier one still there.

The ledger is the only truth, as for refs: the registry is at the `to` of its last `registry.set` event, and it moves by
compare-and-swap. So "who was offered last Tuesday, and on which report" has an answer, and two people who change the
registry at once do not lose each other's work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from csf_store import Digest, Kind
from keystone.errors import ModelNotFoundError, RegistryConflictError
from manifests import RegistryDocument, RegistryEntry, Repository

EVENT: Final = "registry.set"
NAME: Final = "models"
_PIN: Final = "registry/models"
_TRIES: Final = 5

Edit = Callable[[RegistryDocument], RegistryDocument]


class ModelRegistry:
    """The registry of one archive.

    Args:
        repository: of the archive.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def history(self) -> tuple[tuple[int, Digest], ...]:
        """Every version: the number of the event that set it, and its digest; oldest first."""
        return tuple(
            (entry.seq, Digest.parse(str(entry.fields.get("to"))))
            for entry in self.repository.archive.ledger.entries()
            if entry.event == EVENT and entry.fields.get("registry") == NAME
        )

    def head(self) -> Digest | None:
        """The version that counts; None before the first."""
        history = self.history()
        return history[-1][1] if history else None

    def load(self) -> RegistryDocument:
        """What is registered now.

        Raises:
            manifests.ManifestError, csf_store.CsfError: the document is not there, or is not what its digest says.
        """
        head = self.head()
        return RegistryDocument() if head is None else self.repository.load_record(head, RegistryDocument)

    def entry(self, name: str) -> RegistryEntry:
        """The model of that id.

        Raises:
            ModelNotFoundError: there is none; those that are there are named.
        """
        models = self.load().models
        found = next((entry for entry in models if entry.id == name), None)
        if found is None:
            known = ", ".join(entry.id for entry in models[:20]) or "none yet; see `keystone models add --help`"
            raise ModelNotFoundError(f"no model {name!r} is registered; there is {known}")
        return found

    def set(self, document: RegistryDocument, *, expected: Digest | None, reason: str | None = None) -> Digest:
        """Move the registry by compare-and-swap; to where it is already appends nothing.

        Args:
            document: what it is to say.
            expected: the version the caller has seen; None for none.
            reason: a sentence for the ledger.

        Raises:
            RegistryConflictError: it is not at `expected`.
            MissingLinkError: an entry leans on a report that is not here.
        """
        archive = self.repository.archive
        with archive.keeping():
            digest = self.repository.put_record(document)
            archive.pin(digest, kind=Kind.RECORD, name=_PIN)
            with archive.ledger.locked() as tx:
                current = self.head()
                if current != expected:
                    raise RegistryConflictError(
                        f"the registry is at {current or 'no version'}, not at {expected or 'no version'}: somebody"
                        " changed it first; look at `keystone models list` and decide again"
                    )
                if current == digest:
                    return digest
                fields = {"registry": NAME, "from": str(current) if current is not None else None, "to": str(digest)}
                tx.append(EVENT, **fields, **({"reason": reason} if reason else {}))
        return digest

    def change(self, edit: Edit, *, reason: str | None = None) -> Digest:
        """Apply an edit to whatever is registered now; where somebody else was faster, apply it to theirs.

        Args:
            edit: from one document to the next; it may be called several times.
            reason: a sentence for the ledger.

        Raises:
            RegistryConflictError: somebody was faster every time.
        """
        for attempt in range(_TRIES):
            head = self.head()
            seen = RegistryDocument() if head is None else self.repository.load_record(head, RegistryDocument)
            try:
                return self.set(edit(seen), expected=head, reason=reason)
            except RegistryConflictError:
                if attempt + 1 == _TRIES:
                    raise
        raise AssertionError  # the loop returns or raises

    def put(self, entry: RegistryEntry, *, replace: bool = False) -> Digest:
        """Register a model.

        Raises:
            RegistryConflictError: the id is taken, and it is not to be replaced.
        """

        def edit(document: RegistryDocument) -> RegistryDocument:
            others = tuple(each for each in document.models if each.id != entry.id)
            if len(others) < len(document.models) and not replace:
                raise RegistryConflictError(f"model {entry.id!r} is registered already; remove it first, or --replace")
            return document.revised(models=(*others, entry))

        return self.change(edit, reason=f"models: {entry.id}")

    def remove(self, name: str) -> Digest:
        """Take a model out; its history stays.

        Raises:
            ModelNotFoundError: it is not registered.
        """

        def edit(document: RegistryDocument) -> RegistryDocument:
            self.entry(name)
            return document.revised(models=tuple(each for each in document.models if each.id != name))

        return self.change(edit, reason=f"models: without {name}")
