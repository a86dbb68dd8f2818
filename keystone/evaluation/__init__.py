"""Evaluation: suites of tasks, the sandbox that runs generated code, and the scores."""

from keystone.errors import (
    CompletionMismatchError,
    EvaluationError,
    SandboxError,
    SuiteExhaustedError,
)
from keystone.evaluation.process_sandbox import ProcessSandbox
from keystone.evaluation.sandbox import Execution, Limits, Program, Sandbox, Status
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
    "Case",
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
    "Side",
    "Status",
    "SuiteExhaustedError",
    "SuiteResult",
    "Task",
    "Value",
    "Verdict",
    "extract_completion",
    "judge",
    "program_of",
    "score",
]
