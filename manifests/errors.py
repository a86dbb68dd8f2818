"""The errors of `manifests`, one tree, grouped by what a caller would do next.

```
ManifestError (1)
├── InvalidDocumentError (7)     bytes or fields that break the rules of SPEC.md; mend the input
│   ├── NotCanonicalError        the JSON is not in its RFC 8785 form, or holds what that form cannot
│   ├── SchemaVersionError       a kind or version that this release does not know
│   ├── InvalidNameError         a ref name or label outside its grammar
│   └── InvalidKeyError          a key, key name or passphrase that cannot be used
├── NotFoundError (5)            nothing of that digest, prefix or name is here
│   ├── RefNotFoundError
│   ├── MissingLinkError         a document names an object the archive does not hold
│   └── KeyNotFoundError         no key of that name or id
├── RefConflictError (8)         a compare-and-swap lost: read the ref again, then decide
├── KeyExistsError (8)           a key of that name is there, and no key is ever overwritten
├── ServerSilentError (5)        a server that gives no answer that could be judged
├── NotServedError (1)           a server that says it does not serve what was asked about
├── BadSignatureError (1)        a signature that is not one, or not of these bytes
├── RefusedError (10)            the input is well formed and a rule forbids it
│   ├── BaseMismatchError        two statements about one adapter's base disagree
│   ├── LineageError             the adapter graph does not lead to one base
│   │   ├── LineageCycleError
│   │   └── MissingParentError
│   ├── RollbackRefusedError     there is nothing, or nothing sound, to go back to
│   ├── ProtectedRefError        this ref moves only with an approval
│   ├── ApprovalRefusedError     an approval that is void, spent, unsigned, or of something else
│   ├── KeyLockedError           the passphrase does not open the key
│   └── MissingExtraError        a format of somebody else's needs a package that is not installed
└── CorruptDocumentError (6)     stored bytes are not what their digest says they are
```

The number is the exit status that a command line gives. Every message holds the digest, name or field it is about and
a next step. Errors of the archive itself (`csf_store.CsfError`) pass through unchanged: they carry their own status.
"""

from __future__ import annotations

from typing import ClassVar


class ManifestError(Exception):
    """The root: anything `manifests` refuses or cannot do."""

    exit_code: ClassVar[int] = 1


class InvalidDocumentError(ManifestError):
    """Bytes or fields that are not a document of the kind asked for."""

    exit_code = 7


class NotCanonicalError(InvalidDocumentError):
    """JSON that is not in its one RFC 8785 form, so its digest would not be the document's."""


class SchemaVersionError(InvalidDocumentError):
    """A document of a kind or version that this release does not read."""


class InvalidNameError(InvalidDocumentError):
    """A ref name outside its grammar."""


class InvalidKeyError(InvalidDocumentError):
    """Text or bytes that are no key, a name no key can have, or a passphrase that protects nothing."""


class NotFoundError(ManifestError):
    """No object or name like the one asked for."""

    exit_code = 5


class RefNotFoundError(NotFoundError):
    """A ref that was never set, or not yet at the time asked about."""


class MissingLinkError(NotFoundError):
    """A document that names an object the archive does not hold in the kind it needs."""


class KeyNotFoundError(NotFoundError):
    """No key of that name or id here."""


class RefConflictError(ManifestError):
    """The ref is not where the caller believed: somebody moved it first."""

    exit_code = 8


class KeyExistsError(ManifestError):
    """A key of that name is there already; keys are never overwritten."""

    exit_code = 8


class BadSignatureError(ManifestError):
    """Something that is said to be signed by a key, and is not."""


class ServerSilentError(ManifestError):
    """A server that cannot be reached, wants a token, or knows no such question: nothing is proven either way."""

    exit_code = 5


class NotServedError(ManifestError):
    """A server that answers, and says that it does not serve the model asked about."""


class RefusedError(ManifestError):
    """Well formed, and forbidden by a rule."""

    exit_code = 10


class BaseMismatchError(RefusedError):
    """An adapter recorded on one base is used, or claimed again, on another."""


class LineageError(RefusedError):
    """The graph base -> adapter -> adapter is not one that could have been trained."""


class LineageCycleError(LineageError):
    """An adapter that is its own ancestor."""


class MissingParentError(LineageError):
    """An adapter whose record, or whose parent's record, is not in the archive."""


class RollbackRefusedError(RefusedError):
    """No earlier target, or one that does not load and verify."""


class ProtectedRefError(RefusedError):
    """A protected ref was to be moved without an approval."""


class ApprovalRefusedError(RefusedError):
    """An approval that does not allow this move: void, spent, not validly signed, or given for something else."""


class KeyLockedError(RefusedError):
    """A private key that the passphrase does not open."""


class CorruptDocumentError(ManifestError):
    """A stored document whose bytes are not what its digest promised."""

    exit_code = 6


class MissingExtraError(RefusedError):
    """A package that only one format needs is not installed; the message names the extra that brings it."""
