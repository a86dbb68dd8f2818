"""``csf ls``, ``csf stat``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from csf_store.cli.session import Session, Value, human_size, json_option, pass_session

if TYPE_CHECKING:
    from csf_store.archive import Archive
    from csf_store.digest import Digest


@click.command()
@click.argument("digest", required=False)
@click.option("--all", "every", is_flag=True, help="Every object, not just what is pinned.")
@json_option
@pass_session
def ls(session: Session, digest: str | None, *, every: bool) -> None:
    """List what is pinned; or the files of a tree, the tensors of a safetensors blob, the links of a document.

    Digests of files are what b3sum prints for them.

    \b
    Examples:
      csf ls
      csf ls b3:5e6f7a8b
    """  # noqa: D301 - \b is for click
    with session.open() as archive:
        if digest is not None:
            _list_object(session, archive, archive.resolve(digest))
        elif every:
            for info in archive.objects():
                _list(session, archive, info.digest, ",".join(info.kinds), "")
        else:
            for pin in archive.pins():
                _list(session, archive, pin.digest, str(pin.kind), pin.name or "", time=pin.time)


def _list(session: Session, archive: Archive, digest: Digest, kind: str, path: str, **more: Value) -> None:
    """Prints one object: for people digest, size and path; what is pinned and gone is listed with size 0."""
    info = archive.stat(digest) if archive.contains(digest) else None
    size, stored = (info.size, info.stored) if info else (0, 0)
    fields: dict[str, Value] = {"digest": str(digest), "path": path or None, "size": size, "stored": stored}
    text = f"{digest}  {human_size(size):>10}  {kind:<8}  {path}".rstrip()
    session.item({**fields, "kind": kind, **more}, text)


def _list_object(session: Session, archive: Archive, digest: Digest) -> None:
    from csf_store.objects import Kind  # noqa: PLC0415

    kinds = archive.stat(digest).kinds
    if Kind.TREE in kinds:
        for entry in archive.tree(digest).entries:
            _list(session, archive, entry.blob, str(Kind.BLOB), entry.path, executable=entry.executable)
    elif archive.is_safetensors(digest):
        for tensor in archive.tensors(digest).values():
            shape = list(tensor.shape)
            session.item(
                {"tensor": tensor.name, "dtype": tensor.dtype, "shape": shape, "size": tensor.nbytes},
                f"{tensor.dtype:<8}  {human_size(tensor.nbytes):>10}  {tensor.name}  {shape}",
            )
    else:
        info = archive.stat(digest)
        _list(session, archive, digest, ",".join(kinds), "", links=[str(link) for link in info.links])
        if not session.json:
            for link in info.links:
                session.item({}, f"  links to {link}")


@click.command()
@click.argument("digest")
@json_option
@pass_session
def stat(session: Session, digest: str) -> None:
    """Show kind, size, stored size, chunks and links of an object, without reading its content.

    \b
    Example:
      csf stat b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    with session.open() as archive:
        info = archive.stat(archive.resolve(digest))
        names = [pin.name for pin in archive.pins() if pin.digest == info.digest]
    fields: dict[str, Value] = {
        "digest": str(info.digest),
        "kind": ",".join(info.kinds),
        "size": info.size,
        "stored": info.stored,
        "chunks": info.chunks,
        "links": [str(link) for link in info.links],
        "pinned": names,
    }
    ratio = f" ({info.stored / info.size:.3f} of it)" if info.size else ""
    lines = [
        f"digest  {info.digest}",
        f"kind    {', '.join(info.kinds)}",
        f"size    {info.size} bytes",
        f"stored  {info.stored} bytes{ratio}, shared chunks included",
        f"chunks  {info.chunks}",
        *(f"links   {link}" for link in info.links),
        f"pinned  {', '.join(name or '(no name)' for name in names) or 'no'}",
    ]
    session.item(fields, "\n".join(lines))
