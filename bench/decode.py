"""What a token costs with loops and without: a two-loop step, parallel and sequential, against a one-loop step.

    python bench/decode.py [--device cpu|cuda] [--full-size] [--quantization SCHEME] [--layers N]

All three run on the same random layers, by default 1.1 GB of them in bf16: more than any cache of a processor
holds, so that a step waits for memory. Batch 1. Rounds of the three are interleaved; medians, and ratios in a round.
`--full-size` takes LoopCoder-V2's shape (15.2 GB in bf16).
"""

import platform
import statistics
import time
from dataclasses import dataclass

import click
import torch
from torch import Tensor

from keystone import KeystoneCache, KeystoneConfig, KeystoneForCausalLM
from keystone.cli.quiet import quiet_libraries
from keystone.model import DecodeMode, decoding
from keystone.quantize import quantize, recipe_for, weight_bytes

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
FULL_SIZE = {
    "vocab_size": 76800,
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


@dataclass(frozen=True)
class Variant:
    """A model and the way it decodes."""

    name: str
    model: KeystoneForCausalLM
    mode: DecodeMode


def random_model(shape: dict[str, int], layers: int, loops: int, device: str) -> KeystoneForCausalLM:
    config = KeystoneConfig(
        **shape,
        num_hidden_layers=layers,
        plt_num_loops=loops,
        plt_emb_scale=0.707,
        plt_hidden_scale=0.053,
        plt_window_size=[64, 0],
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = KeystoneForCausalLM(config).bfloat16()
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(std=0.02)
    return model


def without_loops(model: KeystoneForCausalLM, shape: dict[str, int], layers: int) -> KeystoneForCausalLM:
    """A one-loop model of the very same layers: their tensors are shared, quantized or not."""
    with torch.device("meta"):
        single = random_model({**shape, "vocab_size": 8}, layers, 1, "meta")
    single.model.embed_tokens, single.model.norm, single.lm_head = (
        model.model.embed_tokens,
        model.model.norm,
        model.lm_head,
    )
    single.model.rotary_emb = model.model.rotary_emb
    for mine, theirs in zip(single.model.layers, model.model.layers, strict=True):
        for name in ("input_layernorm", "post_attention_layernorm", "mlp"):
            setattr(mine, name, getattr(theirs, name))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(mine.self_attn, name, getattr(theirs.self_attn, name))
    return single.eval()


def prefilled(variant: Variant, context: int, room: int, device: str) -> KeystoneCache:
    cache = KeystoneCache(variant.model.config, reserve=context + room)
    ids = torch.arange(context, device=device)[None] % variant.model.config.vocab_size
    variant.model(ids, past_key_values=cache, logits_to_keep=1)
    return cache


def seconds_per_step(variant: Variant, cache: KeystoneCache, token: Tensor, steps: int) -> float:
    with decoding(variant.model, variant.mode):
        finish(token.device)
        started = time.perf_counter()
        for _ in range(steps):
            variant.model(token, past_key_values=cache)
        finish(token.device)
    return (time.perf_counter() - started) / steps


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--full-size", is_flag=True, help="LoopCoder-V2's own shape, 14 layers.")
@click.option("--quantization", type=click.Choice(["none", "int8", "nf4"]), default="none", show_default=True)
@click.option("--layers", default=9, show_default=True)
@click.option("--context", default=256, show_default=True, help="Tokens before the first step.")
@click.option("--steps", default=8, show_default=True, help="Steps in a round.")
@click.option("--rounds", default=7, show_default=True)
def main(
    *, device: str, full_size: bool, quantization: str, layers: int, context: int, steps: int, rounds: int
) -> None:
    """Print a markdown table."""
    quiet_libraries()
    shape, layers = (FULL_SIZE, 14) if full_size else (SHAPE, layers)
    torch.manual_seed(0)
    looped = random_model(shape, layers, 2, device)
    layer_bytes = sum(parameter.nbytes for parameter in looped.model.layers.parameters())
    quantize(looped, recipe_for(looped, quantization, device=torch.device(device)))
    single = without_loops(looped, shape, layers)
    variants = [
        Variant("one loop", single, "parallel"),
        Variant("two loops, parallel", looped, "parallel"),
        Variant("two loops, sequential", looped, "sequential"),
    ]
    token = torch.tensor([[7]], device=device)
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    with torch.inference_mode():
        caches = [prefilled(variant, context, steps * (rounds + 1), device) for variant in variants]
        for turn in range(rounds + 1):
            for variant, cache in zip(variants, caches, strict=True):
                seconds = seconds_per_step(variant, cache, token, steps)
                if turn:  # the first round warms up
                    times[variant.name].append(seconds)
    where = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    click.echo(
        f"{layers} layers, {layer_bytes / 1e9:.2f} GB in bf16, {quantization}: {weight_bytes(looped) / 1e9:.2f} GB of "
        f"weights; context {context}, batch 1; torch {torch.__version__}, {where}\n"
    )
    click.echo("| step | ms | tokens/s | times a one-loop step |\n|---|---|---|---|")
    for name, seconds in times.items():
        ratio = statistics.median(ours / one for ours, one in zip(seconds, times["one loop"], strict=True))
        middle = statistics.median(seconds)
        click.echo(f"| {name} | {middle * 1e3:.1f} | {1 / middle:.2f} | {ratio:.2f} |")
    if device == "cuda":
        click.echo(f"\npeak memory on the card: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
