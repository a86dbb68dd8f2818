"""A small archive for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from manifest_house import House, put_tree

from csf_store import Archive
from manifests import Repository


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with Archive.create(tmp_path / "archive") as archive:
        base = put_tree(archive, {"config.json": b"{}", "weights": bytes(range(256)) * 64})
        tokenizer = put_tree(archive, {"tokenizer.json": b'{"model":1}'})
        yield House(Repository(archive), base, tokenizer)
