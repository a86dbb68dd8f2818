"""One event, one sentence.

A sentence says what a person would: who, what, on which base, how well. Numbers come from the documents an event names.
An event of a kind that this release does not know, or with fields that are not what they should be, is told plainly by
its name and fields: a story must not end because a later release added a chapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from csf_store import JSON, Archive, CsfError, LedgerEntry, human_size
from keystone.story.evidence_sentences import DOCUMENT_SENTENCES
from keystone.story.kinds import kind_of
from keystone.story.manifest_sentences import tell_adapter, tell_manifest
from keystone.story.names import Names, short
from manifests import Judged, ManifestError

Fields: TypeAlias = Mapping[str, JSON]

_MOST_FIELDS = 300
"""Characters of the fields of an event that is told plainly."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One thing that happened.

    Attributes:
        seq: number of its event; of the last one, where several alike are told as one.
        time: when, in UTC.
        kind: one of `STORY_KINDS`.
        event: the ledger's name for it.
        text: the sentence, without the time.
        count: how many events it tells.
    """

    seq: int
    time: datetime
    kind: str
    event: str
    text: str
    count: int = 1


class Teller:
    """Tells events of one archive.

    Args:
        archive: an open archive.
    """

    def __init__(self, archive: Archive) -> None:
        self._names = Names(archive)

    def tell(self, entry: LedgerEntry, count: int = 1) -> Sentence:
        """The sentence of an event.

        Args:
            entry: the event.
            count: how many like it came in a row, this one last.
        """
        text = self._said(entry) if count == 1 else _many(entry, count)
        return Sentence(entry.seq, datetime.fromisoformat(entry.time), kind_of(entry), entry.event, text, count)

    def _said(self, entry: LedgerEntry) -> str:
        tell = _TELLERS.get(entry.event)
        try:
            said = tell(self._names, entry) if tell is not None else None
        except (CsfError, ManifestError, KeyError, TypeError, ValueError, AttributeError):
            said = None  # it says what no program of ours writes; then the event itself is what there is to show
        return said if said is not None else plainly(entry)


def plainly(entry: LedgerEntry) -> str:
    """An event by its name and fields, for want of a sentence."""
    told = ", ".join(f"{key} {short(value)}" for key, value in sorted(entry.fields.items()) if value is not None)
    told = told if len(told) <= _MOST_FIELDS else f"{told[:_MOST_FIELDS]}..."
    return f"event {entry.event}: {told}" if told else f"event {entry.event}"


def _many(entry: LedgerEntry, count: int) -> str:
    what = str(entry.fields.get("kind")).replace("-", " ")
    return f"{count} {what}s arrived, {short(entry.fields.get('record'))} last"


def _created(_: Names, entry: LedgerEntry) -> str:
    return f"the archive was made, {entry.fields['archive']}"


def _pinned(names: Names, entry: LedgerEntry) -> str | None:
    fields = entry.fields
    if fields["kind"] == "manifest":
        return tell_manifest(names, fields["digest"])
    name = f" {short(fields['name'])}" if fields.get("name") else ""
    if fields["kind"] == "record":
        return f"a record is kept{name}: {short(fields['digest'])}"
    return f"put the {'directory' if fields['kind'] == 'tree' else 'file'}{name}: {short(fields['digest'])}"


def _unpinned(names: Names, entry: LedgerEntry) -> str:
    return f"let go of {names.manifest(entry.fields['digest'])}; garbage collection may take it"


def _evidence(names: Names, entry: LedgerEntry) -> str:
    fields = entry.fields
    kind, record = str(fields["kind"]), fields["record"]
    tell = DOCUMENT_SENTENCES.get(kind)
    said = tell(names, record) if tell is not None else None
    if said is not None:
        return said
    status = f", {fields['status']}" if fields.get("status") else ""
    about = f" of {names.assembly(fields['assembly'])}" if fields.get("assembly") else ""
    return f"{_article(kind)}{about} arrived{status}: {short(record)}"


def _article(kind: str) -> str:
    words = kind.replace("-", " ")
    return f"{'an' if words[:1] in 'aeio' else 'a'} {words}"


def _moved(names: Names, entry: LedgerEntry) -> str:
    fields = entry.fields
    ref, before, after = fields["ref"], fields["from"], fields["to"]
    reason = f": {fields['reason']}" if fields.get("reason") else ""
    if fields.get("rollback") is True:
        return f"{ref} was rolled back from {short(before)} to {short(after)}{reason}"
    if fields.get("approval") is not None:
        start = f"from {short(before)} " if before else ""
        return f"{ref} was promoted {start}to {short(after)}, approved by {_approvers(names, fields)}{reason}"
    if fields.get("protected") is True:
        return f"{ref} is protected from now on: it moves forward with an approval alone{reason}"
    if after is None:
        return f"{ref} was taken off {short(before)}{reason}"
    if before is None:
        return f"{ref} is the name of {short(after)} now{reason}"
    return f"{ref} was moved from {short(before)} to {short(after)}{reason}"


def _approvers(names: Names, fields: Fields) -> str:
    envelope = names.load_envelope(fields["approval"])
    found = [names.key(str(key)) for key, _ in envelope.signatures] if envelope is not None else []
    return " and ".join(found) or short(fields["approval"])


def _signed(names: Names, entry: LedgerEntry) -> str:
    envelope = names.load_envelope(entry.fields["envelope"])
    if envelope is None:
        keys = entry.fields["keys"]
        who = " and ".join(names.key(key) for key in keys) if isinstance(keys, list) else "somebody"
        return f"{who} signed {short(entry.fields['envelope'])}, which can not be read here"
    who = " and ".join(map(_signer, names.judged(envelope, entry.seq)))
    statement = envelope.statement
    if kind_of(entry) == "approved":
        said = statement.predicate
        note = f": {said['note']}" if said.get("note") else ""
        return f"{who} approved {names.assembly(said['assembly'])} for {said['ref']}{note}"
    subjects = ", ".join(f"{name} {names.manifest(str(digest))}" for name, digest in statement.subjects[:1])
    return f"{who} signed {subjects}"


def _signer(judged: Judged) -> str:
    if judged.name is None:
        return f"the unknown key {short(str(judged.key))}"
    return f"{judged.name} ({'trusted' if judged.state.counts else judged.state.value})"


def _trusted(_: Names, entry: LedgerEntry) -> str:
    return f"key {entry.fields['name']} ({short(entry.fields['key'])}) is trusted from now on"


def _revoked(names: Names, entry: LedgerEntry) -> str:
    fields = entry.fields
    since = f", for everything since event {fields['since']}" if fields.get("since") is not None else ""
    reason = f": {fields['reason']}" if fields.get("reason") else ""
    return f"key {names.key(fields['key'])} was revoked{since}{reason}"


def _collected(_: Names, entry: LedgerEntry) -> str:
    fields = entry.fields
    segments, freed = fields["segments"], fields["freed"]
    count = len(segments) if isinstance(segments, list) else 0
    many = f"{count} segment{'' if count == 1 else 's'}"
    if fields.get("into"):
        return f"a repair moved {many} out of the way, into {fields['into']}"
    size = human_size(freed) if isinstance(freed, int) else "nothing"
    return f"garbage collection took {many} away and freed {size} ({fields['objects']} objects)"


def _cycle(_: Names, entry: LedgerEntry) -> str:
    fields = entry.fields
    if fields.get("outcome"):
        return f"cycle {fields['cycle']} ended: {fields['outcome']}" + _because(fields)
    return f"cycle {fields['cycle']}: {str(fields['step']).replace('-', ' ')}" + _because(fields)


def _because(fields: Fields) -> str:
    return f" ({fields['reason']})" if fields.get("reason") else ""


def _holdout(names: Names, entry: LedgerEntry) -> str:
    fields = entry.fields
    about = f"draw {fields['draw']} of {fields['count']} tasks from {fields['suite']}"
    if fields["step"] == "commit":
        return f"hold-out {about} was committed to, unseen"
    return f"hold-out {about} was opened for {names.assembly(fields['candidate'])} and is spent"


def _registry(_: Names, entry: LedgerEntry) -> str:
    fields = entry.fields
    reason = f": {fields['reason']}" if fields.get("reason") else ""
    return f"the model registry went to version {short(fields['to'])}{reason}"


_TELLERS: Mapping[str, Callable[[Names, LedgerEntry], str | None]] = {
    "archive.created": _created,
    "pin": _pinned,
    "unpin": _unpinned,
    "evidence": _evidence,
    "adapter.record": lambda names, entry: tell_adapter(names, entry.fields),
    "ref.set": _moved,
    "signed": _signed,
    "key.trust": _trusted,
    "key.revoke": _revoked,
    "collected": _collected,
    "cycle": _cycle,
    "holdout": _holdout,
    "registry.set": _registry,
}
