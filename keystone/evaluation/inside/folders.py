"""Removing what a program left behind, whatever it did to it."""

from __future__ import annotations

import contextlib
import os


def remove_folder(folder: str) -> None:
    """Remove a folder of a program, when no process of it is alive any more.

    Folders may be locked, and nested deeper than a path can be long or a recursion can go: so every folder's own
    folders are moved to the top before it is removed, and no path here is ever more than two names deep.
    """
    with contextlib.suppress(OSError):
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)  # noqa: PTH108
                    continue
                os.chmod(entry.path, 0o700)  # noqa: PTH101
                for inner in list(os.scandir(entry.path)):
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, 0o700)  # noqa: PTH101 - a folder that changes its parent must be writable
                        target = os.path.join(folder, os.urandom(12).hex())  # noqa: PTH118
                        os.rename(inner.path, target)  # noqa: PTH104
                    else:
                        os.unlink(inner.path)  # noqa: PTH108
                os.rmdir(entry.path)  # noqa: PTH106
        os.rmdir(folder)  # noqa: PTH106
