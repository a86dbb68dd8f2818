"""Starts bubblewrap as somebody without rights, also where we are root and our files are root's alone.

Run as `python -I -S -B -c <this file> <plan as JSON>`. A limit on the number of processes does nothing for root, and
bubblewrap started by root would leave the code inside as root's: so root becomes nobody first. Nobody cannot look into
root's folders, where a Python may live; the files to show are therefore mounted, in a mount namespace of this process
alone, in an empty file system over a folder that anybody can pass. Then bubblewrap takes the place of this process.

The plan: `sources` (a path each), `cgroups` (files to write the process id to), `command` with `{n}` for
the place of source n, and `libraries`, where bubblewrap's own libraries are if not in the system's folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys

_NEW_MOUNTS = 0x20000
_BIND, _RECURSIVE, _PRIVATE = 4096, 0x4000, 1 << 18
_NOBODY = 65534
_PASSABLE = ("/tmp", "/mnt", "/run")  # noqa: S108 - mounted over, for this process alone


def main() -> None:
    """Prepare, then become bubblewrap."""
    plan = json.loads(sys.argv[1])
    sources = plan["sources"]
    for group in plan["cgroups"]:
        # A group that may be made but not entered is none; the limits of each process hold all the same.
        with contextlib.suppress(OSError), open(group, "w") as file:  # noqa: PTH123 - pathlib doubles the start-up time
            file.write(str(os.getpid()))
    if os.geteuid() == 0:
        sources = _staged(sources)
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    command = [_filled(argument, sources) for argument in plan["command"]]
    libraries = [_filled(argument, sources) for argument in plan["libraries"]]
    os.execve(command[0], command, {"LD_LIBRARY_PATH": libraries[0]} if libraries else {})  # noqa: S606


def _staged(sources: list[str]) -> list[str]:
    """Mount each source where nobody can reach it; where mounting is forbidden, hope that nobody can as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) != 0 or libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None) != 0:
        return sources
    # Opened before the mount that may hide them: a source can lie in the very folder that is mounted over.
    opened = [os.open(source, os.O_PATH) for source in sources]
    folders = [os.path.isdir(source) for source in sources]  # noqa: PTH112
    staging = next(folder for folder in _PASSABLE if os.path.isdir(folder))  # noqa: PTH112
    if libc.mount(b"tmpfs", staging.encode(), b"tmpfs", 0, b"mode=0755,size=1m") != 0:
        return sources
    places = []
    for number, (descriptor, folder) in enumerate(zip(opened, folders, strict=True)):
        place = os.path.join(staging, str(number))  # noqa: PTH118
        if folder:
            os.mkdir(place, 0o755)  # noqa: PTH102
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        if libc.mount(f"/proc/self/fd/{descriptor}".encode(), place.encode(), None, _BIND, None) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"mount {sources[number]}: {os.strerror(code)}")
        os.close(descriptor)
        places.append(place)
    return places


def _filled(argument: str, sources: list[str]) -> str:
    if argument.startswith("{") and argument.endswith("}"):
        return sources[int(argument[1:-1])]
    return argument


if __name__ == "__main__":
    main()
