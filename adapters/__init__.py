"""Adapters: the only way weights may change."""

from adapters.errors import (
    AdapterError,
    AdapterFitError,
    AdapterNotFoundError,
    BaseChangedError,
    InvalidAdapterError,
    MissingTensorError,
    OutputExistsError,
    PickleAdapterError,
    ShapeMismatchError,
    SurplusTensorError,
    TrainingFailedError,
    TrainingRefusedError,
    UnsupportedAdapterError,
)
from adapters.fit import archived_adapter, check_fit, check_fits, fit_problem
from adapters.frozen import base_entries, check_unchanged
from adapters.peft_config import LoraSettings
from adapters.peft_format import AdapterTensors, TensorShape, read_adapter
from adapters.store import add_adapter
from adapters.training import TrainingResult, train_lora
from adapters.writing import canonical_config, write_adapter

__all__ = [
    "AdapterError",
    "AdapterFitError",
    "AdapterNotFoundError",
    "AdapterTensors",
    "BaseChangedError",
    "InvalidAdapterError",
    "LoraSettings",
    "MissingTensorError",
    "OutputExistsError",
    "PickleAdapterError",
    "ShapeMismatchError",
    "SurplusTensorError",
    "TensorShape",
    "TrainingFailedError",
    "TrainingRefusedError",
    "TrainingResult",
    "UnsupportedAdapterError",
    "add_adapter",
    "archived_adapter",
    "base_entries",
    "canonical_config",
    "check_fit",
    "check_fits",
    "check_unchanged",
    "fit_problem",
    "read_adapter",
    "train_lora",
    "write_adapter",
]
