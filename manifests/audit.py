"""The audit: from a manifest's digest to a verdict on everything it stands on.

`audit` trusts nothing it can check. It reads every object again, decodes it, hashes it, and walks the lineage by the
records, not by what the manifest says of them. Each check gives lines with one of four verdicts:

- PASS: checked, and as it was recorded.
- FAIL: checked, and not as it was recorded; the line names the culprit.
- UNKNOWN: nothing here proves it and nothing disproves it; a claim without a training record, for instance.
- UNSIGNED: true as far as hashes go, and nobody has signed it.

A check that cannot be made fails: an audit never passes by looking less. What a check of ours raises becomes its line,
so one broken object does not hide the next.

Whether an adapter's tensors fit its base is a question about adapter formats, which live one floor up, so that check is
passed in (`adapters.fit_problem`); without it the line says UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from csf_store import Archive, CsfError, Digest
from manifests.audit_evidence import check_evals, check_training
from manifests.audit_lines import AuditLine, AuditReport, Verdict
from manifests.errors import ManifestError, RollbackRefusedError
from manifests.loading import load_manifest, objects_of
from manifests.repository import Repository
from manifests.schema import KNOWN_CODES, Manifest

FitCheck: TypeAlias = Callable[[Archive, Digest, Digest], str | None]
"""(archive, adapter tree, base tree) -> what does not fit, or None when everything does."""

Lines: TypeAlias = Iterator[AuditLine]


def audit(archive: Archive, manifest: Digest, *, fit: FitCheck | None = None) -> AuditReport:
    """Check a manifest and everything under it.

    Args:
        archive: where it lives.
        manifest: its digest.
        fit: the check that an adapter's tensors fit a base, `adapters.check_fit`.
    """
    repository = Repository(archive)
    lines = list(_ledger(archive))
    try:
        loaded = load_manifest(archive, manifest)
    except (CsfError, ManifestError) as error:
        lines.append(AuditLine("manifest", Verdict.FAIL, manifest, str(error)))
        return AuditReport(manifest=manifest, lines=tuple(lines))
    text = f"canonical and well-formed, schema version {loaded.v}, assembly {loaded.assembly.digest.short}"
    lines.append(AuditLine("manifest", Verdict.PASS, manifest, text))
    lines += _objects(archive, manifest, loaded)
    lines += _code(loaded)
    lines += _lineage(repository, loaded)
    lines += check_training(repository, loaded)
    lines += _fit(archive, loaded, fit)
    lines += check_evals(repository, loaded)
    lines += _tripwire(loaded)
    lines += _approvals(manifest, loaded)
    lines += _refs(repository, manifest)
    return AuditReport(manifest=manifest, lines=tuple(lines))


def _objects(archive: Archive, digest: Digest, manifest: Manifest) -> Lines:
    try:
        objects = [found for found, _ in objects_of(archive, digest, manifest)]
        report = archive.verify(objects, deep=True)
    except (CsfError, ManifestError) as error:
        yield AuditLine("objects", Verdict.FAIL, digest, f"not everything this manifest needs can be read: {error}")
        return
    for finding in report.findings:
        where = f" (segment {finding.segment}, offset {finding.offset})" if finding.segment is not None else ""
        yield AuditLine("objects", Verdict.FAIL, finding.digest, f"{finding.what}{where}")
    if not report.findings:
        text = f"{len(objects)} objects decoded and re-hashed to their addresses"
        yield AuditLine("objects", Verdict.PASS if report.ok else Verdict.FAIL, digest, text)


def _code(manifest: Manifest) -> Lines:
    code = manifest.assembly.code
    known = code in KNOWN_CODES
    text = f"modeling code {code}" if known else f"modeling code {code} is not one this release has fixtures for"
    yield AuditLine("code", Verdict.PASS if known else Verdict.UNKNOWN, manifest.assembly.digest, text)


def _lineage(repository: Repository, manifest: Manifest) -> Lines:
    assembly = manifest.assembly
    told = {(step.adapter, step.parent) for step in manifest.lineage}
    try:
        traced = repository.trace((use.adapter for use in assembly.adapters), base=assembly.base)
    except (CsfError, ManifestError) as error:
        yield AuditLine("lineage", Verdict.FAIL, assembly.digest, str(error))
        return
    found = {(step.adapter, step.parent) for step in traced}
    if told != found:
        culprit = min(adapter for adapter, _ in told ^ found)
        text = f"the manifest and the records disagree on where adapter {culprit} descends from"
        yield AuditLine("lineage", Verdict.FAIL, culprit, text)
        return
    text = f"{len(traced)} adapters lead to base {assembly.base.short}" if traced else "the bare base"
    yield AuditLine("lineage", Verdict.PASS, assembly.base, text)


def _fit(archive: Archive, manifest: Manifest, fit: FitCheck | None) -> Lines:
    for step in manifest.lineage:
        if fit is None:
            yield AuditLine("fit", Verdict.UNKNOWN, step.adapter, "whether its tensors fit the base was not checked")
            continue
        try:
            problem = fit(archive, step.adapter, manifest.assembly.base)
        except (CsfError, ManifestError) as error:
            problem = str(error)
        text = problem or f"names, shapes and ranks fit base {manifest.assembly.base.short}"
        yield AuditLine("fit", Verdict.FAIL if problem else Verdict.PASS, step.adapter, text)


def _tripwire(manifest: Manifest) -> Lines:
    wire = manifest.tripwire
    if wire.status == "tripped":
        yield AuditLine("tripwire", Verdict.FAIL, wire.report, "the collapse tripwire tripped on this assembly")
    elif wire.status == "clear":
        # The report's own schema and policy are audited once there is a kind for them; until then a status is a word.
        text = "said to be clear; its report is held, and not yet re-evaluated"
        yield AuditLine("tripwire", Verdict.UNKNOWN, wire.report, text)
    elif manifest.assembly.adapters:
        yield AuditLine("tripwire", Verdict.UNKNOWN, manifest.assembly.digest, "the tripwire has not been run")
    else:
        yield AuditLine("tripwire", Verdict.PASS, manifest.assembly.base, "the bare frozen base needs no tripwire")


def _approvals(digest: Digest, manifest: Manifest) -> Lines:
    if not manifest.approvals:
        yield AuditLine("approvals", Verdict.UNSIGNED, digest, "nobody has signed this manifest")
    for approval in manifest.approvals:
        text = "an approval is named, and this release cannot verify signatures"
        yield AuditLine("approvals", Verdict.UNKNOWN, approval, text)


def _refs(repository: Repository, manifest: Digest) -> Lines:
    for name in repository.refs.names():
        history = repository.refs.history(name)
        if history[-1].target != manifest:
            continue
        before = None
        for event in history:
            if event.previous != before:
                text = f"ref {name!r}: ledger entry {event.seq} moves it from {event.previous}, it was at {before}"
                yield AuditLine("ref", Verdict.FAIL, event.target, text)
            before = event.target
        if len({event.target for event in history} - {None}) == 1:
            text = f"ref {name!r} has only ever been here: nothing to roll back to yet"
            yield AuditLine("rollback", Verdict.PASS, manifest, text)
            continue
        target = repository.refs.rollback_target(name)
        try:
            repository.refs.check_sound(target)
        except RollbackRefusedError as error:
            yield AuditLine("rollback", Verdict.FAIL, target, f"ref {name!r}: {error}")
        else:
            yield AuditLine("rollback", Verdict.PASS, target, f"ref {name!r} can go back to {target.short}, verified")


def _ledger(archive: Archive) -> Lines:
    """Read every line again; the ledger refuses a line that does not follow the one before it by hash."""
    try:
        count = sum(1 for _ in archive.ledger.entries())
        size, root = archive.ledger.size, archive.ledger.root()
    except CsfError as error:
        yield AuditLine("ledger", Verdict.FAIL, None, str(error))
        return
    if count != size:
        text = f"the ledger says it has {size} entries, {count} can be read"
        yield AuditLine("ledger", Verdict.FAIL, None, text)
    else:
        text = f"{count} entries, each naming the one before it; root {root.hex()}"
        yield AuditLine("ledger", Verdict.PASS, None, text)
