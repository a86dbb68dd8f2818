"""The main job end to end, on the embedded base, told as it happens.

Put a base, load it quantized, let it learn through the guarded cycle, hear the tripwire's word, promote it if that word
allows and an operator signs, go back in one step, audit. Nothing here is staged: every number printed was measured in
this run, the cycle's gates are those of `keystone cycle run` with nothing relaxed, and generated code is executed in
the sandbox, never in this process. So the story ends as it ends: a candidate that nobody can tell from a worse one is
UNDERPOWERED and stays where it is, and that is told as plainly as a success.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters import document_problem, fit_problem
from csf_store import JSON, Archive, Digest
from keystone.cycle.clearing import require_clear
from keystone.cycle.draw_key import DrawKey
from keystone.cycle.models import ModelHands
from keystone.cycle.plan import CyclePlan, GuardRules, PracticeRules, SamplingRules, TrainingRules
from keystone.cycle.running import Listener, Runner
from keystone.cycle.steps import Cycle
from keystone.cycle.switching import promote_and_check
from keystone.cycle.telling import Chapter, chapters
from keystone.errors import RefusedError, SandboxMissingError
from keystone.evaluation.opening import open_sandbox
from keystone.evaluation.workers import PooledSandbox
from keystone.loader import LoadedModel
from keystone.nano.embedded import import_nano
from keystone.tied_weights import TIED
from manifests import (
    Auditor,
    AuditReport,
    KeyStore,
    Repository,
    Verdict,
    approval_statement,
    draft_approval,
    put_envelope,
    seal,
    trust_key,
)

REF, PLAYGROUND, OPERATOR = "prod", "playground", "quickstart-throw-away"
PROMPTS = (
    '''def total_small(values):
    """Return the sum of all elements of values that are less than 12.

    >>> total_small([3, 14, 5])
    8
    """
''',
    '''def count_long(words):
    """Return how many of the words have more than 4 letters.

    >>> count_long(['apple', 'fig'])
    1
    """
''',
)

PLAN = CyclePlan(
    name="quickstart",
    guard=GuardRules(sentinel_items=120, fresh_items=400, looks=1),
    practice=PracticeRules(tasks=120, samples=1),
    training=TrainingRules(steps=30, batch=16, learning_rate=2e-3, external=0.3),
    sampling=SamplingRules(prompts=40, samples=2, reruns=5, batch=200),
)
"""The rules of `keystone cycle run`, with half its fresh items, a fraction of its practice, and good for one look."""

_TOLD: Mapping[str, str] = {
    "IMPROVED": "it beats the incumbent on tasks nobody had seen, and a fall by the margin is excluded",
    "NON-INFERIOR": "a fall by the margin is excluded; that it is better was not shown",
    "UNDERPOWERED": "too little was measured to tell it from a worse one, so it is not promoted; that is no failure",
    "REGRESSED": "harm was shown, so it goes nowhere and the last good model stays; that is what the tripwire is for",
    "REFUSED": "the source gate let nothing train, so nothing changed",
    "HALTED": "training was stopped, so nothing changed",
}


@dataclass(frozen=True)
class Outcome:
    """What the story ended with."""

    base: Digest
    candidate: Digest | None
    cycle: Cycle
    promoted: bool
    audits: tuple[AuditReport, ...]
    sandbox: str
    seconds: float

    @property
    def last(self) -> Digest:
        """The newest manifest of the story."""
        return self.base if self.candidate is None else self.candidate


class Narrator:
    """Receives the story as it unfolds; the command line draws it, tests may keep silent."""

    def chapter(self, title: str) -> None:
        """A new step begins."""

    def say(self, text: str) -> None:
        """A finding, in one line."""

    def compare(self, prompt: str, before: str, after: str) -> None:
        """The same prompt, answered by the base and with the adapter."""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:  # noqa: ARG002 - for those who draw
        """Something that takes seconds; the yielded function is told how much was done."""
        yield lambda _: None


class _Steps(Listener):
    """The cycle's steps as lines of the story."""

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator

    def done(self, cycle: str, step: str, fields: Mapping[str, JSON]) -> None:  # noqa: ARG002 - as Listener says
        """Say what a step brought; some bring nothing to say."""
        said = {
            "begun": f"policy {str(fields.get('plan'))[:15]} recorded before anything runs",
            "calibrated": "the base's own noise measured, from reruns",
            "committed": f"fresh draw committed to: {str(fields.get('commitment'))[:15]}, unknown until it is opened",
            "collected": (
                f"{fields.get('passed')} of {fields.get('sampled')} answers passed their tests; {fields.get('kept')}"
                f" are new, and {fields.get('external')} exercises no model wrote join them"
            ),
            "gated": "the source gate executed every record again, and let them in",
            "trained": f"adapter {str(fields.get('adapter'))[:15]} trained; every byte of the base is as before",
            "opened": f"fresh draw opened: {fields.get('items')} tasks, used this once",
        }
        if step in said:
            self._narrator.say(said[step])


def run(archive: Archive, work: Path, narrator: Narrator, plan: CyclePlan = PLAN) -> Outcome:
    """Live through the whole story.

    Args:
        archive: a new archive.
        work: a directory for keys and unfinished work.
        narrator: who is told.
        plan: the rules of the cycle.
    """
    started = time.monotonic()
    repository = Repository(archive)
    narrator.chapter("Put the embedded base into the archive, and let `prod` name it")
    base = _put_base(archive, narrator)
    repository.refs.set(REF, base, expected=None, reason="the bare frozen base")
    repository.refs.protect(REF, reason="moves only with a clear tripwire and an operator's signature")
    narrator.say(f"{REF} is protected from now on")

    with _sandbox(narrator) as sandbox:
        narrator.chapter("Load it, verified and quantized")
        hands = ModelHands(repository, plan, sandbox, work, narrator.progress)
        before = hands.model(base)
        narrator.say(
            f"{before.recipe.quantization}: {before.read_bytes / 1e6:.1f} MB verified in {before.seconds:.2f} s, "
            f"{before.weight_bytes / 1e6:.1f} MB in memory"
        )
        answers = before.complete(PROMPTS)

        narrator.chapter("The guarded cycle: the only way weights change")
        cycle = Runner(repository, plan, hands, DrawKey(work, archive), work, _Steps(narrator)).run(REF)
        candidate = cycle.find("finished", "manifest")

        narrator.chapter(f"The tripwire's word: {cycle.outcome}")
        _tell_verdict(chapters(repository, REF)[-1], narrator)
        after = hands.model(candidate) if candidate is not None else None

    narrator.chapter("The operator's turn, with a throw-away key made for this run")
    promoted = candidate is not None and _promote(repository, candidate, work, narrator)
    if after is not None and candidate is not None:
        narrator.chapter("The same prompts, before and after")
        _compare(after, answers, narrator)
        narrator.chapter("A name moves, and goes back in one step")
        _move_and_return(repository, base, candidate, narrator)
    narrator.chapter("Audit: every byte re-hashed, the lineage walked to its root")
    audits = _audited(archive, [each for each in (base, candidate) if each is not None], narrator)
    return Outcome(base, candidate, cycle, promoted, audits, sandbox.name, time.monotonic() - started)


@contextmanager
def _sandbox(narrator: Narrator) -> Iterator[PooledSandbox]:
    """Bubblewrap; where it does not work here, the weaker one, said aloud."""
    try:
        opened: AbstractContextManager[PooledSandbox] = open_sandbox("bwrap")
    except SandboxMissingError as error:
        narrator.say(f"bubblewrap does not work here ({error})")
        narrator.say("so what the model writes runs in plain processes with limits, which hide no files and no network")
        opened = open_sandbox("process")
    with opened as sandbox:
        yield sandbox


def _put_base(archive: Archive, narrator: Narrator) -> Digest:
    before = archive.segment_bytes()
    started = time.perf_counter()
    manifest = import_nano(archive)
    seconds = time.perf_counter() - started
    assembly = Repository(archive).load(manifest).assembly
    size = sum(archive.tree(tree).size for tree in (assembly.base, assembly.tokenizer))
    stored = archive.segment_bytes() - before
    narrator.say(f"base      {assembly.base}")
    narrator.say(f"manifest  {manifest}")
    narrator.say(f"{size / 1e6:.1f} MB stored as {stored / 1e6:.1f} MB ({stored / size:.1%}) in {seconds:.2f} s")
    return manifest


def _tell_verdict(chapter: Chapter, narrator: Narrator) -> None:
    for what, rates in (("fresh draw", chapter.fresh), ("sentinel set", chapter.sentinel)):
        for role, title in (("base", "base"), ("candidate", "with adapter")):
            if role in rates:
                narrator.say(f"{what:<13} {title:<13} {rates[role]}")
    narrator.say(f"{chapter.outcome}: {_TOLD.get(chapter.outcome, '')}")
    for reason in (*chapter.tripped, *chapter.unclear)[:3]:
        narrator.say(f"    {reason.guard}, against the {reason.reference}: {reason.text}")
    if why := chapter.cycle.text("finished", "why"):
        narrator.say(f"    {why}")
    if chapter.effect is not None:
        narrator.say(f"on {chapter.fresh['candidate'].items} tasks a fall of {chapter.effect:.0%} would have been seen")


def _promote(repository: Repository, candidate: Digest, work: Path, narrator: Narrator) -> bool:
    archive = repository.archive
    try:
        require_clear(repository, candidate)
    except RefusedError as error:
        narrator.say(f"refused: {error}")
        narrator.say(f"{REF} stays at {repository.refs.get(REF).short}")
        return False
    keys, passphrase = KeyStore(work / "keys"), secrets.token_bytes(16)
    trust_key(archive, keys.new(OPERATOR, passphrase))
    draft = draft_approval(
        archive, REF, repository.load(candidate), incumbent=repository.refs.find(REF), note="quickstart"
    )
    envelope = put_envelope(archive, seal(approval_statement(draft), keys.unlock(OPERATOR, passphrase)))
    narrator.say(f"approval {envelope.short} signed by {OPERATOR}, a key that nobody keeps")
    switched = promote_and_check(repository, REF, candidate, approval=envelope, reason="quickstart")
    if switched.problem is not None:
        narrator.say(f"the check after the switch failed, and {REF} went back by itself: {switched.problem}")
        return False
    narrator.say(
        f"{REF} -> {candidate.short}; loaded again after the switch, it says what it said when it was measured"
    )
    return True


def _compare(after: LoadedModel, answers: Sequence[str], narrator: Narrator) -> None:
    for prompt, old, new in zip(PROMPTS, answers, after.complete(PROMPTS), strict=True):
        narrator.compare(prompt, old, new)


def _move_and_return(repository: Repository, base: Digest, candidate: Digest, narrator: Narrator) -> None:
    refs = repository.refs
    refs.set(PLAYGROUND, base, expected=None, reason="a name that is not protected")
    refs.set(PLAYGROUND, candidate, expected=base, reason="try the adapter")
    refs.rollback(PLAYGROUND, reason="quickstart shows the way back")
    for event in refs.history(PLAYGROUND):
        verb = "rolled back to" if event.rollback else "set to"
        where = event.target.short if event.target is not None else "-"
        narrator.say(f"{event.time:%H:%M:%S}  {PLAYGROUND} {verb} {where}  ({event.reason})")


def _audited(archive: Archive, manifests: Sequence[Digest], narrator: Narrator) -> tuple[AuditReport, ...]:
    auditor = Auditor(archive, fit=fit_problem, tied=TIED, documents=document_problem)
    reports = tuple(auditor.audit(digest) for digest in manifests)
    for digest, report in zip(manifests, reports, strict=True):
        narrator.say(f"{digest.short}  {len(report.lines)} checks  {report.verdict.value}")
        for line in report.lines:
            if line.verdict is not Verdict.PASS:
                narrator.say(f"    {line.verdict.value}  {line.check}: {line.message}")
    return reports
