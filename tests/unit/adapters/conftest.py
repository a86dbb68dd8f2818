"""The tiny base, trained once for the session; every test gets its own copy of the adapter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_lab import CONFIG, Lab, batches, tiny_model, write_base

from adapters import TrainingResult, train_lora, write_adapter
from csf_store import Archive, Digest
from manifests import Repository


@pytest.fixture(scope="session")
def trained() -> TrainingResult:
    return train_lora(tiny_model(), batches(), CONFIG, base=Digest.of(b"tiny"), data=[Digest.of(b"data")])


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, trained: TrainingResult) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    write_base(root / "base", tiny_model())
    write_adapter(trained.model, root / "adapter")
    return root


@pytest.fixture
def lab(tmp_path: Path, pristine: Path) -> Iterator[Lab]:
    shutil.copytree(pristine / "adapter", tmp_path / "adapter")
    with Archive.create(tmp_path / "archive") as archive:
        base = archive.put_tree(pristine / "base").digest
        yield Lab(Repository(archive), base, tmp_path / "adapter", tmp_path)
