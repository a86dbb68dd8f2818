"""Evaluation: suites of tasks, the sandbox that runs generated code, and the scores."""
