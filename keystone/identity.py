"""Which modeling code computes: the digest of its source, recorded in manifests beside the code id.

The code id (`keystone-plt/N`) is part of a model's identity and is raised when any fixture's logits change. The source
digest is not: it says exactly which files computed, comments and all, for whoever wants to look them up.
"""

from functools import cache
from pathlib import Path

from csf_store import Digest
from manifests import canonical_digest

SOURCES = ("attention.py", "cache.py", "configuration.py", "layout.py", "modeling.py", "state.py")


@cache
def source_digest() -> Digest:
    """BLAKE3 of the RFC 8785 JSON `{"files":[[name,digest],...],"v":1}` over the files of `model/`, sorted by name."""
    here = Path(__file__).parent / "model"
    files = [[name, str(Digest.of((here / name).read_bytes()))] for name in SOURCES]
    return canonical_digest({"files": files, "v": 1})
