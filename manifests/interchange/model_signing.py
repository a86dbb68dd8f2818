"""An OpenSSF model-signing bundle over a directory: a signature that people without this package can check.

`model_signing verify key DIR --signature DIR/model.sig --public_key EC.pub` is all a receiver needs. The bundle holds
an in-toto statement with the SHA-256 of every file and a signature by an elliptic-curve key (P-256, P-384 or P-521);
operator keys are Ed25519, which that format does not take, so this key is another one. A signature says who signed and
that nothing changed since. What the weights are and who approved them is in the files that are signed.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from manifests.errors import InvalidKeyError, KeyLockedError, KeyNotFoundError, MissingExtraError

SIGNATURE_FILE: Final = "model.sig"
"""What a bundle is called in the directory it is about. It is not about itself."""

CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_ADVICE: Final = "openssl ecparam -name prime256v1 -genkey -noout -out EC.pem makes one"


def check_model_signing() -> None:
    """Find out whether a bundle can be made here before a long work is begun.

    Raises:
        MissingExtraError: it cannot.
    """
    try:
        import_module("model_signing.signing")
    except ImportError as error:
        raise MissingExtraError(
            f"a model-signing bundle needs the extra `signing`: pip install model-signing pyOpenSSL ({error})"
        ) from error


def needs_passphrase(key: Path) -> bool:
    """Whether a private key is encrypted.

    Raises:
        KeyNotFoundError, InvalidKeyError: see `check_signing_key`.
    """
    try:
        check_signing_key(key)
    except KeyLockedError:
        return True
    return False


def check_signing_key(key: Path, passphrase: bytes | None = None) -> None:
    """Refuse a private key that cannot sign a model.

    Args:
        key: a PEM file.
        passphrase: what opens it; None if nothing should be needed.

    Raises:
        KeyNotFoundError: there is no such file, or it cannot be read.
        KeyLockedError: the passphrase is missing or wrong.
        InvalidKeyError: it is not an elliptic-curve key, or of a curve that model-signing does not take.
    """
    try:
        loaded = load_pem_private_key(key.read_bytes(), passphrase)
    except OSError as error:
        raise KeyNotFoundError(f"{key} cannot be read: {error.strerror or error}; {_ADVICE}") from error
    except TypeError as error:  # a passphrase that is missing, or that nothing asks for
        raise KeyLockedError(f"{key} does not open: {error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if passphrase is not None:
            raise KeyLockedError(f"{key} does not open with this passphrase") from error
        raise InvalidKeyError(f"{key} is no private key in PEM form; {_ADVICE}") from error
    curve = loaded.curve.name if isinstance(loaded, ec.EllipticCurvePrivateKey) else None
    if curve not in CURVES:
        what = f"a key of curve {curve}" if curve else f"a key of another kind ({type(loaded).__name__})"
        raise InvalidKeyError(f"{key} holds {what}; model-signing takes {', '.join(CURVES)}; {_ADVICE}")


def sign_directory(directory: Path, key: Path, *, passphrase: bytes | None = None) -> bytes:
    """Sign every file of a directory but `model.sig`, which is where the bundle that is given back belongs.

    Args:
        directory: hashed as it lies there; its own name is in the bundle.
        key: the private key, a PEM file.
        passphrase: what opens it.

    Raises:
        MissingExtraError: model-signing is not installed.
        KeyNotFoundError, KeyLockedError, InvalidKeyError: see `check_signing_key`.
        OSError: a file cannot be read.
    """
    check_model_signing()
    check_signing_key(key, passphrase)
    from model_signing import hashing, signing  # noqa: PLC0415 - an extra, and slow to import

    # Both configurations are made for this call: one that is used twice keeps what the first call ignored.
    files = hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)
    config = signing.Config().set_hashing_config(files)
    # Its annotation says text; what it hands the passphrase to takes bytes alone.
    config.use_elliptic_key_signer(private_key=key, password=passphrase)  # type: ignore[arg-type]
    with TemporaryDirectory() as elsewhere:
        bundle = Path(elsewhere) / SIGNATURE_FILE
        config.sign(directory, bundle)
        return bundle.read_bytes()


def verify_directory(directory: Path, public_key: Path) -> str | None:
    """What model-signing's own verification has against a directory with a `model.sig`, or None.

    Raises:
        MissingExtraError: model-signing is not installed.
    """
    check_model_signing()
    from model_signing import verifying  # noqa: PLC0415 - an extra

    config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        config.verify(directory, directory / SIGNATURE_FILE)
    except Exception as error:  # noqa: BLE001 - the library raises whatever its parsers raise
        return str(error) or type(error).__name__
    return None
