"""What a running server is asked, and what its answer must be: the two sides that an audit of it compares.

How a model's live tensors are hashed is the business of the code that loads models, two floors up, and so is speaking
HTTP. Both are passed in: a `Server` that can be asked, and a `Recompute` that says what it must answer, from the
archive alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from csf_store import Archive, Digest
from manifests.schema import Manifest

CAVEAT = "this shows drift and mistakes; a host that lies can answer from an archive, too"
"""What no answer of a server can prove; said with every one that is right."""


@dataclass(frozen=True, slots=True)
class LiveWeights:
    """What a model's live tensors hash to under one nonce.

    Attributes:
        value: of all tensors, as an attestation's `value`.
        tensors: of each tensor alone, by its plain name.
        libraries: versions of what made the tensors.
        quantized: the tensors that another version of those may have made otherwise.
    """

    value: Digest
    tensors: Mapping[str, Digest]
    libraries: Mapping[str, str] = field(default_factory=dict)
    quantized: frozenset[str] = frozenset()


Recompute: TypeAlias = Callable[[Archive, Manifest, Digest, str], LiveWeights | str]
"""(archive, manifest, recipe digest, nonce in hex) -> what must be answered, or why nobody here can say."""


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """What a server answered.

    Attributes:
        manifest: the manifest it says it runs, as it wrote it.
        body: the attestation's bytes, as they came.
    """

    manifest: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A line of a server's list: a name, the manifest it says answers to it, and whether that is in memory."""

    name: str
    manifest: str
    loaded: bool


class Server(Protocol):
    """A running server, as an auditor asks it. Every question may raise `ServerSilentError` or `NotServedError`."""

    @property
    def url(self) -> str:
        """Where it is."""

    def models(self) -> tuple[ServedModel, ...]:
        """What it says it serves."""

    def attest(self, model: str, nonce: str) -> ServerAnswer:
        """Let it hash its live weights."""

    def tensors(self, model: str, nonce: str) -> Mapping[str, Digest]:
        """The same for each tensor alone."""


def culprits(answered: Mapping[str, Digest], expected: Mapping[str, Digest]) -> Mapping[str, str]:
    """The tensors that are not what they must be, each with what is wrong with it; changed ones first."""
    found = {name: "is changed" for name in sorted(expected) if answered.get(name, expected[name]) != expected[name]}
    found |= dict.fromkeys(sorted(expected.keys() - answered.keys()), "is missing")
    return found | dict.fromkeys(sorted(answered.keys() - expected.keys()), "should not be there")
