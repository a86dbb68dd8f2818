"""A sandbox made of processes and resource limits: what every Unix offers without installing anything.

It holds against accidents and casual mischief: endless loops, memory and file bombs, floods of output, early exits,
faked verdicts. It does not hide the file system or the network, and where the user is not root a program may signal
that user's other processes. Code from a hostile source belongs in `BubblewrapSandbox`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from keystone.evaluation.inside.folders import remove_folder
from keystone.evaluation.sandbox import Limits
from keystone.evaluation.workers import Cell, PooledSandbox

_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from inside.zygote import main; main('process')"


class ProcessSandbox(PooledSandbox):
    """Runs programs in forked, limited processes; use as a context manager, or call `close`.

    Args:
        limits: of each program.
        workers: programs that run at once; default one for each of up to four cores.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int | None = None) -> None:
        super().__init__("process", _start, limits, workers)


def _start() -> Cell:
    folder = Path(tempfile.mkdtemp(prefix="keystone-sandbox-"))
    folder.chmod(0o711)  # nobody may pass through to its own folder, and may not look around
    with resources.as_file(resources.files("keystone.evaluation")) as home:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={},
            bufsize=0,
            start_new_session=True,
        )
    return Cell(process, lambda: remove_folder(str(folder)))
