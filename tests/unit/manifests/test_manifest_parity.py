"""Parity reports: one byte form, no verdict that its own numbers deny."""

import pytest

from csf_store import Digest
from manifests import InvalidDocumentError, ParityCase, ParityReport


def d(text: str) -> Digest:
    return Digest.of(text.encode())


def case(**changes: object) -> ParityCase:
    fields = {
        "name": "random.float32",
        "dtype": "float32",
        "metric": "max-abs-delta",
        "tokens": 20,
        "prefill": 12,
        "bar": 5e-4,
        "worst": 1e-5,
        "passed": True,
    }
    return ParityCase(**{**fields, **changes})


def report(*cases: ParityCase, **changes: object) -> ParityReport:
    fields = {
        "base": d("base"),
        "code": "keystone-plt/1",
        "code_source": d("source"),
        "reference": d("reference"),
        "inputs": d("spec"),
        "engine": "transformers 4.57.0",
        "device": "cpu",
    }
    return ParityReport(cases=cases, **{**fields, **changes})


def test_cases_come_in_one_order_and_the_base_is_linked() -> None:
    first, second = case(name="a"), case(name="b", worst=1.0, passed=False)
    made = report(second, first)
    assert made.to_bytes() == report(first, second).to_bytes()
    assert ParityReport.from_bytes(made.to_bytes()) == made
    assert made.links() == (d("base"),)
    assert not made.passed and report(first).passed


@pytest.mark.parametrize(
    "changes",
    [
        {"passed": False},
        {"worst": 1.0},
        {"worst": None},
        {"worst": -1.0},
        {"worst": float("nan")},
        {"bar": 0.0},
        {"bar": float("inf")},
        {"prefill": 21},
        {"prefill": 0},
        {"dtype": "float16"},
        {"metric": "kl"},
        {"name": "two words"},
        {"surplus": 1},
    ],
)
def test_a_case_that_denies_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidDocumentError):
        case(**changes)


def test_a_report_has_cases_and_each_once() -> None:
    for cases in ((), (case(), case(worst=2e-5))):
        with pytest.raises(InvalidDocumentError):
            report(*cases)
