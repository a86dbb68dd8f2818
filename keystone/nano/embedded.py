"""keystone-nano as it ships: package data, put into an archive like any other base."""

from pathlib import Path

from csf_store import Archive, Digest, Kind
from keystone.identity import source_digest
from manifests import Assembly, Manifest, Repository, Source

DATA = Path(__file__).parent / "data"
REF = "nano"

SOURCE = Source(
    kind="embedded",
    location="keystone-nano",
    licence="Apache-2.0",
    note="Trained from scratch by this project on the Python standard library (PSF-2.0) and generated exercises.",
)


def import_nano(archive: Archive, *, ref: str = REF) -> Digest:
    """Put the embedded base and its tokenizer, write their manifest, and let a ref point at it.

    Doing it again stores nothing and moves nothing: a ref that points elsewhere by now stays where it is.

    Args:
        archive: where to.
        ref: the name to set, if it does not exist yet.

    Returns:
        The digest of the manifest.
    """
    base = archive.put_tree(DATA / "base")
    archive.pin(base.digest, kind=Kind.TREE, name="keystone-nano")
    tokenizer = archive.put_tree(DATA / "tokenizer")
    archive.pin(tokenizer.digest, kind=Kind.TREE, name="keystone-nano-tokenizer")
    repository = Repository(archive)
    assembly = Assembly(base=base.digest, tokenizer=tokenizer.digest)
    manifest = repository.put(Manifest(assembly=assembly, code_source=source_digest(), source=SOURCE))
    if repository.refs.find(ref) is None:
        repository.refs.set(ref, manifest, expected=None, reason="import nano")
    return manifest
