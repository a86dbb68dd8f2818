"""A progress bar on standard error, when a person is looking."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Literal

from csf_store.cli.session import Session


@contextlib.contextmanager
def progress_bar(
    session: Session, label: str, total: int, *, unit: Literal["bytes", "objects"] = "bytes"
) -> Iterator[Callable[[int], None] | None]:
    """Yields what to call with bytes (or objects) done, or None where nobody looks: no terminal, or ``--json``."""
    if session.json or not sys.stderr.isatty():
        yield None
        return
    from rich import progress  # noqa: PLC0415 - only people pay for it
    from rich.console import Console  # noqa: PLC0415

    of_bytes = (progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn())
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *(of_bytes if unit == "bytes" else (progress.MofNCompleteColumn(),)),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # what we print is for standard output, whole lines, also when that is a file
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(label, total=total)
        session.bar_showing = sys.stdout.isatty()
        try:
            yield lambda done: bar.advance(task, done)
        finally:
            session.bar_showing = False
