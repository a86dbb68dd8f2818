"""Directories as they lie on the Hub, with what years of tools have left in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import byte_tokenizer, edit_config, family_model, prompt_ids, save
from transformers import PreTrainedModel

from csf_store import Archive
from keystone.checkpoints import archived_tokenizer, assemble_base
from keystone.checkpoints.huggingface import Choices, read_directory
from keystone.checkpoints.importing import import_checkpoint, plan_import
from keystone.generation import end_ids

END = {"content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return family_model("llama")


def write(directory: Path, name: str, document: object) -> None:
    (directory / name).write_text(json.dumps(document))


def merged_shards(directory: Path) -> None:
    write(
        directory,
        "model.safetensors.index.json",
        {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}},
    )


def index_of_a_pickle(directory: Path) -> None:
    names = [*load_file(directory / "model.safetensors"), "model.layers.0.self_attn.rotary_emb.inv_freq"]
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    write(directory, "model.safetensors.index.json", {"metadata": {"total_size": 1.0}, "weight_map": weight_map})


def odd_padding(directory: Path) -> None:
    edit_config(directory, pad_token_id=-1)


def padding_beyond(directory: Path) -> None:
    edit_config(directory, pad_token_id=300)


def answers_in_the_configuration(directory: Path) -> None:
    edit_config(directory, temperature=0.9, top_p=0.6, do_sample=True, max_length=4096, _flash_attn_2_enabled=True)


@pytest.mark.parametrize(
    "left",
    [merged_shards, index_of_a_pickle, odd_padding, padding_beyond, answers_in_the_configuration],
)
def test_what_changes_nothing_is_no_reason_to_refuse(
    left: Callable[[Path], None], llama: PreTrainedModel, tmp_path: Path
) -> None:
    directory = save(llama, tmp_path / "left")
    left(directory)
    with Archive.open(tmp_path / "archive", create=True) as archive:
        base = import_checkpoint(archive, plan_import(read_directory(directory, Choices()))).base
        ours = assemble_base(archive, base)
    with torch.no_grad():
        assert (ours(prompt_ids()).logits - llama(prompt_ids()).logits).abs().max() <= 1e-4
    assert ours.config.pad_token_id is None


@pytest.mark.parametrize("spelling", ["map", "typed", "decoder"])
def test_special_tokens_in_every_spelling(spelling: str, llama: PreTrainedModel, tmp_path: Path) -> None:
    directory = save(llama, tmp_path / "spelled")
    path = directory / "tokenizer_config.json"
    config: dict[str, Any] = {
        **json.loads(path.read_text()),
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
    }
    config["chat_template"] = [
        {"name": "default", "template": "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}"},
        {"name": "tool_use", "template": "tools"},
    ]
    del config["eos_token"]
    match spelling:
        case "map":
            write(directory, "special_tokens_map.json", {"eos_token": END, "additional_special_tokens": [END]})
        case "typed":
            config["eos_token"] = {"__type": "AddedToken", **END}
        case "decoder":
            config |= {"eos_token": "<|im_end|>", "added_tokens_decoder": {"258": {**END, "special": True}}}
    path.write_text(json.dumps(config))
    write(directory, "generation_config.json", {"eos_token_id": [1, 7], "do_sample": True, "temperature": 0.6})
    with Archive.open(tmp_path / "archive", create=True) as archive:
        done = import_checkpoint(archive, plan_import(read_directory(directory, Choices())))
        tokenizer = archived_tokenizer(archive, done.tokenizer)
        model = assemble_base(archive, done.base)
    assert tokenizer.eos_token_id == len(byte_tokenizer()) == 258
    assert tokenizer("a<|im_end|>")["input_ids"][-1] == 258
    assert tokenizer.decode([258], skip_special_tokens=True) == ""
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a<|im_end|>\n"
    assert end_ids(model, tokenizer) == {1, 7, 258}


def test_norms_in_another_dtype_are_taken_as_they_are(llama: PreTrainedModel, tmp_path: Path) -> None:
    directory = save(llama, tmp_path / "mixed")
    tensors = load_file(directory / "model.safetensors")
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(mixed, directory / "model.safetensors", metadata={"format": "pt"})
    with Archive.open(tmp_path / "archive", create=True) as archive:
        base = import_checkpoint(archive, plan_import(read_directory(directory, Choices()))).base
        held = dict(assemble_base(archive, base).named_parameters())
    assert all(torch.equal(held[name], tensor) for name, tensor in mixed.items())
