"""``csf import``: the older container, checked as a whole, then stored file by file as ``csf put`` would."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store.cli.progress import progress_bar
from csf_store.cli.session import Session, acknowledge, display, json_option, pass_session

if TYPE_CHECKING:
    from csf_store.csfpack.container import CsfPack
    from csf_store.digest import Digest


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.csf")
@click.option("--allow-pickle", is_flag=True, help="Keep pickles as opaque bytes; they are never read.")
@json_option
@pass_session
def import_pack(session: Session, file: Path, *, allow_pickle: bool) -> None:
    """Store what a CSF-Pack 0.8 container holds as a tree, and pin it under the file's name.

    The whole container is proven before anything is written. A line is printed when its file is safe on disk; the tree
    is the last line. A missing archive is made.

    \b
    Examples:
      csf import old.csf
      csf import --json old.csf | tail -1
    """  # noqa: D301 - \b is for click
    from csf_store.csfpack.container import CsfPack  # noqa: PLC0415 - zstandard, not needed for --help

    size = file.stat().st_size if file.is_file() else 0
    with progress_bar(session, "check", size) as progress:
        pack = CsfPack.open(file, progress=progress)
    with pack:
        with progress_bar(session, "check files", pack.size) as progress:
            digests = pack.verify(allow_pickle=allow_pickle, progress=progress)
        _store(session, pack, digests, allow_pickle=allow_pickle)


def _store(session: Session, pack: CsfPack, digests: tuple[Digest, ...], *, allow_pickle: bool) -> None:
    from csf_store.errors import CorruptError  # noqa: PLC0415
    from csf_store.trees import TreeEntry  # noqa: PLC0415 - rfc8785, not needed for --help

    written = 0
    with (
        session.open(create=True) as archive,
        archive.keeping(),
        progress_bar(session, "import", pack.size) as progress,
    ):
        for member, digest in zip(pack.members, digests, strict=True):
            stored = archive.put_source(pack.source(member), progress=progress, allow_pickle=allow_pickle)
            if stored.digest != digest:  # decoded twice, so somebody may have written to the file in between
                raise CorruptError(f"{pack.path}: changed at {member.path!r} while it was imported; import it again")
            written += stored.stored
            acknowledge(session, stored, member.path)
        entries = (
            TreeEntry(member.path, digest, member.size) for member, digest in zip(pack.members, digests, strict=True)
        )
        tree = archive.put_tree_entries(entries)
        archive.pin(tree.digest, kind=tree.kind, name=display(pack.path.name))
        acknowledge(session, tree._replace(stored=tree.stored + written), display(pack.path))
