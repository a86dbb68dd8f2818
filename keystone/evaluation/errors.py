"""What can go wrong in evaluation, each with the exit code a command line gives it."""

from __future__ import annotations


class EvaluationError(Exception):
    """Base of every error of `keystone.evaluation`."""

    exit_code = 1


class SuiteExhaustedError(EvaluationError):
    """More distinct tasks were asked for than the suite can draw."""

    exit_code = 7


class CompletionMismatchError(EvaluationError):
    """Tasks and completions do not pair up one to one."""

    exit_code = 7


class SandboxError(EvaluationError):
    """The sandbox itself could not be started or died; says nothing about the code it was to run."""

    exit_code = 9
