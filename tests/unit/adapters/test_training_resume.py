"""A run that is stopped and started again ends as one that was not; a run from a parent says so and starts there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_lab import CONFIG, batches, tiny_model
from safetensors.torch import load_file, save_file

from adapters import AdapterFitError, BaseChangedError, TrainingResult, base_entries, train_lora
from adapters.errors import InvalidCheckpointError
from adapters.machine import Machine
from adapters.peft_attach import ParentAdapter
from adapters.training_state import Checkpoints
from adapters.writing import adapter_state
from csf_store import Digest

BASE = Digest.of(b"tiny")
LONGER = CONFIG.revised(dropout=0.1)


def keep(directory: Path) -> Checkpoints:
    return Checkpoints(directory, every=2)


def test_stopped_and_resumed_is_the_adapter_of_an_unbroken_run(tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lora(tiny_model(), batches(), LONGER, base=BASE, checkpoints=keep(tmp_path), progress=stop)
    steps: list[int] = []

    def progress(step: int, *_: object) -> None:
        steps.append(step)

    whole = train_lora(tiny_model(), batches(), LONGER, base=BASE)
    resumed = train_lora(tiny_model(), batches(), LONGER, base=BASE, checkpoints=keep(tmp_path), progress=progress)
    assert resumed.record == whole.record
    assert steps == [4, 5, 6]  # what was done before the stop was not done again
    assert resumed.checkpoint is not None
    resumed.checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def test_another_run_never_goes_on_with_it(tmp_path: Path) -> None:
    first = train_lora(tiny_model(), batches(), CONFIG, base=BASE, checkpoints=keep(tmp_path))
    for change in ({"seed": 8}, {"learning_rate": 4e-3}):
        other = train_lora(tiny_model(), batches(), CONFIG.revised(**change), base=BASE, checkpoints=keep(tmp_path))
        assert other.checkpoint != first.checkpoint
    other = train_lora(tiny_model(), batches(seed=9), CONFIG, base=BASE, checkpoints=keep(tmp_path))
    assert other.checkpoint != first.checkpoint
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_state_is_refused_by_name(tmp_path: Path) -> None:
    file = train_lora(tiny_model(), batches(), CONFIG, base=BASE, checkpoints=keep(tmp_path)).checkpoint
    assert file is not None
    whole = file.path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for data in (bytes(flipped), whole[:-5], whole[:20], b""):
        file.path.write_bytes(data)
        with pytest.raises(InvalidCheckpointError, match="remove it to start anew") as caught:
            train_lora(tiny_model(), batches(), CONFIG, base=BASE, checkpoints=keep(tmp_path))
        assert caught.value.exit_code == 6
    other = file.path.with_name("other.safetensors")
    save_file({"x": torch.zeros(1)}, other)
    other.replace(file.path)
    with pytest.raises(InvalidCheckpointError):
        train_lora(tiny_model(), batches(), CONFIG, base=BASE, checkpoints=keep(tmp_path))


def test_the_state_is_safetensors(tmp_path: Path) -> None:
    file = train_lora(tiny_model(), batches(), CONFIG, base=BASE, checkpoints=keep(tmp_path)).checkpoint
    assert file is not None
    kinds = {name.split(".")[0] for name in load_file(file.path)}
    assert kinds == {"adapter", "optimizer", "random"}


def test_a_child_starts_where_its_parent_stopped(trained: TrainingResult) -> None:
    parent = ParentAdapter(Digest.of(b"parent"), adapter_state(trained.model))
    child = train_lora(tiny_model(), batches(), CONFIG, base=BASE, parent=parent)
    assert child.record.parent == parent.digest
    assert child.losses[0] < trained.losses[0]
    assert child.losses[0] == pytest.approx(float(loss_of(trained)), rel=1e-4)
    same_shape = adapter_state(trained.model)
    with pytest.raises(AdapterFitError, match="train with its rank"):
        train_lora(tiny_model(), batches(), CONFIG.revised(rank=2), base=BASE, parent=parent)
    with pytest.raises(AdapterFitError, match=r"has no .*k_proj"):
        targets = (*CONFIG.targets, "k_proj")
        train_lora(tiny_model(), batches(), CONFIG.revised(targets=targets), base=BASE, parent=parent)
    with pytest.raises(AdapterFitError, match="also changes"):
        train_lora(tiny_model(), batches(), CONFIG.revised(targets=("q_proj",)), base=BASE, parent=parent)
    assert same_shape.keys() == parent.tensors.keys()


def loss_of(result: TrainingResult) -> torch.Tensor:
    order = torch.randperm(3, generator=torch.Generator().manual_seed(CONFIG.seed))
    with torch.no_grad():
        loss: torch.Tensor = result.model(**batches()[int(order[0])]).loss
    return loss


def test_modules_trained_whole_are_the_adapters_and_the_base_keeps_its_own() -> None:
    saved = ["lm_head"]
    result = train_lora(tiny_model(), batches(), CONFIG, base=BASE, modules_to_save=saved)
    state = adapter_state(result.model)
    assert any(name.endswith("lm_head.weight") for name in state)
    assert base_entries(result.model) == base_entries(tiny_model())
    model = tiny_model()
    original = model.lm_head.weight

    def meddle(*_: object) -> None:
        with torch.no_grad():
            original.mul_(1.01)

    with pytest.raises(BaseChangedError, match=r"lm_head\.weight changed"):
        train_lora(model, batches(), CONFIG, base=BASE, modules_to_save=saved, progress=meddle)


def test_a_machine_knows_what_differs(trained: TrainingResult) -> None:
    here = Machine.here(torch.device("cpu"))
    assert here.differences(trained.record) == []
    then = trained.record.revised(
        threads=trained.record.threads + 1, capability="vax", libraries={**trained.record.libraries, "torch": "1.0"}
    )
    said = here.differences(then)
    assert len(said) == 3
    assert any(line.startswith("torch 1.0 then") for line in said) and any("vax then" in line for line in said)
