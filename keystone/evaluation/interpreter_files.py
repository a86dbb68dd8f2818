"""Which files a bare Python needs: its binary, its standard library, and the shared libraries those load.

A sandbox shows these to the code inside, read-only, and nothing else of the machine. The libraries are found by asking:
an interpreter imports what programs may import and lists what it has mapped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from keystone.errors import SandboxError

_EXTENSIONS = "_bz2 _ctypes _decimal _hashlib _json _lzma _random _socket _sqlite3 _ssl _uuid zlib math"
_PROBE = """
import importlib, json, sys
for name in sys.argv[1].split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass
with open("/proc/self/maps") as maps:
    files = {line.split(maxsplit=5)[5].strip() for line in maps if len(line.split(maxsplit=5)) == 6}
print(json.dumps(sorted(path for path in files if path.startswith("/"))))
"""
_LINKED_FOLDERS = ("/lib", "/lib64")
_SECONDS = 30.0
_HEAD = 8192  # of an executable: where the path of its loader is


@dataclass(frozen=True)
class InterpreterFiles:
    """What to show inside a sandbox, and where.

    Attributes:
        executable: the interpreter's real path, outside of any virtual environment.
        shown: pairs of a real path and the path it must have inside, files and folders.
        hidden: folders inside the shown ones that must be empty: installed packages are not the standard library.
        links: symbolic links, as (target, path), that the loader's paths lead over.
    """

    executable: str
    shown: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


@cache
def interpreter_files() -> InterpreterFiles:
    """The files of the Python that runs this, found once.

    Raises:
        SandboxError: it cannot be asked.
    """
    base = getattr(sys, "_base_executable", sys.executable)
    executable = os.path.realpath(base)
    command = [executable, "-I", "-S", "-c", _PROBE, _EXTENSIONS]
    try:
        done = subprocess.run(command, env={}, capture_output=True, timeout=_SECONDS, check=True)
        mapped: list[str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SandboxError(f"{executable} does not say which libraries it needs: {error}") from error
    roots = {sysconfig.get_path(name, vars=_base_paths()) for name in ("stdlib", "platstdlib")}
    code = [path for path in mapped if path == executable or ".so" in path.rpartition("/")[2]]  # not locale data
    libraries = [path for path in code if not any(path.startswith(f"{root}/") for root in roots)]
    shown = [(path, path) for path in sorted(roots)]
    for path in libraries:
        shown += [(path, name) for name in _names_of(Path(path))]
    shown += _loader_of(Path(executable))
    hidden = [f"{root}/{name}" for root in sorted(roots) for name in ("site-packages", "dist-packages", "test")]
    links = [(os.readlink(path), path) for path in _LINKED_FOLDERS if os.path.islink(path)]  # noqa: PTH114, PTH115
    return InterpreterFiles(
        executable,
        tuple(dict.fromkeys(shown)),
        tuple(path for path in hidden if Path(path).is_dir()),
        tuple(links),
    )


def _loader_of(executable: Path) -> list[tuple[str, str]]:
    """The program loader under the path that is written into the executable."""
    with executable.open("rb") as file:
        found = re.search(rb"/[!-~]*/ld[!-~]*\.so[!-~]*", file.read(_HEAD))
    if found is None:
        return []
    named = Path(found[0].decode("ascii"))
    return [(os.path.realpath(named), os.path.join(os.path.realpath(named.parent), named.name))]  # noqa: PTH118


def _base_paths() -> dict[str, str]:
    return {"base": sys.base_prefix, "installed_base": sys.base_prefix, "platbase": sys.base_exec_prefix}


def _names_of(library: Path) -> list[str]:
    """A library's path and its other names in the folder: programs ask for `libffi.so.8`, not `libffi.so.8.1.2`."""
    stem = library.name.split(".so")[0] + ".so"
    names = [str(library)]
    if ".so" in library.name:
        aliases = (entry for entry in library.parent.iterdir() if entry.name.startswith(stem))
        names += [str(entry) for entry in aliases if entry != library and os.path.realpath(entry) == str(library)]
    return names
