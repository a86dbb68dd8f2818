"""The interpreter that waits inside a sandbox and forks for every program.

It is started with an empty environment, imports nothing but the standard library, and serves one request at a time. A
request is three frames: what to do and the limits; for a test made of code, the judge's part; the program's part. For
each request the zygote forks a *supervisor*, which forks the judge, then the program, reads the verdict, kills
whatever is left and replies. The zygote itself never reads a program, a test or an answer, so nothing of one request
is in the memory that the next is forked from; the program's process is forked before anything but its own part was
read, and the judge reads its part by itself.

What is *not* in the program's process is the point: no expected value and no verdict pipe. The best forgery it can
produce is a right answer, computed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import candidate, confinement, frames, judge, system_calls
from .folders import remove_folder
from .values import NAME_LENGTH

_CONFINED, _UNCONFINED = b"+", b"-"
_SWEEP_SECONDS = 5.0
_SIGNALLED = 192  # exit statuses from here on are signals, counted down from 256
_OURS = 5  # processes of ours that count against the limit of a namespace: bubblewrap's, this one, and each role's
_MOST_FILES = 4096
_TEMPORARY = "/tmp"  # noqa: S108 - inside, an empty private file system is mounted there
# A child that has given up its privileges may not be able to read the library's files any more.
_PRELOADED = (  # noqa: SIM905 - a list of this length reads better as a sentence
    "abc array bisect calendar cmath collections copy dataclasses datetime decimal enum fractions functools hashlib "
    "heapq itertools math numbers operator random re shutil statistics string textwrap typing"
).split()


def main(way: str) -> None:
    """Serve requests until the other end closes.

    Args:
        way: `process` or `namespaces`, see `confinement`.
    """
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.environ.clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _PRELOADED:
        __import__(name)
    sys.path[:] = [entry for entry in sys.path if entry.startswith(sys.base_prefix)]
    most_files = min(_MOST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 63))
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most_files, most_files)
    )  # closing all others must not take a million calls
    confinement.adopt_orphans()
    confinement.hide()
    user = confinement.NOBODY if way == "process" and confinement.can_drop_user() else os.geteuid()
    frames.send(replies, {"ready": True, "user": user})
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        poll.poll()
        supervisor = os.fork()
        if supervisor == 0:
            code = 1
            with contextlib.suppress(BaseException):  # whatever happens, this process never becomes a second zygote
                confinement.die_with_parent()
                code = 0 if _Supervisor(way, user, requests, replies).serve() else 2
            os._exit(code)
        _, status = os.waitpid(supervisor, 0)
        _kill_children()
        if status != 0:  # the other end closed, or a request was left half read
            return


class _Supervisor:
    """Sees one request through, in a process of its own."""

    def __init__(self, way: str, user: int, requests: int, replies: int) -> None:
        self._way = way
        self._user = user
        self._requests = requests
        self._replies = replies
        self._answers, self._answer = os.pipe()

    def serve(self) -> bool:
        """Whether there was a request."""
        request: Any = frames.receive(self._requests)
        if request is None:
            return False
        limits = request["limits"]
        started = time.monotonic()
        confinement.adopt_orphans()
        folder = self._folder(request["nonce"])
        judge_end, program_end = socket.socketpair()
        judging = self._fork_judge(judge_end.fileno(), limits) if request["judged"] else None
        part: Any = frames.receive(self._requests)
        program = self._fork_program(part, program_end.fileno() if request["judged"] else None, folder, limits)
        os.close(self._answer)
        judge_end.close()
        program_end.close()
        report = self._await(program, judging, limits)
        self._end([pid for pid in (program, judging) if pid is not None])
        if self._way == "process":
            remove_folder(folder)
        frames.send(self._replies, {**report, "nonce": request["nonce"], "seconds": time.monotonic() - started})
        return True

    def _folder(self, nonce: str) -> str:
        if self._way == "namespaces":
            return _TEMPORARY
        folder = os.path.join(os.getcwd(), nonce)  # noqa: PTH109, PTH118 - pathlib doubles the start-up time
        os.mkdir(folder, 0o700)  # noqa: PTH102
        return folder

    def _fork_judge(self, channel: int, limits: dict[str, Any]) -> int:
        """The judge reads its part itself; only then is the next frame the program's."""
        read, done = os.pipe()

        def act() -> None:
            part: Any = frames.receive(self._requests)
            os.write(done, b"+")
            confinement.keep_only((channel, self._answer))
            os.setsid()
            confinement.take_limits({**limits, "processes": 1})
            if self._way == "namespaces":
                confinement.drop_capabilities()
            elif self._user != os.geteuid():
                confinement.drop_user()
            confinement.hide()
            confinement.die_with_parent()
            frames.send(self._answer, judge.judge(part, channel, limits["output_bytes"]))

        pid = _fork(act)
        os.close(done)
        os.read(read, 1)
        os.close(read)
        return pid

    def _fork_program(self, part: dict[str, Any], channel: int | None, folder: str, limits: dict[str, Any]) -> int:
        """A judged program holds its channel and nothing else; an unjudged one holds the answer's pipe."""
        confined, tell = os.pipe()
        mine = self._answer if channel is None else channel

        def run() -> None:
            try:
                confinement.keep_only((mine, tell))
                self._confine(folder, limits)
            except (OSError, ValueError) as error:
                os.write(tell, _UNCONFINED + str(error).encode()[:NAME_LENGTH])
                return
            os.write(tell, _CONFINED)
            os.close(tell)
            if channel is None:
                frames.send(mine, candidate.answer_calls(part))
            else:
                candidate.answer_judge(part, channel)

        try:
            if self._way == "namespaces":
                confinement.new_process_space()
                pid = _fork(lambda: _first_process(run, folder, limits, (mine, tell)))
            else:
                pid = _fork(run)
        except OSError as error:
            os.write(tell, _UNCONFINED + str(error).encode()[:NAME_LENGTH])
            pid = _fork(lambda: None)
        os.close(tell)
        self._confined = confined
        return pid

    def _confine(self, folder: str, limits: dict[str, Any]) -> None:
        os.setsid()
        if self._way == "namespaces":
            ours = _OURS if limits["processes"] > 1 else 0
            confinement.take_limits({**limits, "processes": limits["processes"] + ours})
            confinement.drop_capabilities()
            system_calls.refuse_needless_calls()
        else:
            confinement.take_limits(limits)
            confinement.become_user(folder, self._user)
            confinement.forbid_new_privileges()
        confinement.die_with_parent()

    def _await(self, program: int, judging: int | None, limits: dict[str, Any]) -> dict[str, object]:
        """The one answer, from the judge if there is one, or why there is none."""
        wall_seconds, most = limits["wall_seconds"], limits["output_bytes"]
        deadline = time.monotonic() + wall_seconds
        trouble = self._trouble(wall_seconds)
        if trouble is not None:
            return trouble
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        data = b""
        while (left := deadline - time.monotonic()) > 0:
            if not poll.poll(left * 1000):
                break
            piece = os.read(self._answers, 1 << 16)
            data += piece
            size = int.from_bytes(data[: frames.HEADER], "big") if len(data) >= frames.HEADER else 0
            if size > most or len(data) > most + frames.HEADER:
                return {"status": "died", "detail": f"its answer exceeds {most} bytes"}
            if size and len(data) >= size + frames.HEADER:
                report = _checked(data[frames.HEADER : frames.HEADER + size], judged=judging is not None)
                if report["status"] == "died" and judging is not None:
                    return _cause_of_death(program, left, otherwise=report)
                return report
            if not piece:
                return _cause_of_death(program if judging is None else judging, left)
        return {"status": "timeout", "detail": f"no answer within {wall_seconds} s"}

    def _trouble(self, patience: float) -> dict[str, object] | None:
        """Why the program was not even started, if it was not."""
        poll = select.poll()
        poll.register(self._confined, select.POLLIN)
        if not poll.poll(patience * 1000):
            return {"status": "timeout", "detail": "it was not even confined in time"}
        said = os.read(self._confined, NAME_LENGTH + 1)
        if said != _CONFINED:
            return {"status": "unconfined", "detail": said[1:].decode(errors="replace")}
        return None

    def _end(self, children: Sequence[int]) -> None:
        """Kill the children, their groups, and every orphan they left to us."""
        for pid in children:
            for end in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(pid, signal.SIGKILL)
        _kill_children()


def _first_process(run: Callable[[], None], folder: str, limits: dict[str, Any], keep: tuple[int, int]) -> None:
    """The first process of a program's own process space; when it ends, the kernel kills all the others.

    The program is not this process itself because the kernel shields a first process from its own signals.
    """
    confinement.keep_only(keep)
    confinement.die_with_parent()
    try:
        confinement.new_files(folder, limits["disk_bytes"])
    except OSError as error:
        os.write(keep[1], _UNCONFINED + str(error).encode()[:NAME_LENGTH])
        return
    pid = _fork(run)
    confinement.keep_only(())
    confinement.drop_capabilities()
    while True:
        found, status = os.waitpid(-1, 0)
        if found == pid:
            os._exit(os.waitstatus_to_exitcode(status) % 256)


def _fork(act: Callable[[], None]) -> int:
    """A child that does `act` and ends, whatever happens in it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return pid


def _checked(data: bytes, *, judged: bool) -> dict[str, object]:
    """The frame as the harness writes it; a program that writes its own frame may write anything."""
    try:
        report = json.loads(data)
    except (ValueError, RecursionError):
        return {"status": "died", "detail": "its answer is not JSON"}
    match report:
        case {"status": "returned", "values": list(values)}:
            return {"status": "returned", "values": values}
        case {"status": "raised", "detail": str(detail)}:
            return {"status": "raised", "detail": detail[:NAME_LENGTH]}
        case {"status": "failed" | "died" | "unjudged" as status, "detail": str(detail)} if judged:
            return {"status": status, "detail": detail[:NAME_LENGTH]}
    return {"status": "died", "detail": "its answer is not one of ours"}


def _cause_of_death(pid: int, patience: float, otherwise: dict[str, object] | None = None) -> dict[str, object]:
    """Why a child closed its pipe without an answer; it may also have closed the pipe and live on."""
    deadline = time.monotonic() + min(patience, 1.0)
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                time.sleep(0.001)
                continue
            ended = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            if ended >= _SIGNALLED:  # told by the first process of its own process space
                ended -= 256
            if ended == -signal.SIGXCPU:
                return {"status": "timeout", "detail": "processor time used up"}
            how = "exited with status" if ended >= 0 else "was killed by signal"
            return otherwise or {"status": "died", "detail": f"{how} {abs(ended)} before it answered"}
    return otherwise or {"status": "died", "detail": "closed its answer pipe without an answer"}


def _kill_children() -> None:
    """Kill and reap every process that was left to the zygote."""
    deadline = time.monotonic() + _SWEEP_SECONDS
    while time.monotonic() < deadline:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if reaped == 0:
            for orphan in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
            time.sleep(0.0005)


def _children() -> list[int]:
    """Our direct children, from /proc; empty where there is none."""
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []
    found = []
    for name in names:
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found
