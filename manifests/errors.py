"""The errors of `manifests`, one tree, grouped by what a caller would do next.

```
ManifestError (1)
├── InvalidDocumentError (7)     bytes or fields that break the rules of SPEC.md; mend the input
│   ├── NotCanonicalError        the JSON is not in its RFC 8785 form, or holds what that form cannot
│   ├── SchemaVersionError       a kind or version that this release does not know
│   └── InvalidNameError         a ref name or label outside its grammar
├── NotFoundError (5)            nothing of that digest, prefix or name is here
│   ├── RefNotFoundError
│   └── MissingLinkError         a document names an object the archive does not hold
├── RefConflictError (8)         a compare-and-swap lost: read the ref again, then decide
├── RefusedError (10)            the input is well formed and a rule forbids it
│   ├── BaseMismatchError        two statements about one adapter's base disagree
│   ├── LineageError             the adapter graph does not lead to one base
│   │   ├── LineageCycleError
│   │   └── MissingParentError
│   └── RollbackRefusedError     there is nothing, or nothing sound, to go back to
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


class NotFoundError(ManifestError):
    """No object or name like the one asked for."""

    exit_code = 5


class RefNotFoundError(NotFoundError):
    """A ref that was never set, or not yet at the time asked about."""


class MissingLinkError(NotFoundError):
    """A document that names an object the archive does not hold in the kind it needs."""


class RefConflictError(ManifestError):
    """The ref is not where the caller believed: somebody moved it first."""

    exit_code = 8


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


class CorruptDocumentError(ManifestError):
    """A stored document whose bytes are not what its digest promised."""

    exit_code = 6
