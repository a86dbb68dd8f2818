"""What a ledger can prove to somebody who keeps no more of it than 40 bytes, and how that is checked.

Who audits writes down a *checkpoint*: how many lines there are, and the root over them. Later, an *inclusion proof*
shows that one line is among them, and a *consistency proof* that a longer ledger still begins with them. Both say so by
themselves, without the archive: ``holds`` does the sums, and what is left to do is to compare the root with the one
that was written down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from csf_store.errors import InvalidInputError
from csf_store.ledger.line import JSON, MAX_LINE
from csf_store.ledger.merkle import HASH_SIZE, leaf_hash, verify_consistency, verify_inclusion

PROOF_LIMIT: Final = 2 * MAX_LINE
"""No proof in JSON is longer."""
_LARGEST: Final = 1 << 62
_LONGEST_PATH: Final = 128
_CHECKPOINT: Final = re.compile(r"(0|[1-9]\d{0,18}):([0-9a-fA-F]{64})")


class Checkpoint(NamedTuple):
    """What to write down of a ledger.

    Attributes:
        size: how many lines.
        root: the RFC 9162 root over them.
    """

    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.size}:{self.root.hex()}"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Reads ``SIZE:ROOT``, the root in 64 hex digits.

        Raises:
            InvalidInputError: if it is anything else.
        """
        found = _CHECKPOINT.fullmatch(text.strip())
        if not found:
            raise InvalidInputError(
                f"{text!r} is not a checkpoint: expected SIZE:ROOT as csf log --checkpoint prints it"
            )
        return cls(int(found[1]), bytes.fromhex(found[2]))

    def to_json(self) -> dict[str, JSON]:
        """Its JSON form."""
        return {"size": self.size, "root": self.root.hex()}


class InclusionProof(NamedTuple):
    """That a line is in the ledger.

    Attributes:
        seq: number of the line.
        line: the line itself, without its newline.
        size: how many lines the ledger has.
        root: the root over them.
        path: hashes from the line to the root.
    """

    seq: int
    line: bytes
    size: int
    root: bytes
    path: tuple[bytes, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """The ledger in which the line is."""
        return Checkpoint(self.size, self.root)

    def holds(self) -> bool:
        """Whether it proves what it says."""
        return verify_inclusion(leaf_hash(self.line), self.seq, self.size, self.root, self.path)

    def to_json(self) -> dict[str, JSON]:
        """Its JSON form."""
        return {
            "proof": "inclusion",
            "seq": self.seq,
            "size": self.size,
            "root": self.root.hex(),
            "leaf": leaf_hash(self.line).hex(),
            "path": [each.hex() for each in self.path],
            "line": self.line.decode(),
        }


class ConsistencyProof(NamedTuple):
    """That a ledger begins with all the lines of an earlier one.

    Attributes:
        old_size: how many lines there were.
        old_root: the root over those.
        size: how many lines there are.
        root: the root over these.
        path: hashes that lead from one to the other.
    """

    old_size: int
    old_root: bytes
    size: int
    root: bytes
    path: tuple[bytes, ...]

    @property
    def old(self) -> Checkpoint:
        """The ledger as it was."""
        return Checkpoint(self.old_size, self.old_root)

    @property
    def checkpoint(self) -> Checkpoint:
        """The ledger as it is."""
        return Checkpoint(self.size, self.root)

    def holds(self) -> bool:
        """Whether it proves what it says."""
        return verify_consistency(self.old_size, self.old_root, self.size, self.root, self.path)

    def to_json(self) -> dict[str, JSON]:
        """Its JSON form."""
        return {
            "proof": "consistency",
            "old_size": self.old_size,
            "old_root": self.old_root.hex(),
            "size": self.size,
            "root": self.root.hex(),
            "path": [each.hex() for each in self.path],
        }


def read_proof(data: bytes) -> InclusionProof | ConsistencyProof:
    """Reads the JSON form of a proof. That it is well-formed does not mean that it holds.

    Raises:
        InvalidInputError: naming what is wrong with it.
    """
    if len(data) > PROOF_LIMIT:
        raise InvalidInputError(f"a proof has no more than {PROOF_LIMIT} bytes; this has at least {len(data)}")
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
        kind = document.get("proof")
        if kind == "consistency":
            return ConsistencyProof(
                _number(document, "old_size"),
                _hash(document.get("old_root")),
                _number(document, "size"),
                _hash(document.get("root")),
                _path(document),
            )
        if kind != "inclusion":
            raise ValueError(f"it is a proof of {kind!r}, not of inclusion or consistency")
        line = document.get("line")
        if not isinstance(line, str):
            raise ValueError("its line is not text")
        proof = InclusionProof(
            _number(document, "seq"),
            line.encode(),
            _number(document, "size"),
            _hash(document.get("root")),
            _path(document),
        )
        if document.get("leaf", leaf_hash(proof.line).hex()) != leaf_hash(proof.line).hex():
            raise ValueError("its leaf is not the hash of its line")
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"this is not a proof as csf log --json prints it: {error}") from error
    return proof


def _number(document: Mapping[str, object], key: str) -> int:
    value = document.get(key)
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"its {key} is not a count")
    return value


def _hash(value: object) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * HASH_SIZE:
        raise ValueError(f"{value!r} is not a hash of 64 hex digits")
    return bytes.fromhex(value)


def _path(document: Mapping[str, object]) -> tuple[bytes, ...]:
    value = document.get("path")
    if not isinstance(value, list) or len(value) > _LONGEST_PATH:
        raise ValueError(f"its path is not a list of at most {_LONGEST_PATH} hashes")
    return tuple(_hash(each) for each in value)
