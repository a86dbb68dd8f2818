"""The modeling code as files beside the weights, so that transformers loads the model where this package is not.

transformers copies the file that `auto_map` names, and every file it imports relatively, out of one flat directory. So
`keystone/model/*.py` go there under names of their own, with imports of this package turned into relative ones, and
`keystone/errors.py` with them. What comes out is parsed again: an import of anything but the standard library, torch,
transformers and huggingface_hub would work here and fail with whoever gets the export, and is refused.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from keystone.errors import RefusedError

AUTO_MAP = {
    "AutoConfig": "configuration_keystone.KeystoneConfig",
    "AutoModelForCausalLM": "modeling_keystone.KeystoneForCausalLM",
}
"""Which classes transformers is to look for, in which of the files."""

_PACKAGE = Path(__file__).parents[2]
_OUTSIDE = frozenset({"torch", "transformers", "huggingface_hub"})
_IMPORT = re.compile(r"^(\s*)from keystone\.(?:model\.)?(\w+) import ", re.MULTILINE)
_NOTICE = "# Part of keystone-sigma0 (Apache-2.0), as exported with a checkpoint. Edit the original, not this copy.\n"


def code_files(package: Path = _PACKAGE) -> Mapping[str, bytes]:
    """File name -> content of everything that has to lie beside the weights.

    Args:
        package: the folder of `keystone`, a parameter for tests.

    Raises:
        RefusedError: the modeling code imports what will not be there.
    """
    sources = {path.stem: path for path in sorted((package / "model").glob("*.py")) if path.stem != "__init__"}
    sources["errors"] = package / "errors.py"
    files = {f"{stem}_keystone.py": _relative(path.read_text(encoding="utf-8")) for stem, path in sources.items()}
    for name, text in files.items():
        for module in sorted(_imports(text, name)):
            if module.startswith("."):
                known = f"{module[1:]}.py" in files
            else:
                known = module in _OUTSIDE or module in sys.stdlib_module_names
            if not known:
                raise RefusedError(f"{name} imports {module}, which is not there without this package")
    return {name: text.encode() for name, text in files.items()}


def _relative(text: str) -> str:
    return _NOTICE + _IMPORT.sub(r"\1from .\2_keystone import ", text)


def _imports(text: str, name: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text, filename=name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.add("." * node.level + (module if node.level else module.split(".")[0]))
    return found
