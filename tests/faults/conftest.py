"""Where thousands of little archives are made: in memory, if the machine has such a place."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, in memory where that is possible: nothing here needs a real disk, the disk is modelled."""
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="csf-faults-", dir=_MEMORY))
    yield path
    shutil.rmtree(path)
