"""The bill of materials that lies beside an export: the CycloneDX document of the manifest, and every file's hashes.

`keystone.json` lists the bill, so the bill cannot list `keystone.json`. A file that came out of the archive byte for
byte has a SHA-256 already, taken when the bill's own facts were collected; every other file is read once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from csf_store import Archive, Digest
from keystone.checkpoints.export.weights import Progress
from keystone.checkpoints.export.writing import ExportDirectory, WrittenFile
from keystone.errors import CheckpointError
from manifests import ExportedFiles, HashedFile, collect_facts, hash_pieces, write_cyclonedx

BILL_FILE: Final = "bom.cdx.json"
"""The name that CycloneDX's readers look for."""

_PIECE = 4 << 20


def write_bill(
    archive: Archive, digest: Digest, directory: ExportDirectory, layout: str, progress: Progress | None
) -> None:
    """Write the bill of a manifest and of everything in the directory so far.

    Args:
        archive: where the manifest is.
        digest: the manifest's.
        directory: the export, with every file in it but those that speak of the bill.
        layout: the export's format.
        progress: told the bytes hashed out of the archive.

    Raises:
        CheckpointError: a file does not hold what was written.
        MissingExtraError, ManifestError, csf_store.CsfError: see `manifests.cyclonedx_bill`.
    """
    facts = collect_facts(archive, digest, progress=progress)
    known = {file.blake3: file for _, files in facts.trees for file in files}
    files = tuple(_hashed(directory.path, file, known) for file in directory.files)
    directory.write(BILL_FILE, write_cyclonedx(facts, ExportedFiles(layout, files)))


def _hashed(directory: Path, file: WrittenFile, known: Mapping[Digest, HashedFile]) -> HashedFile:
    if file.digest in known:
        return HashedFile(file.path, file.size, file.digest, known[file.digest].sha256)
    found = hash_pieces(file.path, _pieces(directory / file.path))
    if found.blake3 != file.digest:
        raise CheckpointError(f"{file.path} hashes to {found.blake3}, {file.digest} was written; is the disk sound?")
    return found


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
