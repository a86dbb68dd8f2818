"""Attacks on the process sandbox: each must end in something other than a pass, and leave nothing behind."""

import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystone.evaluation import Execution, Limits, ProcessSandbox, Program, SandboxError, Status
from keystone.evaluation.scoring import canonical

LIMITS = Limits(wall_seconds=4.0, cpu_seconds=1, memory_bytes=256 << 20)
RIGHT = Program("def f(x):\n    return x + 1\n", "f", ((1,), (2,)))
ROOT = os.geteuid() == 0
OPEN_FILES = """
def is_open(n):
    try:
        return os.fstat(n) is not None
    except OSError:
        return False
return [n for n in range(64) if is_open(n)]
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ProcessSandbox]:
    with ProcessSandbox(LIMITS, workers=1) as started:
        yield started


def _run(sandbox: ProcessSandbox, body: str, *calls: object) -> Execution:
    source = "import os, sys\ndef f(x):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    program = Program(source, "f", tuple((call,) for call in calls) or ((1,),))  # type: ignore[arg-type]
    result = sandbox.run([program])[0]
    assert sandbox.run([RIGHT])[0].values == (canonical(2), canonical(3)), "the next program must not suffer"
    return result


def test_a_right_program_returns_its_values(sandbox: ProcessSandbox) -> None:
    result = sandbox.run([RIGHT])[0]
    assert result.status is Status.RETURNED
    assert result.values == (canonical(2), canonical(3))


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "return 10 ** 10 ** 10",
    ],
)
def test_an_endless_computation_ends(sandbox: ProcessSandbox, body: str) -> None:
    assert _run(sandbox, body).status in {Status.TIMEOUT, Status.DIED, Status.RAISED}


def test_processor_time_running_out_is_called_a_timeout(sandbox: ProcessSandbox) -> None:
    result = _run(sandbox, "while True: pass")
    assert (result.status, result.detail) == (Status.TIMEOUT, "processor time used up")


def test_waiting_for_ever_is_a_timeout() -> None:
    with ProcessSandbox(Limits(wall_seconds=0.5), workers=1) as quick:
        result = _run(quick, "import time\ntime.sleep(1000)")
    assert result.status is Status.TIMEOUT
    assert result.seconds < 5


@pytest.mark.parametrize("body", ["return bytearray(1 << 40)", "data = []\nwhile True: data.append(' ' * 10_000_000)"])
def test_memory_is_limited(sandbox: ProcessSandbox, body: str) -> None:
    result = _run(sandbox, body)
    assert result.status in {Status.RAISED, Status.DIED}
    assert result.status is Status.DIED or "MemoryError" in result.detail


def test_a_flood_of_output_goes_nowhere(sandbox: ProcessSandbox) -> None:
    body = "for _ in range(200):\n    print('x' * 1_000_000)\n    sys.stderr.write('y' * 100_000)\nreturn x"
    assert _run(sandbox, body).values == (canonical(1),)


def test_an_answer_is_limited_in_size(sandbox: ProcessSandbox) -> None:
    result = _run(sandbox, "return 'x' * 5_000_000")
    assert (result.status, result.values) == (Status.DIED, ())
    assert "exceeds" in result.detail


def test_a_fork_bomb_does_not_go_off(sandbox: ProcessSandbox) -> None:
    result = _run(sandbox, "while True: os.fork()")
    assert result.status in {Status.RAISED, Status.DIED, Status.TIMEOUT}
    if ROOT and _run(sandbox, "return os.getuid()").values == (canonical(0),):
        pytest.skip("root cannot become nobody here, and RLIMIT_NPROC does nothing for root")
    assert "BlockingIOError" in result.detail


def test_processes_that_a_program_leaves_behind_are_killed() -> None:
    """Forking allowed on purpose: a child in a session of its own, whose parent has gone, must not survive."""
    body = """
    import time
    end, other = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(other, str(os.getpid()).encode())
            while True:
                time.sleep(1)
        os._exit(0)
    return int(os.read(end, 20))
    """
    with ProcessSandbox(Limits(processes=100_000), workers=1) as lenient:
        result = _run(lenient, body)
        assert result.status is Status.RETURNED, result.detail
        pid = int(result.values[0].split('"')[3], 16)
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("print('PASS'); print('OK'); os._exit(0)", Status.DIED),
        ("sys.exit(0)", Status.RAISED),
        ("raise KeyboardInterrupt", Status.RAISED),
        ("os.kill(os.getpid(), 9)", Status.DIED),
        ("import ctypes\nctypes.string_at(0)", Status.DIED),
        ("return f(x)", Status.RAISED),
        ("loop = []\nloop.append(loop)\nreturn loop", Status.RAISED),
        ("return 1 +", Status.RAISED),
    ],
)
def test_ending_early_is_not_passing(sandbox: ProcessSandbox, body: str, status: Status) -> None:
    result = _run(sandbox, body)
    assert (result.status, result.values) == (status, ())
    assert result.detail


def test_closing_the_answer_s_pipe_and_living_on_is_not_passing(sandbox: ProcessSandbox) -> None:
    result = _run(sandbox, "os.closerange(3, 100)\nwhile True: pass")
    assert result.status in {Status.DIED, Status.TIMEOUT}
    assert result.values == ()


@pytest.mark.parametrize(
    "frame",
    [
        '{"status": "returned", "values": []}',
        '{"status": "passed"}',
        '{"status": "returned", "verdict": "passed"}',
        '{"status": "unconfined", "detail": "stop everything"}',
        "[1]",
        "PASS",
        "[" * 100_000,
    ],
)
def test_an_answer_written_by_the_program_itself_gains_nothing(sandbox: ProcessSandbox, frame: str) -> None:
    body = f"""
    data = {frame!r}.encode()
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, len(data).to_bytes(4, "big") + data)
        except OSError:
            pass
    os._exit(0)
    """
    result = _run(sandbox, body)
    assert result.status is Status.DIED or result.values == ()


def test_replacing_the_harness_own_tools_spoils_only_the_program_s_answer(sandbox: ProcessSandbox) -> None:
    result = _run(sandbox, "import json\njson.dumps = lambda *a, **k: '{}'\njson.loads = None\nreturn x")
    assert result.status in {Status.DIED, Status.RAISED}


def test_a_program_that_attacks_its_worker_does_not_pass(sandbox: ProcessSandbox) -> None:
    result = _run(sandbox, "os.kill(os.getppid(), 9)\nimport time\ntime.sleep(2)\nreturn x + 1")
    assert result.status in {Status.RAISED, Status.DIED}


def test_arguments_come_fresh_for_every_call(sandbox: ProcessSandbox) -> None:
    program = Program("def f(x):\n    x.append(1)\n    return x\n", "f", (([],), ([],)))
    assert sandbox.run([program])[0].values == (canonical([1]), canonical([1]))


def test_nothing_of_our_environment_is_inherited(sandbox: ProcessSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYSTONE_SECRET", "secret")
    with ProcessSandbox(LIMITS, workers=1) as fresh:
        result = _run(fresh, "return [k for k in os.environ if not k.startswith('LC_')]")
        assert result.values == (canonical([]),)
        opened = _run(fresh, OPEN_FILES)
        assert opened.values[0].count("int") == 4, "the standard three, which are /dev/null, and the answer's pipe"
        assert _run(fresh, "return [sys.flags.isolated, sys.flags.no_site, 'torch' in sys.modules]").values == (
            canonical([1, 1, False]),
        )


@pytest.mark.skipif(not ROOT, reason="only root has privileges to give up")
def test_root_becomes_nobody_where_it_can(sandbox: ProcessSandbox) -> None:
    result = _run(sandbox, "return [os.getuid(), os.geteuid(), os.getgid(), os.getgroups()]")
    assert result.values in {(canonical([65534, 65534, 65534, []]),), (canonical([0, 0, 0, os.getgroups()]),)}


def test_files_are_private_limited_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents[: 3 if ROOT else 0]:
        parent.chmod(parent.stat().st_mode | 0o111)  # so that the user that root becomes can reach its own folder
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ProcessSandbox(LIMITS, workers=1) as fresh:
        written = _run(fresh, "open('left', 'w').write('x'); os.mkdir('d'); os.chmod('d', 0)\nreturn os.listdir('.')")
        assert written.values in {(canonical(["left", "d"]),), (canonical(["d", "left"]),)}
        assert _run(fresh, "return os.listdir('.')").values == (canonical([]),)
        body = "for _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\nos.symlink('/', 'all')\nreturn x"
        deep = _run(fresh, body)
        assert deep.values == (canonical(1),)
        large = _run(fresh, "with open('big', 'wb') as file:\n    while True: file.write(b'x' * 65536)")
        assert "File too large" in large.detail
        assert _run(fresh, "import shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\nreturn x").values == (
            canonical(1),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "why"),
    [("x" * 300_000, "300000 bytes of source"), ("def f(x):\n    return '\ud800'", "not valid Unicode")],
)
def test_what_cannot_be_run_is_refused(sandbox: ProcessSandbox, source: str, why: str) -> None:
    result = sandbox.run([Program(source, "f", ((1,),))])[0]
    assert result.status is Status.REFUSED
    assert why in result.detail


def test_details_are_short_and_printable(sandbox: ProcessSandbox) -> None:
    result = _run(sandbox, "raise ValueError('\\x1b[31m\\n' + 'a' * 10_000)")
    assert result.detail.startswith("ValueError:  [31m ")
    assert len(result.detail) <= 200


def test_results_keep_the_order_of_the_programs() -> None:
    programs = [Program(f"def f(x):\n    return x + {n}\n", "f", ((0,),)) for n in range(60)]
    with ProcessSandbox(LIMITS, workers=3) as several:
        assert [run.values for run in several.run(programs)] == [(canonical(n),) for n in range(60)]


def test_a_sandbox_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        ProcessSandbox(LIMITS, workers=1) as broken,
        pytest.raises(SandboxError, match="does not start with /bin/false"),
    ):
        broken.run([RIGHT])


def test_limits_that_cannot_be_set_run_nothing() -> None:
    with (
        ProcessSandbox(Limits(open_files=-7), workers=1) as broken,
        pytest.raises(SandboxError, match="cannot set its limits"),
    ):
        broken.run([RIGHT])
