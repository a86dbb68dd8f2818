"""`model.sig`: an OpenSSF model-signing bundle over a finished export, `keystone.json` and bill included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from keystone.checkpoints.export.writing import ExportDirectory
from manifests import SIGNATURE_FILE, check_model_signing, check_signing_key, sign_directory


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs: a PEM file with an elliptic-curve key, and what opens it."""

    key: Path
    passphrase: bytes | None = None

    def check(self) -> None:
        """Refuse what could not sign, before the work is done.

        Raises:
            MissingExtraError, KeyNotFoundError, KeyLockedError, InvalidKeyError: see `manifests.sign_directory`.
        """
        check_model_signing()
        check_signing_key(self.key, self.passphrase)


def write_signature(directory: ExportDirectory, signer: Signer) -> None:
    """Sign everything in the directory, as it lies on disk, under its last name."""
    directory.write(SIGNATURE_FILE, sign_directory(directory.path, signer.key, passphrase=signer.passphrase))
