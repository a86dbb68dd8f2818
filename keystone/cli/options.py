"""Options that several commands share, each said once."""

from pathlib import Path

import click

sandbox_option = click.option(
    "--sandbox",
    "sandbox_name",
    type=click.Choice(["bwrap", "process"]),
    default="bwrap",
    show_default=True,
    help="Where programs are executed. `process` hides neither files nor network.",
)

audit_state_option = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="KEYSTONE_STATE",
    metavar="DIR",
    help="What you remember between audits. Default: $KEYSTONE_STATE, else keystone/audits in your state directory.",
)
