"""`keystone eval --against`: two sides, one report, signed if there is somebody to sign it."""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csf_store import Session, Value, progress_bar
from keystone.errors import InvalidInputError

if TYPE_CHECKING:
    from csf_store import Archive, Digest
    from keystone.evaluation.contenders import Contender
    from keystone.evaluation.head_to_head import Side
    from keystone.evaluation.running import Settings
    from keystone.evaluation.suites import Suite
    from keystone.evaluation.workers import PooledSandbox
    from keystone.quantize import Quantization
    from manifests import HeadToHead, SigningKey

LOST = 1


@dataclass(frozen=True)
class Contest:
    """What a person asked for.

    Attributes:
        target: the candidate: a manifest, a ref, or URL#MODEL.
        opponents: one or several of the same.
        suite: of code.
        settings: how both sides are asked.
        quantization: of models of this archive.
        device: of models of this archive.
        record: whether anything is stored.
        state: where unfinished sides wait.
        margin: the largest fall that counts as none.
        alpha: chance of any wrong word over all looks at a pair.
        timeout: seconds for one answer of an endpoint.
        signing: signs the reports.
    """

    target: str
    opponents: tuple[str, ...]
    suite: "Suite"
    settings: "Settings"
    quantization: "Quantization | None"
    device: str | None
    record: bool
    state: Path
    margin: float
    alpha: float
    timeout: float
    signing: "SigningKey | None"


def run_contest(session: Session, contest: Contest, sandbox: "PooledSandbox") -> bool:
    """Ask both sides of every pair, print each verdict, store each report; whether nothing regressed."""
    if contest.target in contest.opponents:
        raise InvalidInputError(f"{contest.target} cannot be its own opponent; say another one with --against")
    with session.open() as archive:
        ours, journal = _side(session, archive, contest, contest.target, sandbox, record=contest.record)
        journals, good = [journal], True
        for opponent in contest.opponents:
            theirs, journal = _side(session, archive, contest, opponent, sandbox, record=False)
            journals.append(journal)
            report = _report(archive, contest, ours, theirs)
            _show(session, contest, opponent, report)
            if contest.record:
                _keep(session, archive, contest, report)
            good = good and report.verdict != "REGRESSED"
        for journal in journals:  # told and kept; whoever asks again wants to ask again
            journal.unlink(missing_ok=True)
        return good


@contextlib.contextmanager
def _contender(session: Session, archive: "Archive", contest: Contest, target: str) -> "Iterator[Contender]":
    from keystone.endpoints import ClientLimits, EndpointClient, EndpointModel, parse_address, token_for  # noqa: PLC0415
    from keystone.endpoints.address import is_address  # noqa: PLC0415
    from keystone.evaluation.contenders import EndpointContender, LocalContender  # noqa: PLC0415
    from keystone.loader import load, planned_bytes  # noqa: PLC0415 - torch and transformers

    if is_address(target):
        address = parse_address(target)
        client = EndpointClient(address, limits=ClientLimits(seconds=contest.timeout), token=token_for(address))
        yield EndpointContender(EndpointModel(client, style=contest.settings.style))
        return
    total = planned_bytes(archive, target, quantization=contest.quantization, device=contest.device)
    with progress_bar(session, "load", total) as progress:
        loaded = load(
            target, archive=archive, quantization=contest.quantization, device=contest.device, progress=progress
        )
    for note in loaded.notes:
        session.note(note)
    yield LocalContender(loaded)
    del loaded
    gc.collect()  # a module holds itself; the next side may need the room


def _side(
    session: Session, archive: "Archive", contest: Contest, target: str, sandbox: "PooledSandbox", *, record: bool
) -> "tuple[Side, Path]":
    from keystone.evaluation.contenders import LocalContender, contend, contest_key  # noqa: PLC0415 - as above
    from keystone.evaluation.head_to_head import Side  # noqa: PLC0415
    from keystone.evaluation.journal import Journal  # noqa: PLC0415
    from keystone.evaluation.recording import record as record_scores  # noqa: PLC0415
    from keystone.evaluation.recording import scores  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    suite, settings = contest.suite, contest.settings
    with _contender(session, archive, contest, target) as contender:
        with Journal(contest.state, contest_key(contender, suite, settings, sandbox.name)) as journal:
            if journal.lines:
                session.note(f"going on after {len(journal.lines)} of {len(suite.items)}, from {journal.path}")
            with progress_bar(session, target[:40], len(suite.items), unit="objects") as progress:
                lines = contend(contender, suite, settings, sandbox=sandbox, journal=journal, progress=progress)
        if record and isinstance(contender, LocalContender):
            kept = record_scores(
                Repository(archive),
                contender.loaded,
                suite,
                settings,
                results=lines,
                measured=scores(suite, settings, lines),
                sandbox=sandbox.name,
            )
            session.item({"manifest": str(kept.manifest)}, f"manifest  {kept.manifest}")
        side = Side(contender.identity(), lines)
        del contender
    return side, journal.path


def _report(archive: "Archive", contest: Contest, ours: "Side", theirs: "Side") -> "HeadToHead":
    from keystone.evaluation.head_to_head import compare  # noqa: PLC0415 - as above
    from manifests import Repository  # noqa: PLC0415

    if dict(ours.identity) == dict(theirs.identity):
        raise InvalidInputError("both sides are one and the same model; say another one with --against")
    settings = contest.settings
    greedy = settings.temperature == 0
    labels = {
        "decoding": "greedy" if greedy else f"temperature={settings.temperature:g} top_p={settings.top_p:g}",
        "max_new_tokens": str(settings.max_new_tokens),
        "seed": str(settings.seed),
        "style": settings.style,
    }
    repository = Repository(archive)
    return compare(repository, contest.suite, ours, theirs, margin=contest.margin, alpha=contest.alpha, settings=labels)


def _show(session: Session, contest: Contest, opponent: str, report: "HeadToHead") -> None:
    n, rules = report.n, report.rules
    fields: dict[str, Value] = {
        "candidate": contest.target,
        "opponent": opponent,
        "suite": report.suite,
        "suite_digest": str(report.suite_digest),
        "n": n,
        "units": report.units,
        "candidate_passed": report.candidate.passed,
        "opponent_passed": report.opponent.passed,
        "difference": report.difference,
        "p_better": report.p_better,
        "p_worse": report.p_worse,
        "p_inferior": report.p_inferior,
        "minimal_effect": report.minimal_effect,
        "margin": rules.margin,
        "look": rules.look,
        "level": rules.level,
        "styles": [report.candidate.style, report.opponent.style],
        "verdict": report.verdict,
    }
    text = (
        f"{report.verdict}   {report.candidate.passed} against {report.opponent.passed} of {n} on {report.suite}"
        f"   {report.difference:+.3f}, p better {report.p_better:.3g}, p worse {report.p_worse:.3g}"
        f"   look {rules.look}, each word at {rules.level:.3g}"
    )
    session.item(fields, text)
    if report.verdict == "UNDERPOWERED":
        effect = report.minimal_effect
        shown = f"a difference of {effect:.3f} would have shown four times in five" if effect else "they never differed"
        session.note(f"a fall by {rules.margin:g} is not excluded by {n} items; {shown}")
    if report.candidate.style != report.opponent.style:
        session.note("one side continued the text and the other was asked in a chat; the report says which")


def _keep(session: Session, archive: "Archive", contest: Contest, report: "HeadToHead") -> None:
    from keystone.evaluation.head_to_head import keep_report  # noqa: PLC0415 - as above
    from manifests import Repository, head_to_head_statement, put_envelope, seal  # noqa: PLC0415

    digest = keep_report(Repository(archive), report)
    envelope: Digest | None = None
    if contest.signing is not None:
        envelope = put_envelope(archive, seal(head_to_head_statement(digest, report), contest.signing))
    fields: dict[str, Value] = {
        "report": str(digest),
        "verdict": report.verdict,
        "envelope": str(envelope) if envelope is not None else None,
    }
    session.item(fields, f"report    {digest}" + (f"\nsigned    {envelope}" if envelope is not None else ""))
    if envelope is None:
        session.note(f"nobody signed it, so it verifies nothing yet: keystone sign {digest.short} --key NAME")
    elif report.won:
        session.note(f"next: keystone models verify ID --report {digest.short}")
