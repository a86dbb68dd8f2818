"""The golden fixtures: what the vendor's own code computed on small random checkpoints, and the bars to stay within."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from keystone import KeystoneCache, KeystoneForCausalLM
from keystone.model import DecodeMode, decoding

HERE = Path(__file__).parent
FP32_BAR = 5e-4
BF16_BAR = 0.045


def load(case: str, attention: str = "sdpa") -> tuple[KeystoneForCausalLM, dict[str, Tensor]]:
    model = KeystoneForCausalLM.from_pretrained(HERE / case, attn_implementation=attention)
    return model.eval(), load_file(HERE / case / "reference.safetensors")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def worst(ours: Tensor, reference: Tensor) -> float:
    return float((ours.float() - reference.float()).abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_two_loops_in_fp32(attention: str) -> None:
    model, reference = load("two-loops-fp32", attention)
    assert worst(model(reference["input_ids"][None]).logits[0], reference["logits"]) <= FP32_BAR


def test_intermediates_of_both_loops() -> None:
    model, reference = load("two-loops-fp32")
    seen: dict[str, list[Tensor]] = {"layer0": [], "norm": [], "gate0": []}
    hooks = [
        model.model.layers[0].register_forward_hook(lambda _, __, out: seen["layer0"].append(out[0][0])),
        model.model.norm.register_forward_hook(lambda _, __, out: seen["norm"].append(out[0])),
        model.model.layers[0].self_attn.plt_gate.register_forward_hook(lambda _, __, out: seen["gate0"].append(out[0])),
    ]
    model(reference["input_ids"][None], use_cache=False)
    for hook in hooks:
        hook.remove()
    names = [
        "loop0.layer0.output",
        "loop1.layer0.output",
        "loop0.output_normed",
        "loop1.output_normed",
        "loop1.layer0.gate",
    ]
    ours = [*seen["layer0"], *seen["norm"], *seen["gate0"]]
    for name, tensor in zip(names, ours, strict=True):
        assert worst(tensor, reference[name]) <= FP32_BAR, name


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("cuts", [[7, 8, 90, 91, 170], [1, 2, 3, 64, 65, 66, 130], list(range(1, 200))])
def test_chunked_prefill_equals_one_pass(cuts: list[int], mode: DecodeMode) -> None:
    model, reference = load("two-loops-fp32")
    model.model.decode = mode
    ids, past, logits = reference["input_ids"][None], None, []
    for start, end in zip([0, *cuts], [*cuts, 200], strict=True):
        output = model(ids[:, start:end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits.append(output.logits[0])
    assert worst(torch.cat(logits), reference["logits"]) <= FP32_BAR


def test_two_loops_in_bf16() -> None:
    model, reference = load("two-loops-bf16")
    assert model.dtype == torch.bfloat16
    ours = model(reference["input_ids"][None]).logits[0].float()
    error = torch.linalg.norm(ours - reference["logits"]) / torch.linalg.norm(reference["logits"])
    assert error <= BF16_BAR


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_two_loops_in_bf16_token_by_token(mode: DecodeMode) -> None:
    model, reference = load("two-loops-bf16")
    cache = KeystoneCache(model.config)
    with decoding(model, mode):
        logits = [model(token[None, None], past_key_values=cache).logits[0] for token in reference["input_ids"]]
    error = torch.linalg.norm(torch.cat(logits).float() - reference["logits"]) / torch.linalg.norm(reference["logits"])
    assert error <= BF16_BAR


def test_bf16_weights_computed_in_fp32() -> None:
    model, reference = load("two-loops-bf16")
    ours = model.float()(reference["input_ids"][None]).logits[0]
    assert worst(ours, reference["logits_fp32_compute"]) <= FP32_BAR


def fed_by_schedule(model: KeystoneForCausalLM, reference: dict[str, Tensor]) -> list[Tensor]:
    """Feed three sequences side by side as the schedule says; a sequence with fewer tokens in a step is padded."""
    lengths = reference["prompt_lens"].tolist()
    streams = [
        torch.cat([reference["input_ids"][row, :length], reference["decode_input_ids"][row]])
        for row, length in enumerate(lengths)
    ]
    fed, past, mask, logits = [0, 0, 0], None, torch.zeros(3, 0, dtype=torch.long), [[], [], []]
    for counts in reference["schedule"].tolist():
        ids = torch.zeros(3, max(counts), dtype=torch.long)
        real = torch.zeros_like(ids)
        for row, count in enumerate(counts):
            ids[row, :count] = streams[row][fed[row] : fed[row] + count]
            real[row, :count] = 1
        mask = torch.cat([mask, real], dim=1)
        output = model(ids, attention_mask=mask, past_key_values=past, use_cache=True)
        past = output.past_key_values
        for row, count in enumerate(counts):
            logits[row].append(output.logits[row, :count])
            fed[row] += count
    assert fed == [len(stream) for stream in streams]
    return [torch.cat(rows) for rows in logits]


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_batched_decode_with_unequal_lengths(attention: str, mode: DecodeMode) -> None:
    model, reference = load("batched-decode-fp32", attention)
    with decoding(model, mode):
        fed = fed_by_schedule(model, reference)
    for row, ours in enumerate(fed):
        expected = torch.cat([reference[f"prefill_logits.{row}"], reference["decode_logits"][row]])
        assert worst(ours, expected) <= FP32_BAR, f"sequence {row}"


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_each_sequence_alone(row: int, mode: DecodeMode) -> None:
    model, reference = load("batched-decode-fp32")
    model.model.decode = mode
    length = int(reference["prompt_lens"][row])
    output = model(reference["input_ids"][row : row + 1, :length], past_key_values=KeystoneCache(model.config))
    assert worst(output.logits[0], reference[f"prefill_logits.{row}"]) <= FP32_BAR
    for step, token in enumerate(reference["decode_input_ids"][row]):
        output = model(token[None, None], past_key_values=output.past_key_values)
        assert worst(output.logits[0, -1], reference["decode_logits"][row, step]) <= FP32_BAR, f"step {step}"


def test_sequences_that_join_late_and_come_back() -> None:
    """The batched fixture once more: each prompt alone, merged one after the other, one taken out and put back."""
    model, reference = load("batched-decode-fp32")
    lengths = reference["prompt_lens"].tolist()
    caches = [KeystoneCache(model.config) for _ in lengths]
    for row, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
        model(reference["input_ids"][row : row + 1, :length], past_key_values=cache)
    tokens, expected = reference["decode_input_ids"], reference["decode_logits"]
    batch, members, fed = caches[0], [0], [0, 0, 0]
    for turn in range(24):
        if turn in (2, 5):
            batch, members = KeystoneCache.merge([batch, caches[len(members)]]), [*members, len(members)]
        if turn == 8:
            away = batch.fork()
            away.select([1])
            batch.remove(1)
            members.remove(1)
        if turn == 11:
            batch, members = KeystoneCache.merge([away, batch]), [1, *members]
        done = [row for row in members if fed[row] == tokens.shape[1]]
        if done:
            batch.select([members.index(row) for row in members if row not in done])
            members = [row for row in members if row not in done]
        ids = torch.stack([tokens[row, fed[row] : fed[row] + 1] for row in members])
        logits = model(ids, past_key_values=batch).logits[:, 0]
        for row, ours in zip(members, logits, strict=True):
            assert worst(ours, expected[row, fed[row]]) <= FP32_BAR, f"sequence {row}, step {fed[row]}"
            fed[row] += 1
        if fed == [tokens.shape[1]] * 3:
            return
    raise AssertionError(f"the turns ended before the sequences: {fed}")


def test_a_wrong_shift_window_scale_or_eps_would_be_seen() -> None:
    """The bars have teeth: each mistake the fixtures are there to catch moves the logits beyond them."""
    _, reference = load("two-loops-fp32")
    for change in ({"plt_window_size": [63, 0]}, {"plt_emb_scale": 1.0}, {"rms_norm_eps": 1e-6}, {"plt_num_loops": 1}):
        model = KeystoneForCausalLM.from_pretrained(HERE / "two-loops-fp32").eval()
        for name, value in change.items():
            setattr(model.config, name, value)
        for module in model.modules():
            if hasattr(module, "eps"):
                module.eps = model.config.rms_norm_eps
        assert worst(model(reference["input_ids"][None]).logits[0], reference["logits"]) > FP32_BAR, change
