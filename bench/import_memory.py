"""Peak memory of an import, against the size of what is imported.

Makes a checkpoint of random bf16 weights, imports it three ways, each in a process of its own, and prints the peak
resident memory beyond what the program holds with everything imported and nothing read:

- as it is: the files go in byte for byte;
- converted: every tensor is written as fp32 while the archive reads it;
- gguf: a Q8_0 file is dequantized to bf16 while the archive reads it.

    python bench/import_memory.py --megabytes 1500
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from keystone.checkpoints.sources import BLOCK_BYTES, SourceTensor
from keystone.checkpoints.streaming import Placed, StreamedShard

HIDDEN, WIDE, VOCABULARY = 1024, 2816, 32768
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "intermediate_size": WIDE, "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip
IN_LAYER = {
    "self_attn.q_proj": ("attn_q", (HIDDEN, HIDDEN)),
    "self_attn.k_proj": ("attn_k", (HIDDEN // 4, HIDDEN)),
    "self_attn.v_proj": ("attn_v", (HIDDEN // 4, HIDDEN)),
    "self_attn.o_proj": ("attn_output", (HIDDEN, HIDDEN)),
    "mlp.gate_proj": ("ffn_gate", (WIDE, HIDDEN)),
    "mlp.up_proj": ("ffn_up", (WIDE, HIDDEN)),
    "mlp.down_proj": ("ffn_down", (HIDDEN, WIDE)),
    "input_layernorm": ("attn_norm", (HIDDEN,)),
    "post_attention_layernorm": ("ffn_norm", (HIDDEN,)),
}


def shapes(layers: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("token_embd.weight", (VOCABULARY, HIDDEN))
    }
    for layer in range(layers):
        for ours, (theirs, shape) in IN_LAYER.items():
            found[f"model.layers.{layer}.{ours}.weight"] = (f"blk.{layer}.{theirs}.weight", shape)
    return {**found, "model.norm.weight": ("output_norm.weight", (HIDDEN,))}


def random_blocks(name: str, count: int):
    generator = np.random.default_rng(abs(hash(name)) % 2**32)
    for first in range(0, count, BLOCK_BYTES // 4):
        values = generator.standard_normal(min(BLOCK_BYTES // 4, count - first), dtype=np.float32) * np.float32(0.02)
        yield (values.view(np.uint32) >> 16).astype(np.uint16).data.cast("B")


def make_directory(where: Path, layers: int) -> None:
    from tokenizers import Tokenizer, models  # noqa: PLC0415

    where.mkdir()
    (where / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(where / "tokenizer.json"))
    placed = []
    for name, (_, shape) in shapes(layers).items():
        count = int(np.prod(shape))
        blocks = lambda name=name, count=count: random_blocks(name, count)  # noqa: E731
        placed.append(Placed(name, SourceTensor(name, "BF16", shape, blocks, "made")))
    shard = StreamedShard("model.safetensors", placed)
    with (where / "model.safetensors").open("wb") as file:
        for at in range(0, shard.size, BLOCK_BYTES):
            file.write(shard.read(at, min(BLOCK_BYTES, shard.size - at)))


def make_gguf(where: Path, layers: int) -> None:
    import gguf  # noqa: PLC0415

    writer = gguf.GGUFWriter(where, "llama", use_temp_file=True)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(16)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, (theirs, shape) in shapes(layers).items():
        data = b"".join(bytes(block) for block in random_blocks(name, int(np.prod(shape))))
        values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if values.ndim == 1:
            writer.add_tensor(theirs, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measured(source: Path, archive: Path, *options: str) -> tuple[int, int]:
    """Bytes stored, and the peak of resident memory beyond the libraries."""
    command = [sys.executable, __file__, "--worker", str(source), str(archive), *options]
    outcome = subprocess.run(command, check=True, capture_output=True, text=True)
    stored, before, peak = map(int, outcome.stdout.split()[-3:])
    return stored, peak - before


def worker(source: Path, archive: Path, options: list[str]) -> None:
    from csf_store import Archive  # noqa: PLC0415
    from keystone.checkpoints.gguf_file import read_gguf  # noqa: F401, PLC0415 - so that it is in the starting size
    from keystone.checkpoints.huggingface import Choices  # noqa: PLC0415
    from keystone.checkpoints.importing import import_checkpoint, plan_import  # noqa: PLC0415
    from keystone.checkpoints.opening import open_source  # noqa: PLC0415

    choices = Choices(
        dtype=options[0] if options else None, tokenizer=source if source.is_dir() else source.parent / "d"
    )
    before = memory("VmRSS")
    with Archive.create(archive) as opened:
        done = import_checkpoint(opened, plan_import(open_source(str(source), choices)))
        size = opened.tree(done.base).size
    print(size, before, memory("VmHWM"))


def memory(field: str) -> int:
    """A line of this process's own account, in bytes; `ru_maxrss` would count what its parent held when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1500)
    parser.add_argument("--worker", nargs="+")
    arguments, rest = parser.parse_known_args()
    if arguments.worker:
        source, archive, *options = [*arguments.worker, *rest]
        worker(Path(source), Path(archive), options)
        return
    layer = sum(int(np.prod(shape)) for _, shape in IN_LAYER.values()) * 2
    layers = max(2, (arguments.megabytes * 10**6 - VOCABULARY * HIDDEN * 2) // layer)
    print("| import | base, MB | peak beyond the libraries, MB | share |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        make_directory(Path(place) / "d", layers)
        make_gguf(Path(place) / "m.gguf", layers)
        for label, source, options in (
            ("as it is", "d", ()),
            ("converted to fp32", "d", ("F32",)),
            ("GGUF Q8_0 to bf16", "m.gguf", ()),
        ):
            stored, peak = measured(Path(place) / source, Path(place) / f"a{label[:2].strip()}{label[-1]}", *options)
            print(f"| {label} | {stored / 1e6:.0f} | {peak / 1e6:.0f} | {peak / stored:.2f} |")


if __name__ == "__main__":
    main()
