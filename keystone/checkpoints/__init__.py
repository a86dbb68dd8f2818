"""Checkpoints: where tensors come from and how they get into a model."""

from keystone.checkpoints.archived import WEIGHTS_SUFFIX, assemble_base, read_adapter_tensors
from keystone.checkpoints.tokenizers import archived_tokenizer

__all__ = ["WEIGHTS_SUFFIX", "archived_tokenizer", "assemble_base", "read_adapter_tensors"]
