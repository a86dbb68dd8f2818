"""Cutting completions, judging values, and intervals."""

import math

import pytest

from keystone.evaluation import (
    Case,
    CompletionMismatchError,
    Execution,
    Program,
    Rate,
    Side,
    Status,
    SuiteResult,
    Task,
    Value,
    Verdict,
    extract_completion,
    judge,
    score,
)
from keystone.evaluation.scoring import canonical


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("    return 1\n", "    return 1\n"),
        ("    return 1", "    return 1\n"),
        ("    return 1\n<|end|>    return 2\n", "    return 1\n"),
        ("    return 1\ndef other():\n    return 2\n", "    return 1\n"),
        ("    return 1\n\n\nprint('x')\n", "    return 1\n"),
        ("    if a:\n\n        return 1\n    return 2\n# done\n", "    if a:\n\n        return 1\n    return 2\n"),
        ("    return [\n        1,\n]\nx = 1\n", "    return [\n        1,\n]\n"),
        ("return 1\n", ""),
        (")\n    return 1\n", ""),
        ("", ""),
        ("<|end|>", ""),
        ("\n\n    return 1   \n", "\n\n    return 1\n"),
    ],
)
def test_a_completion_is_cut_where_it_leaves_the_function(text: str, body: str) -> None:
    assert extract_completion(text) == body


def _task(*expected: Value, side: Side = Side.SEEN_FAMILY, family: str = "f") -> Task:
    cases = tuple(Case((index,), value) for index, value in enumerate(expected))
    return Task("s", family, "f/1", 'def f(x):\n    """Doc."""\n', "    return x\n", "f", cases, side)


def _returned(*values: object) -> Execution:
    return Execution(Status.RETURNED, tuple(canonical(value) for value in values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "returned", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (2, 2.0, False),
        ([1, 2], (1, 2), False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1, 2], [2, 1], False),
        ("1", 1, False),
        (None, 0, False),
        (0.0, -0.0, False),
        (float("nan"), float("nan"), True),
    ],
)
def test_values_are_compared_with_their_types(expected: Value, returned: object, same: bool) -> None:
    assert (judge(_task(expected), _returned(returned)) is Verdict.PASSED) is same


def test_values_that_do_not_print_are_compared_all_the_same() -> None:
    for value in (10**5000, "\ud800"):
        assert judge(_task(value), _returned(value)) is Verdict.PASSED
        assert judge(_task(value), _returned(value * 2)) is Verdict.FAILED


def test_an_object_of_the_program_equals_nothing() -> None:
    class Yes:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert judge(_task(1), _returned(Yes())) is Verdict.FAILED
    assert judge(_task([1]), _returned([Yes()])) is Verdict.FAILED


def test_missing_and_surplus_values_fail_and_no_case_is_no_pass() -> None:
    assert judge(_task(1, 2), _returned(1)) is Verdict.FAILED
    assert judge(_task(1), _returned(1, 2)) is Verdict.FAILED
    assert judge(_task(), _returned()) is Verdict.FAILED


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (Status.RAISED, Verdict.ERROR),
        (Status.DIED, Verdict.ERROR),
        (Status.TIMEOUT, Verdict.TIMEOUT),
        (Status.REFUSED, Verdict.REFUSED),
    ],
)
def test_whatever_did_not_return_did_not_pass(status: Status, verdict: Verdict) -> None:
    assert judge(_task(1), Execution(status, (canonical(1),))) is verdict


class _Recorded:
    """A sandbox that answers from a list and remembers what it was asked."""

    name = "recorded"

    def __init__(self, *answers: Execution) -> None:
        self.answers = list(answers)
        self.programs: list[Program] = []

    def run(self, programs: object) -> list[Execution]:
        self.programs = list(programs)  # type: ignore[call-overload]
        return self.answers


def test_score_sends_the_arguments_and_never_the_expected_values() -> None:
    sandbox = _Recorded(_returned(41), _returned(7))
    tasks = [_task(41, family="a"), _task(8, family="b", side=Side.UNSEEN_FAMILY)]
    result = score(tasks, ["    return 41\nx", "    return 7\n"], sandbox)
    assert [program.calls for program in sandbox.programs] == [((0,),), ((0,),)]
    assert sandbox.programs[0].source == tasks[0].prompt + "    return 41\n"
    assert [item.verdict for item in result.items] == [Verdict.PASSED, Verdict.FAILED]
    assert result.items[1].detail == "1 of 1 calls returned another value"
    assert (result.overall.passed, result.overall.total) == (1, 2)
    assert {name: rate.value for name, rate in result.by_family.items()} == {"a": 1.0, "b": 0.0}
    assert {side: rate.total for side, rate in result.by_side.items()} == {Side.SEEN_FAMILY: 1, Side.UNSEEN_FAMILY: 1}


def test_a_completion_too_few_is_an_error_and_not_a_lower_score() -> None:
    with pytest.raises(CompletionMismatchError, match="2 tasks but 1 completions"):
        score([_task(1), _task(1)], ["    return 1\n"], _Recorded())


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (1, 1, 0.206549, 1.0)],
)
def test_wilson_intervals_agree_with_published_values(passed: int, total: int, low: float, high: float) -> None:
    rate = Rate.of(passed, total)
    assert (rate.low, rate.high) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


def test_the_ends_of_a_wilson_interval_are_where_the_score_test_stops_rejecting() -> None:
    for total in (7, 60, 400):
        for passed in range(1, total):
            rate = Rate.of(passed, total)
            for end in (rate.low, rate.high):
                z = (rate.value - end) / math.sqrt(end * (1 - end) / total)
                assert abs(z) == pytest.approx(1.959964, abs=1e-5)


def test_nothing_counted_says_nothing() -> None:
    assert SuiteResult("none", ()).overall == Rate(0, 0, 0.0, 1.0)
    assert SuiteResult("none", ()).by_side == {}
