"""Signed checkpoints of a ledger, in the C2SP signed-note form that transparency-log tools read.

```
keystone-sigma0/ledger/6f1c...        origin: which ledger
57                                    how many lines
q83v...=                              the RFC 9162 root over them, base64

— alice 8fA0...                       key name, then base64 of the key's four-byte hash and the signature
```

Who keeps such a note can show later, to anybody, what the ledger was and who said so.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from csf_store import Checkpoint
from manifests.errors import BadSignatureError, InvalidDocumentError
from manifests.signing.keys import PublicKey, SigningKey

MAX_NOTE = 64 << 10
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE = re.compile(r"\u2014 ([^ +\n]+) ([A-Za-z0-9+/]+={0,2})")


def ledger_origin(archive_id: bytes) -> str:
    """The name of an archive's ledger among all logs."""
    return f"keystone-sigma0/ledger/{archive_id.hex()}"


@dataclass(frozen=True, slots=True)
class CheckpointNote:
    """A checkpoint with the signatures on it: (key name, key hash, signature) each."""

    origin: str
    checkpoint: Checkpoint
    signatures: tuple[tuple[str, bytes, bytes], ...] = ()

    @property
    def body(self) -> str:
        """What is signed, its last newline included."""
        root = base64.b64encode(self.checkpoint.root).decode()
        return f"{self.origin}\n{self.checkpoint.size}\n{root}\n"

    def __str__(self) -> str:
        lines = [
            f"\u2014 {name} {base64.b64encode(key_hash + signature).decode()}\n"
            for name, key_hash, signature in self.signatures
        ]
        return f"{self.body}\n{''.join(lines)}"

    def signed(self, key: SigningKey) -> CheckpointNote:
        """The same with one more signature."""
        added = (key.public.name, key.public.note_hash, key.sign(self.body.encode()))
        return CheckpointNote(self.origin, self.checkpoint, (*self.signatures, added))

    def check(self, key: PublicKey) -> None:
        """Prove that a key signed this checkpoint.

        Raises:
            BadSignatureError: when it did not.
        """
        found = [sig for name, key_hash, sig in self.signatures if (name, key_hash) == (key.name, key.note_hash)]
        if not any(key.verifies(signature, self.body.encode()) for signature in found):
            what = "its signature is not of these bytes" if found else "there is no signature of it"
            raise BadSignatureError(f"checkpoint {self.checkpoint} is not signed by {key.name} ({key.id}): {what}")

    @classmethod
    def parse(cls, text: str) -> CheckpointNote:
        """Read a note; its signatures are not checked.

        Raises:
            InvalidDocumentError: when it is no checkpoint note of this form.
        """
        body, gap, rest = text.partition("\n\n")
        lines = body.split("\n")
        if len(text) > MAX_NOTE or not gap or len(lines) != 3 or not lines[0] or not _SIZE.fullmatch(lines[1]):
            raise InvalidDocumentError("this is not a signed checkpoint: three lines, an empty one, then signatures")
        root = _bytes(lines[2])
        if len(root) != 32 or not rest.endswith("\n"):
            raise InvalidDocumentError("this checkpoint note has no root of 32 bytes, or was cut short")
        note = cls(lines[0], Checkpoint(int(lines[1]), root), tuple(map(_signature, rest[:-1].split("\n"))))
        if str(note) != text:
            raise InvalidDocumentError("this checkpoint note is not in its one form: its base64 has a second spelling")
        return note


def _signature(line: str) -> tuple[str, bytes, bytes]:
    found = _SIGNATURE.fullmatch(line)
    raw = _bytes(found[2]) if found else b""
    if not found or len(raw) < 5:
        raise InvalidDocumentError(f"{line[:80]!r} is not a signature line of a note")
    return found[1], raw[:4], raw[4:]


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidDocumentError(f"{text[:80]!r} is not base64") from error
