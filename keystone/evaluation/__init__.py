"""Evaluation: suites of tasks, the sandbox that runs generated code, and the scores."""

from keystone.errors import (
    CompletionMismatchError,
    EvaluationError,
    SandboxError,
    SandboxMissingError,
    SuiteExhaustedError,
    SuiteFormatError,
    SuiteMissingError,
)
from keystone.evaluation.bubblewrap import BubblewrapSandbox
from keystone.evaluation.process_sandbox import ProcessSandbox
from keystone.evaluation.sandbox import CheckedProgram, Execution, Limits, Program, Sandbox, Status
from keystone.evaluation.scoring import (
    ItemResult,
    Rate,
    SuiteResult,
    Verdict,
    extract_completion,
    judge,
    program_of,
    score,
)
from keystone.evaluation.task import Case, Side, Task, Value

__all__ = [
    "BubblewrapSandbox",
    "Case",
    "CheckedProgram",
    "CompletionMismatchError",
    "EvaluationError",
    "Execution",
    "ItemResult",
    "Limits",
    "ProcessSandbox",
    "Program",
    "Rate",
    "Sandbox",
    "SandboxError",
    "SandboxMissingError",
    "Side",
    "Status",
    "SuiteExhaustedError",
    "SuiteFormatError",
    "SuiteMissingError",
    "SuiteResult",
    "Task",
    "Value",
    "Verdict",
    "extract_completion",
    "judge",
    "program_of",
    "score",
]
