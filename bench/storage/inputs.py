"""Three checkpoints that look like the ones people keep: a base, a fine-tune of it, and that fine-tune re-sharded.

    python -m bench.storage.inputs OUT [--megabytes N]

Compressors of weights live off one thing: the exponents of bf16 weights are few and skewed (about 2.7 bits of entropy
in 8), while sign and mantissa are noise. Plain Gaussian numbers would flatter them, so a weight here is Student's t
with 12 degrees of freedom, times a scale of its own per row, times a scale per tensor: the tails and the spread
between rows and layers of a trained transformer. ``exponent_entropy`` checks the outcome, and the run prints it.

Stores live off what stays equal. The fine-tune moves 30 % of the bytes, whole tensors at a time, by noise of a
thousandth of their standard deviation, as a short training run with a small learning rate does. Re-sharding keeps
every tensor and changes order, files and offsets, as every conversion tool does.

Each tensor is drawn from a seed of its own name, so the bytes depend neither on the order of drawing nor on threads.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint16]
"""bf16 values as their bits: numpy has no bf16 of its own."""

FULL_MEGABYTES = 512
QUICK_MEGABYTES = 60
FINE_TUNED_SHARE = 0.30
FINE_TUNE_NOISE = 1e-3
SETS = ("base", "fine-tune", "re-sharded")
_SEED = 20_261
_SHARDS = 3


class Shape(NamedTuple):
    """The dimensions of a small decoder-only transformer with grouped-query attention."""

    width: int
    key_value: int
    feed_forward: int
    vocabulary: int


_LARGE = Shape(1024, 256, 2816, 32_000)
_SMALL = Shape(512, 128, 1408, 8_000)


class Inputs(NamedTuple):
    """What was made.

    Attributes:
        root: holds a directory for each set.
        sizes: bytes of each set's files.
        changed: the tensors that the fine-tune moved.
        share: their part of all bytes.
        entropy: bits of entropy in the exponents of the base.
    """

    root: Path
    sizes: dict[str, int]
    changed: tuple[str, ...]
    share: float
    entropy: float

    def directory(self, name: str) -> Path:
        """The directory of a set."""
        return self.root / name

    def size(self, name: str) -> int:
        """Bytes of a set's files."""
        return self.sizes[name]

    @property
    def base_file(self) -> Path:
        """The base's only file."""
        return self.root / "base" / "model.safetensors"

    @property
    def fine_tune_file(self) -> Path:
        """The fine-tune's only file."""
        return self.root / "fine-tune" / "model.safetensors"


def to_bf16(values: npt.NDArray[np.float32]) -> Bits:
    """Rounds finite float32 to bf16, ties to even, and gives the bits."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Bits) -> npt.NDArray[np.float32]:
    """The float32 values of bf16 bits; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def shapes(megabytes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint of about that size, in the order a model registers them."""
    dims = _LARGE if megabytes >= 256 else _SMALL
    square, narrow = (dims.width, dims.width), (dims.key_value, dims.width)
    layer = {
        "input_layernorm": (dims.width,),
        "self_attn.q_proj": square,
        "self_attn.k_proj": narrow,
        "self_attn.v_proj": narrow,
        "self_attn.o_proj": square,
        "post_attention_layernorm": (dims.width,),
        "mlp.gate_proj": (dims.feed_forward, dims.width),
        "mlp.up_proj": (dims.feed_forward, dims.width),
        "mlp.down_proj": (dims.width, dims.feed_forward),
    }
    ends = 4 * dims.vocabulary * dims.width  # embedding and head, two bytes a weight
    per_layer = 2 * sum(int(np.prod(shape)) for shape in layer.values())
    layers = max(1, round((megabytes * 1e6 - ends) / per_layer))
    made: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (dims.vocabulary, dims.width)}
    for number in range(layers):
        made |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return made | {"model.norm.weight": (dims.width,), "lm_head.weight": (dims.vocabulary, dims.width)}


def _generator(name: str, purpose: str) -> np.random.Generator:
    return np.random.default_rng([_SEED, zlib.crc32(name.encode()), zlib.crc32(purpose.encode())])


def draw(name: str, shape: tuple[int, ...]) -> Bits:
    """One tensor of the base."""
    rng = _generator(name, "weights")
    if len(shape) == 1:
        return to_bf16(1 + np.float32(0.1) * rng.standard_normal(shape, dtype=np.float32))
    values = rng.standard_normal(shape, dtype=np.float32)
    values /= np.sqrt(rng.standard_gamma(6.0, shape, dtype=np.float32) / np.float32(6.0))  # Student's t, 12 degrees
    rows = np.exp(0.15 * rng.standard_normal((shape[0], 1), dtype=np.float32))
    scale = 0.6 / shape[1] ** 0.5 * np.exp(0.25 * rng.standard_normal())
    values *= rows * np.float32(scale)
    return to_bf16(values)


def nudge(name: str, bits: Bits, noise: float) -> Bits:
    """The tensor after a little training: Gaussian noise of ``noise`` times its standard deviation, rounded again."""
    rng = _generator(name, f"noise {noise}")
    values = from_bf16(bits)
    step = rng.standard_normal(values.shape, dtype=np.float32)
    step *= np.float32(noise * float(values.std()))
    step += values
    return to_bf16(step)


def choose_changed(base: Mapping[str, Bits]) -> tuple[str, ...]:
    """Which tensors the fine-tune moves: matrices of layers, in an order drawn once, each if the share has room for it.

    One that would overshoot is passed over: a large last tensor would make 30 % into 31, and sizes follow the share.
    """
    names = [name for name, bits in base.items() if ".layers." in name and bits.ndim == 2]
    total = sum(bits.nbytes for bits in base.values())
    chosen: list[str] = []
    done = 0
    for number in _generator("fine-tune", "order").permutation(len(names)):
        size = base[names[number]].nbytes
        if done + size <= FINE_TUNED_SHARE * total:
            chosen.append(names[number])
            done += size
    return tuple(chosen)


def exponent_entropy(tensors: Iterable[Bits]) -> float:
    """Bits of entropy in the exponents of all values together."""
    counts = np.zeros(256, dtype=np.int64)
    for bits in tensors:
        counts += np.bincount(((bits >> 7) & 0xFF).ravel(), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def write_safetensors(path: Path, tensors: Mapping[str, Bits]) -> None:
    """Writes tensors in the order given; the library's own writer would sort them and undo what the sets are about."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [end, end + bits.nbytes]}
        end += bits.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in tensors.values():
            file.write(bits.data)


def _write_shards(directory: Path, tensors: Mapping[str, Bits]) -> None:
    """Alphabetical order, three files of about the same size."""
    total = sum(bits.nbytes for bits in tensors.values())
    shards: list[dict[str, Bits]] = [{} for _ in range(_SHARDS)]
    done = 0
    for name in sorted(tensors):
        shards[done * _SHARDS // total][name] = tensors[name]
        done += tensors[name].nbytes
    for number, shard in enumerate(shards, 1):
        write_safetensors(directory / f"model-{number:05d}-of-{_SHARDS:05d}.safetensors", shard)


def make_inputs(root: Path, megabytes: int) -> Inputs:
    """Writes the three sets under ``root``.

    Args:
        root: a directory, made if missing.
        megabytes: about how large each set is, in units of 10^6 bytes.
    """
    with ThreadPoolExecutor() as pool:  # numpy draws without the interpreter lock
        wanted = shapes(megabytes)
        base = dict(zip(wanted, pool.map(draw, wanted.keys(), wanted.values()), strict=True))
        changed = choose_changed(base)
        moved = pool.map(lambda name: nudge(name, base[name], FINE_TUNE_NOISE), changed)
        tuned = base | dict(zip(changed, moved, strict=True))
    share = sum(base[name].nbytes for name in changed) / sum(bits.nbytes for bits in base.values())
    inputs = Inputs(root, {}, changed, share, exponent_entropy(base.values()))
    write_safetensors(inputs.base_file, base)
    write_safetensors(inputs.fine_tune_file, tuned)
    _write_shards(inputs.directory("re-sharded"), tuned)
    for name in SETS:
        inputs.sizes[name] = sum(file.stat().st_size for file in inputs.directory(name).iterdir())
    return inputs


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--megabytes", default=FULL_MEGABYTES, show_default=True, help="About how large each set is.")
def main(out: Path, megabytes: int) -> None:
    """Make the three sets under OUT."""
    made = make_inputs(out, megabytes)
    for name in SETS:
        click.echo(f"{name}: {made.size(name):,} bytes in {made.directory(name)}")
    click.echo(f"{len(made.changed)} tensors changed, {made.share:.1%} of the bytes")
    click.echo(f"{made.entropy:.2f} bits of entropy in the exponents")


if __name__ == "__main__":
    main()
