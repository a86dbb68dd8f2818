"""How small a fine-tuned tensor becomes, against the usual way to store a difference.

The usual way is XOR with the base, the two bytes of each value split into planes, zstd over each plane. The
comparison is over the tensors that the fine-tune changed, at four strengths of training noise. Ours is what the
archive's segments really grow by, record headers and chunk list included; theirs is the compressed bytes alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard

from bench.storage.features import delta_is_built
from bench.storage.inputs import Bits, Inputs, draw, nudge, shapes, write_safetensors
from csf_store import Archive

NOISES = (1e-3, 3e-3, 1e-2, 3e-2)
_LEVEL = 3


class Delta(NamedTuple):
    """One strength of noise; all sizes in bytes.

    Attributes:
        noise: standard deviation of the change over that of the tensor.
        logical: the changed tensors.
        alone: stored without a base.
        xor: XOR + byte planes + zstd.
        ours: stored as differences; None where that is not built.
    """

    noise: float
    logical: int
    alone: int
    xor: int
    ours: int | None


def xor_planes_zstd(base: Bits, tuned: Bits) -> int:
    """Bytes of the usual way."""
    difference = np.bitwise_xor(base, tuned).view(np.uint8).ravel()
    coder = zstandard.ZstdCompressor(level=_LEVEL)
    return sum(len(coder.compress(np.ascontiguousarray(difference[at::2]).data)) for at in (0, 1))


def measure_deltas(inputs: Inputs, megabytes: int, work: Path, say: Callable[[str], None]) -> list[Delta]:
    """One row for each strength of noise."""
    wanted = shapes(megabytes)
    base = {name: draw(name, wanted[name]) for name in inputs.changed}
    base_file = work / "base-part.safetensors"
    write_safetensors(base_file, base)
    rows = []
    for noise in NOISES:
        say(f"differences at noise {noise:g}")
        tuned = {name: nudge(name, bits, noise) for name, bits in base.items()}
        file = work / "tuned-part.safetensors"
        write_safetensors(file, tuned)
        rows.append(
            Delta(
                noise,
                logical=sum(bits.nbytes for bits in base.values()),
                alone=_stored(work, None, file),
                xor=sum(xor_planes_zstd(base[name], bits) for name, bits in tuned.items()),
                ours=_stored(work, base_file, file) if delta_is_built() else None,
            )
        )
    return rows


def _stored(work: Path, base_file: Path | None, file: Path) -> int:
    with (
        tempfile.TemporaryDirectory(dir=work) as folder,
        Archive.open(Path(folder) / "archive", create=True) as archive,
    ):
        if base_file is None:
            return archive.put_file(file).stored
        base = archive.base(archive.put_file(base_file).digest)
        return archive.put_file(file, base=base).stored
