"""Evidence of Convergence Records, executed again for the source gate."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapters import Claim, Confidence, ConvergenceRecord, Evidence, RecordSource
from csf_store import Archive, Digest, NotFoundError
from keystone.errors import SuiteFormatError
from keystone.evaluation import Case, ProcessSandbox
from keystone.evaluation.basics import draw_training
from keystone.evaluation.record_checks import CHECKER, RecordExecutor, check_of, read_check
from keystone.evaluation.suite_format import CodeItem
from keystone.evaluation.suites import item_of_task

ITEM = item_of_task(draw_training(1, seed=3)[0])


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordExecutor]:
    archive = Archive.open(tmp_path_factory.mktemp("records") / "archive", create=True)
    with ProcessSandbox(workers=1) as sandbox:
        yield RecordExecutor(archive, sandbox)


def _record(executor: RecordExecutor, item: CodeItem, answer: str, check: Digest | None = None) -> ConvergenceRecord:
    stored = check or executor.archive.put_bytes(check_of(item)).digest
    return ConvergenceRecord(
        claim=Claim(suite=ITEM.suite, task=ITEM.name, prompt=ITEM.prompt, answer=answer),
        evidence=Evidence(ground="tests-passed", check=stored, checker=CHECKER),
        confidence=Confidence(passed=len(ITEM.cases), total=len(ITEM.cases)),
        source=RecordSource(kind="person", name="a test", licence="CC0-1.0"),
    )


def test_a_right_answer_holds_and_a_wrong_one_does_not(executor: RecordExecutor) -> None:
    right = executor(_record(executor, ITEM, str(ITEM.solution)))
    assert (right.passed, right.total) == (len(ITEM.cases), len(ITEM.cases))
    wrong = executor(_record(executor, ITEM, "    return object\n"))
    assert (wrong.passed, wrong.total) == (0, len(ITEM.cases))
    assert executor(_record(executor, ITEM, "    exit(0)\n")).passed == 0


def test_a_dictionary_in_a_check_keeps_the_order_that_programs_return(executor: RecordExecutor) -> None:
    item = replace(ITEM, entry_point="keys", cases=(Case(({"b": 1, "a": 2},), ["b", "a"]),))
    assert list(read_check(check_of(item)).cases[0].args[0]) == ["b", "a"]  # type: ignore[arg-type]


def test_a_check_holds_the_tests_and_not_the_solution() -> None:
    assert str(ITEM.solution) not in check_of(ITEM).decode()
    assert read_check(check_of(ITEM)) == replace(ITEM, solution=None)


def test_a_record_cannot_bring_the_check_of_another_task(executor: RecordExecutor) -> None:
    for other in (replace(ITEM, name="other"), replace(ITEM, suite="other"), replace(ITEM, prompt="def f(x):\n")):
        with pytest.raises(SuiteFormatError, match="the claim is about"):
            executor(_record(executor, other, str(ITEM.solution)))


def test_what_is_no_check_is_refused(executor: RecordExecutor, tmp_path: Path) -> None:
    for junk in (
        b"",
        b"[]",
        b'{"v":1,"kind":"code-check","suite":"s","item":{}}',
        check_of(ITEM)[:-1] + b',"passed":1}',
    ):
        stored = executor.archive.put_bytes(junk).digest
        with pytest.raises(SuiteFormatError):
            executor(_record(executor, ITEM, "", stored))
    with pytest.raises(NotFoundError):
        executor(_record(executor, ITEM, "", Digest.of(b"not there")))
