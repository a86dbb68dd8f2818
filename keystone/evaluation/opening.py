"""The sandboxes by name. There is no fallback from one to the other."""

from __future__ import annotations

from typing import Final

from keystone.errors import InvalidInputError
from keystone.evaluation.bubblewrap import BubblewrapSandbox
from keystone.evaluation.process_sandbox import ProcessSandbox
from keystone.evaluation.sandbox import Limits
from keystone.evaluation.workers import PooledSandbox

SANDBOXES: Final = ("bwrap", "process")


def open_sandbox(name: str = "bwrap", limits: Limits | None = None, *, workers: int | None = None) -> PooledSandbox:
    """Open a sandbox; use it as a context manager.

    Args:
        name: `bwrap`, or `process` by somebody who knows what that does not hide.
        limits: of each program.
        workers: programs that run at once.

    Raises:
        SandboxMissingError: bubblewrap is missing, or may not do its work here.
        InvalidInputError: there is no sandbox of this name.
    """
    if name == "bwrap":
        return BubblewrapSandbox(limits, workers=workers)
    if name == "process":
        return ProcessSandbox(limits, workers=workers)
    raise InvalidInputError(f"there is no sandbox {name!r}; there are {', '.join(SANDBOXES)}")
