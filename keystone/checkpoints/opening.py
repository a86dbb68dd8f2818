"""From what a person typed to a checkpoint: a directory, a GGUF file, or a repository on a hub."""

import re
from pathlib import Path

from keystone.checkpoints.huggingface import Choices, read_directory
from keystone.checkpoints.sources import Checkpoint, Fetch
from keystone.errors import InvalidInputError

HUB = "hf://"


def is_source(text: str) -> bool:
    """Whether this names a source, and not a manifest."""
    return text.startswith(HUB) or Path(text).exists()


def open_source(text: str, choices: Choices, *, fetch: Fetch = "all") -> Checkpoint:
    """Read a source; nothing of a weight is read yet, though a hub's files are fetched.

    Args:
        text: a directory, a .gguf file, or a hub's address.
        choices: what the importing person decides.
        fetch: "small" leaves a hub's weights where they are; names alone can then be compared.

    Raises:
        InvalidInputError: nothing there, or nothing that can be a source.
        KeystoneError: as the reader of its kind says.
    """
    if text.startswith(HUB):
        from keystone.checkpoints.hub import read_hub  # noqa: PLC0415 - an HTTP client, only for hubs

        return read_hub(text, choices, fetch=fetch)
    path = Path(text)
    if path.is_dir():
        return read_directory(path, choices)
    if path.suffix.lower() == ".gguf" and path.is_file():
        from keystone.checkpoints.gguf_file import read_gguf  # noqa: PLC0415 - only for GGUF files

        return read_gguf(path, choices)
    raise InvalidInputError(f"{path.name} is no source: a checkpoint directory, a .gguf file or hf://org/name is one")


def suggested_ref(text: str) -> str:
    """A ref name for a source: the last part of its name, in the letters a ref may have."""
    last = text.removeprefix(HUB).partition("@")[0] if text.startswith(HUB) else Path(text).resolve().name
    last = re.sub(r"\.gguf$", "", last.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    return re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9._-]+", "-", last.lower())).strip(".-_")
