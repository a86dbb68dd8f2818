"""A command group that starts fast and fails well; ``csf`` is one, and so is ``keystone``.

Commands are named in a table and imported when they run, so that help and shell completion wait for nothing heavy. An
error of ours becomes one line on standard error and its exit code.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from csf_store.cli.session import Session

_INTERRUPTED: Final = 130


class CommandTable(click.Group):
    """A click group over a table of commands.

    Args:
        home: the package whose modules hold the commands.
        table: command name -> (module below ``home``, one line of help).
    """

    def __init__(self, *args: Any, home: str, table: Mapping[str, tuple[str, str]], **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self._home = home
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature of click
        """The commands, in the table's order."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Imports a command."""
        if cmd_name not in self._table:
            return None
        module = importlib.import_module(f"{self._home}.{self._table[cmd_name][0]}")
        found = (each for each in vars(module).values() if isinstance(each, click.Command))
        return next(command for command in found if command.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            sys.stderr.write(f"{self.name}: interrupted; what was acknowledged is stored\n")
            ctx.exit(_INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output left. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except Exception as error:
            # Errors raised on purpose carry their exit code, on every floor; anything else is a defect of ours and
            # keeps its traceback.
            code = getattr(type(error), "exit_code", None)
            if not isinstance(code, int):
                raise
            session = ctx.find_object(Session) or Session(None, str(self.name))
            session.fail(error, code)
            ctx.exit(code)
