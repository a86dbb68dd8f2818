"""A task for a council: words for the members, and tests that decide.

The tests are Python: top-level assertions, functions named `test_...` without parameters, or `check(candidate)`. They
call one function that they do not define; that is the function the council has to write. Tests that a function which
returns nothing would satisfy decide nothing, and are refused before anybody is asked: with them every answer would be
verified.
"""

from __future__ import annotations

import ast
import builtins
import json
from dataclasses import dataclass
from typing import Final

from csf_store import Digest
from keystone.errors import InvalidInputError, RefusedError
from keystone.evaluation import CodeItem, Sandbox, Verdict
from keystone.evaluation.candidates import Judged, run_sources
from keystone.evaluation.record_checks import check_of

SUITE: Final = "council"
_LARGEST: Final = 64 << 10
_KNOWN: Final = frozenset(dir(builtins)) | {"candidate", "check"}


@dataclass(frozen=True)
class CouncilTask:
    """What a council is asked.

    Attributes:
        text: the words of whoever asks.
        item: the same as an item with hidden tests.
    """

    text: str
    item: CodeItem

    @property
    def check(self) -> bytes:
        """What anybody can execute again; see `keystone.evaluation.record_checks`."""
        return check_of(self.item)


def council_task(text: str, tests: str, *, function: str | None = None) -> CouncilTask:
    """A task from its words and its tests.

    Args:
        text: what is wanted; a `def` line of the function in it gives the signature.
        tests: Python source.
        function: the function to write; default, the one that the tests call and do not define.

    Raises:
        InvalidInputError: these are no tests, or nobody can tell of which function.
    """
    if not text.strip() or not text.replace("\n", "").replace("\t", "").isprintable():
        raise InvalidInputError("the task has no words, or holds characters that cannot be seen")
    if max(len(text), len(tests)) > _LARGEST:
        raise InvalidInputError(f"a task and its tests have at most {_LARGEST} characters each")
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInputError(f"the tests are no Python: {error}") from error
    name = _function(tree, function)
    prompt = _prompt(text, tree, name)
    source = tests if tests.endswith("\n") else f"{tests}\n"
    source += "".join(f"\n{each}()\n" for each in _test_functions(tree))
    key = Digest.of(json.dumps([prompt, source]).encode())
    return CouncilTask(text, CodeItem(SUITE, f"task/{key.hex[:16]}", SUITE, prompt, name, test=source))


def check_tests(task: CouncilTask, sandbox: Sandbox) -> None:
    """Refuse tests that cannot tell a solution from nothing at all.

    Raises:
        RefusedError: a function that returns None satisfies them.
        SandboxError: the sandbox does not work.
    """
    empty = f"def {task.item.entry_point}(*args, **kwargs):\n    return None\n"
    (judged,) = run_sources([task.item], [empty], sandbox)
    if judged.verdict is Verdict.PASSED:
        raise RefusedError(
            f"these tests are satisfied by a {task.item.entry_point} that returns nothing, so they verify nothing;"
            " assert what it has to return"
        )


def run_answer(task: CouncilTask, answer: str, sandbox: Sandbox) -> Judged:
    """What the tests say of an answer: of exactly the program that a record of it would hold."""
    (judged,) = run_sources([task.item], [task.item.prompt + answer], sandbox)
    return judged


def _function(tree: ast.Module, asked: str | None) -> str:
    if asked is not None:
        if not asked.isidentifier():
            raise InvalidInputError(f"{asked[:80]!r} is not the name of a function")
        return asked
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            own |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    called = [call.func.id for call in _calls(tree) if isinstance(call.func, ast.Name)]
    found = [name for name in dict.fromkeys(called) if name not in own and name not in _KNOWN]
    if len(found) != 1:
        said = f"they call {', '.join(found[:5])}" if found else "they call none that they do not define"
        raise InvalidInputError(
            f"which function is to be written cannot be told from the tests: {said}; say --function"
        )
    return found[0]


def _calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _test_functions(tree: ast.Module) -> list[str]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            if node.args.args or node.args.posonlyargs or node.args.kwonlyargs:
                raise InvalidInputError(f"{node.name} takes parameters; tests here are functions without any")
            found.append(node.name)
    return found


def _prompt(text: str, tree: ast.Module, name: str) -> str:
    """A function with the task as its docstring: whole by itself, so that an answer may continue it or replace it."""
    given = _given(text, name)
    if given is not None:
        return given
    words = text.strip().replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    words = words[:-1] + '\\"' if words.endswith('"') else words
    lines = words.splitlines()
    body = lines[0] if len(lines) == 1 else "\n    ".join(lines) + "\n    "
    return f'{_signature(text, tree, name)}\n    """{body}"""\n'


def _given(text: str, name: str) -> str | None:
    """The text itself, where it is code that ends with a function of that name which is nothing but a docstring."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    last = body[-1] if body else None
    if isinstance(last, ast.FunctionDef) and last.name == name and len(last.body) == 1 and ast.get_docstring(last):
        return text if text.endswith("\n") else f"{text}\n"
    return None


def _signature(text: str, tree: ast.Module, name: str) -> str:
    for line in map(str.strip, text.splitlines()):
        if line.startswith(f"def {name}(") and line.endswith(":") and _parses(f"{line}\n    pass\n"):
            return line
    counts = {
        len(call.args)
        for call in _calls(tree)
        if isinstance(call.func, ast.Name) and call.func.id in (name, "candidate")
        if not call.keywords and not any(isinstance(arg, ast.Starred) for arg in call.args)
    }
    if len(counts) == 1 and (count := counts.pop()) <= 6:
        return f"def {name}({', '.join('abcdef'[:count])}):"
    return f"def {name}(*args, **kwargs):"


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True
