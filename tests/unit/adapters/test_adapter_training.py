"""Training changes the adapter, only the adapter, and the same way every time."""

from __future__ import annotations

import math

import pytest
import torch
from adapter_lab import CONFIG, batches, tiny_model

from adapters import (
    BaseChangedError,
    TrainingFailedError,
    TrainingResult,
    base_entries,
    check_unchanged,
    train_lora,
)
from adapters.training import learning_rate
from csf_store import Digest
from manifests import TrainingRecord, tensor_set_digest

BASE = Digest.of(b"tiny")


def test_it_learns(trained: TrainingResult) -> None:
    losses = train_lora(tiny_model(), batches(1), CONFIG.revised(steps=40), base=BASE).losses
    assert losses[-1] < losses[0] - 0.05
    assert len(trained.losses) == CONFIG.steps and all(math.isfinite(loss) for loss in trained.losses)


def test_the_record_says_what_happened(trained: TrainingResult) -> None:
    record = trained.record
    assert record.base == BASE and record.config == CONFIG and record.data == (Digest.of(b"data"),)
    assert record.base_before == record.base_after == tensor_set_digest(base_entries(tiny_model()).values())
    assert record.losses == trained.losses and record.examples == 6 and record.device == "cpu"
    assert record.libraries.keys() >= {"torch", "transformers", "peft", "python"}
    assert TrainingRecord.from_bytes(record.to_bytes()) == record


def test_the_same_run_gives_the_same_adapter(trained: TrainingResult) -> None:
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    again = train_lora(tiny_model(), batches(), CONFIG, base=BASE, data=[Digest.of(b"data")])
    assert again.record == trained.record
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("change", [{"seed": 8}, {"learning_rate": 4e-3}, {"alpha": 9.0}])
def test_another_run_gives_another_adapter(trained: TrainingResult, change: dict[str, object]) -> None:
    other = train_lora(tiny_model(), batches(), CONFIG.revised(**change), base=BASE)
    assert other.record.adapter_tensors != trained.record.adapter_tensors
    assert other.record.base_after == trained.record.base_after


def test_data_is_part_of_the_record(trained: TrainingResult) -> None:
    other = train_lora(tiny_model(), batches(seed=2), CONFIG, base=BASE)
    assert other.record.batches != trained.record.batches


def test_progress_is_told() -> None:
    seen: list[tuple[int, int, float]] = []
    result = train_lora(tiny_model(), batches(), CONFIG, base=BASE, progress=lambda *step: seen.append(step))
    assert seen == [(n + 1, CONFIG.steps, loss) for n, loss in enumerate(result.losses)]


def test_a_base_that_moves_is_caught_and_named() -> None:
    model = tiny_model()
    name = "model.layers.1.mlp.up_proj.weight"

    def meddle(step: int, *_: object) -> None:
        if step == 3:
            with torch.no_grad():
                model.get_parameter(name)[0, 0] += 1e-6

    with pytest.raises(BaseChangedError, match=name) as caught:
        train_lora(model, batches(), CONFIG, base=BASE, progress=meddle)
    assert caught.value.exit_code == 10


def test_a_target_weight_that_moves_is_caught_under_its_own_name() -> None:
    model = tiny_model()
    weight = model.get_parameter("model.layers.0.self_attn.q_proj.weight")

    def meddle(*_: object) -> None:
        with torch.no_grad():
            weight.mul_(1.001)

    with pytest.raises(BaseChangedError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight changed"):
        train_lora(model, batches(), CONFIG, base=BASE, progress=meddle)


def test_gone_and_new_tensors_are_changes() -> None:
    before = base_entries(tiny_model())
    name = "lm_head.weight"
    rest = {key: entry for key, entry in before.items() if key != name}
    with pytest.raises(BaseChangedError, match=f"{name} is gone"):
        check_unchanged(before, rest)
    with pytest.raises(BaseChangedError, match=f"{name} was not there before"):
        check_unchanged(rest, before)
    check_unchanged(before, dict(before))


def test_runs_that_cannot_work_say_so() -> None:
    with pytest.raises(TrainingFailedError, match="no batches"):
        train_lora(tiny_model(), [], CONFIG, base=BASE)
    with pytest.raises(TrainingFailedError, match="no_such_module"):
        train_lora(tiny_model(), batches(), CONFIG.revised(targets=("no_such_module",)), base=BASE)
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(TrainingFailedError, match="nan at step 0"):
        train_lora(broken, batches(), CONFIG, base=BASE)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(CONFIG.steps)]
    assert rates[:3] == pytest.approx([2.5e-3, 5e-3, 5e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True) and 0 < rates[-1] < 1e-3
    assert learning_rate(0, CONFIG.revised(warmup_steps=0)) == CONFIG.learning_rate


def test_bf16_bases_train_too() -> None:
    result = train_lora(tiny_model().to(torch.bfloat16), batches(), CONFIG, base=BASE)
    assert result.record.base_before == result.record.base_after != Digest.of(b"")
    assert math.isfinite(result.losses[-1])
