"""What an import reads: a checkpoint as data, whatever file it came from.

A reader (a Hugging Face directory, a GGUF file) turns its files into one `Checkpoint`: a configuration of ours, tensors
that give their bytes block by block, the tokenizer's files, and everything that was left out or overlooked, with the
reason. Nothing of a tensor is read before its blocks are asked for, so a checkpoint of any size is a small object.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from keystone.model import KeystoneConfig

Blocks: TypeAlias = Callable[[], Iterator[memoryview]]
"""Gives the bytes of one tensor from its start, in blocks of any size, each good until the next is taken."""

Fields: TypeAlias = Mapping[str, object]
"""A JSON object from somebody else's file; every value is looked at before it is used."""

BLOCK_BYTES = 8 << 20
"""About how much of a tensor is in memory at a time."""

FLOATS: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
"""The safetensors codes a base may hold, and the bytes of a value."""

Fetch: TypeAlias = Literal["all", "small"]
"""What to fetch from a hub: everything a base needs, or all but its weights."""

SourceKind: TypeAlias = Literal["directory", "hub", "gguf"]


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a source.

    Attributes:
        name: what the source calls it.
        dtype: the safetensors code its blocks are in.
        shape: its dimensions.
        blocks: its bytes.
        file: the file it is in.
        stored: how the source holds it, where that differs from `dtype` (`Q4_K`).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Blocks
    file: str
    stored: str = ""

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks together."""
        return self.values * FLOATS[self.dtype]


@dataclass(frozen=True)
class Note:
    """Something an import did not take over as it was, and why: a file, a field of the configuration, a tensor."""

    what: Literal["file", "field", "tensor"]
    name: str
    reason: str


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from: what the manifest's source and labels will say."""

    kind: SourceKind
    location: str
    licence: str
    note: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, ready to be mapped and stored.

    Attributes:
        layout: which family of names and fields it was in.
        config: what the model will be.
        config_json: the content of the base tree's `config.json`.
        generation_json: that of its `generation_config.json`, if it has one.
        tensors: every tensor of every weights file.
        files: weights files that could be stored byte for byte, by name.
        headless: True where the source named tensors without showing them (a dry run of a configuration or an index).
        named: with `headless`, the names an index lists; None where there was not even an index.
        rename: the source's name of a tensor to ours.
        tokenizer: file name to content.
        origin: where it came from.
        notes: what was left out.
    """

    layout: str
    config: KeystoneConfig
    config_json: bytes
    generation_json: bytes | None
    tensors: tuple[SourceTensor, ...]
    files: Mapping[str, Path]
    rename: Callable[[str], str]
    tokenizer: Mapping[str, bytes]
    origin: Origin
    notes: tuple[Note, ...] = ()
    headless: bool = False
    named: tuple[str, ...] | None = None
