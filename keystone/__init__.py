"""Keystone: the Parallel Loop Transformer and the loader that turns a manifest into a running model."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keystone.errors import CheckpointError, ConfigurationError, InvalidInputError, KeystoneError, RefusedError
    from keystone.loader import LoadedModel, load
    from keystone.model import KeystoneCache, KeystoneConfig, KeystoneForCausalLM, KeystoneModel
    from keystone.nano.embedded import import_nano

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "InvalidInputError",
    "KeystoneCache",
    "KeystoneConfig",
    "KeystoneError",
    "KeystoneForCausalLM",
    "KeystoneModel",
    "LoadedModel",
    "RefusedError",
    "import_nano",
    "load",
]

_HOMES = {
    "keystone.loader": ("LoadedModel", "load"),
    "keystone.model": ("KeystoneCache", "KeystoneConfig", "KeystoneForCausalLM", "KeystoneModel"),
    "keystone.nano.embedded": ("import_nano",),
}


def __getattr__(name: str) -> object:
    """Import a name's module on first use: `keystone --help` must not wait for torch."""
    if name in __all__:
        home = next((module for module, names in _HOMES.items() if name in names), "keystone.errors")
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
