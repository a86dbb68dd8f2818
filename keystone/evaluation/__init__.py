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
from keystone.evaluation.candidates import Judged, evidence_of, recheck, recheck_all, run_candidates
from keystone.evaluation.opening import open_sandbox
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
from keystone.evaluation.suite_format import CodeItem, TextItem
from keystone.evaluation.suites import Suite, item_of_task, load_suite, suite_of_tasks
from keystone.evaluation.task import Case, Side, Task, Value

__all__ = [
    "BubblewrapSandbox",
    "Case",
    "CheckedProgram",
    "CodeItem",
    "CompletionMismatchError",
    "EvaluationError",
    "Execution",
    "ItemResult",
    "Judged",
    "Limits",
    "ProcessSandbox",
    "Program",
    "Rate",
    "Sandbox",
    "SandboxError",
    "SandboxMissingError",
    "Side",
    "Status",
    "Suite",
    "SuiteExhaustedError",
    "SuiteFormatError",
    "SuiteMissingError",
    "SuiteResult",
    "Task",
    "TextItem",
    "Value",
    "Verdict",
    "evidence_of",
    "extract_completion",
    "item_of_task",
    "judge",
    "load_suite",
    "open_sandbox",
    "program_of",
    "recheck",
    "recheck_all",
    "run_candidates",
    "score",
    "suite_of_tasks",
]
