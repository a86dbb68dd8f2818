"""The floors, and that the contract which guards them bites."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("csf_store", "manifests", "adapters", "keystone")
LINT = Path(sys.executable).with_name("lint-imports")


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [str(LINT), "--config", str(directory / "pyproject.toml"), "--no-cache"]
    environment = {"PYTHONPATH": str(directory), "PATH": "/usr/bin:/bin", "COLUMNS": "200"}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def copied(tmp_path: Path) -> Path:
    """The packages' Python files alone, as a project of their own."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contract_holds() -> None:
    outcome = lint(ROOT)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("csf_store/errors.py", "import manifests"),
        ("csf_store/errors.py", "import torch"),
        ("csf_store/errors.py", "import pydantic"),
        ("manifests/errors.py", "import adapters"),
        ("adapters/errors.py", "import keystone"),
    ],
)
def test_the_contract_bites(tmp_path: Path, module: str, line: str) -> None:
    project = copied(tmp_path)
    path = project / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    outcome = lint(project)
    assert outcome.returncode == 1, outcome.stdout
    assert "BROKEN" in outcome.stdout


def test_packages_import_each_other_through_their_roots() -> None:
    """`from csf_store import Archive`, never `from csf_store.archive import ...` from another floor."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for number, text in enumerate(path.read_text().splitlines(), start=1):
                for other in PACKAGES:
                    if other != package:
                        assert not text.lstrip().startswith((f"from {other}.", f"import {other}.")), f"{path}:{number}"
