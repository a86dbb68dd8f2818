"""Installs the peers, and says of each which version there is or why there is none.

    python -m bench.storage.install

borg, restic, casync and git-lfs are packages of Debian and its relatives; they are installed by ``apt-get`` when this
runs as root, and otherwise the command to run is printed. hf_xet, DVC and ZipNN live in a virtual environment of
their own under ``.bench/``, which git ignores: their dependencies are no business of this project. ZipNN imports
torch for tensors it is never given here; instead of a second torch, that environment falls back on the packages of
the one this runs in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import click

HOME = Path(__file__).parents[2] / ".bench"
VENV = HOME / "peers"
_APT = {"borg": "borgbackup", "restic": "restic", "casync": "casync", "git-lfs": "git-lfs", "strace": "strace"}
_PIP = {"dvc": "dvc==3.67.1", "hf_xet": "hf_xet==1.8.0"}
_PIP_ALONE = {"zipnn": "zipnn==0.5.4"}
_SHOWN = {"strace": "counts flushes; without it that column is empty"}


class Peer(NamedTuple):
    """Whether a peer can be run.

    Attributes:
        name: as tools call their program.
        version: what it says of itself; empty when it is not there.
        missing: why it is not there; empty when it is.
    """

    name: str
    version: str
    missing: str


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def _first_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout.strip() or done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]


def _install_packages() -> None:
    wanted = [package for program, package in _APT.items() if not shutil.which(program)]
    if not wanted:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *wanted]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        click.echo(f"not root, or no apt-get here; install by hand: sudo {' '.join(command)}", err=True)
        return
    click.echo(f"installing {', '.join(wanted)}", err=True)
    _run("apt-get", "update")
    for package in wanted:  # one by one: a package that is not to be had must not cost the others
        _run(*command[:4], package)


def _install_libraries() -> None:
    python = VENV / "bin" / "python"
    if not python.exists():
        click.echo(f"making {VENV.relative_to(HOME.parent)}", err=True)
        _run(sys.executable, "-m", "venv", VENV)
        ours = sysconfig.get_path("purelib")
        theirs = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        (theirs / "fall_back.pth").write_text(ours + "\n")  # searched last: their own versions win
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--ignore-installed")
    for name, requirement in (_PIP | _PIP_ALONE).items():
        if _version_of_library(name) != requirement.partition("==")[2]:
            click.echo(f"installing {requirement}", err=True)
            alone = ["--no-deps"] if name in _PIP_ALONE else []
            _run(*pip, *alone, requirement)


def _version_of_library(name: str) -> str:
    asked = f"import {name}, importlib.metadata as m; print(m.version({name!r}))"
    done = _run(VENV / "bin" / "python", "-W", "ignore", "-c", asked) if (VENV / "bin" / "python").exists() else None
    return done.stdout.strip() if done and done.returncode == 0 else ""


def _version_of_program(program: str) -> str:
    if not shutil.which(program):
        return ""
    asked = {"git-lfs": ("git-lfs", "version"), "restic": ("restic", "version")}.get(program, (program, "--version"))
    words = _first_line(_run(*asked)).replace("/", " ").split()
    return next((word for word in words if word[:1].isdigit()), " ".join(words))


def peers() -> dict[str, Peer]:
    """Every peer by the name its tools use, installed or not; asks nobody and installs nothing."""
    found = {}
    for name, package in _APT.items():
        version = _version_of_program(name)
        found[name] = Peer(name, version, "" if version else f"not installed (package {package})")
    for name in (*_PIP, *_PIP_ALONE):
        version = _version_of_library(name)
        found[name] = Peer(name, version, "" if version else f"not installed (pip package {name})")
    return found


@click.command()
def main() -> None:
    """Install the peers of the storage bench."""
    HOME.mkdir(exist_ok=True)
    _install_packages()
    _install_libraries()
    for peer in peers().values():
        note = f"; {_SHOWN[peer.name]}" if peer.name in _SHOWN and peer.missing else ""
        click.echo(f"{peer.name:8} {peer.version or peer.missing}{note}")


if __name__ == "__main__":
    main()
