"""A sandbox made of processes and resource limits: what every Unix offers without installing anything.

Each worker is a zygote (`keystone.evaluation.zygote`): an isolated interpreter that forks once per program, so that a
program costs milliseconds. It holds against accidents and casual mischief: endless loops, memory and file bombs,
floods of output, early exits, faked verdicts. It does not hide the file system or the network, and where the user is
not root a program may signal that user's other processes. Code from a hostile source belongs in a stronger sandbox
behind the same protocol.
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
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

from keystone.errors import SandboxError
from keystone.evaluation.sandbox import Execution, Limits, Program, Status
from keystone.evaluation.task import Value
from keystone.evaluation.zygote import remove_folder

_HEADER = 4
_START_SECONDS = 60.0
_GRACE_SECONDS = 15.0  # beyond the program's own limit, before the worker itself counts as lost
_MOST_WORKERS = 4


class ProcessSandbox:
    """Runs programs in forked, limited processes; use as a context manager, or call `close`."""

    name = "process"

    def __init__(self, limits: Limits | None = None, *, workers: int | None = None) -> None:
        self.limits = limits or Limits()
        count = workers or min(_MOST_WORKERS, os.cpu_count() or 1)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(self.limits) for _ in range(count)]
        for worker in self._workers:
            self._idle.put(worker)

    def run(self, programs: Sequence[Program]) -> list[Execution]:
        """Run each program in a fresh process; results in the order of the programs."""
        with ThreadPoolExecutor(len(self._workers)) as pool:
            return list(pool.map(self._run_one, programs))

    def _run_one(self, program: Program) -> Execution:
        worker = self._idle.get()
        try:
            return worker.execute(program)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the workers and remove their folders."""
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One zygote, started when first needed and again after it was lost."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def execute(self, program: Program) -> Execution:
        try:
            source = program.source.encode("utf-8")
        except UnicodeEncodeError as error:
            return Execution(Status.REFUSED, detail=f"the source is not valid Unicode at character {error.start}")
        if len(source) > self._limits.source_bytes:
            return Execution(
                Status.REFUSED, detail=f"{len(source)} bytes of source; the limit is {self._limits.source_bytes}"
            )
        nonce = secrets.token_hex(16)
        request = {
            "nonce": nonce,
            "source": program.source,
            "entry_point": program.entry_point,
            "calls": [json.dumps(list(call)) for call in program.calls],
            "limits": asdict(self._limits),
        }
        process = self._running()
        deadline = time.monotonic() + self._limits.wall_seconds + _GRACE_SECONDS
        try:
            _write(process, json.dumps(request).encode(), deadline)
            reply = json.loads(_read(process, self._limits.output_bytes * 2 + 4096, deadline))
            if not isinstance(reply, dict) or reply.get("nonce") != nonce:
                raise _WorkerLostError("the worker answered out of turn")
            return _execution(reply)
        except (_WorkerLostError, OSError, ValueError, RecursionError) as error:
            # The program brought its worker down or confused it. That is no pass; the next program gets a new worker.
            self.stop()
            return Execution(Status.DIED, detail=f"the sandbox worker was lost while it ran: {error}")

    def stop(self) -> None:
        """Kill the zygote with its session, close its pipes, remove its folder."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            process.wait()
        folder, self._folder = self._folder, None
        if folder is not None:
            remove_folder(str(folder))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        self._folder = Path(tempfile.mkdtemp(prefix="keystone-sandbox-"))
        self._folder.chmod(0o711)  # nobody may pass through to its own folder, and may not look around
        program = resources.files("keystone.evaluation").joinpath("zygote.py").read_text(encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            env={},
            bufsize=0,
            start_new_session=True,
        )
        try:
            _read(self._process, 4096, time.monotonic() + _START_SECONDS)
        except _WorkerLostError as error:
            self.stop()
            raise SandboxError(f"the process sandbox does not start with {sys.executable}: {error}") from error
        return self._process


class _WorkerLostError(Exception):
    """The zygote died, hangs or talks nonsense."""


def _execution(reply: dict[str, Value]) -> Execution:
    if reply.get("status") == "unconfined":
        raise SandboxError(f"the process sandbox cannot set its limits here, so nothing was run: {reply.get('detail')}")
    status = Status(str(reply.get("status")))
    values = reply.get("values")
    seconds = reply.get("seconds")
    return Execution(
        status=status,
        values=tuple(json.dumps(value) for value in values) if isinstance(values, list) else (),
        detail="".join(c if c.isprintable() else " " for c in str(reply.get("detail", ""))),
        seconds=seconds if isinstance(seconds, float) else 0.0,
    )


def _write(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    if process.stdin is None:
        raise _WorkerLostError("it has no request pipe")
    descriptor = process.stdin.fileno()
    data = len(data).to_bytes(_HEADER, "big") + data
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
