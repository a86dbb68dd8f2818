"""Runs a Convergence Record's evidence again: what the source gate is given, since it may not import this floor.

A record on the ground `tests-passed` names a *check*: a blob with one item of a suite, its hidden tests included and
its solution left out. The program is the record's own, `prompt + answer`. The item must be the one the claim is about,
so a record cannot bring an easier test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Final

from adapters import ConvergenceRecord, EvidenceRun
from csf_store import Archive, Kind
from keystone.errors import SuiteFormatError
from keystone.evaluation.candidates import run_sources
from keystone.evaluation.sandbox import Sandbox
from keystone.evaluation.suite_format import CodeItem, item_fields, read_item

CHECKER: Final = "keystone-eval/1"
"""Names this code in `Evidence.checker`."""
_KIND: Final = "code-check"


def check_of(item: CodeItem) -> bytes:
    """The check of an item, to be stored as a blob and named by `Evidence.check`; equal items give equal bytes.

    Keys stay in their order: a dictionary among the arguments has one, and programs return it.
    """
    fields = {"v": 1, "kind": _KIND, "suite": item.suite, "item": item_fields(replace(item, solution=None))}
    return json.dumps(fields, separators=(",", ":")).encode()


def read_check(check: bytes) -> CodeItem:
    """The item of a check.

    Raises:
        SuiteFormatError: these bytes are no check.
    """
    try:
        fields = json.loads(check)
    except (ValueError, RecursionError) as error:
        raise SuiteFormatError(f"this check is not JSON: {error}") from error
    match fields:
        case {"v": 1, "kind": "code-check", "suite": str(suite), "item": dict(about), **rest} if not rest:
            item = read_item(suite, about)
            if isinstance(item, CodeItem):
                return item
    raise SuiteFormatError("this is no check: it has v 1, kind code-check, suite and item, and no more")


@dataclass(frozen=True)
class RecordExecutor:
    """Give it to `adapters.SourceGate` as `execute`.

    Attributes:
        archive: where checks are.
        sandbox: where programs run.
    """

    archive: Archive
    sandbox: Sandbox

    def __call__(self, record: ConvergenceRecord) -> EvidenceRun:
        """Execute the claim's program against its check, now.

        Raises:
            SuiteFormatError: the check is none, or belongs to another task.
            csf_store.CsfError: the check is not there.
            SandboxError: the sandbox does not work.
        """
        if record.evidence.ground != "tests-passed" or record.evidence.check is None:
            raise SuiteFormatError(f"the ground {record.evidence.ground!r} is not one that can be executed")
        item = read_check(self.archive.get_bytes(record.evidence.check, kind=Kind.BLOB))
        claim = record.claim
        if (item.suite, item.name, item.prompt) != (claim.suite, claim.task, claim.prompt):
            raise SuiteFormatError(
                f"check {record.evidence.check} is for {item.suite} {item.name!r}, and the claim is about"
                f" {claim.suite} {claim.task!r} or words its prompt otherwise"
            )
        (judged,) = run_sources([item], [claim.prompt + claim.answer], self.sandbox)
        return EvidenceRun(judged.right, judged.total, judged.detail)
