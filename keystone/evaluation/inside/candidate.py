"""The code under test, in its own process: load it, call it, say what it returned.

Nothing here is trusted once the source has run: the program may replace every function of this process. It can spoil
its own answers with that, and nothing else. What the answers should be is not in this process.
"""

from __future__ import annotations

import builtins
import json
import random

from . import frames
from .values import NAME_LENGTH, encode, pack, unpack

_SEED = 0  # programs that draw random numbers draw the same ones when their evidence is checked again


def answer_calls(part: dict[str, object]) -> dict[str, object]:
    """Execute the program and make its calls; every way of failing is a report, never a traceback.

    Args:
        part: `source`, `entry_point`, and `calls`: the arguments of each call as JSON text.
    """
    load, answer_of = json.loads, encode  # bound before the program can replace them
    try:
        function = _load(part)
        calls: list[str] = part["calls"]  # type: ignore[assignment]
        return {"status": "returned", "values": [answer_of(function(*load(call))) for call in calls]}  # type: ignore[operator]
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are ways of failing too
        return {"status": "raised", "detail": describe(error)}


def answer_judge(part: dict[str, object], channel: int) -> None:
    """Execute the program, then answer the judge's calls until it hangs up.

    A call is `{"args", "kwargs"}`, packed. An answer is `{"value"}` or `{"raised", "detail"}`, with `"args"` as they
    are after the call where it changed them, since a function may be asked to work in place.
    """
    try:
        function = _load(part)
    except BaseException as error:  # noqa: BLE001
        frames.send(channel, _raised(error))
        return
    frames.send(channel, {"value": pack(None)})
    while isinstance(call := frames.receive(channel), dict):
        frames.send(channel, _answer(function, call))


def describe(error: BaseException) -> str:
    """One short line about an exception."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - a program's own exception may not even print
        text = type(error).__name__
    return text[:NAME_LENGTH]


def _load(part: dict[str, object]) -> object:
    random.seed(_SEED)
    namespace: dict[str, object] = {"__name__": "candidate"}
    exec(compile(str(part["source"]), "<candidate>", "exec", dont_inherit=True), namespace)  # noqa: S102
    return namespace[str(part["entry_point"])]


def _answer(function: object, call: dict[str, object]) -> dict[str, object]:
    answer: dict[str, object]
    args = [unpack(item) for item in call["args"]]  # type: ignore[attr-defined]
    try:
        kwargs = {name: unpack(item) for name, item in call["kwargs"].items()}  # type: ignore[attr-defined]
        answer = {"value": pack(function(*args, **kwargs))}  # type: ignore[operator]
    except BaseException as error:  # noqa: BLE001
        answer = _raised(error)
    try:
        after = [pack(item) for item in args]
    except BaseException:  # noqa: BLE001 - an argument that now holds itself, for instance
        return answer
    if after != call["args"]:
        answer["args"] = after
    return answer


def _raised(error: BaseException) -> dict[str, object]:
    """The nearest builtin class goes along, because tests ask for ValueError and the like."""
    known = (kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    return {"raised": next(known, "Exception"), "detail": describe(error)}
