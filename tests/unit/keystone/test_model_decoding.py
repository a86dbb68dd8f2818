"""Parallel decoding under everything that stands around a model: `generate`, PEFT, quantization, bf16, compilation."""

import os
from functools import partial
from typing import Any

import pytest
import small_models
import torch
from peft import LoraConfig, get_peft_model
from small_models import PAD
from torch import Tensor, nn

from keystone import KeystoneCache
from keystone.errors import InvalidInputError
from keystone.model import DecodeMode, decoding
from keystone.quantize import quantize, recipe_for

small_model = partial(small_models.small_model, hidden_size=64, intermediate_size=128, initializer_range=0.15)


def padded_batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, PAD, (3, 8), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask[2, :2] = 0
    return ids.masked_fill(mask == 0, PAD), mask


def generated(model: nn.Module, mode: DecodeMode, **settings: Any) -> Tensor:
    ids, mask = padded_batch()
    torch.manual_seed(11)
    with decoding(model, mode):
        made: Tensor = model.generate(ids, attention_mask=mask, max_new_tokens=12, **settings)  # type: ignore[operator]
    return made


def decoded(model: nn.Module, mode: DecodeMode) -> Tensor:
    """Logits `[3, 10, V]` of ten fixed tokens behind a padded batch of prompts."""
    ids, mask = padded_batch()
    with torch.inference_mode(), decoding(model, mode):
        output = model(input_ids=ids, attention_mask=mask, use_cache=True)
        logits = []
        for step in range(10):
            token = torch.full((3, 1), 7 * step % PAD)
            output = model(input_ids=token, past_key_values=output.past_key_values)
            logits.append(output.logits)
    return torch.cat(logits, dim=1).float()


def difference(first: Tensor, second: Tensor) -> float:
    return float(torch.linalg.norm(first - second) / torch.linalg.norm(second))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.8, "top_k": 0},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=["greedy", "sampled", "beams", "several"],
)
def test_generate_gives_the_same_tokens_in_both_modes(settings: dict[str, Any]) -> None:
    model = small_model()
    assert torch.equal(generated(model, "parallel", **settings), generated(model, "sequential", **settings))


def test_generate_needs_no_mask_after_the_prompt() -> None:
    """The mask is dropped behind the first call, and with it the wait for the device to look for pads."""
    model = small_model()
    masks: list[bool] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: masks.append(kwargs.get("attention_mask") is not None), with_kwargs=True
    )
    generated(model, "parallel", do_sample=False)
    hook.remove()
    assert masks == [True] + [False] * 11


def test_a_step_calls_every_linear_once_and_sequential_loops_call_it_for_each_loop() -> None:
    model = small_model()
    calls = {"parallel": 0, "sequential": 0}
    for mode in ("parallel", "sequential"):
        cache = KeystoneCache(model.config)
        model(torch.arange(5)[None], past_key_values=cache)

        def count(*_: object, mode: str = mode) -> None:
            calls[mode] += 1

        hooks = [layer.mlp.down_proj.register_forward_hook(count) for layer in model.model.layers]
        with decoding(model, mode):
            model(torch.arange(1)[None], past_key_values=cache)
        for hook in hooks:
            hook.remove()
    assert calls == {"parallel": 2, "sequential": 6}


def test_with_an_adapter() -> None:
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(small_model(), settings).eval()
    assert difference(decoded(model, "parallel"), decoded(model, "sequential")) < 1e-5
    assert torch.equal(generated(model, "parallel", do_sample=False), generated(model, "sequential", do_sample=False))
    with model.disable_adapter():
        bare = decoded(model, "parallel")
    assert difference(decoded(model, "parallel"), bare) > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_bf16(attention: str) -> None:
    model = small_model().bfloat16()
    model.set_attn_implementation(attention)
    exact = decoded(small_model(), "sequential")
    assert difference(decoded(model, "parallel"), exact) < 0.05
    assert difference(decoded(model, "sequential"), exact) < 0.05


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_quantized(scheme: Any) -> None:
    model = small_model().bfloat16()
    plain = decoded(model, "sequential")
    quantize(model, recipe_for(model, scheme))
    parallel, sequential = decoded(model, "parallel"), decoded(model, "sequential")
    assert difference(parallel, sequential) < 0.05
    assert difference(parallel, plain) > 1e-3


@pytest.mark.skipif("KEYSTONE_TEST_COMPILE" not in os.environ, reason="half a minute: set KEYSTONE_TEST_COMPILE=1")
def test_traced_by_the_compiler() -> None:
    """Tracing breaks the graph around the cache's bookkeeping, and changes no number."""
    model = small_model(plt_num_loops=2, num_hidden_layers=1)
    expected = decoded(model, "parallel")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", dynamic=True)
    ids, mask = padded_batch()
    with torch.inference_mode():
        output = compiled(input_ids=ids, attention_mask=mask, use_cache=True)
        for step in range(2):
            token = torch.full((3, 1), 7 * step % PAD)
            output = compiled(input_ids=token, past_key_values=output.past_key_values)
            torch.testing.assert_close(output.logits[:, 0], expected[:, step], atol=1e-5, rtol=0)
    torch._dynamo.reset()


def test_only_a_model_with_loops_has_a_decode_mode() -> None:
    with pytest.raises(InvalidInputError, match="Linear"), decoding(nn.Linear(2, 2), "parallel"):
        pass
    model = small_model()
    with decoding(model, "sequential"):
        assert model.model.decode == "sequential"
    assert model.model.decode == "parallel"


def test_the_head_is_given_one_plain_matrix() -> None:
    """Rows that lie apart cost a copy of the head's weight and tens of times its time in bf16 on a processor."""
    model = small_model()
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].stride()))
    ids = torch.randint(PAD, (3, 9), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        output = model(input_ids=ids[:1], use_cache=True, logits_to_keep=1)
        model(input_ids=ids[:1, :1], past_key_values=output.past_key_values)
        assert model(input_ids=ids, logits_to_keep=2).logits.shape == (3, 2, model.config.vocab_size)
    assert all(stride == (model.config.hidden_size, 1) for stride in seen)
    assert len(seen) == 3
