"""What every command shares: which archive, how to print, and how a failure looks.

Nothing heavy is imported here: `keystone --help` runs through this module.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import click

if TYPE_CHECKING:
    from csf_store import Archive

Value: TypeAlias = "str | int | float | bool | Sequence[Value] | Mapping[str, Value] | None"
Command = TypeVar("Command", bound=Callable[..., None])


class Session:
    """One run of the command line."""

    def __init__(self, archive: Path | None) -> None:
        self._archive = archive
        self.json = False

    @property
    def path(self) -> Path:
        """The archive's directory: as asked for, or the user's data directory."""
        if self._archive is None:
            from csf_store import default_archive_path  # noqa: PLC0415 - not needed for --help

            self._archive = default_archive_path()
        return self._archive

    def open(self, *, create: bool = False) -> "Archive":
        """Open the archive."""
        from csf_store import Archive  # noqa: PLC0415 - numpy and SQLite, not needed for --help

        return Archive.open(self.path, create=create)

    def item(self, fields: Mapping[str, Value], text: str) -> None:
        """Print one item: a JSON line, or text for people."""
        sys.stdout.write((json.dumps(fields) if self.json else text) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line for people only."""
        if not self.json:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def fail(self, error: Exception, code: int) -> None:
        """Print an error on one line of standard error."""
        message = " ".join(str(error).split())
        document = {"error": type(error).__name__, "message": message, "exit_code": code}
        sys.stderr.write((json.dumps(document) if self.json else f"keystone: {message}") + "\n")

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None] | None]:
        """A bar on standard error that counts bytes, or None where nobody looks: no terminal, or `--json`."""
        if self.json or not sys.stderr.isatty():
            yield None
            return
        from rich import progress  # noqa: PLC0415 - only people pay for it
        from rich.console import Console  # noqa: PLC0415

        columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn())
        with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.advance(task, done)


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    session = context.find_object(Session)
    if session is not None and value:
        session.json = True


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_json,
        help="Print one JSON object per item, one on each line.",
    )(command)


pass_session = click.make_pass_decorator(Session)


def quiet_libraries() -> None:
    """Keep transformers from drawing bars and remarks between our lines; its errors still reach us as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging  # noqa: PLC0415 - heavy, and only for commands that need it

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def human_size(size: float) -> str:
    """Bytes for people, in the decimal units that model sizes are quoted in."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
