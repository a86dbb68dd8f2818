"""`hf://org/name[@revision]`: exactly the files a base needs, from one commit of a repository on a hub.

A branch moves, a commit does not: the revision is resolved to a commit hash first, every file is fetched from that
commit, and the hash is what the manifest records. `huggingface_hub` does the fetching, so an interrupted download goes
on where it stopped and a second import fetches nothing. What is not configuration, safetensors or tokenizer is never
fetched; a repository whose weights are pickles is refused before the first byte of them.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from keystone.checkpoints.huggingface import (
    CARD,
    CONFIG,
    GENERATION,
    INDEX,
    LICENCES,
    PICKLES,
    TOKENIZER,
    WEIGHTS,
    Choices,
    check_index,
    read_directory,
    refuse_pickles,
)
from keystone.checkpoints.licences import UNKNOWN, Card, plain
from keystone.checkpoints.sources import Checkpoint, Fetch, Note, Origin
from keystone.errors import CheckpointError, InvalidInputError, KeystoneError, RefusedError

_ADDRESS = re.compile(r"hf://(?P<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)(@(?P<revision>[A-Za-z0-9._/-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The root of what the HTTP client under huggingface_hub raises; its name changes with the release.
_TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]
SMALL = (CONFIG, GENERATION, INDEX, CARD, *LICENCES, *TOKENIZER)


class HubError(KeystoneError):
    """A hub has no such repository or revision, will not show it, or cannot be reached."""

    exit_code = 5


@dataclass(frozen=True)
class Address:
    """A repository on a hub, and the revision asked for; None is its default branch."""

    repo: str
    revision: str | None


def parse_address(text: str) -> Address:
    """Read `hf://org/name[@revision]`.

    Raises:
        InvalidInputError: it is something else.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise InvalidInputError(f"{text!r} is no hub address; write hf://org/name or hf://org/name@revision")
    return Address(found["repo"], found["revision"])


def read_hub(
    text: str, choices: Choices, *, fetch: Fetch = "all", endpoint: str | None = None, cache: Path | None = None
) -> Checkpoint:
    """Fetch what a base needs and read it as a directory.

    Args:
        text: `hf://org/name[@revision]`.
        choices: what the importing person decides.
        fetch: "small" leaves the weights where they are.
        endpoint: another hub than huggingface.co; default `HF_ENDPOINT`.
        cache: where files are kept; default huggingface_hub's own cache.

    Raises:
        HubError: no such repository or revision, no access, or no connection.
        RefusedError: its weights are pickles.
        KeystoneError: as `read_directory` says.
    """
    address = parse_address(text)
    try:
        commit, names = _look(address, endpoint)
        folder = _fetch(address.repo, commit, names, fetch, endpoint=endpoint, cache=cache)
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise HubError(_explain(address, error)) from error
    except _TRANSPORT as error:
        raise HubError(f"{text}: the hub cannot be reached ({error}); run the import again to go on") from error

    def origin(card: Card) -> Origin:
        claimed = {"revision": address.revision} if address.revision and address.revision != commit else {}
        labels = {f"hub/{key}": plain(value) for key, value in claimed.items()}
        return Origin("hub", f"hf://{address.repo}@{commit}", card.licence or UNKNOWN, labels=labels)

    checkpoint = read_directory(folder, choices, origin=origin)
    fetched = {path.name for path in folder.iterdir()}
    ours = [note for note in checkpoint.notes if note.what != "file"]
    ours += [Note("file", plain(name), _why_not(name)) for name in names if name not in _wanted(names, "all")]
    ours += [note for note in checkpoint.notes if note.what == "file" and note.name in fetched & set(names)]
    return replace(checkpoint, notes=tuple(dict.fromkeys(ours)))


def fetch_files(
    address: Address,
    choose: Callable[[list[str]], list[str]],
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> tuple[str, Mapping[str, Path]]:
    """Fetch some files of a repository from one commit.

    Args:
        address: where, and at which revision.
        choose: picks from the names of all files; what it raises ends the fetch before anything is downloaded.
        endpoint: as for `read_hub`.
        cache: likewise.

    Returns:
        The commit, and where each chosen file lies, in huggingface_hub's cache and thus perhaps as a link.

    Raises:
        HubError: no such repository or revision, no access, or no connection.
        InvalidInputError: the hub names no commit.
    """
    try:
        info = HfApi(endpoint=endpoint).model_info(address.repo, revision=address.revision)
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise InvalidInputError(
                f"hf://{address.repo}: the hub names no commit for it, so nothing could be recorded"
            )
        files = {}
        for name in choose([sibling.rfilename for sibling in info.siblings or []]):
            found = hf_hub_download(address.repo, name, revision=info.sha, endpoint=endpoint, cache_dir=cache)
            files[name] = Path(found)
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise HubError(_explain(address, error)) from error
    except _TRANSPORT as error:
        raise HubError(f"hf://{address.repo}: the hub cannot be reached ({error}); run the import again") from error
    return info.sha, files


def _look(address: Address, endpoint: str | None) -> tuple[str, list[str]]:
    """The commit a revision stands for, and every file of it."""
    info = HfApi(endpoint=endpoint).model_info(address.repo, revision=address.revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise InvalidInputError(f"hf://{address.repo}: the hub names no commit for it, so nothing could be recorded")
    if CONFIG not in names:
        raise InvalidInputError(f"hf://{address.repo} holds no {CONFIG}; a model repository does")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.lower().endswith(PICKLES)]
        if pickled:
            refuse_pickles(pickled)
        raise RefusedError(f"hf://{address.repo} holds no safetensors; this is no base that can be imported")
    return info.sha, names


def _wanted(names: list[str], fetch: Fetch) -> list[str]:
    """The files beside the weights, and the weights where there is no index to say which."""
    small = [name for name in SMALL if name in names]
    if INDEX in names or fetch == "small":
        return small
    if WEIGHTS in names:
        return [*small, WEIGHTS]
    return [*small, *(name for name in names if name.endswith(".safetensors") and "/" not in name)]


def _fetch(repo: str, commit: str, names: list[str], fetch: Fetch, *, endpoint: str | None, cache: Path | None) -> Path:
    """Every wanted file, in the cache's directory for this commit; with an index, the weights that it names."""

    def get(name: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=commit, endpoint=endpoint, cache_dir=cache))

    folder = get(CONFIG).parent
    for name in _wanted(names, fetch):
        get(name)
    if INDEX in names and fetch == "all":
        document = json.loads((folder / INDEX).read_bytes())
        if not isinstance(document, dict):
            raise CheckpointError(f"{INDEX} is no JSON object")
        for name in sorted(set(check_index(document).values())):
            get(name)
    return folder


def _why_not(name: str) -> str:
    if name.lower().endswith(PICKLES):
        return "not fetched: it may hold pickles"
    if name.endswith(".safetensors"):
        return "fetched only if the index names it"
    return "not fetched: neither configuration, weights nor tokenizer"


def _explain(address: Address, error: Exception) -> str:
    where = f"hf://{address.repo}" + (f"@{address.revision}" if address.revision else "")
    match error:
        case GatedRepoError():
            return f"{where} is gated; accept its terms on the hub and log in (hf auth login)"
        case RepositoryNotFoundError():
            return f"{where}: no such repository, or it is private; check the name, or log in (hf auth login)"
        case RevisionNotFoundError():
            return f"{where}: no such revision; leave it away for the default branch"
    return f"{where}: {error}; run the import again to go on where it stopped"
