"""How each tool is driven: what is run to make a store, to put a directory into it and to get it back.

Commands are timed whole, as a person waits for them. Libraries (hf_xet, ZipNN, and ``csf_store`` once more beside its
command) are timed inside their process without its start and imports, which is to their favour. git-lfs and DVC store
only what lies in their working tree, so the files are copied there before the clock runs. Every tool keeps its own
defaults except where a variant says so.

"Known bytes" are put from a copy under another path: several tools skip a file by name, size and time without reading
it, and that is another question than the one asked here.
"""

# ruff: noqa: D102 - what a method does is said once, in Tool

from __future__ import annotations

import shutil
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from bench.storage.features import CSF, delta_is_built
from bench.storage.place import Place, timed_commands, timed_worker

WORKERS = Path(__file__).parent / "workers"


class Tool(ABC):
    """One row of the tables.

    Attributes:
        name: as the row is called.
        program: what ``install`` looks for.
        compresses: whether it makes weights smaller than they are.
        verifies: how a get checks what it gives out.
        flushes: what of a put is on disk when the tool says it is done, as ``strace -y`` shows it.
        note: what else a reader must know.
        library: timed inside its process, without start and imports.
        store: whether it is a store at all.
        ours: fetches the fine-tune as well, for the table of differences.
    """

    name: str
    program: str
    compresses = True
    verifies = "nothing"
    flushes = "nothing"
    note = ""
    library = False
    store = True
    ours = False

    def missing(self) -> str:
        """Why this row can not be measured although its program is there; empty when it can."""
        return ""

    def start(self, place: Place) -> None:  # noqa: B027 - some need none
        """Makes an empty store."""

    def stage(self, place: Place, name: str, source: Path) -> None:  # noqa: B027 - most need none
        """Whatever must be there before a put and is no part of it."""

    @abstractmethod
    def put(self, place: Place, name: str, source: Path) -> float:
        """Stores the files of a directory under a name; returns seconds."""

    @abstractmethod
    def get(self, place: Place, name: str) -> float:
        """Restores them into ``place.out``; returns seconds."""


class Csf(Tool):
    """The command, as a person types it. What it puts is pinned under the name of the directory."""

    name = "csf"
    program = "csf"
    verifies = "BLAKE3 of every file as a whole"
    flushes = "everything: data, directories, ledger"
    ours = True

    def _csf(self, place: Place, *arguments: str | Path) -> list[str | Path]:
        return [CSF, "--archive", place.store / "archive", *arguments]

    def start(self, place: Place) -> None:
        place.run(*self._csf(place, "init"))

    def put(self, place: Place, name: str, source: Path) -> float:
        return timed_commands(place, [self._csf(place, "put", *self._how(place, name), source)])

    def _how(self, place: Place, name: str) -> list[str]:
        """Options of a put. By itself, the command looks for a base among what was put under the same name."""
        del place, name
        return ["--no-base"] if delta_is_built() else []

    def get(self, place: Place, name: str) -> float:
        return timed_commands(place, [self._csf(place, "get", self._digest(place, name), "-o", place.out / "tree")])

    def _digest(self, place: Place, name: str) -> str:
        return place.run(sys.executable, WORKERS / "csf_worker.py", "digest", place.store / "archive", name).strip()


class CsfLibrary(Tool):
    """The same through ``Archive.put_tree`` and ``Archive.get_tree``, beside the other libraries."""

    name = "csf, as a library"
    program = "csf"
    verifies = Csf.verifies
    flushes = Csf.flushes
    library = True

    def _worker(self, place: Place, *arguments: str | Path) -> list[str | Path]:
        verb, *rest = arguments
        return [sys.executable, WORKERS / "csf_worker.py", verb, place.store / "archive", *rest]

    def start(self, place: Place) -> None:
        place.run(*self._worker(place, "init"))

    def put(self, place: Place, name: str, source: Path) -> float:
        return timed_worker(place, *self._worker(place, "put", name, source))

    def get(self, place: Place, name: str) -> float:
        return timed_worker(place, *self._worker(place, "get", name, place.out / "tree"))


class CsfDelta(Csf):
    """With the base named, as somebody does who knows what was fine-tuned."""

    name = "csf, --base"

    def missing(self) -> str:
        return "" if delta_is_built() else "not built"

    def _how(self, place: Place, name: str) -> list[str]:
        return ["--no-base"] if name == "base" else ["--base", self._digest(place, "base")]


class Borg(Tool):
    """borg, without encryption: nobody else here pays for it."""

    program = "borg"
    verifies = "SHA-256 of every chunk"
    flushes = "everything: segments, directories, index"

    def __init__(self, compression: str) -> None:
        self.name = f"borg, {compression}"
        self.compresses = compression != "none"
        self._compression = compression

    def start(self, place: Place) -> None:
        place.run("borg", "init", "-e", "none", place.store / "repository")

    def put(self, place: Place, name: str, source: Path) -> float:
        target = f"{place.store / 'repository'}::{name}"
        return timed_commands(place, [["borg", "create", "-C", self._compression, target, "."]], cwd=source)

    def get(self, place: Place, name: str) -> float:
        return timed_commands(place, [["borg", "extract", f"{place.store / 'repository'}::{name}"]], cwd=place.out)


class Restic(Tool):
    """restic as it comes. It can not be told not to encrypt.

    Its ``--compression max`` is left out: 2 cores need minutes for a set, and what is stored stays far above casync's.
    """

    name = "restic"
    program = "restic"
    verifies = "SHA-256 of every chunk"
    flushes = "everything: packs, directories, index"
    note = "encrypts"

    def _restic(self, place: Place, *arguments: str | Path) -> list[str | Path]:
        return ["restic", "-q", "-r", place.store / "repository", *arguments]

    def start(self, place: Place) -> None:
        place.run(*self._restic(place, "init"))

    def put(self, place: Place, name: str, source: Path) -> float:
        return timed_commands(place, [self._restic(place, "backup", "--tag", name, ".")], cwd=source)

    def get(self, place: Place, name: str) -> float:
        restore = self._restic(place, "restore", "latest", "--tag", name, "--target", place.out)
        return timed_commands(place, [restore])


class Casync(Tool):
    """casync, with its own chunk size and with a larger one."""

    program = "casync"
    verifies = "SHA-512/256 of every chunk"

    def __init__(self, chunk_size: int | None = None) -> None:
        self.name = f"casync, {chunk_size >> 20} MiB chunks" if chunk_size else "casync"
        self._options = [f"--chunk-size={chunk_size}"] if chunk_size else []

    def put(self, place: Place, name: str, source: Path) -> float:
        store = f"--store={place.store / 'chunks.castr'}"
        index = place.store / f"{name}.caidx"
        return timed_commands(place, [["casync", "make", *self._options, store, index, source]])

    def get(self, place: Place, name: str) -> float:
        store = f"--store={place.store / 'chunks.castr'}"
        return timed_commands(place, [["casync", "extract", store, place.store / f"{name}.caidx", place.out]])


class _InTree(Tool):
    """A tool over git: what it stores must lie in its working tree first."""

    compresses = False

    def stage(self, place: Place, name: str, source: Path) -> None:
        shutil.copytree(source, place.tree / name)

    def _clear(self, place: Place, name: str) -> None:
        shutil.rmtree(place.tree / name)

    def _hand_out(self, place: Place, name: str) -> None:
        (place.out / "tree").symlink_to(place.tree / name)


class GitLfs(_InTree):
    """git-lfs: add and commit, then checkout."""

    name = "git-lfs"
    program = "git-lfs"

    def start(self, place: Place) -> None:
        place.run("git", "init", "-q", f"--separate-git-dir={place.store / 'git'}", place.tree)
        for command in (("lfs", "install", "--local"), ("lfs", "track", "*.safetensors"), ("add", ".gitattributes")):
            place.run("git", *command, cwd=place.tree)
        place.run("git", "commit", "-qm", "start", cwd=place.tree)

    def put(self, place: Place, name: str, source: Path) -> float:
        del source
        return timed_commands(place, [["git", "add", name], ["git", "commit", "-qm", name]], cwd=place.tree)

    def get(self, place: Place, name: str) -> float:
        self._clear(place, name)
        seconds = timed_commands(place, [["git", "checkout", "-q", "--", name]], cwd=place.tree)
        self._hand_out(place, name)
        return seconds


class Dvc(_InTree):
    """DVC: add, then checkout, with copies instead of links into its cache."""

    name = "dvc"
    program = "dvc"
    flushes = "its own databases, not the data"
    note = "cache.type=copy"

    def __init__(self, venv: Path) -> None:
        self._dvc = venv / "bin" / "dvc"

    def start(self, place: Place) -> None:
        place.run("git", "init", "-q", place.tree)
        place.run(self._dvc, "init", "-q", cwd=place.tree)
        place.run(self._dvc, "config", "core.analytics", "false", cwd=place.tree)
        place.run(self._dvc, "config", "cache.type", "copy", cwd=place.tree)
        place.run(self._dvc, "cache", "dir", place.store / "cache", cwd=place.tree)

    def put(self, place: Place, name: str, source: Path) -> float:
        del source
        return timed_commands(place, [[self._dvc, "add", "-q", name]], cwd=place.tree)

    def get(self, place: Place, name: str) -> float:
        self._clear(place, name)
        seconds = timed_commands(place, [[self._dvc, "checkout", "-q", f"{name}.dvc"]], cwd=place.tree)
        self._hand_out(place, name)
        return seconds


class LibraryPeer(Tool):
    """hf_xet or ZipNN, driven by a worker in the peers' environment."""

    library = True

    def __init__(self, venv: Path, name: str, worker: str) -> None:
        self.name = self.program = name
        self._command = (venv / "bin" / "python", WORKERS / worker)

    def put(self, place: Place, name: str, source: Path) -> float:
        return timed_worker(place, *self._command, "put", place.store, name, source)

    def get(self, place: Place, name: str) -> float:
        return timed_worker(place, *self._command, "get", place.store, name, place.out)


def tools(venv: Path) -> list[Tool]:
    """Every row, ours first."""
    xet = LibraryPeer(venv, "hf_xet", "xet_worker.py")
    xet.flushes, xet.note = "its table of known chunks, not the data", "its local:// store"
    zipnn = LibraryPeer(venv, "zipnn", "zipnn_worker.py")
    zipnn.store, zipnn.note = False, "a compressor over whole files, not a store"
    rows: list[Tool] = [Csf(), CsfLibrary(), CsfDelta(), Borg("none"), Borg("lz4"), Borg("zstd,3")]
    rows += [Restic(), Casync(), Casync(1 << 20), xet, GitLfs(), Dvc(venv), zipnn]
    return rows
