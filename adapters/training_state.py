"""A training run on disk, so that one that was killed goes on and ends where it would have ended.

One safetensors file holds everything the next step depends on: the adapter's tensors in the precision they are trained
in, the optimizer's moments, the state of the random generators; and, as JSON in its header, the step, the losses so far
and a key: the digest of everything that decides the run. Another run has another key and another file, so no run ever
goes on with somebody else's state. No pickle is written or read.

A file appears as a whole: written beside its place, synced, renamed over the last one, the directory synced. Its
tensors are hashed into the header, so a file that was damaged is refused and not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import InvalidCheckpointError, TrainingFailedError
from adapters.frozen import tensor_entry
from csf_store import Digest, replace_file
from manifests import tensor_set_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VERSION = "1"
DEFAULT_EVERY = 25
_RANDOM = "random.cpu"
_RANDOM_CUDA = "random.cuda"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a run keeps its state, and how often.

    Attributes:
        directory: made when missing; several runs may share it.
        every: steps between two checkpoints. The last step is always one.
    """

    directory: Path
    every: int = DEFAULT_EVERY

    def of(self, key: Digest) -> RunFile:
        """The file of one run."""
        return RunFile(self.directory / f"{key.hex[:32]}.safetensors", key)


@dataclass(frozen=True, slots=True)
class RunState:
    """What a run goes on with.

    Attributes:
        step: steps done.
        losses: one for each of them.
        tensors: adapter tensors as `adapter.<name>`, moments as `optimizer.<moment>.<name>`, generators.
    """

    step: int
    losses: tuple[float, ...]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class RunFile:
    """The state of one run on disk."""

    path: Path
    key: Digest

    def save(self, state: RunState) -> None:
        """Replace what is there; durable when this returns.

        Raises:
            TrainingFailedError: the file system said no.
        """
        from safetensors.torch import save  # noqa: PLC0415  # lazy: needs torch

        digest = tensor_set_digest(tensor_entry(name, tensor) for name, tensor in state.tensors.items())
        about = {
            "v": VERSION,
            "key": str(self.key),
            "step": str(state.step),
            "losses": json.dumps(state.losses),
            "tensors": str(digest),
        }
        data = save({name: tensor.contiguous() for name, tensor in state.tensors.items()}, metadata=about)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, data)
        except OSError as error:
            raise TrainingFailedError(f"checkpoint {self.path} cannot be written: {error.strerror}") from error

    def load(self) -> RunState | None:
        """What is there; None where nothing is.

        Raises:
            InvalidCheckpointError: the file is damaged, or of another run.
        """
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # with its sibling above

        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            digest = tensor_set_digest(tensor_entry(name, tensor) for name, tensor in tensors.items())
            losses = tuple(float(loss) for loss in json.loads(about["losses"]))
            step, whole = int(about["step"]), about["v"] == VERSION and about["tensors"] == str(digest)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise InvalidCheckpointError(
                f"checkpoint {self.path} cannot be read: {error}; remove it to start anew"
            ) from error
        if not whole or len(losses) != step:
            raise InvalidCheckpointError(f"checkpoint {self.path} is not what was written; remove it to start anew")
        if about.get("key") != str(self.key):
            raise InvalidCheckpointError(f"checkpoint {self.path} is of run {about.get('key')}, this is {self.key}")
        return RunState(step, losses, tensors)

    def remove(self) -> None:
        """The run is recorded; there is nothing to go on with."""
        self.path.unlink(missing_ok=True)


def capture(
    step: int,
    losses: list[float],
    trainable: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> RunState:
    """Everything the next step depends on, copied to the CPU."""
    import torch  # noqa: PLC0415  # lazy: `import adapters` stays light

    tensors = {_RANDOM: torch.get_rng_state()}
    if device.type == "cuda":
        tensors[_RANDOM_CUDA] = torch.cuda.get_rng_state(device)
    for name, parameter in trainable.items():
        tensors[f"adapter.{name}"] = parameter.detach().cpu().clone()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{moment}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
    return RunState(step, tuple(losses), tensors)


def restore(
    state: RunState, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Put a state back where it was taken from.

    Raises:
        InvalidCheckpointError: the state has no tensor for a parameter, or one of another shape.
    """
    import torch  # noqa: PLC0415  # lazy: see above

    for name, parameter in trainable.items():
        found = state.tensors.get(f"adapter.{name}")
        if found is None or found.shape != parameter.shape or found.dtype != parameter.dtype:
            raise InvalidCheckpointError(f"the checkpoint of step {state.step} holds no {name} as it is trained here")
        with torch.no_grad():
            parameter.copy_(found)
        moments = {
            moment: state.tensors[f"optimizer.{moment}.{name}"]
            for moment in ("step", "exp_avg", "exp_avg_sq")
            if f"optimizer.{moment}.{name}" in state.tensors
        }
        # The count of steps stays on the CPU, as the optimizer itself would have it.
        optimizer.state[parameter] = {
            moment: value if moment == "step" else value.to(parameter.device) for moment, value in moments.items()
        }
    torch.set_rng_state(state.tensors[_RANDOM])
    if device.type == "cuda" and _RANDOM_CUDA in state.tensors:
        torch.cuda.set_rng_state(state.tensors[_RANDOM_CUDA], device)
