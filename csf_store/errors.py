"""The error tree of ``csf_store``: one class per thing a caller would do about it.

Every message names the digest, path, segment or offset it is about and ends with a next step. ``exit_code`` is what the
command line returns; the numbers are the same in every package of the project and never change meaning.
"""

from __future__ import annotations

from typing import ClassVar


class CsfError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class NotFoundError(CsfError):
    """No object, tensor, archive or path of that name: check the spelling, or put it first."""

    exit_code = 5


class AmbiguousPrefixError(NotFoundError):
    """A digest prefix fits several objects: type more digits."""


class CorruptError(CsfError):
    """Stored bytes are not what was written: torn, altered, or of an impossible length. Nothing was returned."""

    exit_code = 6


class InvalidInputError(CsfError):
    """What was handed in can not be stored or read as asked: malformed, unsafe, or of the wrong shape."""

    exit_code = 7


class PickleRefusedError(InvalidInputError):
    """The file is a pickle, which runs code when it is read. Convert it to safetensors."""


class ConflictError(CsfError):
    """Somebody was there first: the output exists, or the archive does, or a compare-and-swap lost."""

    exit_code = 8


class StorageError(CsfError):
    """The file system said no: full, read-only, forbidden, or failing."""

    exit_code = 9


class RefusedError(CsfError):
    """It would be unsafe, so nothing was done; the message says what to do first."""

    exit_code = 10
