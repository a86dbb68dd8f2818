"""Warm interpreters on the other side of two pipes, and the pool that hands programs to them.

A worker is one zygote (`keystone.evaluation.inside.zygote`), started when first needed and again after it was lost.
How it is confined is the business of the sandbox that starts it. Whatever a worker says is read with a limit and a
deadline, and a reply counts only with the nonce of its request.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Protocol, Self

from keystone.errors import SandboxError
from keystone.evaluation.sandbox import CheckedProgram, Execution, Limits, Program, Status
from keystone.evaluation.task import Value

_HEADER = 4
_START_SECONDS = 60.0
_GRACE_SECONDS = 15.0  # beyond the program's own limit, before the worker itself counts as lost
_MOST_WORKERS = 4


@dataclass(frozen=True)
class Cell:
    """A running zygote, and what to do once it is gone."""

    process: subprocess.Popen[bytes]
    clean: Callable[[], None]


class CellMaker(Protocol):
    """Starts one zygote; it may block until the zygote's first frame is due, and does not read it."""

    def __call__(self) -> Cell:
        """Start.

        Raises:
            SandboxError: it cannot be started here.
        """


class PooledSandbox:
    """Runs programs in warm workers; use as a context manager, or call `close`."""

    name: str

    def __init__(self, name: str, start: CellMaker, limits: Limits | None, workers: int | None) -> None:
        self.name = name
        self.limits = limits or Limits()
        count = workers or min(_MOST_WORKERS, os.cpu_count() or 1)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(name, start, self.limits) for _ in range(count)]
        for worker in self._workers:
            self._idle.put(worker)

    def run(self, programs: Sequence[Program | CheckedProgram]) -> list[Execution]:
        """Run each program in a fresh process; results in the order of the programs."""
        with ThreadPoolExecutor(len(self._workers)) as pool:
            return list(pool.map(self._run_one, programs))

    def _run_one(self, program: Program | CheckedProgram) -> Execution:
        worker = self._idle.get()
        try:
            return worker.execute(program)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the workers and remove what they left."""
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    def __init__(self, name: str, start: CellMaker, limits: Limits) -> None:
        self._name = name
        self._start = start
        self._limits = limits
        self._cell: Cell | None = None

    def execute(self, program: Program | CheckedProgram) -> Execution:
        try:
            source = program.source.encode("utf-8")
        except UnicodeEncodeError as error:
            return Execution(Status.REFUSED, detail=f"the source is not valid Unicode at character {error.start}")
        if len(source) > self._limits.source_bytes:
            return Execution(
                Status.REFUSED, detail=f"{len(source)} bytes of source; the limit is {self._limits.source_bytes}"
            )
        nonce = secrets.token_hex(16)
        process = self._running()
        deadline = time.monotonic() + self._limits.wall_seconds + _GRACE_SECONDS
        try:
            _write(process, _request(program, nonce, self._limits), deadline)
            reply = json.loads(_read(process, self._limits.output_bytes * 2 + 4096, deadline))
            if not isinstance(reply, dict) or reply.get("nonce") != nonce:
                raise _WorkerLostError("the worker answered out of turn")
            return self._execution(reply)
        except (_WorkerLostError, OSError, ValueError, RecursionError) as error:
            # The program brought its worker down or confused it. That is no pass; the next program gets a new worker.
            self.stop()
            return Execution(Status.DIED, detail=f"the sandbox worker was lost while it ran: {error}")

    def stop(self) -> None:
        """Kill the zygote with its session, close its pipes, clean up after it."""
        cell, self._cell = self._cell, None
        if cell is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(cell.process.pid, signal.SIGKILL)
        for stream in (cell.process.stdin, cell.process.stdout, cell.process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        cell.process.wait()
        cell.clean()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._cell is not None and self._cell.process.poll() is None:
            return self._cell.process
        self.stop()
        self._cell = self._start()
        try:
            _read(self._cell.process, 4096, time.monotonic() + _START_SECONDS)
        except _WorkerLostError as error:
            reason = _last_words(self._cell.process) or str(error)
            self.stop()
            raise SandboxError(f"the {self._name} sandbox does not start with {sys.executable}: {reason}") from error
        return self._cell.process

    def _execution(self, reply: dict[str, Value]) -> Execution:
        if reply.get("status") == "unconfined":
            detail = reply.get("detail")
            raise SandboxError(f"the {self._name} sandbox cannot set its limits here, so nothing was run: {detail}")
        status = Status(str(reply.get("status")))
        values = reply.get("values")
        seconds = reply.get("seconds")
        return Execution(
            status=status,
            values=tuple(json.dumps(value) for value in values) if isinstance(values, list) else (),
            detail="".join(c if c.isprintable() else " " for c in str(reply.get("detail", ""))),
            seconds=seconds if isinstance(seconds, float) else 0.0,
        )


class _WorkerLostError(Exception):
    """The zygote died, hangs or talks nonsense."""


def _request(program: Program | CheckedProgram, nonce: str, limits: Limits) -> bytes:
    """The frames of one request; the test travels in a frame that the program's process never sees."""
    judged = isinstance(program, CheckedProgram)
    parts: list[object] = [{"nonce": nonce, "judged": judged, "limits": asdict(limits)}]
    about = {"source": program.source, "entry_point": program.entry_point}
    if isinstance(program, CheckedProgram):
        parts.append({"setup": program.setup, "test": program.test, "entry_point": program.entry_point})
        parts.append(about)
    else:
        parts.append({**about, "calls": [json.dumps(list(call)) for call in program.calls]})
    bodies = [json.dumps(part).encode() for part in parts]
    return b"".join(len(body).to_bytes(_HEADER, "big") + body for body in bodies)


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """What a process that did not start wrote on its standard error, on one line."""
    if process.stderr is None:
        return ""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return " ".join(process.stderr.read(2000).decode(errors="replace").split())


def _write(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    if process.stdin is None:
        raise _WorkerLostError("it has no request pipe")
    descriptor = process.stdin.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data:
        _await(poll, deadline)
        data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]  # never blocks: the pipe has room for that much


def _read(process: subprocess.Popen[bytes], most: int, deadline: float) -> bytes:
    if process.stdout is None:
        raise _WorkerLostError("it has no reply pipe")
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = b""
    while True:
        _await(poll, deadline)
        piece = os.read(descriptor, 1 << 16)
        data += piece
        size = int.from_bytes(data[:_HEADER], "big")
        if len(data) >= _HEADER and size > most:
            raise _WorkerLostError(f"it announced a reply of {size} bytes; {most} is the limit")
        if len(data) >= _HEADER + size:
            return data[_HEADER : _HEADER + size]
        if not piece:
            raise _WorkerLostError("it closed its reply pipe")


def _await(poll: select.poll, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise _WorkerLostError("it did not answer in time")
