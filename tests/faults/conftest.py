"""Where thousands of little archives are made: in memory, if the machine has such a place."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csf_store.pipeline import Pipeline

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


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread pool: for a thousand archives of a few bytes, waking threads is most of the time on a busy machine."""
    monkeypatch.setattr(Pipeline, "ordered", lambda _, work, items: map(work, items))
