"""An adapter from a directory or a hub into the archive, with what it says of itself kept as a claim.

`adapter_config.json` names a base in words: a repository, a path on somebody's disk. Words prove nothing, so the base
is the one the importing person names, or the one base of the archive that came from where the words point; the words
themselves go into an `AdapterImport`, as a claim. Files are copied out of the cache before they are looked at: the
cache holds links, and an adapter directory holds none.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters import AdapterNotFoundError, PickleAdapterError, add_adapter
from csf_store import Digest
from keystone.checkpoints.hub import fetch_files, parse_address
from keystone.combining.records import AdapterImport, keep
from keystone.errors import InvalidInputError
from manifests import AdapterRecord, Repository

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BESIDE = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
_PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_LARGEST_CONFIG = 1 << 20


@dataclass(frozen=True, slots=True)
class Imported:
    """An adapter that is in the archive now.

    Attributes:
        adapter: its tree.
        record: what is said of it.
        document: where it came from, and its claims.
        notes: what a person should know.
    """

    adapter: Digest
    record: AdapterRecord
    document: AdapterImport
    notes: tuple[str, ...]


def import_adapter(
    repository: Repository,
    source: str,
    *,
    base: Digest | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Imported:
    """Import a PEFT LoRA.

    Args:
        repository: where to.
        source: `hf://org/name[@revision]` or a directory.
        base: the base it is for; None looks for the one its configuration claims.
        endpoint: another hub than the usual; see `keystone.checkpoints.hub`.
        cache: where fetched files are kept; likewise.

    Raises:
        PickleAdapterError: its weights are a pickle; it is not even fetched.
        AdapterNotFoundError: there is no adapter there.
        InvalidInputError: no base was named, and none here is the one it claims.
        adapters.AdapterError: it is malformed or does not fit.
        keystone.checkpoints.hub.HubError: the hub does not show it.
    """
    with _files(source, endpoint, cache) as (directory, location):
        claimed, revision = _claims(directory)
        notes = []
        if base is None:
            base = _claimed_base(repository, claimed)
            notes.append(f"base {base.short} was chosen because it came from {claimed!r}, which the adapter claims")
        elif claimed is not None and base not in _from(repository, claimed):
            notes.append(f"its configuration claims base {claimed!r}; nothing here says that {base.short} is that one")
        adapter, record = add_adapter(repository, directory, base=base)
        licence = _licence(directory)
    document = AdapterImport(
        adapter=adapter,
        base=base,
        location=location,
        claimed_base=claimed,
        claimed_revision=revision,
        licence=licence,
    )
    keep(repository, document)
    return Imported(adapter, record, document, tuple(notes))


@contextmanager
def _files(source: str, endpoint: str | None, cache: Path | None) -> Iterator[tuple[Path, str]]:
    """A directory of plain files, and where they are from in words that hold on any machine."""
    if not source.startswith("hf://"):
        directory = Path(source)
        if not directory.is_dir():
            raise AdapterNotFoundError(f"{source} is no directory and no hub address; write hf://org/name[@revision]")
        yield directory, "directory"
        return
    address = parse_address(source)

    def choose(names: list[str]) -> list[str]:
        return _wanted(source, names)

    commit, files = fetch_files(address, choose, endpoint=endpoint, cache=cache)
    with tempfile.TemporaryDirectory(prefix="keystone-adapter-") as folder:
        for name, path in files.items():
            shutil.copyfile(path, Path(folder) / name)
        yield Path(folder), f"hf://{address.repo}@{commit}"


def _wanted(source: str, names: list[str]) -> list[str]:
    if WEIGHTS not in names:
        if pickled := [name for name in names if name.lower().endswith(_PICKLED)]:
            raise PickleAdapterError(
                f"{source} holds its weights as {pickled[0]}, a pickle, which could run code when read; ask for"
                f" {WEIGHTS}, or convert it where it can do no harm"
            )
        raise AdapterNotFoundError(f"{source} holds no {WEIGHTS}; it is no PEFT LoRA adapter")
    if CONFIG not in names:
        raise AdapterNotFoundError(f"{source} holds no {CONFIG}; it is no PEFT LoRA adapter")
    return [CONFIG, WEIGHTS, *(name for name in _BESIDE if name in names)]


def _claims(directory: Path) -> tuple[str | None, str | None]:
    """What the configuration says its base is; a path on somebody's machine says nothing here."""
    path = directory / CONFIG
    if not path.is_file():
        raise AdapterNotFoundError(f"{directory} has no {CONFIG}; a PEFT LoRA directory holds it")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise InvalidInputError(f"{path} is larger than a configuration can be")
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInputError(f"{path} is no JSON object")
    name, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    return _words(name), _words(revision)


def _words(value: object) -> str | None:
    if not isinstance(value, str) or not value or value.startswith(("/", "~", ".", "\\")) or ":\\" in value:
        return None
    return "".join(letter for letter in value if letter.isprintable())[:512] or None


def _claimed_base(repository: Repository, claimed: str | None) -> Digest:
    if claimed is None:
        raise InvalidInputError("the adapter does not say which base it is for; name it with --base")
    found = _from(repository, claimed)
    if len(found) != 1:
        what = "none here came from there" if not found else f"{len(found)} bases here came from there"
        raise InvalidInputError(f"the adapter claims to be for base {claimed!r}, and {what}; name it with --base")
    return next(iter(found))


def _from(repository: Repository, claimed: str) -> set[Digest]:
    """The bases whose manifests say that they came from a repository."""
    found = set()
    for digest in repository.manifests():
        manifest = repository.load(digest)
        place, _, _ = manifest.source.location.removeprefix("hf://").partition("@")
        if place == claimed:
            found.add(manifest.assembly.base)
    return found


def _licence(directory: Path) -> str | None:
    """The `license:` line of the card's front matter, as it stands there."""
    card = directory / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace")[:65536].splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        key, colon, value = line.partition(":")
        if colon and key.strip() == "license":
            return _words(value.strip().strip("'\""))
    return None
