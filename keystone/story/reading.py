"""Which events make a story, in which order, read as a stream.

Without a filter only the end of the ledger is read. With one, every line is looked at once, by what it says alone;
documents are read for the sentences that are told in the end. Events that only echo another one (the pin that keeps a
record whose arrival was told) are left out unless their kind is asked for, and a row of documents of one kind that have
nothing to tell but their digest becomes one sentence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from csf_store import Archive, Digest, LedgerEntry
from keystone.story.kinds import kind_of
from keystone.story.telling import Sentence, Teller
from manifests import Repository, TripwireReport, is_ref_name

_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_ECHO = "kept"
_PER_SENTENCE = 4
"""Lines of the ledger that a sentence takes, more or less; a first guess where to begin."""


@dataclass(frozen=True, slots=True)
class StoryQuery:
    """What to tell.

    Attributes:
        about: a ref or a manifest; None for everything.
        kinds: of `STORY_KINDS`; empty for all but echoes.
        since: not before this moment.
        until: not after this moment.
        limit: the newest so many sentences; None for all.
    """

    about: str | None = None
    kinds: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """Events alike, one after the other: the last of them, and how many."""

    entry: LedgerEntry
    count: int


def read_story(archive: Archive, query: StoryQuery) -> Iterator[Sentence]:
    """The sentences of a story, oldest first.

    Raises:
        csf_store.CorruptError: naming the first line of the ledger that was altered.
        RefNotFoundError, csf_store.NotFoundError, csf_store.AmbiguousPrefixError: about whom is not there.
    """
    about = _Mentions.of(archive, query.about) if query.about is not None else None
    teller = Teller(archive)
    for row in _rows(archive, query, about):
        yield teller.tell(row.entry, row.count)


def _rows(archive: Archive, query: StoryQuery, about: _Mentions | None) -> Iterable[_Row]:
    ledger = archive.ledger
    first = ledger.first_at(_stamp(query.since)) if query.since is not None else 0
    if query.limit is None:
        return _grouped(_chosen(ledger.entries(first), query, about))
    plain = about is None and not query.kinds and query.until is None
    start = max(first, ledger.size - query.limit * _PER_SENTENCE) if plain else first
    # One more than is asked for: where reading began in the middle, the first row may be the rest of a longer one.
    found = deque(_grouped(_chosen(ledger.entries(start), query, about)), maxlen=query.limit + 1)
    if len(found) <= query.limit and start > first:
        found = deque(_grouped(_chosen(ledger.entries(first), query, about)), maxlen=query.limit)
    return list(found)[-query.limit :]


def _chosen(entries: Iterable[LedgerEntry], query: StoryQuery, about: _Mentions | None) -> Iterator[LedgerEntry]:
    last = _stamp(query.until) if query.until is not None else None
    for entry in entries:
        if last is not None and entry.time > last:
            return  # times never decrease
        kind = kind_of(entry)
        if (kind in query.kinds if query.kinds else kind != _ECHO) and (about is None or about.fits(entry)):
            yield entry


def _grouped(entries: Iterable[LedgerEntry]) -> Iterator[_Row]:
    """Documents that are told by their kind alone, of one kind and in a row, are one sentence."""
    held: _Row | None = None
    for entry in entries:
        alike = held is not None and _group(entry) is not None and _group(entry) == _group(held.entry)
        if held is not None and not alike:
            yield held
        held = _Row(entry, held.count + 1 if held is not None and alike else 1)
    if held is not None:
        yield held


def _group(entry: LedgerEntry) -> str | None:
    """What a row of events has in common: the document's kind, and the minute."""
    if kind_of(entry) != "evidence" or entry.fields.get("status"):
        return None
    return f"{entry.fields.get('kind')} {entry.time[:16]}"


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_TIME)


@dataclass(frozen=True, slots=True)
class _Mentions:
    """Everything that belongs to one ref, or to one manifest: their names and digests, as the ledger writes them."""

    ref: str | None
    digests: frozenset[str]

    @classmethod
    def of(cls, archive: Archive, text: str) -> _Mentions:
        repository = Repository(archive)
        if is_ref_name(text):
            repository.refs.get(text)  # a name that nothing was ever called is an error, not an empty story
            targets = [event.target for event in repository.refs.history(text) if event.target is not None]
        else:
            targets = [repository.resolve(text)]
        found: set[str] = set()
        for target in dict.fromkeys(targets):
            found |= _belonging(repository, target)
        return cls(text if is_ref_name(text) else None, frozenset(found))

    def fits(self, entry: LedgerEntry) -> bool:
        for key, value in entry.fields.items():
            if key == "ref" and self.ref is not None:
                if value == self.ref:
                    return True
            elif isinstance(value, str):
                if value in self.digests:
                    return True
            elif isinstance(value, list) and any(each in self.digests for each in value if isinstance(each, str)):
                return True
        return False


def _belonging(repository: Repository, digest: Digest) -> set[str]:
    """A manifest, the ones it grew from on the same weights, and all they stand on."""
    found: set[Digest] = set()
    at: Digest | None = digest
    while at is not None and at not in found:
        manifest = repository.load(at)
        found |= {at, manifest.assembly.digest, *manifest.links()}
        if manifest.tripwire.report is not None:
            found.add(repository.load_record(manifest.tripwire.report, TripwireReport).policy)
        records = [record for step in manifest.lineage if (record := repository.adapter_record(step.adapter))]
        found |= {record.training for record in records if record.training is not None}
        if manifest.parent is None or not repository.archive.contains(manifest.parent):
            break
        found.discard(manifest.parent)  # it is looked at itself, next
        at = manifest.parent
    return {str(each) for each in found}
