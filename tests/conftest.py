"""Fixtures that several test folders share: one archive with the embedded base in it, made once."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from csf_store import Archive
from keystone import import_nano

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def nano_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that holds keystone-nano as ref `nano`. Read it, or copy it; loads keep quantized weights in it."""
    path = tmp_path_factory.mktemp("nano") / "archive"
    with Archive.create(path) as archive:
        import_nano(archive)
    return path


@pytest.fixture
def own_nano_archive(nano_archive: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `nano_archive` to write to."""
    yield Path(shutil.copytree(nano_archive, tmp_path / "archive"))
