"""Adapter directories: what is read, what is refused by name, and the one form they are written in."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_lab import TARGETS, Lab, edit_config, edit_tensors, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model

from adapters import (
    AdapterError,
    AdapterNotFoundError,
    InvalidAdapterError,
    LoraSettings,
    MissingTensorError,
    OutputExistsError,
    PickleAdapterError,
    SurplusTensorError,
    TensorShape,
    TrainingResult,
    UnsupportedAdapterError,
    canonical_config,
    read_adapter,
    write_adapter,
)
from adapters.peft_config import parse_config
from adapters.peft_format import sort_tensors

A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_a_good_directory_is_read(lab: Lab) -> None:
    adapter = read_adapter(lab.adapter)
    assert adapter.settings.r == 4 and adapter.settings.target_modules == TARGETS
    assert sorted(adapter.modules) == sorted(
        f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in TARGETS
    )
    assert adapter.modules["model.layers.0.self_attn.q_proj"]["lora_A.weight"] == TensorShape("F32", (4, 32))


@pytest.mark.filterwarnings("ignore")
def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path / "peft")
    assert (tmp_path / "peft" / "README.md").exists()
    assert len(read_adapter(tmp_path / "peft").modules) == 6


def test_what_we_write_peft_reads_with_the_same_result(lab: Lab, trained: TrainingResult) -> None:
    ids = torch.arange(10).unsqueeze(0)
    again = PeftModel.from_pretrained(tiny_model(), str(lab.adapter)).eval()
    with torch.no_grad():
        expected, found = trained.model(ids).logits, again(ids).logits
        bare = tiny_model()(ids).logits
    assert torch.equal(expected, found)
    assert not torch.equal(expected, bare)


def test_the_written_form_is_canonical(lab: Lab, trained: TrainingResult, tmp_path: Path) -> None:
    config = (lab.adapter / "adapter_config.json").read_bytes()
    value = json.loads(config)
    assert value["target_modules"] == sorted(value["target_modules"])
    assert not {"base_model_name_or_path", "peft_version", "revision"} & value.keys()
    assert str(tmp_path).encode() not in config and b"/" not in config
    second = write_adapter(trained.model, tmp_path / "second")
    assert sorted(p.name for p in second.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (second / name).read_bytes() == (lab.adapter / name).read_bytes()


def test_set_order_does_not_reach_the_config() -> None:
    names = [f"m{n}_proj" for n in range(20)]
    one = canonical_config(LoraConfig(target_modules=names).to_dict())
    two = canonical_config(LoraConfig(target_modules=names[::-1]).to_dict())
    assert one == two and one["target_modules"] == sorted(names)


def test_writing_over_something_is_refused(trained: TrainingResult, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(OutputExistsError, match="there"):
        write_adapter(trained.model, tmp_path / "there")
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["file"]


@pytest.mark.parametrize(
    "field",
    [
        {"trainable_token_indices": [1]},
        {"layer_replication": [[0, 2]]},
        {"target_parameters": ["x"]},
        {"some_future_peft_field": {"on": True}},
    ],
)
def test_features_we_do_not_check_are_refused_by_name(lab: Lab, field: dict[str, object]) -> None:
    with pytest.raises(UnsupportedAdapterError, match=next(iter(field))):
        read_adapter(edit_config(lab.adapter, **field))
    with pytest.raises(UnsupportedAdapterError, match=next(iter(field))):
        canonical_config({**LoraConfig(target_modules=["q_proj"]).to_dict(), **field})


def test_unknown_fields_that_are_off_and_book_keeping_are_fine(lab: Lab) -> None:
    edit_config(lab.adapter, future_flag=False, future_config=None, base_model_name_or_path="/home/x", peft_version="9")
    assert read_adapter(lab.adapter).settings.r == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": None}, "peft_type"),
        ({"r": 0}, "field r"),
        ({"r": "4"}, "field r"),
        ({"r": True}, "field r"),
        ({"r": 10**30}, "field r"),
        ({"r": 4.0}, "field r"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"target_modules": "(a+)+$"}, "pattern"),
        ({"target_modules": "all-linear"}, "pattern"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["../q_proj"]}, "target_modules"),
        ({"target_modules": ["q_proj\n"]}, "target_modules"),
        ({"target_modules": ["q\uff3fproj"]}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": {"q_proj": 1}}, "target_modules"),
        ({"target_modules": [f"m{n}" for n in range(5000)]}, "target_modules"),
        ({"rank_pattern": {"(a+)+$": 2}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"exclude_modules": ".*"}, "exclude_modules"),
        ({"bias": "some"}, "bias"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"layers_to_transform": [-1]}, "layers_to_transform"),
        ({"layers_to_transform": "0"}, "layers_to_transform"),
    ],
)
def test_malformed_fields_are_named(lab: Lab, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidAdapterError, match=says) as caught:
        read_adapter(edit_config(lab.adapter, **changes))
    assert caught.value.exit_code == 7 and "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"r":1,"r":2}',
        b"\xff",
        b'{"a":' * 200_000,
        b"[" * 200_000,
        b'{"r":' + b"9" * 100_000 + b"}",
        b'{"peft_type":"LORA","lora_alpha":NaN,"r":1,"target_modules":["q"]}',
        b" " * (2**20 + 1),
    ],
)
def test_hostile_config_bytes(data: bytes) -> None:
    with pytest.raises(InvalidAdapterError, match=r"where\.json"):
        parse_config(data, where="where.json")


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "training_args.bin", "x.pt", "deep/optimizer.PTH", "x.pkl", "x.ckpt"]
)
def test_pickles_are_refused_by_name(lab: Lab, name: str) -> None:
    path = lab.adapter / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"harmless looking")
    with pytest.raises(PickleAdapterError, match=path.name):
        read_adapter(lab.adapter)


def test_pickles_are_refused_under_any_name_and_never_run(lab: Lab, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path}/exploded",)

    for protocol in (2, 3, 4, 5):
        (lab.adapter / "README.md").write_bytes(pickle.dumps(Bomb(), protocol=protocol))
        with pytest.raises(PickleAdapterError, match=r"README\.md"):
            read_adapter(lab.adapter)
    torch.save({"a": torch.zeros(1)}, lab.adapter / "README.md")
    with pytest.raises(PickleAdapterError, match=r"README\.md"):
        read_adapter(lab.adapter)
    (lab.adapter / "README.md").unlink()
    (lab.adapter / "adapter_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(PickleAdapterError, match="adapter_model"):
        read_adapter(lab.adapter)
    assert not (tmp_path / "exploded").exists()


def test_links_and_second_weights_are_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    (lab.adapter / "notes").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidAdapterError, match="notes is a link"):
        read_adapter(lab.adapter)
    (lab.adapter / "notes").unlink()
    (lab.adapter / "extra").mkdir()
    (lab.adapter / "extra" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidAdapterError, match="second file of weights"):
        read_adapter(lab.adapter)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files_are_named(lab: Lab, name: str) -> None:
    (lab.adapter / name).unlink()
    with pytest.raises(AdapterNotFoundError, match=name):
        read_adapter(lab.adapter)
    with pytest.raises(AdapterNotFoundError, match="nowhere"):
        read_adapter(lab.root / "nowhere")


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 200, -1])
def test_truncated_weights_are_refused(lab: Lab, keep: int) -> None:
    path = lab.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidAdapterError, match="not a readable safetensors"):
        read_adapter(lab.adapter)


def test_a_header_of_impossible_length_is_refused(lab: Lab) -> None:
    path = lab.adapter / "adapter_model.safetensors"
    for length in (2**63, 2**64 - 1, 10**9):
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
        with pytest.raises(InvalidAdapterError):
            read_adapter(lab.adapter)


def without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def test_half_a_pair_is_refused_by_name(lab: Lab) -> None:
    with pytest.raises(MissingTensorError, match=r"q_proj\.lora_B\.weight.*lora_A"):
        read_adapter(edit_tensors(lab.adapter, without(A0)))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", SurplusTensorError),
        ("base_model.model.model.layers.0.self_attn.q_proj.weight", SurplusTensorError),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", SurplusTensorError),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", SurplusTensorError),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", SurplusTensorError),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight", SurplusTensorError),
        ("base_model.model.lm_head.weight", SurplusTensorError),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", InvalidAdapterError),
        ("base_model.model.../../etc.q_proj.lora_A.weight", SurplusTensorError),
    ],
)
def test_surplus_tensors_are_refused_by_name(lab: Lab, name: str, error: type[AdapterError]) -> None:
    edit_tensors(lab.adapter, lambda tensors: {**tensors, name: torch.zeros(4, 32)})
    with pytest.raises(error) as caught:
        read_adapter(lab.adapter)
    assert name in str(caught.value)


def test_integer_tensors_are_refused(lab: Lab) -> None:
    edit_tensors(lab.adapter, lambda tensors: {**tensors, A0: torch.zeros(4, 32, dtype=torch.int64)})
    with pytest.raises(InvalidAdapterError, match="I64"):
        read_adapter(lab.adapter)


def test_an_adapter_of_nothing_is_refused(lab: Lab) -> None:
    settings = read_adapter(lab.adapter).settings
    with pytest.raises(MissingTensorError, match="no low-rank pair"):
        sort_tensors(settings, {})


def test_declared_extras_are_read(lab: Lab) -> None:
    edit_config(lab.adapter, modules_to_save=["lm_head"], bias="lora_only", use_dora=True)

    def extend(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        vectors = {
            name.replace("lora_B.weight", "lora_magnitude_vector"): tensor[:, 0].contiguous()
            for name, tensor in tensors.items()
            if "lora_B" in name
        }
        return {**tensors, **vectors, "base_model.model.lm_head.weight": torch.zeros(64, 32)}

    adapter = read_adapter(edit_tensors(lab.adapter, extend))
    assert list(adapter.replaced) == ["lm_head.weight"]
    edit_tensors(lab.adapter, without("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"))
    with pytest.raises(MissingTensorError, match="magnitude"):
        read_adapter(lab.adapter)


@pytest.mark.parametrize(
    "module",
    [
        "model.layers.3.mlp.up_proj",
        "model.layers.3.experts.7.w",
        "layers.3.a.b",
        "a.3.b.4.c",
        "model.layers.3",
        "lm_head",
        "x.y.3",
    ],
)
def test_layer_numbers_are_counted_as_peft_counts(module: str) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists  # noqa: PLC0415

    last = module.rsplit(".", maxsplit=1)[-1]
    for layer in (3, 4, 7):
        config = LoraConfig(target_modules=[last], layers_to_transform=[layer])
        ours = LoraSettings(peft_type="LORA", r=1, lora_alpha=1, target_modules=(last,), layers_to_transform=(layer,))
        assert ours.targets(module) == bool(check_target_module_exists(config, module)), (module, layer)
