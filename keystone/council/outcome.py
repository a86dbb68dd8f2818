"""From proposals to an outcome: which verified answer wins, how the verified ones relate, and what is written down."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adapters import Claim, Confidence, ConvergenceRecord, Evidence, RecordSource
from csf_store import Digest
from keystone.council.members import UNKNOWN_LICENCE, Member
from keystone.council.tasks import SUITE, CouncilTask
from keystone.evaluation.candidates import Judged
from keystone.evaluation.extraction import Style, program_source
from keystone.evaluation.record_checks import CHECKER
from keystone.evaluation.suite_format import CodeItem
from manifests import Deliberation

Agreement = Literal["none-verified", "one", "unanimous", "split", "tied"]


@dataclass(frozen=True)
class Spoken:
    """One turn of one member.

    Attributes:
        member: its place at the table.
        sample: the number of its turn.
        seed: of the draw.
        text: its words; None where it could not answer.
        style: how they are read.
        answer: what follows the prompt in the program.
        judged: what the tests said; None where there was nothing to judge.
        detail: why there was no answer.
    """

    member: int
    sample: int
    seed: int
    text: str | None = None
    style: Style = "completion"
    answer: str = ""
    judged: Judged | None = None
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the tests were satisfied."""
        return self.judged is not None and self.judged.verdict == "passed"


@dataclass(frozen=True)
class Outcome:
    """What a council came to.

    Attributes:
        digest: of the deliberation.
        deliberation: what is stored.
        record: the Convergence Record that it names.
        spoken: every turn.
        winner: the turn that won; None where no answer was verified.
    """

    digest: Digest
    deliberation: Deliberation
    record: ConvergenceRecord
    spoken: tuple[Spoken, ...]
    winner: Spoken | None

    @property
    def verified(self) -> bool:
        """Whether there is an answer that passed the tests."""
        return self.winner is not None


def answer_of(item: CodeItem, text: str, style: Style) -> str:
    """What follows the prompt in the program of an answer: its body, or a whole function that takes its place."""
    source = program_source(item, text, style)
    return source.removeprefix(item.prompt) if source.startswith(item.prompt) else f"\n\n{source}"


def program_text(task: CouncilTask, spoken: Spoken) -> str:
    """A program that can be used as it is: without the empty function where the answer replaces it."""
    body = spoken.answer.lstrip("\n")
    replaces = spoken.answer.startswith("\n\n") and not body[:1].isspace()
    return body if replaces else task.item.prompt + spoken.answer


def choose_winner(task: CouncilTask, spoken: Sequence[Spoken]) -> tuple[int | None, Agreement]:
    """Whose verified answer wins: the program that most members wrote, then the shorter one, then the earlier one."""
    groups: dict[str, list[int]] = {}
    for number, each in enumerate(spoken):
        if each.passed:
            groups.setdefault(_form(task, each), []).append(number)
    if not groups:
        return None, "none-verified"

    def votes(numbers: list[int]) -> int:
        return len({spoken[number].member for number in numbers})

    def best(numbers: list[int]) -> int:
        return min(numbers, key=lambda number: (len(spoken[number].answer), number))

    ranked = sorted(groups.values(), key=lambda each: (-votes(each), len(spoken[best(each)].answer), best(each)))
    winner = best(ranked[0])
    if len(ranked) > 1:
        return winner, "tied" if votes(ranked[0]) == votes(ranked[1]) else "split"
    return winner, "unanimous" if votes(ranked[0]) > 1 else "one"


def record_of(
    task: CouncilTask, check: Digest, members: Sequence[Member], winner: Spoken | None, asked: int
) -> ConvergenceRecord:
    """The Convergence Record of a deliberation: the verified answer with its evidence, or that there was none."""
    item = task.item
    if winner is None or winner.judged is None:
        return ConvergenceRecord(
            claim=Claim(suite=SUITE, task=item.name, prompt=item.prompt, answer=""),
            evidence=Evidence(ground="none", checker=CHECKER),
            confidence=Confidence(passed=0, total=asked),
            source=RecordSource(kind="external", name="council, nothing verified", licence=UNKNOWN_LICENCE),
        )
    member = members[winner.member]
    seat = member.seat
    if seat.assembly is not None:
        source = RecordSource(
            kind="model",
            name=seat.id,
            licence=member.licence,
            assembly=seat.assembly,
            recipe=seat.recipe,
            seed=winner.seed % 10**9,
        )
    else:
        source = RecordSource(kind="external", name=f"{seat.endpoint}#{seat.model}"[:256], licence=member.licence)
    return ConvergenceRecord(
        claim=Claim(suite=SUITE, task=item.name, prompt=item.prompt, answer=winner.answer),
        evidence=Evidence(ground="tests-passed", check=check, checker=CHECKER),
        confidence=Confidence(passed=winner.judged.right, total=winner.judged.total),
        source=source,
    )


def _form(task: CouncilTask, spoken: Spoken) -> str:
    """Equal for programs that differ in layout, comments and docstrings only."""
    try:
        body = ast.parse(task.item.prompt + spoken.answer).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return spoken.answer
    name = task.item.entry_point
    last = max(
        (n for n, node in enumerate(body) if isinstance(node, ast.FunctionDef) and node.name == name), default=-1
    )
    parts = []
    for number, node in enumerate(body):
        if isinstance(node, ast.FunctionDef):
            if node.name == name and number != last:
                continue
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        parts.append(ast.dump(node))
    return "\n".join(parts)
