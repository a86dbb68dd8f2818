"""A progress bar on standard error, when a person is looking."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from csf_store.cli.session import Session


@contextlib.contextmanager
def progress_bar(session: Session, label: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """Yields what to call with bytes done, or None where nobody looks: no terminal, or ``--json``."""
    if session.json or not sys.stderr.isatty():
        yield None
        return
    from rich import progress  # noqa: PLC0415 - only people pay for it
    from rich.console import Console  # noqa: PLC0415

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
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
