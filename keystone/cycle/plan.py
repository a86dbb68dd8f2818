"""The policy file of a cycle: everything that is decided before the run, in one document with one digest.

People write TOML (or JSON) and leave out what they do not care about; what is hashed and recorded is the whole, every
default written out. The guard's own policy (`adapters.GuardPolicy`) follows from it, together with what the base says
of its own noise, and is recorded before anything is collected.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters import DEFAULT_SIGNALS, GuardPolicy, SignalRule, SignalTable, calibrate_signals
from csf_store import Digest
from keystone.errors import InvalidInputError
from manifests import Document, ManifestError, TrainingConfig

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+/-]{0,63}$")]
Amount = Annotated[int, Field(ge=1, le=10**6)]
Seed = Annotated[int, Field(ge=0, le=2**32)]
Share = Annotated[float, Field(gt=0, lt=1)]
Heat = Annotated[float, Field(gt=0, le=4)]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class _Rules(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class GuardRules(_Rules):
    """What a candidate must not do, as in `adapters.GuardPolicy`.

    Attributes:
        sentinel_items: of the frozen set.
        fresh_items: of each fresh draw.
        margin: the largest fall of the pass rate that still counts as none.
        alpha: chance of any false alarm over all looks.
        promote_alpha: chance that a candidate worse by the margin is let through.
        power: with which the minimal effect is stated.
        looks: cycles that this policy is good for.
        family_drop: a single family may not fall by more.
        unwatched: families that may be too small for that to be seen.
        signals: which signals, and what each may do; noise is measured, never written.
    """

    sentinel_items: Amount = 400
    fresh_items: Amount = 800
    margin: Share = 0.04
    alpha: Share = 0.05
    promote_alpha: Share = 0.05
    power: Share = 0.8
    looks: Annotated[int, Field(ge=1, le=1000)] = 20
    family_drop: Share | None = 0.4
    unwatched: Annotated[int, Field(ge=0, le=10**6)] = 2
    signals: tuple[SignalRule, ...] = DEFAULT_SIGNALS

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(rule.noise for rule in self.signals):
            raise ValueError("a signal's noise is measured on reruns of the base; leave it out of the policy file")
        return self


class PracticeRules(_Rules):
    """How experience is collected: tasks of the suite's practice side, answers sampled for each."""

    tasks: Amount = 600
    samples: Amount = 8
    temperature: Heat = 0.8


class TrainingRules(_Rules):
    """How the adapter is trained.

    Attributes:
        steps: optimizer steps, of `batch` examples each.
        external: share of the examples that is not the model's own: exercises with the suite's own solutions, of the
            part that the base was trained on.
    """

    steps: Amount = 120
    batch: Amount = 16
    rank: Amount = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    external: Annotated[float, Field(ge=0, lt=1)] = 0.25
    targets: tuple[Label, ...] = TARGETS

    def config(self, seed: int) -> TrainingConfig:
        """As `adapters.train_lora` takes it."""
        return TrainingConfig(
            targets=self.targets,
            rank=self.rank,
            alpha=self.lora_alpha,
            steps=self.steps,
            warmup_steps=min(self.warmup_steps, self.steps),
            learning_rate=self.learning_rate,
            seed=seed,
        )


class SamplingRules(_Rules):
    """How models are asked.

    Attributes:
        max_new_tokens: the most an answer may take.
        batch: answers decoded together.
        prompts: the first so many sentinel items are sampled for signals of collapse.
        samples: of each; two at least, or `self-bleu` cannot be measured.
        temperature: of those samples; the pass rate is measured greedily.
        reruns: of the base, to see how far signals fall apart by chance.
        quantization: how weights are held; null for the manifest's own recipe, or the box's default.
    """

    max_new_tokens: Amount = 64
    batch: Amount = 128
    prompts: Amount = 400
    samples: Annotated[int, Field(ge=2, le=1000)] = 2
    temperature: Heat = 0.8
    reruns: Annotated[int, Field(ge=5, le=1000)] = 6
    quantization: Literal["none", "int8", "nf4"] | None = None


class CyclePlan(Document):
    """The policy of a chain of cycles, recorded before the first of them runs."""

    kind: Literal["cycle-plan"] = "cycle-plan"
    v: Literal[1] = 1
    name: Label = "default"
    suite: Label = "basics"
    seed: Seed = 0
    guard: GuardRules = GuardRules()
    practice: PracticeRules = PracticeRules()
    training: TrainingRules = TrainingRules()
    sampling: SamplingRules = SamplingRules()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sampling.prompts > self.guard.sentinel_items:
            raise ValueError(
                f"signals are sampled on {self.sampling.prompts} sentinel items; there are {self.guard.sentinel_items}"
            )
        return self

    def guard_policy(self, sentinel: Digest, reruns: Sequence[SignalTable]) -> GuardPolicy:
        """The guard's policy, with the noise that reruns of the base show.

        Args:
            sentinel: digest of the sentinel set.
            reruns: the base's signals, sampled anew each time with another seed.
        """
        rules = {name: getattr(self.guard, name) for name in GuardRules.model_fields}
        bare = GuardPolicy(name=self.name, sentinel=sentinel, fresh_suite=self.suite, seed=self.seed, **rules)
        return bare.revised(signals=calibrate_signals(bare.signals, reruns, alpha=bare.signal_alpha))


def read_plan(path: Path) -> CyclePlan:
    """A policy file, TOML or JSON by its name; what it leaves out takes the defaults.

    Raises:
        InvalidInputError: it cannot be read, or says what no policy says; the field is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        fields = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read as a policy: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInputError(f"{path} is no policy: it holds {type(fields).__name__}, and not a table of fields")
    try:
        # Through JSON: strict types then mean JSON's own, and a list is a list in either notation.
        return CyclePlan.model_validate_json(json.dumps(fields))
    except (ValidationError, ManifestError) as error:
        raise InvalidInputError(f"{path} is no policy: {' '.join(str(error).split())}") from error
