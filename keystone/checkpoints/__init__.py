"""Checkpoints: where tensors come from and how they get into a model."""

from keystone.checkpoints.archived import (
    DTYPES,
    WEIGHTS_SUFFIX,
    BaseCheckpoint,
    assemble_base,
    assign,
    blank_model,
    finish_model,
    proven_tensors,
    read_adapter_tensors,
    stream_tensors,
)
from keystone.checkpoints.tokenizers import archived_tokenizer

__all__ = [
    "DTYPES",
    "WEIGHTS_SUFFIX",
    "BaseCheckpoint",
    "archived_tokenizer",
    "assemble_base",
    "assign",
    "blank_model",
    "finish_model",
    "proven_tensors",
    "read_adapter_tensors",
    "stream_tensors",
]
