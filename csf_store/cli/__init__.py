"""The ``csf`` command."""

from csf_store.cli.app import main

__all__ = ["main"]
