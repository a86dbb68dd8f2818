"""``csf get`` and ``csf cat``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from csf_store.cli.progress import progress_bar
from csf_store.cli.session import Session, Value, display, human_size, json_option, pass_session


@click.command()
@click.argument("digest")
@click.option(
    "-o", "--output", "out", required=True, type=click.Path(path_type=Path), metavar="OUT", help="Where to write it."
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@json_option
@pass_session
def get(session: Session, digest: str, out: Path, *, force: bool) -> None:
    """Write a blob to a file, or a tree to a directory.

    OUT appears whole and proven against its digest, or not at all.

    \b
    Examples:
      csf get b3:1a2b3c4d -o model.safetensors
      csf get b3:5e6f7a8b -o checkpoint/
    """  # noqa: D301 - \b is for click
    from csf_store.objects import Kind  # noqa: PLC0415

    with session.open() as archive:
        found = archive.resolve(digest)
        info = archive.stat(found)
        if Kind.TREE in info.kinds:
            kind, size = Kind.TREE, archive.tree(found).size
            with progress_bar(session, "get", size) as progress:
                archive.get_tree(found, out, overwrite=force, progress=progress)
        else:
            kind, size = info.kinds[0], info.size
            with progress_bar(session, "get", size) as progress:
                archive.get_file(found, out, overwrite=force, progress=progress)
    fields: dict[str, Value] = {
        "digest": str(found),
        "path": display(out),
        "size": size,
        "stored": info.stored,
        "kind": str(kind),
    }
    session.item(fields, f"{found}  {human_size(size):>10}  {display(out)}")


@click.command()
@click.argument("digest")
@click.argument("path", required=False)
@pass_session
def cat(session: Session, digest: str, path: str | None) -> None:
    """Write the bytes of a blob, or of the file PATH in a tree, to standard output.

    Nothing is written before everything was proven.

    \b
    Examples:
      csf cat b3:1a2b3c4d | head -c 100
      csf cat b3:5e6f7a8b config.json
    """  # noqa: D301 - \b is for click
    from csf_store.errors import NotFoundError  # noqa: PLC0415
    from csf_store.objects import Kind  # noqa: PLC0415

    with session.open() as archive:
        found = archive.resolve(digest)
        kind: Kind | None = None
        if path is not None:
            entries = {entry.path: entry.blob for entry in archive.tree(found).entries}
            if path not in entries:
                raise NotFoundError(f"tree {found} holds no {path!r}; csf ls {found.short} lists what it holds")
            found, kind = entries[path], Kind.BLOB
        for piece in archive.pieces(found, kind=kind):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
