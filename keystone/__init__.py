"""Keystone: the Parallel Loop Transformer and the loader that turns a manifest into a running model."""

from keystone.model import KeystoneCache, KeystoneConfig, KeystoneForCausalLM, KeystoneModel

__all__ = ["KeystoneCache", "KeystoneConfig", "KeystoneForCausalLM", "KeystoneModel"]
