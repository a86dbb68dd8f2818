"""Sentences about manifests and adapters: where a model came from, or what became known of it."""

from __future__ import annotations

from collections.abc import Mapping

from csf_store import JSON
from keystone.story.evidence_sentences import interval_words
from keystone.story.names import Names, short
from manifests import AdapterRecord, Manifest


def tell_manifest(names: Names, digest: JSON) -> str:
    """A manifest that arrived: imported, composed, or grown by evidence."""
    manifest = names.load_manifest(digest)
    if manifest is None:
        return f"a manifest arrived that can not be read here: {short(digest)}"
    called = names.manifest(digest)
    if manifest.parent is None:
        return f"{_origin(manifest)} came in as {called}{_adapters(manifest)}"
    parent = names.load_manifest(str(manifest.parent))
    if parent is None or parent.assembly == manifest.assembly:
        return f"{called} adds to {names.manifest(str(manifest.parent))}{_news(manifest, parent)}"
    if parent.assembly.base != manifest.assembly.base:
        return f"{called} was made from {names.manifest(str(manifest.parent))} on another base{_adapters(manifest)}"
    what = _adapters(manifest) or " without adapters, the bare base"
    return f"{called} was composed from {names.manifest(str(manifest.parent))}{what}"


def tell_adapter(names: Names, fields: Mapping[str, JSON]) -> str:
    """What was said of an adapter, and whether a training record proves it."""
    adapter, base = short(fields["adapter"]), short(fields["base"])
    record = names.load_record(fields["record"], AdapterRecord)
    if record is None:
        return f"adapter {adapter} was recorded on base {base}"
    parent = f", grown from {short(str(record.parent))}" if record.parent is not None else ""
    about = f"adapter {adapter}, rank {record.rank}{parent}"
    if record.training is None:
        return f"{about}, was added; that it belongs to base {base} is a claim"
    return f"{about}, belongs to base {base}: training record {short(str(record.training))} proves it"


def _origin(manifest: Manifest) -> str:
    source = manifest.source
    return f"{source.location} ({source.kind}, {source.licence})"


def _adapters(manifest: Manifest) -> str:
    uses = manifest.assembly.adapters
    told = ", ".join(short(str(use.adapter)) + ("" if use.weight == 1 else f" x {use.weight:g}") for use in uses)
    return f" with adapter{'' if len(uses) == 1 else 's'} {told}" if uses else ""


def _news(manifest: Manifest, parent: Manifest | None) -> str:
    """What a manifest knows that its parent did not."""
    if parent is None:
        return ", which is not here any more"
    scores = [each for each in manifest.evals if each not in parent.evals]
    told = [f"{each.suite} {each.metric} {each.score:.4g}{interval_words(each.interval)}" for each in scores]
    if manifest.tripwire != parent.tripwire:
        told.append(f"a tripwire that is {manifest.tripwire.status}")
    if fresh := len(set(manifest.approvals) - set(parent.approvals)):
        told.append(f"{fresh} approval{'' if fresh == 1 else 's'}")
    if manifest.labels != parent.labels:
        told.append("labels")
    if manifest.recipe != parent.recipe:
        told.append("another recipe")
    return f": {', '.join(told)}" if told else ""
