"""What a load costs, against transformers and PEFT on the same files, in one run.

    python bench/load.py [--gigabytes G] [--repeats N] [--work DIR]

Two models: keystone-nano, and one made of noise that is spread like trained weights, of about the size asked for, each
with a LoRA adapter. Every measurement is a process of its own. `cold` is with the files dropped from the page cache
(where the system lets us), `warm` without. Our side hashes every byte it reads; the other side hashes nothing. The time
of a load begins after the imports, which have a line of their own, as has the way to the first token.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from adapters import add_adapter, write_adapter
from csf_store import Archive, Digest
from keystone import KeystoneConfig, KeystoneForCausalLM, import_nano
from keystone.checkpoints import blank_model
from keystone.nano.embedded import DATA
from manifests import AdapterUse, Assembly, Manifest, Repository, Source

OURS = """
import json, sys, time
started = time.perf_counter()
from keystone.cli.lean import import_lean
import_lean(bitsandbytes=sys.argv[3] != "none" or bool(sys.argv[5]))
from keystone.loader import load
if sys.argv[5]:
    import peft
imported = time.perf_counter()
loaded = load(sys.argv[2], archive=sys.argv[1], quantization=sys.argv[3], device="cpu", cache=sys.argv[4])
ready = time.perf_counter()
loaded.complete(["def add(a, b):"], max_new_tokens=1)
done = time.perf_counter()
peak = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([imported - started, ready - imported, done - ready, peak, loaded.quantized_here]))
"""

THEIRS = """
import json, sys, time
started = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
import keystone.model
if sys.argv[2]:
    from peft import PeftModel
imported = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
if sys.argv[2]:
    model = PeftModel.from_pretrained(model, sys.argv[2])
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[3])
model.eval()
ready = time.perf_counter()
ids = torch.tensor([tokenizer("def add(a, b):")["input_ids"]])
with torch.inference_mode():
    model.generate(input_ids=ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
done = time.perf_counter()
peak = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([imported - started, ready - imported, done - ready, peak, False]))
"""

Run = tuple[float, float, float, float, float]
"""Seconds of imports, of the load, to the first token after it, of the whole process; and peak bytes."""


def made_config(gigabytes: float) -> dict[str, object]:
    """A two-loop model whose bf16 weights are about so many gigabytes."""
    fields = json.loads((DATA / "base" / "config.json").read_text())
    hidden, heads = (2048, 16) if gigabytes >= 0.5 else (512, 4)
    fields |= {"hidden_size": hidden, "intermediate_size": 4 * hidden, "head_dim": 128, "num_attention_heads": heads}
    fields |= {"num_key_value_heads": heads // 4, "plt_num_loops": 2, "plt_window_size": [64, 0]}
    fields |= {"plt_emb_scale": 0.7, "plt_hidden_scale": 0.05}
    one = sum(p.numel() for p in blank_model(KeystoneConfig.from_dict({**fields, "num_hidden_layers": 1})).parameters())
    two = sum(p.numel() for p in blank_model(KeystoneConfig.from_dict({**fields, "num_hidden_layers": 2})).parameters())
    fields["num_hidden_layers"] = max(1, round((gigabytes * 1e9 / 2 - one) / (two - one)) + 1)
    return fields


def make_base(directory: Path, gigabytes: float) -> None:
    directory.mkdir(parents=True)
    fields = made_config(gigabytes)
    (directory / "config.json").write_text(json.dumps(fields))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: (torch.randn(parameter.shape, generator=generator) * 0.02).bfloat16()
        for name, parameter in blank_model(KeystoneConfig.from_dict(fields)).named_parameters()
    }
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def make_adapter(base: Path, out: Path) -> Path:
    torch.manual_seed(2)
    model = KeystoneForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return write_adapter(get_peft_model(model, lora), out)


def archive_of(base: Path, adapter: Path, path: Path) -> tuple[Digest, Digest]:
    """Manifests of the bare base and of the base with its adapter."""
    with Archive.create(path) as archive:
        import_nano(archive)
        repository = Repository(archive)
        tokenizer = archive.put_tree(DATA / "tokenizer").digest
        digest = archive.put_tree(base).digest
        source = Source(kind="directory", location="made", licence="Apache-2.0")
        bare = Manifest(assembly=Assembly(base=digest, tokenizer=tokenizer), source=source)
        first = repository.put(bare)
        added, _ = add_adapter(repository, adapter, base=digest)
        uses = (AdapterUse(adapter=added),)
        adapted = Manifest(
            assembly=Assembly(base=digest, tokenizer=tokenizer, adapters=uses),
            source=source,
            lineage=repository.trace([added], base=digest),
        )
        return first, repository.put(adapted)


def drop_from_cache(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def timed(script: str, arguments: list[str], *, cold: Path | None, repeats: int) -> Run:
    runs: list[Run] = []
    for _ in range(repeats):
        if cold is not None:
            drop_from_cache(cold)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
        whole = time.perf_counter() - started
        imports, loading, token, peak, _ = json.loads(done.stdout.splitlines()[-1])
        runs.append((imports, loading, token, whole, peak))
    return tuple(statistics.median(column) for column in zip(*runs, strict=True))  # type: ignore[return-value]


def table(name: str, base: Path, adapter: Path, archive: Path, *, bare: str, adapted: str, repeats: int) -> None:
    size = (base / "model.safetensors").stat().st_size
    click.echo(f"\n{name}, {size / 1e6:.0f} MB in bf16\n")
    heads = ("load", "files", "load s", "MB/s", "against from_pretrained", "imports s", "first token s", "process s")
    click.echo(f"| {' | '.join(heads)} | peak MB |\n|{'---|' * (len(heads) + 1)}")
    tokenizer = str(DATA / "tokenizer")
    for title, manifest, peft in (("bf16", bare, ""), ("bf16 + adapter", adapted, str(adapter))):
        for state, theirs_cold, ours_cold in (("cold", base, archive), ("warm", None, None)):
            theirs = timed(THEIRS, [str(base), peft, tokenizer], cold=theirs_cold, repeats=repeats)
            ours = timed(OURS, [str(archive), manifest, "none", "use", peft], cold=ours_cold, repeats=repeats)
            row(f"from_pretrained, {title}", state, size, theirs, "1")
            row(f"keystone load, {title}, verified", state, size, ours, f"{ours[1] / theirs[1]:.2f}")
    click.echo("\n| quantized | quantizing on load s | from the cache s | times faster | cached, first token s |")
    click.echo("|---|---|---|---|---|")
    for scheme in ("int8", "nf4"):
        fresh = timed(OURS, [str(archive), bare, scheme, "ignore", ""], cold=None, repeats=max(1, repeats // 2))
        timed(OURS, [str(archive), bare, scheme, "use", ""], cold=None, repeats=1)
        cached = timed(OURS, [str(archive), bare, scheme, "use", ""], cold=None, repeats=repeats)
        cells = (scheme, f"{fresh[1]:.2f}", f"{cached[1]:.2f}", f"{fresh[1] / cached[1]:.1f}", f"{cached[3]:.2f}")
        click.echo(f"| {' | '.join(cells)} |")


def row(title: str, state: str, size: int, run: Run, ratio: str) -> None:
    imports, loading, token, whole, peak = run
    cells = (title, state, f"{loading:.2f}", f"{size / 1e6 / loading:.0f}", ratio, f"{imports:.2f}", f"{token:.2f}")
    click.echo(f"| {' | '.join(cells)} | {whole:.2f} | {peak / 1e6:.0f} |")


@click.command()
@click.option("--gigabytes", default=1.0, show_default=True, help="Size of the made model in bf16.")
@click.option("--repeats", default=3, show_default=True, help="Runs of each; the median counts.")
@click.option("--work", type=click.Path(path_type=Path), help="Where to put the files. Default: a temporary directory.")
def main(gigabytes: float, repeats: int, work: Path | None) -> None:
    """Print the tables."""
    folder = Path(tempfile.mkdtemp(prefix="keystone-bench-", dir=work))
    try:
        box = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
        click.echo(f"{box}, Python {platform.python_version()}; median of {repeats}")
        made = folder / "made"
        make_base(made, gigabytes)
        for name, base in (("keystone-nano", DATA / "base"), ("a made model", made)):
            adapter = make_adapter(base, folder / f"adapter-{base.name}-{name}")
            archive = folder / f"archive-{name}"
            bare, adapted = archive_of(base, adapter, archive)
            table(name, base, adapter, archive, bare=str(bare), adapted=str(adapted), repeats=repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
