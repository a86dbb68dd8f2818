"""``csf parity``."""

from __future__ import annotations

import click

from csf_store.cli.progress import progress_bar
from csf_store.cli.session import Session, human_size, json_option, pass_session

_DAMAGED = 1


@click.group()
def parity() -> None:
    """A few percent beside the segments, from which csf repair computes again what rotted.

    For those who have one copy. It covers sealed segments; new ones need it added. Needs the package zfec.

    \b
    Examples:
      csf parity add
      csf parity status --deep
      csf repair
    """  # noqa: D301 - \b is for click


@parity.command()
@click.option(
    "--percent",
    type=click.FloatRange(0, 100, min_open=True),
    default=5.0,
    show_default=True,
    help="How much of a segment may be lost.",
)
@click.option("--anew", is_flag=True, help="Also replace what is there.")
@json_option
@pass_session
def add(session: Session, *, percent: float, anew: bool) -> None:
    """Make parity for every sealed segment that has none.

    \b
    Examples:
      csf parity add
      csf parity add --percent 10 --anew
    """  # noqa: D301 - \b is for click
    with session.open() as archive, progress_bar(session, "parity", archive.segment_bytes()) as progress:
        made = archive.add_parity(percent=percent, anew=anew, progress=progress)
        states = {state.segment: state for state in archive.parity()}
    for name in made:
        size = states[name].parity
        session.item({"segment": name, "parity": size}, f"{name}  +{human_size(size)}")
    covered = sum(1 for state in states.values() if state.parity)
    session.item(
        {"made": len(made), "covered": covered, "sealed": len(states)},
        f"made {len(made)}; {covered} of {len(states)} sealed segments are covered",
    )


@parity.command()
@click.option("--deep", is_flag=True, help="Hold every block of the segments against its checksum.")
@json_option
@pass_session
def status(session: Session, *, deep: bool) -> None:
    """Show what is covered. Exits with 1 if a parity file, or with --deep a segment, is damaged.

    \b
    Example:
      csf parity status --deep
    """  # noqa: D301 - \b is for click
    with session.open() as archive:
        states = archive.parity(deep=deep)
    for state in states:
        what = f"{state.percent:.1f} % may be lost" if state.parity else "no parity"
        if state.damaged is not None:
            what += f", {state.damaged} blocks are damaged"
        session.item(dict(state._asdict()), f"{state.segment}  {human_size(state.size):>10}  {state.trouble or what}")
    covered = sum(1 for state in states if state.parity and not state.trouble)
    session.item(
        {"covered": covered, "sealed": len(states), "bytes": sum(state.parity for state in states)},
        f"{covered} of {len(states)} sealed segments are covered",
    )
    if any(state.trouble or state.damaged for state in states):
        click.get_current_context().exit(_DAMAGED)


@parity.command()
@json_option
@pass_session
def remove(session: Session) -> None:
    """Delete all parity.

    \b
    Example:
      csf parity remove
    """  # noqa: D301 - \b is for click
    with session.open() as archive:
        count = archive.remove_parity()
    session.item({"removed": count}, f"removed {count} parity files")
