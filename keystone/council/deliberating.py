"""One deliberation: members take turns, every answer is executed against the tests, the outcome is stored.

The order is fixed: all members once, then all of them again. The first turn of each is greedy, later ones are sampled.
A member that fails gets no further turn. When the budget is spent nobody is asked any more, and what was verified until
then is the outcome; that may be nothing. Nothing in here asks a model what it thinks of an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from csf_store import Digest, Kind
from keystone.council.members import Member
from keystone.council.outcome import Outcome, Spoken, answer_of, choose_winner, program_text, record_of
from keystone.council.retrieval import context_of, search_records
from keystone.council.tasks import CouncilTask, check_tests, run_answer
from keystone.endpoints import Question
from keystone.errors import InvalidInputError
from keystone.evaluation import Sandbox
from keystone.evaluation.extraction import chat_request
from keystone.evaluation.running import batch_seed
from manifests import Deliberation, Proposal, Repository

PIN_PREFIX: Final = "deliberation/"
_DETAIL: Final = 300


@dataclass(frozen=True)
class Plan:
    """How a council works.

    Attributes:
        samples: turns of each member.
        mode: `first` stops at the first verified answer; `best` hears everybody and takes the best verified one.
        budget: seconds for all of it; an answer or a test run that has begun is finished.
        search: earlier records that members are shown; 0 for none.
        max_tokens: of one answer.
        temperature: from the second turn on.
        top_p: nucleus size.
        seed: of all draws.
    """

    samples: int = 1
    mode: Literal["first", "best"] = "first"
    budget: float = 300.0
    search: int = 0
    max_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


def deliberate(
    repository: Repository,
    task: CouncilTask,
    members: Sequence[Member],
    *,
    sandbox: Sandbox,
    plan: Plan | None = None,
    heard: Callable[[Spoken], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Hear the members, execute what they say, and store what came of it.

    Args:
        repository: whose records may be searched, and where the outcome goes.
        task: what is asked.
        members: who is asked, in this order.
        sandbox: where answers are executed.
        plan: how.
        heard: told of every turn.
        clock: in seconds; for tests.

    Raises:
        RefusedError: the tests would verify anything.
        InvalidInputError: nobody sits at the table.
        SandboxError: the sandbox does not work; then nothing is said about any answer.
    """
    plan = plan or Plan()
    if not members:
        raise InvalidInputError("nobody sits at the table; name at least one member")
    check_tests(task, sandbox)
    found = search_records(repository, task.text, limit=plan.search)
    context, cited = context_of(found)
    table = _Table(task, members, plan, sandbox, context)
    end = clock() + plan.budget
    spoken: list[Spoken] = []
    silent: set[int] = set()
    spent = False
    for turn in range(plan.samples * len(members)):
        sample, place = divmod(turn, len(members))
        if place in silent:
            continue
        if (left := end - clock()) <= 0:
            spent = True
            break
        each = table.turn(place, sample, seconds=left)
        spoken.append(each)
        if heard is not None:
            heard(each)
        if each.text is None:
            silent.add(place)
        if each.passed and plan.mode == "first":
            break
    return table.store(repository, spoken, cited=cited, spent=spent)


@dataclass(frozen=True)
class _Table:
    """What stays the same through a deliberation."""

    task: CouncilTask
    members: Sequence[Member]
    plan: Plan
    sandbox: Sandbox
    context: str

    def turn(self, place: int, sample: int, *, seconds: float) -> Spoken:
        seed = batch_seed(self.plan.seed, sample * len(self.members) + place) % 2**31
        try:
            reply = self.members[place].propose(self._question(sample, seed), seconds=seconds)
        except Exception as error:  # noqa: BLE001 - one member's trouble, of whatever kind, must not silence the others
            return Spoken(place, sample, seed, detail=_line(f"{type(error).__name__}: {error}"))
        answer = answer_of(self.task.item, reply.text, reply.style)
        return Spoken(place, sample, seed, reply.text, reply.style, answer, run_answer(self.task, answer, self.sandbox))

    def _question(self, sample: int, seed: int) -> Question:
        plan, item = self.plan, self.task.item
        request = chat_request(item)
        if self.context:
            request = f"These functions are known to work:\n\n```python\n{self.context}```\n\n{request}"
        return Question(
            f"{self.context}\n\n{item.prompt}" if self.context else item.prompt,
            request,
            max_tokens=plan.max_tokens,
            temperature=0.0 if sample == 0 else plan.temperature,
            top_p=1.0 if sample == 0 else plan.top_p,
            seed=seed,
        )

    def store(
        self, repository: Repository, spoken: Sequence[Spoken], *, cited: tuple[Digest, ...], spent: bool
    ) -> Outcome:
        task, archive = self.task, repository.archive
        winner, agreement = choose_winner(task, spoken)
        won = None if winner is None else spoken[winner]
        with archive.keeping():
            check = archive.put_bytes(task.check).digest
            record = record_of(task, check, self.members, won, len(spoken))
            deliberation = Deliberation(
                task=archive.put_bytes(task.text.encode()).digest,
                check=check,
                members=tuple(member.seat for member in self.members),
                proposals=tuple(_proposal(repository, task, each) for each in spoken),
                cited=cited,
                context=archive.put_bytes(self.context.encode()).digest if self.context else None,
                mode=self.plan.mode,
                agreement=agreement,
                winner=winner,
                record=repository.put_record(record),
                sandbox=self.sandbox.name,
                settings={**self._labels(spoken), "budget-spent": "yes" if spent else "no"},
            )
            digest = repository.put_record(deliberation)
            archive.pin(digest, kind=Kind.RECORD, name=PIN_PREFIX + task.item.name)
        return Outcome(digest, deliberation, record, tuple(spoken), won)

    def _labels(self, spoken: Sequence[Spoken]) -> dict[str, str]:
        plan = self.plan
        styles = {f"style/{each.member}": each.style for each in spoken if each.text is not None}
        return {
            "samples": str(plan.samples),
            "budget": f"{plan.budget:g}",
            "max_tokens": str(plan.max_tokens),
            "temperature": f"{plan.temperature:g}",
            "top_p": f"{plan.top_p:g}",
            "seed": str(plan.seed),
            **styles,
        }


def _proposal(repository: Repository, task: CouncilTask, spoken: Spoken) -> Proposal:
    archive = repository.archive
    if spoken.text is None or spoken.judged is None:
        return Proposal(
            member=spoken.member, sample=spoken.sample, seed=spoken.seed, verdict="unanswered", detail=spoken.detail
        )
    return Proposal(
        member=spoken.member,
        sample=spoken.sample,
        seed=spoken.seed,
        verdict=spoken.judged.verdict.value,
        detail="" if spoken.passed else _line(spoken.judged.detail),
        answer=archive.put_bytes(spoken.text.encode()).digest,
        program=archive.put_bytes(program_text(task, spoken).encode()).digest,
    )


def _line(text: str) -> str:
    plain = "".join(letter if " " <= letter <= "~" else " " for letter in text)
    return " ".join(plain.split())[:_DETAIL]
