"""The errors of `adapters`, one tree, grouped by what a caller would do next.

```
AdapterError (1)
├── AdapterNotFoundError (5)      no directory, or no adapter in it
├── InvalidAdapterError (7)       not a well-formed LoRA adapter; get or write a better one
│   ├── PickleAdapterError        a pickle, which would run code when read; convert it to safetensors
│   └── UnsupportedAdapterError   a PEFT feature we could not honour, so we do not pretend to
├── OutputExistsError (8)         the directory to write is not empty
├── AdapterFitError (10)          well formed, but not for this base
│   ├── MissingTensorError        a half, a target module, or a whole pair is not there
│   ├── SurplusTensorError        a tensor that nothing in the configuration explains
│   └── ShapeMismatchError        a tensor of the wrong shape; both shapes are named
├── TrainingRefusedError (10)     a training record that does not belong to this adapter and base
├── BaseChangedError (10)         the frozen base came out of training changed; the tensor is named
├── InvalidPolicyError (7)        a test or gate asked to run by rules that make no sense; fix the policy
├── InvalidEvidenceError (7)      results that do not belong together or are not complete; evaluate again
├── HoldoutError (10)             a draw that was used before, or not committed to; commit to and draw a fresh one
├── InvalidCheckpointError (6)    the state of a run on disk is damaged, or of another run; remove it, start anew
├── SourceRefusedError (10)       records that may not train; each is named with its reason
└── TrainingFailedError (1)       no usable adapter came out, a loss that is not a number for instance
```
"""

from __future__ import annotations

from typing import ClassVar


class AdapterError(Exception):
    """The root: anything `adapters` refuses or cannot do."""

    exit_code: ClassVar[int] = 1


class AdapterNotFoundError(AdapterError):
    """There is no adapter where one was looked for."""

    exit_code = 5


class InvalidAdapterError(AdapterError):
    """A directory or file that is not a well-formed LoRA adapter."""

    exit_code = 7


class PickleAdapterError(InvalidAdapterError):
    """A pickle in an adapter directory. Reading it would run whatever it says."""


class UnsupportedAdapterError(InvalidAdapterError):
    """A PEFT feature that changes the result and that this release does not check."""


class OutputExistsError(AdapterError):
    """The place to write to holds something already."""

    exit_code = 8


class AdapterFitError(AdapterError):
    """An adapter that is not made for the base it is put on."""

    exit_code = 10


class MissingTensorError(AdapterFitError):
    """A tensor that the configuration or its other half calls for is not there."""


class SurplusTensorError(AdapterFitError):
    """A tensor that is not part of any low-rank pair the configuration describes."""


class ShapeMismatchError(AdapterFitError):
    """A tensor whose shape does not follow from the base and the rank."""


class TrainingRefusedError(AdapterError):
    """A training record that speaks of another adapter or another base."""

    exit_code = 10


class BaseChangedError(AdapterError):
    """A base tensor that training changed, added or took away."""

    exit_code = 10


class TrainingFailedError(AdapterError):
    """Training that cannot start or cannot go on."""


class InvalidCheckpointError(AdapterError):
    """The state of a training run on disk that cannot be gone on with."""

    exit_code = 6


class InvalidPolicyError(AdapterError):
    """Rules that cannot be followed: a level outside (0, 1), a design without items, looks that are used up."""

    exit_code = 7


class InvalidEvidenceError(AdapterError):
    """Results that cannot be compared: missing items, other items, values that are not numbers."""

    exit_code = 7


class HoldoutError(AdapterError):
    """A hold-out draw that may not decide: consumed before, never committed to, or not what was committed."""

    exit_code = 10


class SourceRefusedError(AdapterError):
    """A training set with records that the source gate does not let in."""

    exit_code = 10
