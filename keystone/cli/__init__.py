"""The `keystone` command."""

from keystone.cli.app import main

__all__ = ["main"]
