"""A one-loop model against transformers' own Llama on the same weights: prefill and decode. And long prompts: memory.

    python bench/prefill.py [--layers N] [--tokens N] [--steps N]
    python bench/prefill.py --long 32768

The first prints seconds of both, in interleaved rounds, with the ratio within a round; bf16, batch 1, tensors shared.
The second prefills one prompt on a model shaped like keystone-nano, two loops, and prints how far the process's peak
memory rose; run it in a process of its own, as the command line does.
"""

import platform
import resource
import statistics
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from keystone import KeystoneCache, KeystoneConfig, KeystoneForCausalLM
from keystone.cli.quiet import quiet_libraries
from keystone.model import cache_bytes

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
}
ONE_LOOP = {"plt_num_loops": 1, "plt_emb_scale": 1.0, "plt_hidden_scale": 0.0}
NANO = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "plt_num_loops": 2,
    "plt_emb_scale": 0.707,
    "plt_hidden_scale": 0.053,
    "plt_window_size": [64, 0],
}


def both(layers: int) -> tuple[KeystoneForCausalLM, LlamaForCausalLM]:
    """Two models, one set of tensors."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=layers, rope_parameters=rope)).bfloat16().eval()
    # Casting it has rounded its rotary frequencies, too, which `from_pretrained` would not do.
    theirs.model.rotary_emb = LlamaRotaryEmbedding(theirs.config)
    with torch.device("meta"):
        ours = KeystoneForCausalLM(KeystoneConfig(**SHAPE, **ONE_LOOP, num_hidden_layers=layers, rope_parameters=rope))
    ours.load_state_dict(theirs.state_dict(), assign=True)
    ours.model.rotary_emb = ours.model.rotary_emb.to_empty(device="cpu")
    return ours.eval(), theirs


def prefill_seconds(model: PreTrainedModel, ids: Tensor) -> float:
    started = time.perf_counter()
    model(ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - started


def decode_seconds(model: PreTrainedModel, ids: Tensor, steps: int) -> float:
    output = model(ids, use_cache=True, logits_to_keep=1)
    started = time.perf_counter()
    for _ in range(steps):
        output = model(ids[:, :1], past_key_values=output.past_key_values)
    return (time.perf_counter() - started) / steps


def compare(
    name: str, measure: Callable[[PreTrainedModel], float], models: tuple[PreTrainedModel, ...], rounds: int
) -> None:
    times: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 1):
        for model, seconds in zip(models, times, strict=True):
            measured = measure(model)
            if turn:  # the first round warms up
                seconds.append(measured)
    ours, theirs = times
    ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
    click.echo(
        f"| {name} | {statistics.median(ours) * 1e3:.1f} | {statistics.median(theirs) * 1e3:.1f} | {ratio:.3f} |"
    )


def long_prompt(tokens: int) -> None:
    torch.manual_seed(0)
    model = KeystoneForCausalLM(KeystoneConfig(**NANO)).bfloat16().eval()
    cache = KeystoneCache(model.config)
    with torch.inference_mode():
        model(torch.arange(64)[None], logits_to_keep=1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        model(torch.arange(tokens)[None] % 4096, past_key_values=cache, logits_to_keep=1)
        seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    click.echo(
        f"{tokens} tokens, keystone-nano's shape in bf16: {seconds:.1f} s, peak memory {before / 1024:.0f} -> "
        f"{after / 1024:.0f} MiB; cache {cache.nbytes() / 2**20:.1f} MiB, "
        f"{cache_bytes(model.config, tokens) / 2**20:.1f} by the formula; "
        f"one mask of prompt times prompt would be {tokens * tokens / 2**20:.0f} MiB"
    )


@click.command()
@click.option("--layers", default=8, show_default=True)
@click.option("--tokens", default=512, show_default=True, help="Prompt of the prefill, and before decoding.")
@click.option("--steps", default=16, show_default=True, help="Tokens decoded in a round.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--long", type=int, help="Prefill one prompt of so many tokens instead, and print its memory.")
def main(layers: int, tokens: int, steps: int, rounds: int, long: int | None) -> None:
    """Print a markdown table, or a line about a long prompt."""
    quiet_libraries()
    if long is not None:
        long_prompt(long)
        return
    models = both(layers)
    ids = torch.arange(tokens)[None] % 32000
    click.echo(
        f"{layers} layers, bf16; torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads\n"
    )
    click.echo("| | one-loop Keystone, ms | transformers' Llama, ms | ratio |\n|---|---|---|---|")
    with torch.inference_mode():
        difference = (models[0](ids).logits - models[1](ids).logits).float().abs().max()
        compare(f"prefill of {tokens} tokens", lambda model: prefill_seconds(model, ids), models, rounds)
        compare("a decode step", lambda model: decode_seconds(model, ids, steps), models, rounds)
    click.echo(f"\nlargest difference of a bf16 logit: {difference:.3f}")


if __name__ == "__main__":
    main()
