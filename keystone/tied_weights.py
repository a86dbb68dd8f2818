"""Tensors that a model shares under a second name and checkpoints leave out, as `named_parameters` and audits see them.

A base whose output head is its embedding stores the embedding once. In memory both names exist, so whoever compares
archived tensors with those of a running model has to know the second name.
"""

from collections.abc import Mapping
from types import MappingProxyType

TIED: Mapping[str, str] = MappingProxyType({"lm_head.weight": "model.embed_tokens.weight"})
"""The second name, and the tensor it is another name of."""
