"""What an auditor remembers between audits, outside of every archive: the checkpoint last seen, and what was proven.

Who can rewrite an archive can rewrite all of it, caches and checkpoints inside it included. One line kept elsewhere is
what makes the whole ledger up to it unforgeable, so the auditor keeps that line itself, from the first audit on.

For `--quick` it also keeps which objects were proven, and what the segment files they lie in looked like then: size,
times of change, inode. An object is taken as proven while its segments look the same. That finds rot and careless
changes, not somebody who sets clocks; the full audit is there for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from csf_store import Archive, Checkpoint, CsfError, Digest, replace_file
from manifests.errors import InvalidDocumentError

Look = tuple[int, int, int, int]
"""Size, mtime, ctime and inode of a segment file."""


@dataclass(frozen=True)
class Remembered:
    """What is known of one archive: `proven` says of each object which segments it is read from."""

    checkpoint: Checkpoint
    segments: Mapping[str, Look] = field(default_factory=dict)
    proven: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def unchanged(self, archive: Archive) -> dict[str, tuple[str, ...]]:
        """What was proven and lies in segments that still look as they did: it may be taken as proven."""
        same = {name for name, told in self.segments.items() if told == look(archive, name)}
        return {digest: names for digest, names in self.proven.items() if same.issuperset(names)}


class AuditorState:
    """A directory with one file for each archive that was ever audited."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def recall(self, archive: Archive) -> Remembered | None:
        """What is known of an archive; None at first sight.

        Raises:
            InvalidDocumentError: when the file is there and cannot be read. Starting anew would forget the checkpoint.
        """
        try:
            found = json.loads(self._file(archive).read_bytes())
            segments = {str(name): tuple(map(int, told)) for name, told in found["segments"].items()}
            return Remembered(
                Checkpoint.parse(str(found["checkpoint"])),
                {name: (a, b, c, d) for name, (a, b, c, d) in segments.items()},
                {str(digest): tuple(map(str, names)) for digest, names in found["proven"].items()},
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, CsfError) as error:
            raise InvalidDocumentError(
                f"{self._file(archive)} is not what an audit wrote: {error}; it held the last checkpoint seen, so look"
                " into it before you delete it"
            ) from error

    def keep(self, archive: Archive, checkpoint: Checkpoint, proven: Iterable[Digest]) -> None:
        """Remember an audit that found nothing wrong with the ledger: whole on disk, or as it was before."""
        before = self.recall(archive)
        lasting = before.unchanged(archive) if before is not None else {}
        for digest in proven:
            lasting[str(digest)] = tuple(sorted(archive.segments_of(digest)))
        names = {name: look(archive, name) for name in sorted({name for each in lasting.values() for name in each})}
        found = {"checkpoint": str(checkpoint), "segments": names, "proven": lasting}
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._file(archive), json.dumps(found).encode("ascii"))

    def _file(self, archive: Archive) -> Path:
        return self.directory / f"{archive.id.hex()}.json"


def look(archive: Archive, name: str) -> Look:
    """What a segment file looks like now; zeros if it is not there."""
    try:
        found = (Path(archive.path) / "segments" / name).stat()
    except OSError:
        return 0, 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
