"""Operator keys: Ed25519, private halves encrypted at rest, public halves as one line of text.

A key is named by the digest of its 32 public bytes. The public half travels as a C2SP *verifier key*, one line that can
be mailed or pasted: `NAME+HASH+BASE64`. The private half never leaves its file, which is PKCS #8 under a passphrase
(`cryptography`'s best available encryption) and readable by its owner only.

That a key exists says nothing. Whether its signatures count is said in the ledger; see `trust`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from csf_store import Digest, create_file
from manifests.errors import InvalidKeyError, KeyExistsError, KeyLockedError, KeyNotFoundError

PUBLIC_SIZE = 32
_ED25519 = b"\x01"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half: a name for people, and the 32 bytes that are the key."""

    name: str
    raw: bytes

    @property
    def id(self) -> Digest:
        """BLAKE3 of the public bytes: what ledger and envelopes call it."""
        return Digest.of(self.raw)

    @property
    def note_hash(self) -> bytes:
        """The four bytes by which a signed note refers to this key under this name."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.raw).digest()[:4]

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key signed exactly these bytes."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.name}+{self.note_hash.hex()}+{base64.b64encode(_ED25519 + self.raw).decode()}"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read a verifier key.

        Raises:
            InvalidKeyError: when it is anything else, or its hash is not that of its name and bytes.
        """
        name, _, rest = text.strip().partition("+")
        shown, _, encoded = rest.partition("+")
        try:
            data = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            data = b""
        if data[:1] != _ED25519 or len(data) != 1 + PUBLIC_SIZE:
            raise InvalidKeyError(f"{text[:80]!r} is not an Ed25519 verifier key, NAME+HASH+BASE64")
        key = cls(check_key_name(name), data[1:])
        if key.note_hash.hex() != shown:
            raise InvalidKeyError(f"the verifier key of {name!r} does not hash to {shown!r}: it was altered or cut")
        return key


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key that was unlocked, with its public half."""

    public: PublicKey
    private: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self.private.sign(message)


def check_key_name(name: str) -> str:
    """The name itself, when it is one.

    Raises:
        InvalidKeyError: when it is not.
    """
    if not _NAME.fullmatch(name):
        raise InvalidKeyError(
            f"{name[:80]!r} is not a key name: use letters, digits, '.', '_', '@' and '-', 64 at most"
        )
    return name


class KeyStore:
    """A directory of keys, one `NAME.pem` and one `NAME.pub` each. It is the operator's own, outside every archive."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def new(self, name: str, passphrase: bytes) -> PublicKey:
        """Make a key. Nothing is overwritten.

        Raises:
            KeyExistsError: when there is a key of that name.
            InvalidKeyError: for an unusable name, or an empty passphrase.
        """
        check_key_name(name)
        if not passphrase:
            raise InvalidKeyError(f"key {name!r}: an empty passphrase would leave the private key open; give one")
        private = Ed25519PrivateKey.generate()
        public = PublicKey(name, private.public_key().public_bytes_raw())
        sealed = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase),
        )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not create_file(self._private(name), sealed, private=True):
            raise KeyExistsError(f"there is a key {name!r} in {self.directory}; choose another name")
        self._public(name).write_text(f"{public}\n", encoding="ascii")
        return public

    def names(self) -> tuple[str, ...]:
        """The names of all keys, sorted."""
        return tuple(sorted(path.stem for path in self.directory.glob("*.pub")))

    def public(self, name: str) -> PublicKey:
        """The public half of a key; needs no passphrase.

        Raises:
            KeyNotFoundError: when there is none of that name.
        """
        try:
            text = self._public(check_key_name(name)).read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError) as error:
            known = ", ".join(self.names()) or "none"
            raise KeyNotFoundError(f"no key {name!r} in {self.directory}; there is {known}") from error
        return PublicKey.parse(text)

    def unlock(self, name: str, passphrase: bytes) -> SigningKey:
        """A key that can sign.

        Raises:
            KeyNotFoundError: when there is none of that name.
            KeyLockedError: when the passphrase is wrong.
            InvalidKeyError: when the file holds something else, or the two halves do not belong together.
        """
        public = self.public(name)
        try:
            private = serialization.load_pem_private_key(self._private(name).read_bytes(), passphrase)
        except FileNotFoundError as error:
            raise KeyNotFoundError(f"only the public half of {name!r} is in {self.directory}") from error
        except (ValueError, TypeError) as error:
            raise KeyLockedError(f"key {name!r} does not open with this passphrase") from error
        if not isinstance(private, Ed25519PrivateKey) or private.public_key().public_bytes_raw() != public.raw:
            raise InvalidKeyError(f"{self._private(name)} is not the private half of {self._public(name)}")
        return SigningKey(public, private)

    def _private(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def _public(self, name: str) -> Path:
        return self.directory / f"{name}.pub"
