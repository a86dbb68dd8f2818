"""How to train: every choice a person has, with defaults that suit a base of a few million parameters on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from adapters import LoraSettings
from keystone.errors import InvalidInputError, RefusedError
from keystone.quantize import Quantization
from manifests import TrainingConfig

Progress: TypeAlias = Callable[[int, int, float], None]
"""Told after every step: (steps done, steps in all, loss)."""

TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear module of a layer but the gates."""
_RANK, _ALPHA_PER_RANK = 8, 2.0


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides a training run beside its records and its base.

    Attributes:
        rank: of the low-rank pairs; None is the parent's, or 8.
        alpha: their scale; None is the parent's, or twice the rank.
        targets: which modules get a pair, by the last parts of their names; None is the parent's, or `TARGETS`.
        dropout: on the pairs' input.
        steps: optimizer steps; None is `epochs` times the number of batches.
        epochs: how often each example is seen, where steps are not said.
        batch_size: examples in a step.
        warmup_steps: at most a tenth of the steps is used.
        learning_rate: at its peak.
        weight_decay: of the adapter.
        max_grad_norm: gradients are clipped to it.
        seed: of the adapter's start, the order of batches, dropout, and the choice among external examples.
        external_share: share of external examples to train with, 0 to 1; None uses all that are given.
        max_tokens: an example that takes more is refused by name, not cut.
        quantization: how the frozen base is held meanwhile.
        device: where to train; None is the CPU.
        checkpoint_every: steps between two checkpoints.
    """

    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    steps: int | None = None
    epochs: int = 2
    batch_size: int = 16
    warmup_steps: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    external_share: float | None = None
    max_tokens: int = 1024
    quantization: Quantization = "none"
    device: str | None = None
    checkpoint_every: int = 25

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InvalidInputError: naming the field.
        """
        for name in ("batch_size", "epochs", "max_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; at least 1 makes sense")
        if self.external_share is not None and not 0 <= self.external_share < 1:
            raise InvalidInputError(f"an external share of {self.external_share} is none of 0 <= share < 1")

    def config(self, batches: int, parent: LoraSettings | None) -> TrainingConfig:
        """The run's configuration for this many batches, in the shape of the parent if there is one.

        Raises:
            RefusedError: another rank, alpha or other targets than the parent's were asked for.
        """
        steps = self.steps if self.steps is not None else self.epochs * batches
        rank = self.rank or (parent.r if parent else _RANK)
        alpha = self.alpha or (parent.lora_alpha if parent else _ALPHA_PER_RANK * rank)
        targets = self.targets or (parent.target_modules if parent else TARGETS)
        if parent is not None:
            _check_shape(parent, rank, alpha, targets)
        return TrainingConfig(
            targets=tuple(targets),
            rank=rank,
            alpha=float(alpha),
            dropout=self.dropout,
            steps=steps,
            warmup_steps=min(self.warmup_steps, steps // 10),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            seed=self.seed,
        )


def _check_shape(parent: LoraSettings, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    for what, wanted, has in (
        ("rank", rank, parent.r),
        ("alpha", alpha, parent.lora_alpha),
        ("targets", tuple(sorted(targets)), parent.target_modules),
    ):
        if wanted != has:
            raise RefusedError(f"{what} {wanted} was asked for, and the parent adapter has {has}; leave it away")
    odd = parent.use_dora or parent.use_rslora or parent.lora_bias or parent.bias != "none" or parent.fan_in_fan_out
    if odd or parent.rank_pattern or parent.alpha_pattern or parent.layers_to_transform or parent.exclude_modules:
        raise RefusedError("the parent adapter uses a feature of PEFT that this trainer does not go on with")
