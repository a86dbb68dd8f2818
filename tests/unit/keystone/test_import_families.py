"""Checkpoints of other families as transformers saves them: imported, loaded, and compared logit by logit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import SIZES, THETA, edit_config, family_model, prompt_ids, save

from csf_store import Archive
from keystone.checkpoints import assemble_base
from keystone.checkpoints.families import FAMILIES, OTHER_FAMILIES, read_family
from keystone.checkpoints.huggingface import Choices, read_directory
from keystone.checkpoints.importing import import_checkpoint, plan_import
from keystone.errors import CheckpointError, ConfigurationError
from keystone.model import KeystoneForCausalLM

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama, all heads their own": ("llama", {"num_key_value_heads": 4}),
    "llama3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "linear scaling": ("llama", {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 2.0}}),
    "dynamic scaling": ("llama", {"rope_parameters": {**THETA, "rope_type": "dynamic", "factor": 2.0}}),
    "yarn scaling": ("llama", {"rope_parameters": YARN}),
    "another theta and eps": ("llama", {"rope_parameters": {**THETA, "rope_theta": 5e5}, "rms_norm_eps": 1e-3}),
    "mistral": ("mistral", {"head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {**THETA, "rope_theta": 1e6}}),
    "seed_oss": ("seed_oss", {"head_dim": 16, "attention_bias": True}),
}


def imported(directory: Path, archive: Path, choices: Choices = Choices()) -> KeystoneForCausalLM:  # noqa: B008
    with Archive.open(archive, create=True) as opened:
        done = import_checkpoint(opened, plan_import(read_directory(directory, choices)))
        return assemble_base(opened, done.base)


@pytest.mark.parametrize("case", CASES)
def test_an_import_computes_what_transformers_computes(case: str, tmp_path: Path) -> None:
    family, fields = CASES[case]
    theirs = family_model(family, **fields)
    ours = imported(save(theirs, tmp_path / "theirs"), tmp_path / "archive")
    length = 100 if case == "dynamic scaling" else 50  # beyond the context, where dynamic scaling begins
    ids = prompt_ids(length)
    with torch.no_grad():
        difference = (ours(ids).logits - theirs(ids).logits).abs().max()
    assert difference <= 1e-4
    assert ours.config.plt_num_loops == 1


def test_every_family_is_tried() -> None:
    assert {family for family, _ in CASES.values()} == set(FAMILIES)


def fields_of(family: str, **fields: Any) -> dict[str, object]:
    base = {**SIZES, "model_type": family, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    document: dict[str, object] = {**base, **fields}
    return {name: value for name, value in document.items() if value is not ...}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sliding_window": 16, "model_type": "mistral"}, "sliding_window is 16"),
        ({"sliding_window": ..., "model_type": "mistral", "max_position_embeddings": 8192}, "sliding_window is 4096"),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "model_type": "qwen2"}, "sliding"),
        ({"layer_types": ["chunked_attention"] * 2, "model_type": "qwen2"}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"attn_logit_softcapping": 50.0}, "softly"),
        ({"embedding_multiplier": 12.0}, "scales"),
        ({"use_qk_norm": True}, "norms on queries and keys"),
        ({"rope_interleaved": True}, "neighbouring"),
        ({"no_rope_layers": [1, 0]}, "positions"),
        ({"wholly_new_field": 3}, "--ignore-field wholly_new_field"),
        ({"wholly_new_field": 0}, "--ignore-field wholly_new_field"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}}, "longrope"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "mrope"),
        ({"rope_parameters": {**THETA, "rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {**THETA, "rope_type": "linear", "factor": -2.0}}, "factor"),
        ({"rope_parameters": {**THETA, "secret": 1.0}}, "secret"),
        ({"rms_norm_eps": ...}, "rms_norm_eps"),
        ({"vocab_size": ...}, "vocab_size"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_other.Other"}}, "auto_map"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        read_family(fields_of(fields.get("model_type", "llama"), **fields))


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families_are_refused_with_the_reason(family: str) -> None:
    with pytest.raises(ConfigurationError, match=OTHER_FAMILIES[family]):
        read_family(fields_of(family))


def test_fields_that_change_nothing_pass_and_unknown_ones_are_reported() -> None:
    config, _, notes = read_family(
        fields_of("llama", torch_dtype="bfloat16", pretraining_tp=2, brand_new=None, num_experts=0, blessed=7),
        ignored=("blessed",),
    )
    assert config.num_hidden_layers == 2
    assert {note.name for note in notes} == {"brand_new", "blessed"}


def test_a_window_as_long_as_the_context_is_none() -> None:
    config, _, notes = read_family(fields_of("mistral", sliding_window=64))
    assert config.max_position_embeddings == 64
    assert [note.name for note in notes] == ["sliding_window"]


def test_norms_on_queries_are_refused_by_their_tensors_too(tmp_path: Path) -> None:
    model = family_model("llama")
    state = {**model.state_dict(), "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}
    directory = save(model, tmp_path / "theirs", state_dict=state)
    with pytest.raises(CheckpointError, match=r"q_norm.weight \(norms on queries and keys"):
        imported(directory, tmp_path / "archive")


def test_a_base_is_the_same_whoever_wrote_the_configuration(tmp_path: Path) -> None:
    """Book-keeping in config.json does not make another base."""
    directory = save(family_model("llama"), tmp_path / "theirs")
    with Archive.create(tmp_path / "archive") as archive:
        first = import_checkpoint(archive, plan_import(read_directory(directory, Choices())))
        edit_config(directory, transformers_version="4.1.0", use_cache=False, _name_or_path="/somewhere")
        second = import_checkpoint(archive, plan_import(read_directory(directory, Choices())))
        assert first.base == second.base
        entry = next(entry for entry in archive.tree(first.base).entries if entry.path == "config.json")
        assert json.loads(archive.get_bytes(entry.blob))["model_type"] == "keystone_plt"
