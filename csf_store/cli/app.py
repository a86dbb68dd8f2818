"""The ``csf`` group: global options, the table of commands, and what a failure turns into.

Commands are named here and imported when they run, so help and shell completion stay fast.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Final

import click

from csf_store.cli.session import Session
from csf_store.errors import CsfError

_COMMANDS: Final = {
    "init": ("putting", "Make an archive."),
    "put": ("putting", "Store files and directories."),
    "get": ("getting", "Write a blob or a tree to disk."),
    "ls": ("looking", "List pins, a tree, or a blob's tensors."),
    "stat": ("looking", "Show what is known of a digest."),
    "cat": ("getting", "Write a blob to standard output."),
    "verify": ("checking", "Read everything again and name what is damaged."),
    "rm": ("putting", "Unpin: let an object go."),
    "log": ("looking", "Show the ledger."),
}
_INTERRUPTED: Final = 130


class _Commands(click.Group):
    """Imports a command's module when it is asked for, and turns our errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature of click
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"csf_store.cli.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> None:
        try:
            super().invoke(ctx)
        except CsfError as error:
            session = ctx.find_object(Session) or Session(None)
            session.fail(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.stderr.write("csf: interrupted; what was acknowledged is stored\n")
            ctx.exit(_INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output left. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    envvar="CSF_ARCHIVE",
    metavar="DIR",
    help="The archive. Default: $CSF_ARCHIVE, else keystone/archive in your data directory.",
)
@click.version_option(package_name="keystone-sigma0", prog_name="csf")
@click.pass_context
def main(context: click.Context, archive: Path | None) -> None:
    """Keep checkpoints by what they are: content-addressed, deduplicated, crash-safe.

    A digest (b3:...) may be shortened to any unique prefix of 8 or more hex digits.

    \b
    Examples:
      csf put checkpoint/               store a directory; prints its tree digest last
      csf ls b3:1a2b3c4d                what is in it; digests as b3sum prints them
      csf get b3:1a2b3c4d -o copy/      write it back, proven byte for byte
      csf verify                        read everything again

    \b
    Shell completion (bash; likewise zsh_source, fish_source):
      eval "$(_CSF_COMPLETE=bash_source csf)"

    \b
    Exit codes:
      0 done          1 verification found damage   2 wrong usage
      5 not found     6 corrupt data                7 input refused
      8 conflict      9 storage trouble             130 interrupted
    """  # noqa: D301 - \b is for click
    context.obj = Session(archive)
