"""Everything that can go wrong on this floor, grouped by what the caller would do about it.

`KeystoneError` is the root; each class carries the process exit code that the command line uses, the same numbers
as on the lower floors: 5 not found, 6 corrupt, 7 invalid input, 8 conflict, 9 storage, 10 refused by a rule.
"""

from typing import ClassVar


class KeystoneError(Exception):
    """Root of the errors that `keystone` raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(KeystoneError, ValueError):
    """A model configuration lacks a field, or holds a value this code cannot honour."""

    exit_code = 7


class CheckpointError(KeystoneError, ValueError):
    """A checkpoint's tensors do not fit its configuration: missing, surplus or misshapen ones are named."""

    exit_code = 7


class InvalidInputError(KeystoneError, ValueError):
    """An argument or a file cannot be what it claims to be."""

    exit_code = 7


class RefusedError(KeystoneError):
    """The request is well-formed and a rule forbids it, for instance a quantization this box cannot honour."""

    exit_code = 10


class OutputExistsError(KeystoneError):
    """What was to be written is there already."""

    exit_code = 8


class StorageError(KeystoneError):
    """The file system said no: full, read-only or forbidden. Nothing half-written was left behind."""

    exit_code = 9


class EvaluationError(KeystoneError):
    """Root of what can go wrong in `keystone.evaluation`."""


class SuiteExhaustedError(EvaluationError):
    """More distinct tasks were asked for than the suite can draw."""

    exit_code = 7


class CompletionMismatchError(EvaluationError):
    """Tasks and completions do not pair up one to one."""

    exit_code = 7


class SandboxError(EvaluationError):
    """The sandbox itself could not be started or died, which says nothing about the code it was to run."""

    exit_code = 9


class SandboxMissingError(SandboxError):
    """The sandbox that was asked for cannot be had on this machine; nothing was run, and nothing weaker was used."""

    exit_code = 10


class SuiteFormatError(EvaluationError, ValueError):
    """A suite's file breaks the format in `keystone/evaluation/SUITES.md`; file and line are named."""

    exit_code = 7


class SuiteMissingError(EvaluationError):
    """No such suite here: an unknown name, or a package that is not installed."""

    exit_code = 5


class EndpointError(KeystoneError):
    """A model's endpoint cannot be reached, takes too long, or answers with what is no answer."""


class EndpointRefusedError(EndpointError):
    """A model's endpoint says no: no such path or model, or it wants a token.

    Args:
        message: what it said.
        status: the HTTP status.
    """

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ModelNotFoundError(KeystoneError):
    """No such model in the registry, or none that may be offered for a task on this box."""

    exit_code = 5


class RegistryConflictError(KeystoneError):
    """Somebody else changed the registry in between; look at it again and decide."""

    exit_code = 8
