"""Where unfinished work of cycles waits, and the key of their draws: the operator's state directory."""

from __future__ import annotations

from pathlib import Path


def state_folder() -> Path:
    """`keystone/cycles` in the user's state directory."""
    from platformdirs import user_state_path  # noqa: PLC0415 - not needed for --help

    return user_state_path("keystone", appauthor=False) / "cycles"
