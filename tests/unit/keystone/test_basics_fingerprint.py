"""Functions are the same when their normalised syntax trees are, on every Python."""

import ast
import inspect
import textwrap

import pytest

from keystone.evaluation.fingerprint import fingerprint, function_nodes, outline, skeleton, source_fingerprint

PLAIN = """
def keep(values, limit):
    return [x for x in values if x > limit + 3]
"""


@pytest.mark.parametrize(
    "same",
    [
        "def other(items, n):\n    return [e for e in items if e > n + 3]",
        'def keep(values, limit):\n    """Documented."""\n    return [x for x in values if x > limit + 3]',
        "def keep(values: list[int], limit: int) -> list[int]:\n    return [x for x in values if x > limit + 3]",
        "@cache\ndef keep(values, limit):\n    return [x for x in values if x > limit + 3]",
        "def keep(values,limit):\n    # a comment\n    return [x for x in values\n        if (x > (limit+0x3))]",
    ],
)
def test_names_documentation_types_and_layout_do_not_matter(same: str) -> None:
    assert source_fingerprint(same) == source_fingerprint(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        "def keep(values, limit):\n    return [x for x in values if x > limit + 4]",
        "def keep(values, limit):\n    return [x for x in values if x >= limit + 3]",
        "def keep(values, limit):\n    return [limit for x in values if x > limit + 3]",
        "def keep(values, limit):\n    return [x for x in values if x > limit + 3.0]",
        "def keep(limit, values):\n    return [x for x in values if x > limit + 3]",
        "def keep(values, limit=1):\n    return [x for x in values if x > limit + 3]",
        "async def keep(values, limit):\n    return [x for x in values if x > limit + 3]",
    ],
)
def test_what_the_machine_executes_matters(other: str) -> None:
    assert source_fingerprint(other) != source_fingerprint(PLAIN)


def test_attributes_builtins_and_keywords_are_not_renamed() -> None:
    base = source_fingerprint("def f(count):\n    return count.count(1)")
    assert source_fingerprint("def f(text):\n    return text.count(1)") == base
    assert source_fingerprint("def f(text):\n    return text.index(1)") != base
    assert source_fingerprint("def f(x):\n    return max(x)") != source_fingerprint("def f(x):\n    return min(x)")
    assert source_fingerprint("def f(x):\n    return g(x, key=1)") != source_fingerprint(
        "def f(x):\n    return g(x, k=1)"
    )


def test_a_recursive_call_follows_the_renamed_function() -> None:
    one = "def down(n):\n    return 0 if n < 1 else down(n - 1)"
    two = "def fall(k):\n    return 0 if k < 1 else fall(k - 1)"
    free = "def fall(k):\n    return 0 if k < 1 else down(k - 1)"
    assert source_fingerprint(one) == source_fingerprint(two) != source_fingerprint(free)


def test_global_names_stay_what_they_are() -> None:
    assert source_fingerprint("def f():\n    global a\n    a = 1") != source_fingerprint(
        "def f():\n    global b\n    b = 1"
    )
    assert source_fingerprint("def f():\n    a = 1\n    return a") == source_fingerprint(
        "def f():\n    b = 1\n    return b"
    )


@pytest.mark.parametrize(("one", "two"), [("True", "1"), ("1", "1.0"), ("'a'", "b'a'"), ("None", "...")])
def test_constants_keep_their_type(one: str, two: str) -> None:
    assert source_fingerprint(f"def f():\n    return {one}") != source_fingerprint(f"def f():\n    return {two}")


def test_a_skeleton_forgets_constants_and_nothing_else() -> None:
    def shape(source: str) -> object:
        return skeleton(next(function_nodes(source)))

    assert shape("def f(x):\n    return x > 3") == shape("def g(y):\n    return y > 41")
    assert shape("def f(x):\n    return x > 3") != shape("def f(x):\n    return x < 3")


def test_an_outline_recombines_parts_seen_apart() -> None:
    def shape(condition: str, value: str) -> tuple[object, frozenset[object]]:
        source = f"def f(xs):\n    return [{value} for x in xs if {condition}]"
        return outline(next(function_nodes(source)))

    one, two, mixed = shape("x > 3", "x * 2"), shape("x % 2 == 1", "abs(x - 7)"), shape("x % 9 == 4", "x * 5")
    assert one[0] == two[0] == mixed[0]
    assert len(one[1]) == 2
    assert mixed[1] <= one[1] | two[1]
    assert not shape("x < 3", "x * 2")[1] <= one[1] | two[1]
    assert shape("x > 3", "[x]")[0] != one[0]


def test_values_are_fixed_for_every_python_version() -> None:
    """Written down once; a Python whose syntax trees differ must not move the split."""
    assert source_fingerprint(PLAIN).hex[:16] == "51667a57f87bdfcf"
    rich = textwrap.dedent(
        """
        def f(a, /, b=1, *c, d: int = 2, **e):
            match a:
                case {"k": [x, *rest], **others} if x:
                    return f"{x!r:>{b}} {rest} {others}"
                case Point(x=0) | None:
                    pass
            with open(b) as g, e:
                try:
                    yield from (n := i for i in c)
                except* ValueError as error:
                    raise KeyError from error
            import os.path as p
            return lambda q: (p, q, *d, {**e}, a[1:2, ...], not -1.5j, b"\\xff", "\\u00e9")
        """
    )
    assert source_fingerprint(rich).hex[:16] == "4b6fdf0545c04327"


@pytest.mark.parametrize("module", ["argparse", "dataclasses", "typing", "asyncio.base_events", "_pydecimal"])
def test_any_library_function_has_a_fingerprint_that_survives_rewriting(module: str) -> None:
    source = inspect.getsource(__import__(module, fromlist=["*"]))
    again = ast.unparse(ast.parse(source))
    marks = [fingerprint(node) for node in function_nodes(source)]
    assert marks == [fingerprint(node) for node in function_nodes(again)]
    assert len(set(marks)) > len(marks) // 2


def test_source_without_a_function_is_named_as_such() -> None:
    with pytest.raises(LookupError, match="no function"):
        source_fingerprint("x = 1")
