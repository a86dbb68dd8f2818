"""Finding experience again: batches on the ledger, and the records that somebody names in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csf_store import CsfError, Digest
from keystone.errors import InvalidInputError
from keystone.experience.batches import ExperienceBatch
from manifests import Repository


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """A batch, its digest, and when the ledger first heard of it (RFC 3339, UTC)."""

    digest: Digest
    batch: ExperienceBatch
    time: str


def experience_batches(repository: Repository) -> Iterator[FoundBatch]:
    """Every batch that is still here, oldest first."""
    for entry in repository.archive.ledger.entries():
        if entry.event == "evidence" and entry.fields.get("kind") == ExperienceBatch.kind_name():
            digest = Digest.parse(str(entry.fields["record"]))
            if repository.archive.contains(digest):
                yield FoundBatch(digest, repository.load_record(digest, ExperienceBatch), entry.time)


def record_digests(path: Path) -> tuple[Digest, ...]:
    """Digests from a file: one on each line, or JSON lines with `record` or `records`, as `--json` prints them.

    Raises:
        InvalidInputError: naming the line that is neither.
    """
    found: list[Digest] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found += _digests_of(line.strip())
        except (CsfError, ValueError, TypeError) as error:
            raise InvalidInputError(f"{path} line {number}: no digest, and no JSON with `record`: {error}") from error
    return tuple(dict.fromkeys(found))


def _digests_of(line: str) -> list[Digest]:
    if not line.startswith("{"):
        return [Digest.parse(line)]
    fields = json.loads(line)
    if "records" in fields:
        return [Digest.parse(str(each)) for each in fields["records"]]
    if "record" not in fields or fields.get("accepted") is False:
        return []  # a summary, or what the gate refused
    return [Digest.parse(str(fields["record"]))]
