"""What every command shares: which archive, how to print, and how a failure looks.

Nothing heavy is imported here: ``--help`` runs through this module. Commands import the archive when they start.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import click

if TYPE_CHECKING:
    from csf_store.archive import Archive
    from csf_store.objects import Stored

Value: TypeAlias = "str | int | float | bool | Sequence[Value] | Mapping[str, Value] | None"
_CLEAR_LINE: Final = "\r\x1b[2K"
_Command = TypeVar("_Command", bound=Callable[..., None])


class Session:
    """One run of a command line.

    Args:
        archive: as asked for; None for the default.
        program: what the command is called, for its error lines.
    """

    def __init__(self, archive: Path | None, program: str) -> None:
        self._archive = archive
        self._program = program
        self.json = False
        self.bar_showing = False

    @property
    def path(self) -> Path:
        """The archive's directory: as asked for, or the user's data directory."""
        if self._archive is None:
            from csf_store.marker import default_archive_path  # noqa: PLC0415 - not needed for --help

            self._archive = default_archive_path()
        return self._archive

    def open(self, *, create: bool = False) -> Archive:
        """Opens the archive."""
        from csf_store.archive import Archive  # noqa: PLC0415 - numpy and SQLite, not needed for --help

        return Archive.open(self.path, create=create)

    def item(self, fields: Mapping[str, Value], text: str) -> None:
        """Prints one item on one line, at once: who reads it may rely on it."""
        line = json.dumps(fields, separators=(",", ":")) if self.json else text
        if self.bar_showing:
            sys.stderr.write(_CLEAR_LINE)  # the bar draws itself again below what we print
            sys.stderr.flush()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Prints a line for people only."""
        if not self.json:
            self.item({}, text)

    def fail(self, error: Exception, code: int) -> None:
        """Prints an error on one line of standard error."""
        message = printable(" ".join(str(error).split()))
        if self.json:
            document = {"error": type(error).__name__, "message": message, "exit_code": code}
            line = json.dumps(document, separators=(",", ":"))
        else:
            line = f"{self._program}: {message}"
        sys.stderr.write(line + "\n")


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    session = context.find_object(Session)
    if session is not None and value:
        session.json = True


def json_option(command: _Command) -> _Command:
    """Adds ``--json``."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_json,
        help="Print one JSON object per item, one on each line.",
    )(command)


pass_session = click.make_pass_decorator(Session)


def acknowledge(session: Session, stored: Stored, path: str) -> None:
    """Says that something is safe on disk, and where it came from."""
    fields: dict[str, Value] = {
        "digest": str(stored.digest),
        "path": path,
        "size": stored.size,
        "stored": stored.stored,
        "kind": str(stored.kind),
        "new": stored.new,
    }
    sizes = f"{human_size(stored.size):>10}  +{human_size(stored.stored)}"
    session.item(fields, f"{stored.digest}  {sizes}  {printable(path)}")


def human_size(size: int) -> str:
    """Bytes for people: four significant places at most, binary units."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def printable(text: str) -> str:
    """Text for a terminal: what would control it is shown as an escape. Names come from anywhere."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def display(path: str | Path) -> str:
    """A path that can be printed whatever bytes it is made of."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
