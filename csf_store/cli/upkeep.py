"""``csf gc``, ``csf stats``."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import click

from csf_store.cli.session import Session, human_size, json_option, pass_session

if TYPE_CHECKING:
    from csf_store.upkeep.gc import CollectReport

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(_context: click.Context, _option: click.Parameter, value: str) -> float:
    """A duration: 90, 90s, 30m, 12h, 2d, 1w."""
    found = re.fullmatch(r"(\d{1,9})([smhdw]?)", value)
    if not found:
        raise click.BadParameter(f"{value!r} is no duration; write 90, 90s, 30m, 12h, 2d or 1w")
    return float(int(found[1]) * _UNITS[found[2]])


@contextlib.contextmanager
def phases(session: Session) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yields what to call with a phase's name, what was done, and how much there is; None where nobody looks."""
    if session.json or not sys.stderr.isatty():
        yield None
        return
    from rich import progress  # noqa: PLC0415 - only people pay for it
    from rich.console import Console  # noqa: PLC0415

    tasks: dict[str, progress.TaskID] = {}
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], advance=done, total=total or None)

        session.bar_showing = sys.stdout.isatty()
        try:
            yield advance
        finally:
            session.bar_showing = False


def say_waiting(session: Session) -> Callable[[float], None]:
    """Says on standard error that others are waited for."""

    def say(seconds: float) -> None:
        if not session.json:
            sys.stderr.write(f"waiting for other processes ({seconds:.0f} s)\n")

    return say


@click.command()
@click.option(
    "--grace",
    callback=seconds,
    default="1h",
    show_default=True,
    metavar="TIME",
    help="Keep what was put within this time, pinned or not: 0, 90s, 30m, 2d.",
)
@click.option("--all", "every", is_flag=True, help="Rewrite segments for any garbage, not only for more than a tenth.")
@click.option("--dry-run", is_flag=True, help="Say what would go and why the rest stays; change nothing.")
@click.option(
    "--wait",
    callback=seconds,
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long to wait for puts that are running, or for another gc.",
)
@click.option(
    "--lost",
    multiple=True,
    metavar="DIGEST",
    help="This is lost for good: collect although it can not be found. May be given more than once.",
)
@json_option
@pass_session
def gc(session: Session, *, grace: float, every: bool, dry_run: bool, wait: float, lost: tuple[str, ...]) -> None:
    """Collect garbage: free the space of what no pin, no ref and no recent put leads to.

    Others may put and get meanwhile. Killed at any moment, it loses nothing; the next open finishes what it began.
    It needs room for what is kept of the segments it rewrites, until the old ones are deleted.
    If something needed is missing or damaged, nothing is deleted: run csf repair first.

    \b
    Examples:
      csf gc --dry-run
      csf gc
      csf gc --grace 0 --all
    """  # noqa: D301 - \b is for click
    from csf_store.digest import Digest  # noqa: PLC0415 - blake3, not needed for --help

    accepted = [Digest.parse(text) for text in lost]
    with session.open() as archive, phases(session) as progress:
        options = {"threshold": 0.0} if every else {}
        report = archive.collect(
            grace=grace,
            dry_run=dry_run,
            wait=wait,
            accepted=accepted,
            progress=progress,
            waiting=say_waiting(session),
            **options,
        )
    _tell(session, report)


def _tell(session: Session, report: CollectReport) -> None:
    would = "would go" if report.dry_run else "gone"
    for name in report.removed:
        session.item({"segment": name, "event": "would-remove" if report.dry_run else "removed"}, f"{would}  {name}")
    for name, why in report.left_alone:
        session.item({"segment": name, "event": "left-alone", "why": why}, f"stays  {name}: {why}")
    for kept in report.kept:
        if kept.objects or kept.bytes:
            session.item(
                {"kept": str(kept.reason), "objects": kept.objects, "bytes": kept.bytes},
                f"kept   {kept.objects} objects, {human_size(kept.bytes)}: {kept.reason}",
            )
    session.item(
        {
            "dry_run": report.dry_run,
            "freed": report.freed,
            "objects": report.objects,
            "chunks": report.chunks,
            "garbage": report.garbage,
            "removed": len(report.removed),
            "written": len(report.written),
        },
        f"{'would free' if report.dry_run else 'freed'} {human_size(max(0, report.freed))}: {report.objects} objects, "
        f"{report.chunks} chunks; {human_size(report.garbage)} of garbage left",
    )


@click.command()
@json_option
@pass_session
def stats(session: Session) -> None:
    """Show what the archive holds in numbers.

    logical: as plain files. unique: every chunk counted once. stored: what the segments take.

    \b
    Examples:
      csf stats
      csf stats --json
    """  # noqa: D301 - \b is for click
    from csf_store.upkeep.stats import document  # noqa: PLC0415

    with session.open() as archive:
        found = archive.stats()
    if session.json:
        session.item(document(found), "")
        return
    lines = [
        ("pinned", f"{human_size(found.pinned)} logical"),
        ("blobs", f"{human_size(found.blobs)} logical, each blob once"),
        ("unique", f"{human_size(found.unique)}, dedup {found.dedup:.2f}x"),
        ("stored", f"{human_size(found.stored)}, {found.ratio:.4f} of all blobs"),
        ("chunks", f"{found.chunks}, {found.differences} of them differences"),
        *(
            (
                f"  {each.codec}",
                f"{each.chunks}, {human_size(each.raw)} -> {human_size(each.stored)} ({each.ratio:.4f})",
            )
            for each in found.codecs
        ),
        *((f"{each.kind}s", f"{each.objects}, {human_size(each.stored)} of records") for each in found.kinds),
        ("segments", f"{found.sealed} sealed, {found.unsealed} open, {human_size(found.unlisted)} not listed"),
        ("ledger", f"{found.ledger} lines"),
        ("caches", human_size(found.caches)),
        ("parity", human_size(found.parity)),
        ("quarantine", human_size(found.quarantine)),
    ]
    if found.unreadable:
        lines.append(("unreadable", f"{found.unreadable} pinned; run csf verify"))
    for name, value in lines:
        session.note(f"{name:<12}{value}")
