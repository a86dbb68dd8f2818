"""The model's files run without the rest of the house: an exported checkpoint carries them along."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import keystone
from keystone.identity import SOURCES

HOUSE = Path(keystone.__file__).parent
ROOM = HOUSE / "model"
FOREIGN = {"torch", "transformers", "huggingface_hub"}


def imported(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.name} imports relatively"
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def allowed(module: str) -> bool:
    if module.partition(".")[0] == "keystone":
        return module == "keystone.errors" or module.startswith("keystone.model.")
    return module.partition(".")[0] in FOREIGN | set(sys.stdlib_module_names)


@pytest.mark.parametrize("source", sorted(ROOM.glob("*.py")), ids=lambda path: path.name)
def test_the_model_imports_nothing_of_the_house_but_its_errors(source: Path) -> None:
    assert [module for module in imported(source) if not allowed(module)] == []


def test_the_errors_import_the_standard_library_alone() -> None:
    roots = {module.partition(".")[0] for module in imported(HOUSE / "errors.py")}
    assert roots <= set(sys.stdlib_module_names)


def test_the_source_digest_covers_every_file_that_computes() -> None:
    assert sorted(SOURCES) == sorted(path.name for path in ROOM.glob("*.py") if path.name != "__init__.py")
