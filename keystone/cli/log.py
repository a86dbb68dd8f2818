"""`keystone log`: the ledger, told as a story."""

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keystone.story import Sentence

DEFAULT_LIMIT = 200
_AGO = re.compile(r"(\d{1,6})\s*(m|min|h|d|w)")
_UNITS = {"m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_COLOURS = {
    "promoted": "green",
    "approved": "green",
    "rolled-back": "yellow",
    "moved": "cyan",
    "evaluated": "blue",
    "trained": "magenta",
    "key": "cyan",
}
_STEPS = ((60, 60, "min"), (24 * 60, 3600, "h"), (14 * 24 * 60, 86400, "days"), (10**9, 7 * 86400, "weeks"))


class _Moment(click.ParamType[datetime]):
    """A moment: RFC 3339, a day, or how long ago."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ARG002 - click's signature
        if ago := _AGO.fullmatch(value.strip()):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-01-31, 2026-01-31T12:00:00Z, or 3d for three days ago", param)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@click.command("log")
@click.argument("about", required=False, metavar="[REF|MANIFEST]")
@click.option("--since", type=_Moment(), help="From then on: a day, RFC 3339, or 3d, 12h, 30m ago. Times are UTC.")
@click.option("--until", type=_Moment(), help="Up to then.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only this kind; may be repeated. `?` lists them.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=0),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="The newest so many; 0 for all.",
)
@click.option("--reverse", is_flag=True, help="Newest first.")
@json_option
@pass_session
def log_command(
    session: Session,
    *,
    about: str | None,
    since: datetime | None,
    until: datetime | None,
    kinds: tuple[str, ...],
    limit: int,
    reverse: bool,
) -> None:
    """Tell what happened, in sentences: put, imported, trained, evaluated, tripped, approved, promoted, rolled back.

    With a ref or a manifest, only what belongs to it: its weights, its evidence, its approvals, its moves. Names in
    parentheses are the refs that ever held what stands before them. What the ledger says word for word, and proof of
    it, is `csf log`.

    \b
    Examples:
      keystone log
      keystone log prod --since 7d
      keystone log --kind promoted --kind rolled-back --limit 0
      keystone log b3:1a2b3c4d --json
    """  # noqa: D301 - \b is for click
    from keystone.story import STORY_KINDS, StoryQuery, read_story  # noqa: PLC0415 - pydantic, not needed for --help

    if "?" in kinds:
        for kind, what in STORY_KINDS.items():
            session.item({"kind": kind, "about": what}, f"{kind:<12}  {what}")
        return
    if unknown := set(kinds) - STORY_KINDS.keys():
        raise click.UsageError(f"no kind {min(unknown)!r}; there are {', '.join(STORY_KINDS)}")
    query = StoryQuery(about, frozenset(kinds), since, until, limit or None)
    with session.open() as archive:
        told: Iterable[Sentence] = read_story(archive, query)
        if limit or reverse:
            told = list(told)
            if len(told) == limit:
                session.note(f"The newest {limit}; --limit 0 tells all.\n")
            told = reversed(told) if reverse else told
        _show(session, told)


def _show(session: Session, sentences: "Iterable[Sentence]") -> None:
    now, day, colour = datetime.now(UTC), "", sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for sentence in sentences:
        today = f"{sentence.time:%A, %Y-%m-%d}"
        if today != day:
            session.note(("\n" if day else "") + (click.style(today, bold=True) if colour else today))
            day = today
        fields: dict[str, Value] = {
            "seq": sentence.seq,
            "time": sentence.time.isoformat(),
            "kind": sentence.kind,
            "event": sentence.event,
            "text": sentence.text,
            "count": sentence.count,
        }
        text = _plain(sentence.text)
        if colour:
            text = click.style(text, fg=_colour(sentence))
        session.item(fields, f"  {sentence.time:%H:%M:%S}  {relative(sentence.time, now):>12}  {text}")
    if not day:
        session.note("Nothing happened that fits; `keystone log --limit 0` tells everything.")


def _colour(sentence: "Sentence") -> str | None:
    if "TRIPPED" in sentence.text or "THE BASE CHANGED" in sentence.text or "revoked" in sentence.text:
        return "red"
    return _COLOURS.get(sentence.kind)


def relative(time: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that says something."""
    seconds = max(0.0, (now - time).total_seconds())
    if seconds < 60:
        return "just now"
    for minutes, unit, name in _STEPS:
        if seconds < minutes * 60:
            count = int(seconds // unit)
            return f"{count} {name if count != 1 else name.removesuffix('s')} ago"
    return "long ago"


def _plain(text: str) -> str:
    """One line without what would control a terminal: reasons and names come from anywhere."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
