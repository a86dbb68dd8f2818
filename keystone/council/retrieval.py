"""What is known already: verified Convergence Records that speak of something like the task.

Plain BM25 over the words of prompts and answers, names cut at underscores and capitals. It finds shared words and
understands nothing; whoever is shown a record should know that, and so every record that was shown is cited. Only
records that stand on evidence and passed all of it are looked at.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from adapters import ConvergenceRecord
from csf_store import CsfError, Digest
from manifests import ManifestError, Repository

_K1: Final = 1.2
_B: Final = 0.75
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_SILENT: Final = frozenset(
    ("a", "an", "and", "are", "as", "at", "be", "by", "def", "for", "from", "if", "in", "is", "it", "of", "on", "or",
     "return", "returns", "that", "the", "to", "with")
)  # fmt: skip
_MOST_TEXT: Final = 6000


@dataclass(frozen=True)
class FoundRecord:
    """A record, and how well its words fit."""

    digest: Digest
    record: ConvergenceRecord
    score: float


def search_records(repository: Repository, query: str, *, limit: int = 3) -> list[FoundRecord]:
    """The records that fit best, best first; none that shares no word.

    Args:
        repository: whose ledger is searched.
        query: the task.
        limit: at most so many.
    """
    if limit < 1:
        return []
    wanted = set(words(query))
    known = list(_verified(repository))
    bags = [Counter(words(f"{record.claim.prompt}\n{record.claim.answer}")) for _, record in known]
    holders = Counter(word for bag in bags for word in bag.keys() & wanted)
    mean = sum(bag.total() for bag in bags) / len(bags) if bags else 1.0
    found = []
    for (digest, record), bag in zip(known, bags, strict=True):
        score = sum(_weight(bag[word], holders[word], len(bags), bag.total() / mean) for word in wanted if bag[word])
        if score > 0:
            found.append(FoundRecord(digest, record, score))
    return sorted(found, key=lambda each: (-each.score, each.digest))[:limit]


def words(text: str) -> list[str]:
    """The words of a text, in lower case, without those that say nothing."""
    return [word for word in map(str.lower, _WORD.findall(text)) if word not in _SILENT]


def context_of(found: Sequence[FoundRecord]) -> tuple[str, tuple[Digest, ...]]:
    """What members are shown, as Python text, and the digests of those that fitted in."""
    parts, cited, room = [], [], _MOST_TEXT
    for each in found:
        program = each.record.program.strip() + "\n"
        if len(program) <= room:
            parts.append(program)
            cited.append(each.digest)
            room -= len(program)
    return "\n\n".join(parts), tuple(cited)


def _weight(count: int, holders: int, records: int, length: float) -> float:
    rarity = math.log(1 + (records - holders + 0.5) / (holders + 0.5))
    return rarity * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * length))


def _verified(repository: Repository) -> Iterator[tuple[Digest, ConvergenceRecord]]:
    seen: set[Digest] = set()
    for entry in repository.archive.ledger.entries():
        if entry.event != "evidence" or entry.fields.get("kind") != ConvergenceRecord.kind_name():
            continue
        digest = Digest.parse(str(entry.fields.get("record")))
        if digest in seen:
            continue
        seen.add(digest)
        try:
            record = repository.load_record(digest, ConvergenceRecord)
        except (CsfError, ManifestError):
            continue  # it was collected; what is not there cannot be cited
        if record.evidence.training_ground is not None and record.confidence.complete:
            yield digest, record
