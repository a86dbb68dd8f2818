"""``csf verify``, ``csf repair``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store.cli.progress import progress_bar
from csf_store.cli.session import Session, human_size, json_option, pass_session, printable
from csf_store.cli.upkeep import say_waiting, seconds

if TYPE_CHECKING:
    from csf_store.upkeep.repair import RepairReport

_DAMAGED = 1


@click.command()
@click.argument("digests", nargs=-1, metavar="[DIGEST]...")
@click.option("--all", "every", is_flag=True, help="Also whether objects that nothing pins are complete.")
@click.option("--deep", is_flag=True, help="Also decode everything, and hash every object as a whole.")
@json_option
@pass_session
def verify(session: Session, digests: tuple[str, ...], *, every: bool, deep: bool) -> None:
    """Read every byte of every segment again, with index and ledger, and name what is damaged.

    With DIGESTs: decode just these objects and what they link to, and hash each as a whole.
    Exits with 1 if anything is wrong.

    \b
    Examples:
      csf verify
      csf verify --all --deep
      csf verify b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    with session.open() as archive:
        chosen = [archive.resolve(text) for text in digests] if digests else None
        with progress_bar(session, "verify", archive.segment_bytes()) as progress:
            report = archive.verify(chosen, deep=deep, reachable_only=not every, progress=progress)
    for finding in report.findings:
        session.item(
            {
                "what": finding.what,
                "digest": str(finding.digest) if finding.digest else None,
                "segment": finding.segment,
                "offset": finding.offset,
            },
            f"DAMAGED  {finding}",
        )
    for note in report.notes:
        session.item({"note": note}, f"note: {note}")
    count = len(report.findings)
    session.item(
        {
            "ok": report.ok,
            "findings": count,
            "segments": report.segments,
            "objects": report.objects,
            "bytes": report.bytes,
        },
        f"{'ok' if report.ok else f'{count} findings'}: {report.segments} segments, {report.objects} objects, "
        f"{human_size(report.bytes)} read",
    )
    if not report.ok:
        click.get_current_context().exit(_DAMAGED)


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what is damaged, what could be healed and what is lost.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="ARCHIVE",
    help="Another archive that may have what is lost here. May be given more than once.",
)
@click.option(
    "--wait",
    callback=seconds,
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long to wait for puts that are running, or for a gc.",
)
@json_option
@pass_session
def repair(session: Session, *, dry_run: bool, sources: tuple[Path, ...], wait: float) -> None:
    """Save what is sound in damaged segments, heal what can be healed, and name everything that is hurt.

    Damaged files are moved to quarantine/, never deleted, and the index is built anew. Put a hurt file again and it is
    whole. Exits with 1 if something stays lost.

    \b
    Examples:
      csf repair --dry-run
      csf repair --from /mnt/backup/archive
    """  # noqa: D301 - \b is for click
    with session.open() as archive, progress_bar(session, "repair", archive.segment_bytes()) as progress:
        report = archive.repair(
            sources=sources, dry_run=dry_run, wait=wait, progress=progress, waiting=say_waiting(session)
        )
    _tell(session, report)
    if not report.ok:
        click.get_current_context().exit(_DAMAGED)


def _tell(session: Session, report: RepairReport) -> None:
    from csf_store.digest import Digest  # noqa: PLC0415 - blake3, not needed for --help
    from csf_store.upkeep.repair import document, kind_name  # noqa: PLC0415

    if session.json:
        session.item(document(report), "")
        return
    _tell_healed(session, report)
    for damaged in report.damaged:
        session.note(f"DAMAGED  segment {damaged.segment}: {damaged.why}; {damaged.salvaged} sound records kept")
    for lost in report.lost:
        place = f", was in segment {lost.segment} at offset {lost.offset}" if lost.segment else ""
        kinds = ", ".join(map(kind_name, lost.kinds)) or "object"
        session.note(f"LOST     {lost.digest} ({kinds}){place}")
    for hurt in report.hurt:
        kinds = ", ".join(map(kind_name, hurt.kinds)) or "object"
        session.note(f"HURT     {Digest(hurt.digest)} ({kinds})")
    for name in report.pins:
        session.note(f"HURT     pinned as {printable(name)}")
    for name in report.refs:
        session.note(f"HURT     ref {printable(name)}")
    for what in report.ledger:
        session.note(f"LEDGER   {what}")
    for note in report.notes:
        session.note(f"note: {note}")
    end = "nothing is lost" if report.ok else f"{len(report.lost)} lost, {len(report.hurt)} objects hurt"
    where = f"; damaged files are in {report.quarantine}" if report.quarantine and not report.dry_run else ""
    session.note(f"{'would be: ' if report.dry_run else ''}{end}: {report.segments} segments read{where}")


def _tell_healed(session: Session, report: RepairReport) -> None:
    from csf_store.digest import Digest  # noqa: PLC0415 - blake3, not needed for --help
    from csf_store.upkeep.repair import kind_name  # noqa: PLC0415

    for mended in report.mended:
        session.note(f"mended   segment {mended.segment}: {mended.blocks} blocks from parity")
    for healed in report.healed:
        session.note(f"healed   {Digest(healed.digest)} ({kind_name(healed.kind)}) from {healed.source}")
