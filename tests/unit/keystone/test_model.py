"""The model beyond the fixtures: padding, generation, training, PEFT, configurations and refusals."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import small_models
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_models import PAD
from torch import Tensor
from transformers import AutoModelForCausalLM

from keystone import KeystoneCache, KeystoneConfig, KeystoneForCausalLM
from keystone.errors import CheckpointError, ConfigurationError, InvalidInputError

PARITY = Path(__file__).parents[2] / "parity"
CHANGES = {"plt_num_loops": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
small_config = partial(small_models.small_config, **CHANGES)
small_model = partial(small_models.small_model, **CHANGES)


def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, PAD, (length,), generator=generator) for length in (9, 4, 1, 6)]


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask


@pytest.mark.parametrize("loops", [1, 2, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_on_a_padded_batch_equals_one_by_one(loops: int, side: str) -> None:
    model = small_model(plt_num_loops=loops)
    rows = prompts()
    ids, mask = padded(rows, side)
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    for index, row in enumerate(rows):
        alone = model.generate(row[None], attention_mask=torch.ones_like(row)[None], max_new_tokens=12, do_sample=False)
        assert batch[index, ids.shape[1] :].tolist() == alone[0, len(row) :].tolist()


def test_generate_without_a_mask_finds_padding_by_its_token() -> None:
    model = small_model()
    ids, mask = padded(prompts(), "right")
    assert torch.equal(
        model.generate(ids, max_new_tokens=5, do_sample=False),
        model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False),
    )


def test_generate_with_a_cache_equals_generate_without() -> None:
    model = small_model()
    ids, mask = padded(prompts(), "left")
    with_cache = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False)
    without = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, use_cache=False)
    assert torch.equal(with_cache, without)


def test_beam_search_reorders_the_cache() -> None:
    model = small_model()
    row = prompts()[0][None]
    settings = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "attention_mask": torch.ones_like(row)}
    assert torch.equal(model.generate(row, **settings), model.generate(row, use_cache=False, **settings))


@pytest.mark.parametrize(
    "changes",
    [
        {"plt_num_loops": 3},
        {"plt_gate_use_hidden_states": False},
        {"plt_normalize_per_loop": False},
        {"plt_window_size": [0, 0]},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0}},
    ],
    ids=",".join,
)
def test_incremental_logits_equal_one_pass(changes: dict[str, object]) -> None:
    model = small_model(**changes)
    ids = prompts()[0][None]
    whole = model(ids).logits
    output, logits = None, []
    for index in range(ids.shape[1]):
        past = None if output is None else output.past_key_values
        output = model(ids[:, index : index + 1], past_key_values=past, use_cache=True)
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=2e-5, rtol=0)


def test_no_later_token_and_no_pad_reaches_an_earlier_logit() -> None:
    model = small_model()
    ids, mask = padded(prompts(), "left")
    before = model(ids, attention_mask=mask).logits
    changed = ids.clone()
    changed[mask == 0] = 7
    changed[:, -1] = (changed[:, -1] + 1) % PAD
    after = model(changed, attention_mask=mask).logits
    real_but_last = mask.bool().clone()
    real_but_last[:, -1] = False
    torch.testing.assert_close(after[real_but_last], before[real_but_last], atol=1e-6, rtol=0)
    assert (after[:, -1] - before[:, -1]).abs().max() > 1e-3


def test_a_padded_slot_shows_the_last_real_logits() -> None:
    model = small_model()
    ids, mask = padded(prompts(), "right")
    logits = model(ids, attention_mask=mask).logits
    for index, row in enumerate(prompts()):
        torch.testing.assert_close(logits[index, -1], model(row[None]).logits[0, -1], atol=2e-5, rtol=0)


def test_gradients_flow_through_every_parameter_and_checkpointing_changes_none() -> None:
    ids = prompts()[0][None]
    gradients = []
    for checkpointing in (False, True):
        model = small_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("changed", ["eager", "with a cache"])
def test_gradients_of_a_long_row_do_not_depend_on_how_it_is_computed(changed: str) -> None:
    """Blocks of queries against one product, and keys kept in a cache's buffers against keys passed along."""
    ids = torch.randint(0, PAD, (1, 600), generator=torch.Generator().manual_seed(1))
    model = small_model()
    gradients = []
    for settings in ({"use_cache": False}, {"use_cache": changed == "with a cache"}):
        model.zero_grad()
        model(ids, labels=ids, **settings).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        if changed == "eager":
            model.set_attn_implementation("eager")
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=2e-6, rtol=1e-4, msg=name)


def test_rotary_frequencies_stay_in_fp32_whatever_the_model_is_cast_to() -> None:
    model = small_model()
    exact = model.model.rotary_emb.inv_freq.clone()
    assert exact.dtype == torch.float32
    for cast in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(model.to(cast).model.rotary_emb.inv_freq, exact)


def test_peft_attaches_by_module_name() -> None:
    model = small_model()
    ids = prompts()[0][None]
    before = model(ids).logits
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted = wrapped.eval()(ids).logits
    assert (adapted - before).abs().max() > 1e-3
    with wrapped.disable_adapter():
        torch.testing.assert_close(wrapped(ids).logits, before)


def test_tied_embeddings_survive_a_round_trip(tmp_path: Path) -> None:
    model = small_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = KeystoneForCausalLM.from_pretrained(tmp_path).eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again(prompts()[0][None]).logits, model(prompts()[0][None]).logits)


def test_auto_classes_know_the_model(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, KeystoneForCausalLM)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def copied(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    shutil.copytree(PARITY / "batched-decode-fp32", directory)
    return directory


@pytest.mark.parametrize("spelling", ["model.layers.{n}.self_attn.loop_gate_proj.", "model.gate_projections.{n}."])
def test_other_spellings_of_the_gate(tmp_path: Path, spelling: str) -> None:
    directory = copied(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        is_gate = "plt_gate" in parts
        renamed[spelling.format(n=parts[2]) + ".".join(parts[5:]) if is_gate else name] = tensor
    save_file(renamed, directory / "model.safetensors", {"format": "pt"})
    ours = KeystoneForCausalLM.from_pretrained(directory).eval()(torch.arange(9)[None]).logits
    original = KeystoneForCausalLM.from_pretrained(PARITY / "batched-decode-fp32").eval()(torch.arange(9)[None]).logits
    assert torch.equal(ours, original)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop("model.layers.1.self_attn.plt_gate.gate_norm.weight"), "gate_norm"),
        (lambda tensors: tensors.update({"model.layers.1.self_attn.q_norm.weight": torch.ones(16)}), "q_norm"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}), "model.norm.weight"),
    ],
    ids=["missing", "surplus", "misshapen"],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, change: object, named: str) -> None:
    directory = copied(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=named):
        KeystoneForCausalLM.from_pretrained(directory)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    directory = copied(tmp_path)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        KeystoneForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("field", ["plt_num_loops", "plt_emb_scale", "plt_hidden_scale", "plt_window_size"])
def test_a_missing_loop_field_is_refused(tmp_path: Path, field: str) -> None:
    directory = copied(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    del config[field]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=field):
        KeystoneForCausalLM.from_pretrained(directory)


def test_null_scales_mean_one() -> None:
    assert small_config(plt_emb_scale=None, plt_hidden_scale=None).embedding_scale == 1.0
    ids = prompts()[0][None]
    assert torch.equal(
        small_model(plt_emb_scale=None, plt_hidden_scale=None)(ids).logits,
        small_model(plt_emb_scale=1, plt_hidden_scale=1)(ids).logits,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"plt_window_size": [3, 1]},
        {"plt_window_size": [3]},
        {"plt_num_loops": 0},
        {"num_key_value_heads": 3},
        {"hidden_act": "gelu"},
    ],
)
def test_values_that_cannot_be_honoured(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        KeystoneForCausalLM(small_config(**change))


def test_another_model_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="llama"):
        KeystoneConfig.from_dict({"model_type": "llama"})


def test_rope_theta_at_the_top_level_or_inside() -> None:
    fields = small_config().to_dict()
    inside = KeystoneConfig.from_dict(fields)
    del fields["rope_parameters"]
    outside = KeystoneConfig.from_dict({**fields, "rope_theta": 1000.0, "rope_scaling": None})
    assert inside.rope_parameters["rope_theta"] == outside.rope_parameters["rope_theta"] == 1000.0


def test_a_foreign_cache_and_a_bad_mask_are_refused() -> None:
    model = small_model()
    with pytest.raises(InvalidInputError, match="KeystoneCache"):
        model(torch.arange(4)[None], past_key_values=object())
    with pytest.raises(InvalidInputError, match="attention_mask"):
        model(torch.arange(4)[None], attention_mask=torch.ones(1, 3))
    with pytest.raises(InvalidInputError):
        model()
    with pytest.raises(InvalidInputError, match="cropped"):
        KeystoneCache(model.config).crop(1)
