"""The two sides of a head-to-head, asked alike: a model of this archive, or one behind an endpoint.

Both get the same items in the same order under the same settings, and the same sandbox judges. What cannot be the same
is written into each result: by which API an answer came, and whether the text was continued or asked for in a chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from keystone.endpoints import EndpointModel, Question
from keystone.errors import InvalidInputError
from keystone.evaluation.candidates import run_candidates
from keystone.evaluation.extraction import Style, chat_request
from keystone.evaluation.journal import Journal, Line
from keystone.evaluation.running import Job, Progress, Settings, batch_seed, judged_line, prompt_of, run_jobs
from keystone.evaluation.sandbox import Sandbox
from keystone.evaluation.suite_format import CodeItem
from keystone.evaluation.suites import Suite
from keystone.evaluation.task import Value
from keystone.loader import LoadedModel


@dataclass(frozen=True)
class Reply:
    """An answer, the API it came by, and how it is to be read."""

    text: str
    api: str
    style: Style


class Contender(Protocol):
    """One side."""

    @property
    def name(self) -> str:
        """For people."""

    def key(self) -> dict[str, Value]:
        """What makes it this one, for the journal."""

    def identity(self) -> dict[str, str]:
        """The fields by which a report names it."""

    def answer(self, items: Sequence[CodeItem], settings: Settings, start: int) -> list[Reply]:
        """One answer an item; `start` is the place of the first among all jobs."""


@dataclass(frozen=True)
class LocalContender:
    """A model of this archive, loaded."""

    loaded: LoadedModel

    @property
    def name(self) -> str:
        """The manifest."""
        return str(self.loaded.digest)

    def key(self) -> dict[str, Value]:
        """The pair that evidence is bound to, and the device, whose rounding may decide a token."""
        return {**self.identity(), "device": next(self.loaded.model.parameters()).device.type}

    def identity(self) -> dict[str, str]:
        """Assembly and recipe."""
        return {"assembly": str(self.loaded.manifest.assembly.digest), "recipe": str(self.loaded.recipe.digest)}

    def answer(self, items: Sequence[CodeItem], settings: Settings, start: int) -> list[Reply]:
        """Sampled in one batch, as `keystone eval` samples."""
        answers = self.loaded.complete(
            [prompt_of(self.loaded, item, settings.style) for item in items],
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=batch_seed(settings.seed, start),
            batch_size=settings.batch_size,
        )
        return [Reply(text, "local", settings.style) for text in answers]


@dataclass(frozen=True)
class EndpointContender:
    """A model of another engine."""

    model: EndpointModel

    @property
    def name(self) -> str:
        """Its address."""
        return str(self.model.client.address)

    def key(self) -> dict[str, Value]:
        """Its address."""
        return dict(self.identity())

    def identity(self) -> dict[str, str]:
        """URL, and the name the model has there."""
        address = self.model.client.address
        return {"endpoint": address.url, "model": address.model}

    def answer(self, items: Sequence[CodeItem], settings: Settings, start: int) -> list[Reply]:
        """Asked one by one, a few at a time; each with a seed of its own."""
        questions = [
            Question(
                item.prompt,
                chat_request(item),
                max_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=batch_seed(settings.seed, start + place),
            )
            for place, item in enumerate(items)
        ]
        return [Reply(each.text, each.api, each.style) for each in self.model.ask_all(questions)]


def contest_key(contender: Contender, suite: Suite, settings: Settings, sandbox: str) -> dict[str, Value]:
    """Everything that decides one side's results; another side never shares it."""
    return {
        "contest": contender.key(),
        "suite": str(suite.digest),
        "sandbox": sandbox,
        "settings": asdict(settings),
    }


def contend(
    contender: Contender,
    suite: Suite,
    settings: Settings,
    *,
    sandbox: Sandbox,
    journal: Journal,
    progress: Progress | None = None,
) -> list[Line]:
    """One side's results: lines as `evaluate` gives them, with `api` and `style`.

    Args:
        contender: who answers.
        suite: of code.
        settings: how it is asked; one answer an item.
        sandbox: where answers are executed.
        journal: where results are kept as they come.
        progress: told how many answers were done, those from the journal included.

    Raises:
        InvalidInputError: several samples, or texts: neither can be paired item by item.
        EndpointError: an endpoint gave no answer; what was answered before is in the journal.
    """
    if settings.samples != 1:
        raise InvalidInputError("a head-to-head pairs one answer with one answer; leave --n away")
    jobs: list[Job] = [(item, 0) for item in suite.code_items]

    def work(batch: Sequence[Job], start: int) -> list[Line]:
        items = [item for item, _ in batch if isinstance(item, CodeItem)]
        replies = contender.answer(items, settings, start)
        lines: list[Line] = []
        for style in dict.fromkeys(reply.style for reply in replies):
            chosen = [place for place, reply in enumerate(replies) if reply.style == style]
            texts = [replies[place].text for place in chosen]
            judged = run_candidates([items[place] for place in chosen], texts, sandbox, style=style)
            for place, text, each in zip(chosen, texts, judged, strict=True):
                line = judged_line(batch[place], text, each)
                lines.append({**line, "api": replies[place].api, "style": style})
        return lines

    return run_jobs(jobs, settings.batch_size, work, journal=journal, progress=progress)
