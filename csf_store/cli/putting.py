"""``csf init``, ``csf put``, ``csf rm``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from csf_store.cli.progress import progress_bar
from csf_store.cli.session import Session, acknowledge, display, json_option, pass_session

if TYPE_CHECKING:
    from csf_store.archive import Archive
    from csf_store.directories import Found
    from csf_store.ingest import Progress


@click.command()
@json_option
@pass_session
def init(session: Session) -> None:
    """Make an archive (put makes a missing one by itself).

    \b
    Example:
      csf --archive /data/models init
    """  # noqa: D301 - \b is for click
    from csf_store.archive import Archive  # noqa: PLC0415

    with Archive.create(session.path) as archive:
        session.item({"path": display(session.path), "archive": archive.id.hex()}, f"made {display(session.path)}")


class _Job(NamedTuple):
    path: Path
    files: list[Found] | None
    size: int


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--allow-pickle", is_flag=True, help="Keep pickles as opaque bytes; they are never read.")
@json_option
@pass_session
def put(session: Session, paths: tuple[Path, ...], *, allow_pickle: bool) -> None:
    """Store files and directories, and pin them.

    Every PATH is checked before anything is written. A line is printed when its item is safe on disk; for a
    directory its files come first and the tree is the last line. Known bytes are not stored again.

    \b
    Examples:
      csf put model.safetensors
      csf put checkpoint/ tokenizer/
      csf put --json checkpoint/ | tail -1
    """  # noqa: D301 - \b is for click
    jobs = [_look(path, allow_pickle=allow_pickle) for path in paths]
    total = sum(job.size for job in jobs)
    with session.open(create=True) as archive, progress_bar(session, "put", total) as progress:
        for job in jobs:
            if job.files is None:
                _put_file(session, archive, job.path, progress, allow_pickle=allow_pickle)
            else:
                _put_directory(session, archive, job, progress, allow_pickle=allow_pickle)


def _look(path: Path, *, allow_pickle: bool) -> _Job:
    from csf_store.directories import check_file, list_directory  # noqa: PLC0415

    if path.is_dir():
        files = list_directory(path, allow_pickle=allow_pickle)
        return _Job(path, files, sum(file.size for file in files))
    return _Job(path, None, check_file(path, allow_pickle=allow_pickle))


def _put_file(session: Session, archive: Archive, path: Path, progress: Progress | None, *, allow_pickle: bool) -> None:
    stored = archive.put_file(path, progress=progress, allow_pickle=allow_pickle)
    archive.pin(stored.digest, kind=stored.kind, name=display(path.name))
    acknowledge(session, stored, display(path))


def _put_directory(
    session: Session, archive: Archive, job: _Job, progress: Progress | None, *, allow_pickle: bool
) -> None:
    entries = []
    written = 0
    for file in job.files or []:
        entry, stored = archive.put_found(file, progress=progress, allow_pickle=allow_pickle)
        entries.append(entry)
        written += stored.stored
        acknowledge(session, stored, display(job.path / file.path))
    tree = archive.put_tree_entries(entries)
    archive.pin(tree.digest, kind=tree.kind, name=display(job.path.resolve().name))
    acknowledge(session, tree._replace(stored=tree.stored + written), display(job.path))


@click.command()
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@json_option
@pass_session
def rm(session: Session, digests: tuple[str, ...]) -> None:
    """Unpin objects. Their bytes stay until garbage is collected, and as long as something else needs them.

    \b
    Example:
      csf rm b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    with session.open() as archive:
        found = [archive.resolve(text) for text in digests]
        for digest in found:
            archive.unpin(digest)
            session.item({"digest": str(digest), "event": "unpin"}, f"unpinned {digest}")
