"""The `keystone` group: global options, the table of commands, and what a failure turns into.

Commands are named here and imported when they run: help and shell completion must not wait for torch.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import click

from keystone.cli.session import Session

COMMANDS = {
    "quickstart": ("quickstart", "The whole story in two minutes, on the embedded base."),
    "load": ("loading", "Assemble, verify and quantize a manifest, and let it answer."),
    "import": ("importing", "Bring a base into the archive."),
    "adapter": ("adapter", "Add and show PEFT adapters."),
    "manifest": ("manifest", "Show, create and list manifests."),
    "ref": ("refs", "Names for manifests, and their history."),
    "rollback": ("refs", "Move a ref back to its last good manifest, in one step."),
    "audit": ("auditing", "Re-hash everything a manifest stands on, and say what is proven."),
}
INTERRUPTED = 130


class Commands(click.Group):
    """Imports a command's module when it is asked for, and turns our errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature of click
        """The commands, in the order a newcomer would meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"keystone.cli.{COMMANDS[cmd_name][0]}")
        found = getattr(module, f"{cmd_name}_command")
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error of ours is one line and its exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            sys.stderr.write("keystone: interrupted; what was acknowledged is stored\n")
            ctx.exit(INTERRUPTED)
        except Exception as error:
            # Every floor's root error carries its exit code as a class attribute; anything else is a defect of ours
            # and keeps its traceback.
            code = getattr(type(error), "exit_code", None)
            if not isinstance(code, int):
                raise
            session = ctx.find_object(Session) or Session(None)
            session.fail(error, code)
            ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    envvar="CSF_ARCHIVE",
    metavar="DIR",
    help="The archive. Default: $CSF_ARCHIVE, else keystone/archive in your data directory.",
)
@click.version_option(package_name="keystone-sigma0", prog_name="keystone")
@click.pass_context
def main(context: click.Context, archive: Path | None) -> None:
    """Know which weights are running, prove it, and go back in one step.

    Wherever a manifest is asked for, a ref, a digest (b3:...) or a unique prefix of 8 or more hex digits will do.

    \b
    Examples:
      keystone quickstart                       everything once, on the embedded base
      keystone import nano                      the embedded base into the archive, as ref `nano`
      keystone load nano --prompt "def add("    verified, quantized, talking
      keystone audit nano                       what is proven about it
      keystone rollback prod                    one step back

    \b
    Shell completion (bash; likewise zsh_source, fish_source):
      eval "$(_KEYSTONE_COMPLETE=bash_source keystone)"

    \b
    Exit codes:
      0 done        1 a check failed     2 wrong usage     3 audit: unknown   4 audit: unsigned
      5 not found   6 corrupt data       7 input refused   8 conflict         9 storage trouble
      10 refused by a rule               130 interrupted
    """  # noqa: D301 - \b is for click
    context.obj = Session(archive)
