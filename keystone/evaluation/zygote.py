"""The process that runs generated code: a small interpreter that forks once for every program.

It is started by `ProcessSandbox` as `python -I -S -c <this file>` with an empty environment and a private working
folder, imports nothing but the standard library, and serves one request at a time: fork; let the child give up its
privileges, take its limits and run the program; read the child's one answer; kill whatever is left of it; reply.

What is *not* here is the point: no expected value ever enters this process. A child can write what it likes into its
answer; the best forgery it can produce is a right answer, computed.

Frames in both directions are a 4-byte big-endian length and UTF-8 JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from typing import NoReturn

if sys.platform == "win32":  # pragma: no cover - mypy needs the guard to know fork
    raise ImportError("the process sandbox needs fork and resource limits, which Windows does not have")

import resource

_HEADER = 4
_CONFINED, _UNCONFINED = b"+", b"-"
_NOBODY = 65534
_SUBREAPER, _DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 36, 1, 38  # prctl options, from linux/prctl.h
_DETAIL_LENGTH = 200
_SWEEP_SECONDS = 5.0
# A child that has given up its privileges may not be able to read the library's files any more.
_PRELOADED = (  # noqa: SIM905 - a list of this length reads better as a sentence
    "abc array bisect calendar cmath collections copy dataclasses datetime decimal enum fractions functools hashlib "
    "heapq itertools math numbers operator random re shutil statistics string textwrap typing"
).split()


def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


_libc = _c_library()


def encode(value: object) -> list[object]:  # noqa: PLR0911 - one line per type
    """A value with its exact types, as JSON can carry it; the rest is `opaque`, equal to nothing expected."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return [kind.__name__, value]
    if kind is int:
        return ["int", hex(value)]  # type: ignore[arg-type]  # exact type checked above; hex has no digit limit
    if kind is float:
        return ["float", value.hex()]  # type: ignore[attr-defined]
    if kind is bytes:
        return ["bytes", value.hex()]  # type: ignore[attr-defined]
    if kind is list or kind is tuple:
        return [kind.__name__, [encode(item) for item in value]]  # type: ignore[attr-defined]
    if kind is set or kind is frozenset:
        return [kind.__name__, sorted((encode(item) for item in value), key=json.dumps)]  # type: ignore[attr-defined]
    if kind is dict:
        pairs = [[encode(key), encode(item)] for key, item in value.items()]  # type: ignore[attr-defined]
        return ["dict", sorted(pairs, key=json.dumps)]
    return ["opaque", kind.__name__[:_DETAIL_LENGTH]]


def main() -> None:
    """Serve requests until the other end closes."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _PRELOADED:
        __import__(name)
    _prctl(_SUBREAPER, 1)  # a child's orphans come back to us, to be killed
    user = _NOBODY if _can_drop_privileges() else os.geteuid()
    _send(replies, {"ready": True, "user": user})
    while (request := _receive(requests)) is not None:
        _send(replies, _serve(request, user, (requests, replies)))


def remove_folder(folder: str) -> None:
    """Remove what a program left behind, when no process of it is alive any more.

    Folders may be locked, and nested deeper than a path can be long or a recursion can go: so every folder's own
    folders are moved to the top before it is removed, and no path here is ever more than two names deep.
    """
    with contextlib.suppress(OSError):
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)  # noqa: PTH108
                    continue
                os.chmod(entry.path, 0o700)  # noqa: PTH101
                for inner in list(os.scandir(entry.path)):
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, 0o700)  # noqa: PTH101 - a folder that changes its parent must be writable
                        target = os.path.join(folder, os.urandom(12).hex())  # noqa: PTH118
                        os.rename(inner.path, target)  # noqa: PTH104
                    else:
                        os.unlink(inner.path)  # noqa: PTH108
                os.rmdir(entry.path)  # noqa: PTH106
        os.rmdir(folder)  # noqa: PTH106


def _serve(request: dict[str, object], user: int, private: tuple[int, int]) -> dict[str, object]:
    folder = os.path.join(os.getcwd(), str(request["nonce"]))  # noqa: PTH109, PTH118 - pathlib doubles the start-up time
    os.mkdir(folder, 0o700)  # noqa: PTH102
    answers, answer = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(request, user, folder, answer, (*private, answers))
    os.close(answer)
    limits = request["limits"]
    report = _await(pid, answers, limits["wall_seconds"], limits["output_bytes"])  # type: ignore[index]
    os.close(answers)
    _end(pid)
    remove_folder(folder)
    return {**report, "nonce": request["nonce"], "seconds": time.monotonic() - started}


def _child(request: dict[str, object], user: int, folder: str, answer: int, not_for_it: tuple[int, ...]) -> NoReturn:
    """What a forked child does. Its first byte says that it is confined, and no line of the program has run by then."""
    try:
        try:
            for descriptor in not_for_it:
                os.close(descriptor)
            _become_harmless(folder, user, request["limits"])  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            os.write(answer, _UNCONFINED + str(error).encode()[:_DETAIL_LENGTH])
        else:
            os.write(answer, _CONFINED)
            _send(answer, _run(request))
    finally:
        os._exit(0)


def _run(request: dict[str, object]) -> dict[str, object]:
    """Execute the program and make its calls; every way of failing is a report, never a traceback."""
    load, answer_of = (
        json.loads,
        encode,
    )  # bound before the program can replace them: its own answers are all it could spoil
    namespace: dict[str, object] = {"__name__": "candidate"}
    try:
        exec(compile(str(request["source"]), "<candidate>", "exec", dont_inherit=True), namespace)  # noqa: S102
        function = namespace[str(request["entry_point"])]
        calls: list[str] = request["calls"]  # type: ignore[assignment]
        return {"status": "returned", "values": [answer_of(function(*load(call))) for call in calls]}  # type: ignore[operator]
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are ways of failing too
        return {"status": "raised", "detail": f"{type(error).__name__}: {error}"[:_DETAIL_LENGTH]}


def _become_harmless(folder: str, user: int, limits: dict[str, int]) -> None:
    os.setsid()
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
    ):
        ceiling = resource.getrlimit(limit)[1]
        soft = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        # One second more before the kill, so that SIGXCPU comes first and tells a time-out from other deaths.
        resource.setrlimit(limit, (soft, soft + 1 if limit == resource.RLIMIT_CPU and soft == value else soft))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is an OSError, not a death
    os.chdir(folder)
    if user != os.geteuid():
        os.chown(folder, user, user)
        _drop_privileges()
    _prctl(_NO_NEW_PRIVILEGES, 1)
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)  # last: changing the user clears it


def _can_drop_privileges() -> bool:
    """Whether root can become nobody here, asked in a child; in some user namespaces it cannot."""
    if os.geteuid() != 0:
        return False
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(OSError):
            _drop_privileges()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _drop_privileges() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _await(pid: int, answers: int, wall_seconds: float, output_bytes: int) -> dict[str, object]:
    """The child's one frame, or why there is none."""
    deadline = time.monotonic() + wall_seconds
    poll = select.poll()
    poll.register(answers, select.POLLIN)
    if not poll.poll(wall_seconds * 1000):
        return {"status": "timeout", "detail": "it was not even confined in time"}
    if os.read(answers, 1) != _CONFINED:
        return {"status": "unconfined", "detail": os.read(answers, _DETAIL_LENGTH).decode(errors="replace")}
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        if not poll.poll(left * 1000):
            break
        piece = os.read(answers, 1 << 16)
        data += piece
        size = int.from_bytes(data[:_HEADER], "big") if len(data) >= _HEADER else 0
        if size > output_bytes or len(data) > output_bytes + _HEADER:
            return {"status": "died", "detail": f"its answer exceeds {output_bytes} bytes"}
        if size and len(data) >= size + _HEADER:
            return _checked(data[_HEADER : _HEADER + size])
        if not piece:
            return _cause_of_death(pid, max(0.0, deadline - time.monotonic()))
    return {"status": "timeout", "detail": f"no answer within {wall_seconds} s"}


def _checked(data: bytes) -> dict[str, object]:
    """The frame as the harness writes it; a program that writes its own frame may write anything."""
    try:
        report = json.loads(data)
    except (ValueError, RecursionError):
        return {"status": "died", "detail": "its answer is not JSON"}
    match report:
        case {"status": "returned", "values": list(values)}:
            return {"status": "returned", "values": values}
        case {"status": "raised", "detail": str(detail)}:
            return {"status": "raised", "detail": detail[:_DETAIL_LENGTH]}
    return {"status": "died", "detail": "its answer is not one of ours"}


def _cause_of_death(pid: int, patience: float) -> dict[str, object]:
    """Why a child closed its pipe without an answer; it may also have closed the pipe and live on."""
    deadline = time.monotonic() + min(patience, 1.0)
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                time.sleep(0.001)
                continue
            if found.si_status == signal.SIGXCPU and found.si_code != os.CLD_EXITED:
                return {"status": "timeout", "detail": "processor time used up"}
            how = "exited with status" if found.si_code == os.CLD_EXITED else "was killed by signal"
            return {"status": "died", "detail": f"{how} {found.si_status} before it answered"}
    return {"status": "died", "detail": "closed its answer pipe without an answer"}


def _end(pid: int) -> None:
    """Kill the child, its group, and every orphan it left to us."""
    for end, target in ((os.killpg, pid), (os.kill, pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(target, signal.SIGKILL)
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


def _prctl(option: int, value: int) -> None:
    """A Linux process attribute; other systems go without."""
    if _libc is not None:
        _libc.prctl(option, value, 0, 0, 0)


def _send(descriptor: int, message: dict[str, object]) -> None:
    data = json.dumps(message).encode()
    data = len(data).to_bytes(_HEADER, "big") + data
    while data:
        data = data[os.write(descriptor, data) :]


def _receive(descriptor: int) -> dict[str, object] | None:
    head = _exactly(descriptor, _HEADER)
    body = _exactly(descriptor, int.from_bytes(head, "big")) if head else b""
    return json.loads(body) if body else None


def _exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            return b""
        data += piece
    return data


if __name__ == "__main__":
    main()
