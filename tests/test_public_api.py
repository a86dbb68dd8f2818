"""What each floor promises to the one above and to users, and what starting up may cost."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("csf_store", "manifests", "adapters", "keystone")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    assert sorted(module.__all__) == list(dict.fromkeys(sorted(module.__all__)))
    for name in module.__all__:
        assert getattr(module, name) is not None, name
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018 - the access is the test


@pytest.mark.parametrize("package", PACKAGES)
def test_every_error_carries_its_exit_code(package: str) -> None:
    errors = importlib.import_module(f"{package}.errors")
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert classes
    for kind in classes:
        if kind.__module__ == errors.__name__:
            assert kind.exit_code in {1, 5, 6, 7, 8, 9, 10}, kind  # type: ignore[attr-defined]
            assert kind.__doc__


def imported_by(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(outcome.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import csf_store, csf_store.cli", {"torch", "pydantic", "numpy", "rich", "sqlite3", "blake3"}),
        ("from csf_store import Archive", {"torch", "pydantic"}),
        ("import keystone, keystone.cli", {"torch", "pydantic", "numpy", "rich", "transformers"}),
        ("import adapters", {"torch", "peft", "transformers"}),
    ],
)
def test_imports_stay_light(code: str, heavy: set[str]) -> None:
    assert not heavy & imported_by(code)


@pytest.mark.parametrize("command", ["csf", "keystone"])
def test_help_names_every_command_with_an_example(command: str) -> None:
    program = str(Path(sys.executable).with_name(command))
    listing = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    names = [
        line.split()[0]
        for line in listing.split("Commands:")[1].splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    assert len(names) >= 8
    for name in names:
        text = subprocess.run([program, name, "--help"], capture_output=True, text=True, check=True).stdout
        assert "Example" in text or "Commands:" in text, name
