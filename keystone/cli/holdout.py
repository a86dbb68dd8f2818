"""`keystone holdout`: what is held out for cycles, and what of it is spent."""

from pathlib import Path

import click

from csf_store import Session, Value, json_option, pass_session

state_option = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="KEYSTONE_CYCLES",
    metavar="DIR",
    help="Where unfinished cycles and the key of draws are. Default: $KEYSTONE_CYCLES, else your state directory.",
)


@click.group("holdout")
def holdout_command() -> None:
    """Draws of held-out tasks: committed to before a run, opened for one candidate, spent.

    The ledger keeps the book. A draw is computed from a key in your state directory, so the archive alone does not give
    away what an unopened draw holds.
    """


@holdout_command.command("status")
@json_option
@pass_session
def status(session: Session) -> None:
    """What is committed, what is spent, draw by draw.

    \b
    Example:
      keystone holdout status
    """  # noqa: D301 - \b is for click
    from adapters import HoldoutBook, LedgerJournal  # noqa: PLC0415

    with session.open() as archive:
        journal = LedgerJournal(archive)
        events, rows = journal.events(), HoldoutBook(journal).status()
    opened = {event.draw: event for event in events if event.step == "open"}
    for event in events:
        if event.step == "open":
            continue
        spent = opened.get(event.draw)
        candidate = str(spent.candidate) if spent is not None else None
        fields: dict[str, Value] = {
            "draw": event.draw,
            "suite": event.suite,
            "items": event.count,
            "policy": str(event.policy),
            "commitment": str(event.commitment),
            "candidate": candidate,
        }
        state = f"spent on {spent.candidate.short}" if spent is not None and spent.candidate else "committed, unopened"
        session.item(fields, f"{event.draw:<20}  {event.count:>5} of {event.suite}  {state}")
    for row in rows:
        totals: dict[str, Value] = {
            "suite": row.suite,
            "committed": row.committed,
            "opened": row.opened,
            "consumed": row.consumed,
        }
        text = f"{row.suite}: {row.consumed} items spent in {row.opened} draws, {row.committed} draws committed to"
        session.item(totals, text)
    if not rows:
        session.note("no draw was ever committed to; `keystone cycle run` commits to one by itself")


@holdout_command.command("commit")
@click.argument("draw")
@click.option(
    "--policy", required=True, metavar="DIGEST", help="The guard's policy, as `keystone cycle status` shows it."
)
@state_option
@json_option
@pass_session
def commit(session: Session, *, draw: str, policy: str, state: Path | None) -> None:
    """Commit to a fresh draw by hand, now.

    `keystone cycle run` does this by itself. Who wants it further ahead, so that nobody can say the draw was chosen for
    a candidate, commits to the name the next cycle will use: REF/NUMBER.

    \b
    Example:
      keystone holdout commit prod/2 --policy b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    from adapters import (  # noqa: PLC0415 - see status
        GuardPolicy,
        HoldoutBook,
        LedgerJournal,
    )
    from csf_store import Kind  # noqa: PLC0415
    from keystone.cycle.draw_key import DrawKey  # noqa: PLC0415
    from keystone.cycle.places import state_folder  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        rules = Repository(archive).load_record(archive.resolve(policy, kind=Kind.RECORD), GuardPolicy)
        journal = LedgerJournal(archive)
        secret = DrawKey(state or state_folder(), archive).secret(draw)
        HoldoutBook(journal).commit(
            draw, suite=rules.fresh_suite, count=rules.fresh_items, policy=rules.digest, secret=secret
        )
        sealed = next(event.commitment for event in journal.events() if event.draw == draw)
    fields: dict[str, Value] = {"draw": draw, "suite": rules.fresh_suite, "items": rules.fresh_items}
    session.item({**fields, "commitment": str(sealed)}, f"{sealed}  {draw}: {rules.fresh_items} of {rules.fresh_suite}")
