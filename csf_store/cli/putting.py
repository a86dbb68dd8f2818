"""``csf init``, ``csf put``, ``csf rm``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from csf_store.cli.progress import progress_bar
from csf_store.cli.session import Session, acknowledge, display, json_option, pass_session

if TYPE_CHECKING:
    from csf_store.archive import Archive
    from csf_store.bases import Base
    from csf_store.directories import Found
    from csf_store.ingest import Progress
    from csf_store.objects import Stored


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
    """A path to put: a file, or a directory and what is in it."""

    path: Path
    files: list[Found] | None
    size: int

    @property
    def name(self) -> str:
        """Under which it is pinned."""
        return display(self.path.resolve().name if self.files is not None else self.path.name)


class _How(NamedTuple):
    """What the options say."""

    bases: tuple[str, ...]
    no_base: bool
    tags: tuple[str, ...]
    allow_pickle: bool
    progress: Progress | None

    def base(self, archive: Archive, job: _Job) -> Base | None:
        """What to store differences to: what was named, else what was last put under the same name."""
        if self.bases:
            return archive.base(*(archive.resolve(text) for text in self.bases))
        return None if self.no_base else archive.last_under(job.name)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="DIGEST",
    help="Store tensors as differences to those of this blob or tree, where that is smaller. "
    "Default: what was last put under the same name.",
)
@click.option("--no-base", is_flag=True, help="Store no differences: larger, and faster to read.")
@click.option("--tag", "tags", multiple=True, metavar="NAME", help="Pin under this name too; csf find --tag finds it.")
@click.option("--allow-pickle", is_flag=True, help="Keep pickles as opaque bytes; they are never read.")
@json_option
@pass_session
def put(
    session: Session,
    paths: tuple[Path, ...],
    *,
    bases: tuple[str, ...],
    no_base: bool,
    tags: tuple[str, ...],
    allow_pickle: bool,
) -> None:
    """Store files and directories, and pin them.

    Every PATH is checked before anything is written. A line is printed when its item is safe on disk; for a
    directory its files come first and the tree is the last line. Known bytes are not stored again, and a tensor
    that is nearly one of its base takes little more than what changed.

    \b
    Examples:
      csf put model.safetensors
      csf put checkpoint/ tokenizer/
      csf put finetuned/ --base b3:5e6f7a8b --tag support-bot
      csf put --json checkpoint/ | tail -1
    """  # noqa: D301 - \b is for click
    if bases and no_base:
        raise click.UsageError("--base and --no-base contradict each other")
    jobs = [_look(path, allow_pickle=allow_pickle) for path in paths]
    total = sum(job.size for job in jobs)
    # Kept as one: a file known already must not be collected between its put and the pin of its tree.
    with (
        session.open(create=True) as archive,
        archive.keeping(),
        progress_bar(session, "put", total) as progress,
    ):
        how = _How(bases, no_base, tags, allow_pickle, progress)
        for job in jobs:
            if job.files is None:
                _put_file(session, archive, job, how)
            else:
                _put_directory(session, archive, job, how)


def _look(path: Path, *, allow_pickle: bool) -> _Job:
    from csf_store.directories import check_file, list_directory  # noqa: PLC0415

    if path.is_dir():
        files = list_directory(path, allow_pickle=allow_pickle)
        return _Job(path, files, sum(file.size for file in files))
    return _Job(path, None, check_file(path, allow_pickle=allow_pickle))


def _put_file(session: Session, archive: Archive, job: _Job, how: _How) -> None:
    base = how.base(archive, job)
    stored = archive.put_file(job.path, base=base, progress=how.progress, allow_pickle=how.allow_pickle)
    _pin(archive, stored, job, how)
    acknowledge(session, stored, display(job.path))


def _pin(archive: Archive, stored: Stored, job: _Job, how: _How) -> None:
    for name in dict.fromkeys((job.name, *how.tags)):
        archive.pin(stored.digest, kind=stored.kind, name=name)


def _put_directory(session: Session, archive: Archive, job: _Job, how: _How) -> None:
    entries = []
    written = 0
    base = how.base(archive, job)
    for file in job.files or []:
        entry, stored = archive.put_found(file, base=base, progress=how.progress, allow_pickle=how.allow_pickle)
        entries.append(entry)
        written += stored.stored
        acknowledge(session, stored, display(job.path / file.path))
    tree = archive.put_tree_entries(entries)
    _pin(archive, tree, job, how)
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
