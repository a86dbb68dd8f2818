"""How small and how fast: every codec on every dtype, and differences against XOR + byte planes + zstd.

    python bench/codecs.py [--megabytes N] [--steps N] [--json]

Two tables from one run, each codec by itself in one thread; times are the thread's own processor time, the best of a
few rounds. Weights are drawn like those of trained transformers (heavy tails, a scale per row), then held in each dtype
the way checkpoints are: cast, quantized by the row, packed. The differences are drawn noise in units of the weights'
standard deviation, and two real pairs: keystone-nano against itself after some more training, and against itself with
a LoRA merged.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
import zstandard
from safetensors import safe_open

import keystone
from csf_store.codecs import Hint, codecs, encode

CHUNK = 4 << 20
NOISES = (1e-3, 3e-3, 1e-2, 3e-2)
_ROUNDS = 5
_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True)
class Sample:
    """Bytes of a kind, and a base if they are to be held as differences."""

    kind: str
    dtype: str
    raw: bytes
    base: bytes | None = None


@dataclass(frozen=True)
class Row:
    """What a codec made of a sample: stored / raw, and GB/s of raw bytes in and out on one core."""

    table: str
    kind: str
    dtype: str
    codec: str
    ratio: float
    gb_in: float
    gb_out: float


@dataclass(frozen=True)
class Pair:
    """A changed tensor or checkpoint: stored / raw as XOR + planes + zstd, as planes alone, and as differences."""

    kind: str
    dtype: str
    xor: float
    planes: float
    delta: float

    @property
    def share(self) -> float:
        """Delta in units of XOR + planes + zstd."""
        return self.delta / self.xor


def best(work: Callable[[], object]) -> float:
    """Seconds of processor time, the best of a few rounds."""
    times = []
    for _ in range(_ROUNDS):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return max(min(times), 1e-9)


def raw_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def weights(count: int, seed: int = 7) -> torch.Tensor:
    """Student's t with 12 degrees, a scale per row of 1024."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(12, (count // 1024, 1024)) * np.exp(0.15 * rng.standard_normal((count // 1024, 1)))
    return torch.from_numpy((values * 0.02).astype(np.float32))


def samples(size: int) -> Iterator[Sample]:
    """A chunk of each kind, ``size`` bytes each."""
    rng = np.random.default_rng(11)
    w = weights(size)
    yield Sample("weights", "BF16", raw_of(w[: size // 2048].bfloat16()))
    yield Sample("weights", "F16", raw_of(w[: size // 2048].half()))
    yield Sample("weights", "F32", raw_of(w[: size // 4096]))
    yield Sample("bf16 weights held in f32", "F32", raw_of(w[: size // 4096].bfloat16().float()))
    yield Sample("f16 weights held in f32", "F32", raw_of(w[: size // 4096].half().float()))
    yield Sample("f32 weights held in f64", "F64", raw_of(w[: size // 8192].double()))
    yield Sample("weights", "C64", raw_of(w[: size // 4096]))
    top = w.abs().amax(1, keepdim=True)
    yield Sample("weights by the row", "F8_E4M3", raw_of((w / top * 448).to(torch.float8_e4m3fn)))
    yield Sample("weights by the row", "F8_E5M2", raw_of((w / top * 57344).to(torch.float8_e5m2)))
    yield Sample("weights by the row", "F8_E4M3FNUZ", raw_of((w / top * 240).to(torch.float8_e4m3fnuz)))
    scales = torch.floor(torch.log2(w.view(-1, 32).abs().amax(1))).add(127).to(torch.uint8)
    yield Sample("block scales", "F8_E8M0", raw_of(scales))
    whole = (w / top * 127).round().to(torch.int8)
    yield Sample("weights by the row, int8", "I8", raw_of(whole))
    nibbles = ((w / top * 7).round() + 8).to(torch.uint8).view(-1, 2)
    packed = nibbles[:, 0] | (nibbles[:, 1] << 4)
    yield Sample("weights by the row, 4 bits", "F4", raw_of(packed))
    groups = w.view(-1, 64)
    levels = torch.special.ndtri(torch.linspace(0.03, 0.97, 16))
    levels = levels / levels[-1]
    codes = torch.bucketize(groups / groups.abs().amax(1, keepdim=True), (levels[1:] + levels[:-1]) / 2)
    codes = codes.to(torch.uint8).view(-1, 2)
    yield Sample("nf4-like codes, two a byte", "U8", raw_of(codes[:, 0] | (codes[:, 1] << 4)))
    yield Sample("4-bit codes, eight an int (GPTQ)", "I32", raw_of(packed))
    yield Sample("token ids", "I64", (rng.zipf(1.3, size // 8) % 32000).astype("<i8").tobytes())
    yield Sample("positions", "I64", np.arange(size // 8, dtype="<i8").tobytes())
    yield Sample("mask, 2% set", "BOOL", (rng.random(size) < 0.02).tobytes())
    yield Sample("zeros", "BF16", bytes(size))
    yield Sample("noise", "U8", rng.bytes(size))


def measure(table: str, sample: Sample) -> Iterator[Row]:
    """A row for each codec that takes the sample, and one for what the store would choose."""
    hint = Hint(sample.dtype, sample.base)
    chosen = encode(sample.raw, hint)[0]
    for each in codecs().values():
        if each.number == 0 or not each.accepts(sample.raw, hint):
            continue
        stored = bytes(each.encode(sample.raw, hint))
        out = memoryview(bytearray(len(sample.raw)))
        gb_in = len(sample.raw) / 1e9 / best(partial(each.encode, sample.raw, hint))
        gb_out = len(sample.raw) / 1e9 / best(partial(each.decode_into, stored, out, sample.base))
        if bytes(out) != sample.raw:
            raise SystemExit(f"{each.name} does not give {sample.kind} back")
        name = f"**{each.name}**" if each.number == chosen else each.name
        yield Row(table, sample.kind, sample.dtype, name, len(stored) / len(sample.raw), gb_in, gb_out)


def xor_size(raw: bytes, base: bytes, width: int) -> int:
    """Bytes of what is usually done: XOR, byte planes, zstd -3 on each."""
    changed = np.frombuffer(raw, np.uint8) ^ np.frombuffer(base, np.uint8)
    squeeze = zstandard.ZstdCompressor(level=3)
    return sum(len(squeeze.compress(changed[rank::width].tobytes())) for rank in range(width))


def pair(kind: str, dtype: str, tensors: list[tuple[bytes, bytes]]) -> Pair:
    """Sizes over all chunks of some tensors and their bases."""
    width = {"BF16": 2, "F16": 2, "F32": 4}.get(dtype, 1)
    sizes = np.zeros(4)
    for whole, base in tensors:
        for start in range(0, len(whole), CHUNK):
            raw, other = whole[start : start + CHUNK], base[start : start + CHUNK]
            delta = len(encode(raw, Hint(dtype, other))[1]) if raw != other else 0  # equal chunks are stored once
            xor = xor_size(raw, other, width) if raw != other else 0
            alone = len(encode(raw, Hint(dtype))[1])
            sizes += (len(raw), min(xor, alone), alone, delta)
    return Pair(kind, dtype, *(float(size / sizes[0]) for size in sizes[1:]))


def noise_pairs(size: int) -> Iterator[tuple[Pair, Sample]]:
    """Weights after noise of several sizes, in several dtypes."""
    w = weights(size)
    for dtype, count in ((torch.bfloat16, size // 2048), (torch.float16, size // 2048), (torch.float32, size // 4096)):
        base = w[:count].to(dtype)
        for noise in NOISES:
            step = torch.randn(base.shape, generator=torch.Generator().manual_seed(3)) * noise * float(w.std())
            raw, other = raw_of((base.float() + step).to(dtype)), raw_of(base)
            code, kind = _CODES[dtype], f"noise {noise:g}"
            yield pair(kind, code, [(raw, other)]), Sample(kind, code, raw, other)


def nano() -> dict[str, torch.Tensor]:
    path = Path(keystone.__file__).parent / "nano" / "data" / "base" / "model.safetensors"
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def trained_on(base: dict[str, torch.Tensor], rate: float, steps: int) -> dict[str, torch.Tensor]:
    """Nano after some steps of AdamW on its own kind of text, in float32 and rounded back."""
    from keystone.model import KeystoneForCausalLM  # noqa: PLC0415 - slow, and only for this table
    from keystone.nano.train import PackedRows, Recipe, nano_config  # noqa: PLC0415

    torch.manual_seed(5)
    model = KeystoneForCausalLM(nano_config())
    model.load_state_dict({name: tensor.float() for name, tensor in base.items()}, strict=False)
    model = model.float().train()
    rows = PackedRows(Recipe(rows=4, seed=99))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        batch = rows.next()
        logits = model(batch[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    state = model.state_dict()
    return {name: state[name].to(tensor.dtype) for name, tensor in base.items()}


def merged(base: dict[str, torch.Tensor], rank: int = 8, size: float = 0.01) -> dict[str, torch.Tensor]:
    """Nano with a LoRA of that rank merged into every projection, its norm ``size`` of the weight's."""
    draw = torch.Generator().manual_seed(13)
    out = dict(base)
    for name, tensor in base.items():
        if "_proj." in name and tensor.ndim == 2:
            rows, columns = tensor.shape
            step = torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw)
            step *= size * tensor.float().norm() / step.norm()
            out[name] = (tensor.float() + step).to(tensor.dtype)
    return out


def real_pairs(steps: int) -> Iterator[Pair]:
    base = nano()
    others = {f"{steps} steps of training at {rate:g}": trained_on(base, rate, steps) for rate in (1e-5, 1e-4, 1e-3)}
    others |= {f"LoRA of {size:.1%} merged": merged(base, size=size) for size in (0.003, 0.01, 0.03)}
    for kind, tensors in others.items():
        yield pair(f"nano, {kind}", "BF16", [(raw_of(tensors[name]), raw_of(base[name])) for name in base])


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--megabytes", default=4, show_default=True, help="Size of each sample; a chunk has 4.")
@click.option("--steps", default=30, show_default=True, help="Training steps of the real pairs.")
@click.option("--json", "as_json", is_flag=True, help="One object per line instead of tables.")
def main(megabytes: int, steps: int, as_json: bool) -> None:  # noqa: FBT001 - click
    """Measure and print."""
    torch.set_num_threads(1)
    size = megabytes << 20
    rows = [row for sample in samples(size) for row in measure("dtypes", sample)]
    drawn = list(noise_pairs(size))
    rows += [row for _, sample in drawn for row in measure("differences", sample) if "delta" in row.codec]
    pairs = [found for found, _ in drawn] + list(real_pairs(steps))
    if as_json:
        for row in rows:
            click.echo(json.dumps(asdict(row)))
        for found in pairs:
            click.echo(json.dumps({"table": "pairs", **asdict(found), "share": found.share}))
        return
    click.echo(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, ", nl=False)
    click.echo(f"numpy {np.__version__}, zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}\n")
    heads = ["values", "dtype", "codec (bold: chosen)", "stored / raw", "GB/s in", "GB/s out"]
    cells = [[r.kind, r.dtype, r.codec, f"{r.ratio:.4f}", f"{r.gb_in:.2f}", f"{r.gb_out:.2f}"] for r in rows]
    click.echo(markdown(heads, cells))
    heads = ["change", "dtype", "planes alone", "XOR + planes + zstd", "delta", "delta / XOR"]
    cells = [[p.kind, p.dtype, f"{p.planes:.4f}", f"{p.xor:.4f}", f"{p.delta:.4f}", f"{p.share:.3f}"] for p in pairs]
    click.echo(markdown(heads, cells))


if __name__ == "__main__":
    main()
