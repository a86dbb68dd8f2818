"""What a safetensors file promises, checked in full before a byte of it is stored.

The format: a u64 header length, a JSON header that maps each tensor to dtype, shape and ``data_offsets``, then the
data, without holes or overlaps, to the last byte. A file that breaks its promise is refused as a whole. From the
checked header follow the cuts: the header is cut on its own, and every tensor from its own start, so that the same
tensor in another file, shard or order has the same chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from csf_store.digest import Buffer
from csf_store.errors import InvalidInputError
from csf_store.framing import CHUNK_SIZE

MAX_HEADER: Final = 100_000_000
"""The limit of the reference implementation."""
PREFIX: Final = 8
_MAX_DIMENSION: Final = 1 << 62

DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class TensorInfo(NamedTuple):
    """One tensor of a safetensors blob.

    Attributes:
        name: its name.
        dtype: the safetensors code, such as ``BF16``.
        shape: its dimensions; empty for a scalar.
        nbytes: bytes of its data.
        offset: where its data begins in the blob.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


class SafetensorsHeader(NamedTuple):
    """A checked header.

    Attributes:
        length: bytes before the data, the 8-byte prefix included.
        tensors: every tensor, in the order of its data.
        metadata: the ``__metadata__`` strings.
    """

    length: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


class Cut(NamedTuple):
    """A chunk to be: offset and length in the file; the tensor it is of, if it is of one, and where in it it begins."""

    offset: int
    length: int
    tensor: TensorInfo | None = None
    within: int = 0


def header_length(prefix: bytes, size: int) -> int:
    """Bytes before the data, from the first 8 bytes of a file of ``size`` bytes.

    Raises:
        InvalidInputError: if no header of that length fits.
    """
    if len(prefix) < PREFIX or size < PREFIX:
        raise InvalidInputError(f"it has {size} bytes, fewer than a header length takes; it is empty or truncated")
    length = int.from_bytes(prefix[:PREFIX], "little")
    if length > MAX_HEADER:
        raise InvalidInputError(f"its header claims {length} bytes, more than the {MAX_HEADER} allowed")
    if PREFIX + length > size:
        raise InvalidInputError(f"its header claims {length} bytes but the file has {size}; it is truncated")
    return PREFIX + length


def parse_header(head: Buffer, size: int) -> SafetensorsHeader:
    """Reads and checks the header of a file of ``size`` bytes. ``head`` is everything before the data.

    Raises:
        InvalidInputError: saying which promise is broken; the caller says of which file.
    """
    claimed = int.from_bytes(head[:PREFIX], "little")
    if claimed != len(head) - PREFIX:
        raise InvalidInputError(f"its header claims {claimed} bytes, not {len(head) - PREFIX}")
    try:
        document = json.loads(bytes(head[PREFIX:]), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"its header is not JSON: {error}") from error
    if not isinstance(document, dict) or bytes(head[PREFIX : PREFIX + 1]) != b"{":
        raise InvalidInputError("its header is not a JSON object that begins with '{'")
    metadata = _metadata(document.pop("__metadata__", {}))
    tensors = sorted(
        (_tensor(name, entry, len(head)) for name, entry in document.items()),
        key=lambda tensor: (tensor.offset, tensor.offset + tensor.nbytes),
    )
    expected = len(head)
    for tensor in tensors:
        if tensor.offset != expected:
            what = "overlaps the tensor before it" if tensor.offset < expected else "leaves a hole before it"
            raise InvalidInputError(f"tensor {tensor.name!r} begins at byte {tensor.offset}, not {expected}: it {what}")
        expected += tensor.nbytes
    if expected != size:
        what = "truncated" if expected > size else "followed by bytes that belong to no tensor"
        raise InvalidInputError(f"its tensors end at byte {expected} but the file has {size}; it is {what}")
    return SafetensorsHeader(len(head), {tensor.name: tensor for tensor in tensors}, metadata)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is given twice")
    return document


def _metadata(document: object) -> dict[str, str]:
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise InvalidInputError("its __metadata__ does not map strings to strings")
    return document


def _tensor(name: str, entry: object, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)], **others} if not others:
            pass
        case _:
            raise InvalidInputError(f"tensor {name!r} is not described by dtype, shape and two data_offsets")
    if dtype not in DTYPE_BITS:
        raise InvalidInputError(f"tensor {name!r} has unknown dtype {dtype!r}")
    count = 1
    for dimension in shape:
        if type(dimension) is not int or not 0 <= dimension <= _MAX_DIMENSION:
            raise InvalidInputError(f"tensor {name!r} has an impossible shape {shape}")
        count *= dimension
        if count > _MAX_DIMENSION:
            raise InvalidInputError(f"tensor {name!r} has more elements than any file can hold: {shape}")
    bits = count * DTYPE_BITS[dtype]
    if isinstance(begin, bool) or isinstance(end, bool) or not 0 <= begin <= end or bits != 8 * (end - begin):
        raise InvalidInputError(
            f"tensor {name!r} of {dtype} {shape} needs {bits} bits but its data_offsets are [{begin}, {end}]"
        )
    return TensorInfo(name, dtype, tuple(shape), end - begin, data_start + begin)


def plain_cuts(size: int, start: int = 0, tensor: TensorInfo | None = None) -> Iterator[Cut]:
    """Cuts of ``size`` bytes from ``start``, every 4 MiB."""
    for offset in range(0, size, CHUNK_SIZE):
        yield Cut(start + offset, min(CHUNK_SIZE, size - offset), tensor, offset)


def tensor_cuts(header: SafetensorsHeader) -> Iterator[Cut]:
    """Cuts of a safetensors file: the header, then each tensor from its own start."""
    yield from plain_cuts(header.length)
    for tensor in header.tensors.values():
        yield from plain_cuts(tensor.nbytes, tensor.offset, tensor)
