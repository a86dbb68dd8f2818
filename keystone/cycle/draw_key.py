"""The key that draws of hold-outs come from.

A commitment hides its seed and salt until the draw is opened, and a process may be killed between the two. So they are
not drawn at random and written down, they are computed: BLAKE3 keyed with 32 random bytes that were made once and lie
in the operator's state directory, outside the archive. Whoever has the archive alone cannot know a draw that is not
opened; whoever has the key can always go on.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from blake3 import blake3

from adapters import Secret
from csf_store import Archive, create_file
from keystone.errors import InvalidInputError, StorageError

_KEY_BYTES: Final = 32
_SEED_BITS: Final = 48


class DrawKey:
    """What seeds and salts of draws are computed from.

    Args:
        folder: where the key is kept; made when missing.
        archive: the archive that the draws are for.

    Raises:
        StorageError: the file system said no.
        InvalidInputError: the file there is no key.
    """

    def __init__(self, folder: Path, archive: Archive) -> None:
        self._path = folder / f"draws-{archive.id.hex()}.key"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._path.exists():
                create_file(self._path, secrets.token_bytes(_KEY_BYTES), private=True)
            self._key = self._path.read_bytes()
        except OSError as error:
            raise StorageError(f"{self._path} cannot be kept: {error.strerror}") from error
        if len(self._key) != _KEY_BYTES:
            raise InvalidInputError(f"{self._path} is no key of {_KEY_BYTES} bytes; put back the one that was there")

    def secret(self, draw: str) -> Secret:
        """Seed and salt of a draw: the same on every call."""
        seed = int.from_bytes(blake3(f"seed {draw}".encode(), key=self._key).digest(), "big") >> (256 - _SEED_BITS)
        return Secret(draw, seed, blake3(f"salt {draw}".encode(), key=self._key).hexdigest())
