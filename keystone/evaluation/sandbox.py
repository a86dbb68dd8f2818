"""What a sandbox is, and whose word counts.

A sandbox runs programs that nobody has read. It is given source, the name of a function and the arguments of some
calls, and brings back what the calls returned. It is never told what they should return: the judging is done by
`keystone.evaluation.scoring`, in our own process, by comparing values. Where a suite brings test *code*, that code runs
in the sandbox too, in another process than the program (`inside.judge`), and the verdict is formed there. A program
that prints "PASS", exits with status 0 or writes its own answer gains nothing by it.

`BubblewrapSandbox` hides the machine; `ProcessSandbox` does what can be done without it. Both keep to this protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from keystone.evaluation.task import Value


class Status(StrEnum):
    """How the run of one program ended."""

    RETURNED = "returned"
    """Every call returned a value."""
    RAISED = "raised"
    """The source or a call raised, `SystemExit` included, or the source does not parse."""
    TIMEOUT = "timeout"
    """Wall-clock or processor time ran out."""
    DIED = "died"
    """The process ended, or sent something that is no answer."""
    FAILED = "failed"
    """The test code that came with it was not satisfied."""
    UNJUDGED = "unjudged"
    """The test code needs something a sandbox cannot give it, such as handing a function to the program."""
    REFUSED = "refused"
    """The sandbox declined to run it, because of its size for instance."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Attributes:
        wall_seconds: Wall-clock time until it is killed, with all its processes.
        cpu_seconds: Processor time, in whole seconds.
        memory_bytes: Address space.
        file_bytes: Size of the largest file it may write.
        disk_bytes: Size of all it may write, where the sandbox gives it a file system of its own.
        output_bytes: Size of its answer.
        open_files: Open file descriptors.
        processes: Processes and threads of its user, itself included; 1 means it cannot fork at all. Does nothing for
            root, so root gives up its privileges first where it can.
        source_bytes: Size of the largest source that is run at all.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 2
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    disk_bytes: int = 8 << 20
    output_bytes: int = 1 << 20
    open_files: int = 32
    processes: int = 1
    source_bytes: int = 256 << 10


@dataclass(frozen=True, slots=True)
class Program:
    """Source to execute, and the calls to make of one of its functions."""

    source: str
    entry_point: str
    calls: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class CheckedProgram:
    """Source to execute, and test code that decides whether its function is right.

    Attributes:
        source: The program, untrusted.
        entry_point: The function under test.
        setup: Code the test relies on: the prompt, as a rule, with its imports and helper functions.
        test: The suite's test: top-level assertions, or a function `check(candidate)`. It reaches the program's
            function by its name, or as `candidate`.
    """

    source: str
    entry_point: str
    setup: str
    test: str


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of a program.

    Attributes:
        status: How it ended.
        values: When it returned: each call's value in the canonical text form of `canonical`, to be compared and not
            to be trusted.
        detail: When it did not: why, as far as it is known. Untrusted text, made printable and short.
        seconds: Wall-clock time.
    """

    status: Status
    values: tuple[str, ...] = ()
    detail: str = ""
    seconds: float = 0.0


class Sandbox(Protocol):
    """Runs programs apart from us."""

    @property
    def name(self) -> str:
        """How reports call it."""

    def run(self, programs: Sequence[Program | CheckedProgram]) -> list[Execution]:
        """Run each program in a fresh process; results in the order of the programs.

        Raises:
            SandboxError: The sandbox itself does not work; nothing is said about the programs.
        """
