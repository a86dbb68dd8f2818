"""The suite: frozen, deterministic, never straddling the split, and with tests that tell right from nearly right."""

import ast
import os
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from keystone.evaluation import ProcessSandbox, Program, Side, Status, SuiteExhaustedError, Task, Verdict, score
from keystone.evaluation.basics import (
    computed_split,
    draw_held_out,
    draw_training,
    families,
    frozen_split,
    in_held_out_fraction,
    tasks_digest,
    training_drafts,
)
from keystone.evaluation.basics.dice import Dice
from keystone.evaluation.fingerprint import source_fingerprint
from keystone.evaluation.scoring import canonical


@pytest.fixture(scope="module")
def held_out() -> list[Task]:
    return draw_held_out(1500, 77)


def test_the_split_is_the_one_that_was_frozen_before_training() -> None:
    assert computed_split() == frozen_split()


def test_there_are_enough_families_and_some_of_them_are_held_out() -> None:
    counted = Counter(family.held_out for family in families().values())
    assert counted[False] >= 12
    assert counted[True] >= 4
    assert set(frozen_split().held_out_families) == {name for name, family in families().items() if family.held_out}


def test_held_out_tasks_are_distinct_functions_spread_over_all_families(held_out: list[Task]) -> None:
    assert len({source_fingerprint(task.source) for task in held_out}) == len(held_out) == 1500
    per_family = Counter(task.family for task in held_out)
    assert set(per_family) == set(families())
    assert min(per_family.values()) >= 30


@pytest.mark.parametrize(("which", "side"), [("seen", Side.SEEN_FAMILY), ("held-out", Side.UNSEEN_FAMILY)])
def test_each_set_of_families_can_be_drawn_alone(which: str, side: Side) -> None:
    tasks = draw_held_out(120, 5, families=which)  # type: ignore[arg-type]
    assert {task.side for task in tasks} == {side}
    assert {families()[task.family].held_out for task in tasks} == {side is Side.UNSEEN_FAMILY}


def test_training_never_draws_what_is_held_out(held_out: list[Task]) -> None:
    tasks = draw_training(600, 3)
    marks = {source_fingerprint(task.source) for task in tasks}
    assert len(marks) == 600
    assert not marks & {source_fingerprint(task.source) for task in held_out}
    assert not any(in_held_out_fraction(mark) for mark in marks)
    assert not any(families()[task.family].held_out or task.held_out for task in tasks)


def test_the_stream_of_exercises_rejects_about_one_draw_in_five_and_no_other() -> None:
    for family, draft in islice(training_drafts(0), 2000):
        assert not in_held_out_fraction(source_fingerprint(draft.prompt + draft.solution)), family.name
    seen = [family for family in families().values() if not family.held_out]
    drafts = [family.build(Dice("share", index, family.name)) for family in seen for index in range(60)]
    share = sum(in_held_out_fraction(draft.fingerprint) for draft in drafts) / len(drafts)
    assert 0.15 < share < 0.25


def test_two_phrasings_of_one_function_are_on_the_same_side() -> None:
    sides: dict[bytes, set[Side]] = {}
    wordings: dict[bytes, set[str]] = {}
    family = families()["list_filter"]
    for index in range(3000):
        draft = family.build(Dice("phrasings", index))
        sides.setdefault(bytes(draft.fingerprint), set()).add(family.side_of(draft))
        wordings.setdefault(bytes(draft.fingerprint), set()).add(draft.statement)
    assert all(len(found) == 1 for found in sides.values())
    assert sum(len(found) > 1 for found in wordings.values()) > 300


def test_a_seed_names_the_same_tasks_in_another_process() -> None:
    draws = "tasks_digest(draw_held_out(90, 4)), tasks_digest(draw_training(60, 4))"
    code = f"from keystone.evaluation.basics import *; print({draws})"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [str(tasks_digest(draw_held_out(90, 4))), str(tasks_digest(draw_training(60, 4)))]
    assert tasks_digest(draw_held_out(90, 4)) != tasks_digest(draw_held_out(90, 5))


def test_dice_fall_the_same_everywhere() -> None:
    dice = Dice("golden", 1)
    assert [dice.below(100) for _ in range(5)] == [88, 36, 37, 28, 48]
    assert Dice("golden", 1).sample("abcdef", 6) != list("abcdef")
    assert Dice("1").below(2**32) != Dice(1).below(2**32)


def test_asking_for_more_than_there_is_names_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"char_count": families()["char_count"]}
    monkeypatch.setattr("keystone.evaluation.basics.suite._FAMILIES", only)
    monkeypatch.setattr("keystone.evaluation.basics.suite._PATIENCE", 3)
    with pytest.raises(SuiteExhaustedError, match="can draw only"):
        draw_held_out(10**6, 1)


def test_prompts_are_python_that_ends_after_the_docstring(held_out: list[Task]) -> None:
    for task in held_out[:400]:
        function = ast.parse(task.prompt).body[0]
        assert isinstance(function, ast.FunctionDef)
        assert function.name == task.entry_point
        assert len(function.body) == 1
        assert task.prompt.endswith('"""\n')
        assert task.solution.startswith("    ")
        assert task.solution.endswith("\n")
        assert len(task.cases) >= 8


def test_every_docstring_example_is_true(held_out: list[Task]) -> None:
    programs, shown = [], []
    for task in held_out[:400]:
        call_line, result_line = [line.strip() for line in task.prompt.splitlines()[3:5]]
        call = ast.parse(call_line.removeprefix(">>> "), mode="eval").body
        assert isinstance(call, ast.Call)
        args = tuple(ast.literal_eval(arg) for arg in call.args)
        programs.append(Program(task.source, task.entry_point, (args,)))
        shown.append((canonical(ast.literal_eval(result_line)),))
    with ProcessSandbox() as sandbox:
        assert [run.values for run in sandbox.run(programs)] == shown


def test_canonical_solutions_pass_without_exception(held_out: list[Task]) -> None:
    tasks = held_out[:600]
    with ProcessSandbox() as sandbox:
        result = score(tasks, [task.solution for task in tasks], sandbox)
    assert [item for item in result.items if item.verdict is not Verdict.PASSED] == []
    assert result.overall.value == 1.0
    assert set(result.by_side) == {Side.SEEN_FAMILY, Side.UNSEEN_FAMILY}


def test_hidden_tests_catch_a_wrong_constant(held_out: list[Task]) -> None:
    """One constant off by one, or one string changed: at least 95 of 100 such mutants must fail."""
    pairs = [(task, mutant) for task in held_out[:250] for mutant in _mutants(task)]
    with ProcessSandbox() as sandbox:
        runs = sandbox.run(
            [Program(mutant, task.entry_point, tuple(c.args for c in task.cases)) for task, mutant in pairs]
        )
    survived = [
        mutant
        for (task, mutant), run in zip(pairs, runs, strict=True)
        if run.status is Status.RETURNED and run.values == tuple(canonical(case.expected) for case in task.cases)
    ]
    assert len(pairs) > 800
    assert len(survived) <= 0.05 * len(pairs), survived[:10]


def _mutants(task: Task) -> list[str]:
    tree = ast.parse(task.source)
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body.pop(0)  # the docstring is a constant, and not one that matters
    mutants = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant):
            continue
        value = node.value
        for changed in [value + 1, value - 1] if isinstance(value, int) else [f"{value}q"]:
            node.value = changed
            mutants.append(ast.unparse(tree))
        node.value = value
    return mutants


def test_a_held_out_family_shares_no_function_with_training(held_out: list[Task]) -> None:
    shapes = {}
    for family in families().values():
        for index in range(150):
            shapes.setdefault(family.build(Dice("overlap", index, family.name)).skeleton, set()).add(family.held_out)
    assert all(len(found) == 1 for found in shapes.values())
