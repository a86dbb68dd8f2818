"""A score and the items it stands on."""

from __future__ import annotations

import pytest
from manifest_house import SUITE, wilson

from manifests import Interval, InvalidDocumentError, Score, read_items, score_problem

COUNTED = b'{"name":"a","verdict":"passed"}\n{"name":"b","verdict":"error"}\n{"name":"c","verdict":"passed"}\n'
LOW, HIGH = wilson(2, 3)
SCORE = Score(
    suite="s",
    suite_digest=SUITE,
    metric="pass@1",
    n=3,
    passed=2,
    score=2 / 3,
    interval=Interval(low=LOW, high=HIGH, level=0.95, method="wilson"),
)


def test_what_adds_up() -> None:
    assert score_problem(SCORE, read_items(COUNTED)) is None
    weighed = read_items(b'{"name":"a","value":1.5,"weight":3}\n{"name":"b","value":0.5}\n')
    assert score_problem(SCORE.revised(n=2, passed=None, score=1.25, interval=None), weighed) is None


@pytest.mark.parametrize(
    ("changes", "items", "says"),
    [
        ({}, COUNTED.replace(b"error", b"passed"), "the items say 3"),
        ({}, COUNTED[: COUNTED.index(b"\n") + 1], "results of 1"),
        ({"interval": Interval(low=0.2, high=0.9, level=0.95, method="wilson")}, COUNTED, "gives"),
        ({"interval": Interval(low=LOW, high=HIGH, level=0.99, method="wilson")}, COUNTED, "gives"),
        ({}, COUNTED.replace(b'"verdict":"error"', b'"value":1'), "no verdicts"),
        ({"passed": None, "score": 0.7, "interval": None}, COUNTED, "the items give"),
    ],
)
def test_what_does_not(changes: dict[str, object], items: bytes, says: str) -> None:
    assert says in (score_problem(SCORE.revised(**changes), read_items(items)) or "")


@pytest.mark.parametrize(
    "items",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"verdict":"passed"}\n',
        b'{"name":"a"}\n',
        b'{"name":"a","verdict":"passed","value":1}\n',
        b'{"name":"a","value":NaN}\n',
        b'{"name":"a","value":"1"}\n',
        b'{"name":"a","value":1,"weight":0}\n',
        b'{"name":"a","verdict":true}\n',
        COUNTED + COUNTED[: COUNTED.index(b"\n") + 1],
    ],
)
def test_items_that_are_none(items: bytes) -> None:
    with pytest.raises(InvalidDocumentError):
        read_items(items)
