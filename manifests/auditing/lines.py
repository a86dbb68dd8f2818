"""The plain data of an audit: verdicts, lines, the report and its exit code. Drawing it is the command line's work."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from csf_store import Digest
from manifests.canonical import JsonObject


class Verdict(StrEnum):
    """What a check found."""

    PASS = "PASS"  # noqa: S105  # a verdict, not a password
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"
    UNSIGNED = "UNSIGNED"


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One finding: which check, its verdict, the digest it is about, and a sentence for people."""

    check: str
    verdict: Verdict
    subject: Digest | None
    message: str

    def to_json(self) -> JsonObject:
        """One JSON object."""
        return {
            "check": self.check,
            "verdict": self.verdict.value,
            "subject": str(self.subject) if self.subject is not None else None,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Every line of one audit, in the order the checks were made.

    `manifest` is None where a damaged ledger no longer says which one a ref is at.
    """

    manifest: Digest | None
    lines: tuple[AuditLine, ...]

    @property
    def verdict(self) -> Verdict:
        """The gravest verdict of any line; a report without a line proves nothing."""
        found = {line.verdict for line in self.lines}
        for verdict in (Verdict.FAIL, Verdict.UNKNOWN, Verdict.UNSIGNED):
            if verdict in found:
                return verdict
        return Verdict.PASS if found else Verdict.UNKNOWN

    def exit_code(self, *, require_signatures: bool = False) -> int:
        """FAIL 1, UNKNOWN 3, UNSIGNED 4 if signatures are required and 0 if not, PASS 0."""
        unsigned = 4 if require_signatures else 0
        return {Verdict.FAIL: 1, Verdict.UNKNOWN: 3, Verdict.UNSIGNED: unsigned, Verdict.PASS: 0}[self.verdict]

    def to_json(self) -> JsonObject:
        """One JSON object for `--json`."""
        return {
            "manifest": str(self.manifest) if self.manifest is not None else None,
            "verdict": self.verdict.value,
            "lines": [line.to_json() for line in self.lines],
        }
