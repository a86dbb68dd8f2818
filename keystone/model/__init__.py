"""The Parallel Loop Transformer: configuration, state and forward pass, as a transformers 5 model."""

from keystone.model.cache import KeystoneCache, cache_bytes
from keystone.model.configuration import KeystoneConfig
from keystone.model.modeling import DecodeMode, KeystoneForCausalLM, KeystoneModel, decoding

__all__ = [
    "DecodeMode",
    "KeystoneCache",
    "KeystoneConfig",
    "KeystoneForCausalLM",
    "KeystoneModel",
    "cache_bytes",
    "decoding",
]
