"""`keystone.json`: what an exported directory is, so that it can still be asked later, far from the archive.

It holds the manifest as a document and by digest, how the export was made, and the digest of every file. It is
RFC 8785 JSON, so it has one digest itself. It says which archive to ask, and it finds a changed file; it cannot stop
somebody from rewriting both. A `model.sig` beside it can: it is over every other file, this one too, so it is the one
file that is not in the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from csf_store import Digest, InvalidInputError
from keystone.checkpoints.export.writing import PROVENANCE_FILE, WrittenFile, check_relative
from keystone.errors import CheckpointError
from keystone.errors import InvalidInputError as InvalidNameError
from manifests import SIGNATURE_FILE, Json, Manifest, ManifestError, canonical_bytes, parse_canonical

KIND = "keystone-export"
VERSION = 1


def provenance_bytes(
    manifest: Manifest, digest: Digest, files: tuple[WrittenFile, ...], how: Mapping[str, Json]
) -> bytes:
    """The content of `keystone.json`.

    Args:
        manifest: what was exported.
        digest: its digest.
        files: every other file of the directory.
        how: format, dtype, code, what was merged; see `exporting`.
    """
    return canonical_bytes(
        {
            "kind": KIND,
            "v": VERSION,
            "manifest": str(digest),
            "assembly": str(manifest.assembly.digest),
            "document": manifest.to_json(),
            "export": how,
            "files": [[file.path, str(file.digest), file.size] for file in sorted(files, key=lambda each: each.path)],
        }
    )


@dataclass(frozen=True, slots=True)
class ExportExamined:
    """What an exported directory turned out to be.

    Attributes:
        manifest: the digest of the manifest it says it is.
        document: that manifest, proven to hash to the digest.
        files: how many files are listed.
        problems: path -> what is wrong with it; empty when every file is what the list says.
    """

    manifest: Digest
    document: Manifest
    files: int
    problems: Mapping[str, str]


def examine_export(directory: Path) -> ExportExamined:
    """Hash an exported directory again and compare it with its own list.

    Raises:
        CheckpointError: it has no `keystone.json`, or one that is not what it should be.
    """
    place = directory / PROVENANCE_FILE
    if not place.is_file() or place.is_symlink():
        raise CheckpointError(f"{directory} has no {PROVENANCE_FILE}; it is no export of `keystone export`")
    try:
        found = parse_canonical(place.read_bytes())
        kind, version, document, rows = (found.get(key) for key in ("kind", "v", "document", "files"))
        if kind != KIND or version != VERSION or not isinstance(document, dict) or not isinstance(rows, list):
            raise CheckpointError(f"{place} is not a {KIND} of version {VERSION}")
        manifest = Manifest.from_bytes(canonical_bytes(document))
        listed = {path: (digest, size) for path, digest, size in (_row(row) for row in rows)}
        told = Digest.parse(str(found.get("manifest")))
    except (ManifestError, InvalidInputError, InvalidNameError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from error
    if manifest.digest != told:
        raise CheckpointError(f"{place} says manifest {told}, and holds one that hashes to {manifest.digest}")
    problems = {path: what for path, row in listed.items() if (what := _file_problem(directory / path, *row))}
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    unlisted = present - listed.keys() - {PROVENANCE_FILE, SIGNATURE_FILE}  # a signature is over this list
    problems |= dict.fromkeys(sorted(unlisted), "is not in the list")
    return ExportExamined(told, manifest, len(listed), problems)


def _row(row: object) -> tuple[str, Digest, int]:
    match row:
        case [str(path), str(digest), int(size)]:
            check_relative(path)
            return path, Digest.parse(digest), size
    raise CheckpointError(f"the entry {str(row)[:120]} is not [path, digest, size]")


def _file_problem(path: Path, digest: Digest, size: int) -> str | None:
    if path.is_symlink() or not path.is_file():
        return "is missing" if not path.is_symlink() else "is a link"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes, the list says {size}"
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    found = Digest(hasher.digest())
    return None if found == digest else f"hashes to {found}, the list says {digest}"
