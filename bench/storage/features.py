"""What this build of ``csf_store`` can do, so that a row says "not built" instead of failing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path

from csf_store import Archive
from csf_store.codecs.registry import codecs, needs_base

CSF = Path(sys.executable).parent / "csf"


@cache
def delta_is_built() -> bool:
    """Whether differences to a base can be stored, through ``Archive`` and through the command."""
    takes_base = "base" in inspect.signature(Archive.put_tree).parameters
    said = subprocess.run([str(CSF), "put", "--help"], capture_output=True, text=True, check=False).stdout
    return takes_base and any(needs_base(number) for number in codecs()) and "--base" in said
