"""A suite's own test code, in a process apart from the code it tests.

Suites such as HumanEval come with test *code* instead of expected values. Run beside the program it tests, such code
can be patched, skipped or answered for. So it runs here, and the function it calls is a stand-in that asks the other
process. Only plain values come back (`values.unpack`); the verdict is formed in this process and leaves it through a
pipe that the other process never held.

A verdict says where a test failed and not what it compared, so that no expected value is left behind in the memory
that later programs are forked from.
"""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable
from types import TracebackType

from . import frames
from .values import CannotTravelError, pack_sendable, unpack

_SEED = 0  # tests that draw their cases draw the same ones when evidence is checked again


class _CandidateGoneError(BaseException):
    """The other process ended or talks nonsense. No `except Exception` of a test may swallow it."""


class _StandIn:
    """Looks like the function under test, and asks the process that has it."""

    def __init__(self, channel: int, most: int) -> None:
        self._channel = channel
        self._most = most
        self.lost: str | None = None
        self.last_raised: tuple[BaseException, str] | None = None

    def loaded(self) -> None:
        """Wait until the program has been executed; raises what it raised."""
        self._value_of(self._receive())

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self.lost is not None:
            raise _CandidateGoneError(self.lost)
        packed = [pack_sendable(item) for item in args]
        call = {"args": packed, "kwargs": {name: pack_sendable(item) for name, item in kwargs.items()}}
        try:
            frames.send(self._channel, call)
        except OSError as error:
            raise self._gone("it ended before its tests did") from error
        answer = self._receive()
        if "args" in answer:
            self._update(args, answer["args"])
        return self._value_of(answer)

    def _receive(self) -> dict[str, object]:
        try:
            answer = frames.receive(self._channel, self._most)
        except (ValueError, RecursionError, OSError) as error:
            raise self._gone(f"its answer is not one of ours: {type(error).__name__}") from error
        if answer is None:
            raise self._gone("it ended before its tests did")
        if not isinstance(answer, dict):
            raise self._gone("its answer is not one of ours")
        return answer

    def _value_of(self, answer: dict[str, object]) -> object:
        match answer:
            case {"raised": str(name), "detail": str(detail)}:
                kind = getattr(builtins, name, None)
                known = isinstance(kind, type) and issubclass(kind, BaseException)
                error = _exception(kind if known else Exception, detail)  # type: ignore[arg-type]
                self.last_raised = (error, detail)
                raise error
            case {"value": packed}:
                try:
                    return unpack(packed)
                except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
                    raise self._gone(f"its answer is not one of ours: {type(error).__name__}") from error
        raise self._gone("its answer is not one of ours")

    def _update(self, args: tuple[object, ...], after: object) -> None:
        """Show the test what the call did to its arguments."""
        try:
            values = [unpack(item) for item in after]  # type: ignore[attr-defined]
        except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
            raise self._gone(f"its answer is not one of ours: {type(error).__name__}") from error
        for mine, now in zip(args, values, strict=False):
            if isinstance(mine, list) and isinstance(now, list):
                mine[:] = now
            elif isinstance(mine, dict | set) and isinstance(now, type(mine)):
                mine.clear()
                mine.update(now)

    def _gone(self, why: str) -> _CandidateGoneError:
        self.lost = why
        return _CandidateGoneError(why)


def judge(part: dict[str, object], channel: int, most: int) -> dict[str, object]:
    """Run the test against the process at the other end of `channel`.

    Args:
        part: `setup` (code the test relies on, the prompt as a rule), `test`, `entry_point`.
        channel: a socket to the process that has executed the program.
        most: bytes of one answer.

    Returns:
        A report: `returned` when the test was satisfied, `failed`, `raised`, or `died`.
    """
    candidate = _StandIn(channel, most)
    try:
        candidate.loaded()
        _run(part, candidate)
    except BaseException as error:  # noqa: BLE001 - every way of ending is a verdict
        return _verdict(error, candidate)
    if candidate.lost is not None:  # a bare `except:` in the test went on after the program was gone
        return {"status": "died", "detail": candidate.lost}
    return {"status": "returned", "values": []}


def _run(part: dict[str, object], candidate: Callable[..., object]) -> None:
    random.seed(_SEED)
    namespace: dict[str, object] = {"__name__": "suite"}
    exec(compile(str(part["setup"]), "<setup>", "exec", dont_inherit=True), namespace)  # noqa: S102
    namespace[str(part["entry_point"])] = namespace["candidate"] = candidate
    exec(compile(str(part["test"]), "<test>", "exec", dont_inherit=True), namespace)  # noqa: S102
    check = namespace.get("check")
    if callable(check):
        check(candidate)


def _verdict(error: BaseException, candidate: _StandIn) -> dict[str, object]:
    if isinstance(error, _CandidateGoneError) or candidate.lost is not None:
        return {"status": "died", "detail": candidate.lost or str(error)}
    if candidate.last_raised is not None and candidate.last_raised[0] is error:
        return {"status": "raised", "detail": candidate.last_raised[1]}
    if isinstance(error, CannotTravelError):
        return {"status": "unjudged", "detail": str(error)}
    return {
        "status": "failed",
        "detail": f"{type(error).__name__} at line {_test_line(error.__traceback__)} of the test",
    }


def _test_line(trace: TracebackType | None) -> int:
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<test>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _exception(kind: type[BaseException], detail: str) -> BaseException:
    try:
        return kind(detail)
    except TypeError:  # UnicodeDecodeError and its kin want more arguments
        return Exception(detail)
