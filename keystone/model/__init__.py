"""The Parallel Loop Transformer: configuration, cache and forward pass, as a transformers 5 model."""

from keystone.model.cache import KeystoneCache
from keystone.model.configuration import KeystoneConfig
from keystone.model.modeling import KeystoneForCausalLM, KeystoneModel

__all__ = ["KeystoneCache", "KeystoneConfig", "KeystoneForCausalLM", "KeystoneModel"]
