"""Who may sit at the table: a model of this archive, or one behind an endpoint; by its id in the registry or directly.

A member is asked a question and says something, or fails to. It is never asked whether it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from keystone.endpoints import EndpointClient, EndpointModel, Question, parse_address
from keystone.endpoints.address import is_address
from keystone.errors import InvalidInputError
from keystone.evaluation.extraction import Style
from keystone.loader import LoadedModel
from keystone.registry.standing import LOCAL
from manifests import RegistryEntry, Repository, Seat

AskedStyle: TypeAlias = Literal["auto", "completion", "chat"]
UNKNOWN_LICENCE = "NOASSERTION"


@dataclass(frozen=True)
class Reply:
    """What a member said, and how it has to be read."""

    text: str
    style: Style


class Member(Protocol):
    """One place at the table."""

    @property
    def seat(self) -> Seat:
        """Who it is, for the record."""

    @property
    def licence(self) -> str:
        """Of what it says."""

    def propose(self, question: Question, *, seconds: float) -> Reply:
        """Answer. Any exception is a member that could not; the others go on."""


@dataclass(frozen=True)
class LocalMember:
    """A loaded model. What it has begun it finishes: `seconds` cannot stop it, the length of an answer does."""

    name: str
    loaded: LoadedModel
    style: AskedStyle = "auto"

    @property
    def seat(self) -> Seat:
        """Manifest, assembly and recipe."""
        manifest = self.loaded.manifest
        return Seat(
            id=self.name,
            manifest=self.loaded.digest,
            assembly=manifest.assembly.digest,
            recipe=self.loaded.recipe.digest,
        )

    @property
    def licence(self) -> str:
        """That of its base."""
        source = self.loaded.manifest.source
        return source.licence if source is not None else UNKNOWN_LICENCE

    def propose(self, question: Question, *, seconds: float) -> Reply:  # noqa: ARG002 - see the class
        """One answer."""
        style = style_of(self.style, self.loaded.tokenizer)
        prompt = question.prompt
        if style == "chat":
            prompt = str(
                self.loaded.tokenizer.apply_chat_template(
                    [{"role": "user", "content": question.request}], tokenize=False, add_generation_prompt=True
                )
            )
        (text,) = self.loaded.complete(
            [prompt],
            max_new_tokens=question.max_tokens,
            temperature=question.temperature,
            top_p=question.top_p,
            seed=question.seed,
        )
        return Reply(text, style)


@dataclass(frozen=True)
class EndpointMember:
    """A model of another engine."""

    name: str
    model: EndpointModel

    @property
    def seat(self) -> Seat:
        """Its address."""
        address = self.model.client.address
        return Seat(id=self.name, endpoint=address.url, model=address.model)

    @property
    def licence(self) -> str:
        """Nobody here knows; whoever keeps such an answer has to say."""
        return UNKNOWN_LICENCE

    def propose(self, question: Question, *, seconds: float) -> Reply:
        """One answer, within the time that is left."""
        answer = self.model.ask(question, seconds=seconds)
        return Reply(answer.text, answer.style)


def style_of(asked: AskedStyle, tokenizer: object) -> Style:
    """How a model of ours is asked: in a chat where its tokenizer has a template for that."""
    if asked != "auto":
        return asked
    return "chat" if getattr(tokenizer, "chat_template", None) else "completion"


def endpoint_style(asked: AskedStyle) -> Style:
    """How a model of another engine is asked: in a chat, unless told otherwise."""
    return "completion" if asked == "completion" else "chat"


def seat_members(
    repository: Repository,
    names: Sequence[str],
    entries: Sequence[RegistryEntry],
    *,
    load: Callable[[str], LoadedModel],
    connect: Callable[[str], EndpointClient],
    style: AskedStyle = "auto",
) -> list[Member]:
    """The members that a person means by some names.

    Args:
        repository: where models of this archive are.
        names: ids of the registry, refs, manifests or URL#MODEL; the registry is looked at first.
        entries: the registry.
        load: a model of this archive.
        connect: a client for URL#MODEL.
        style: how they are asked.

    Raises:
        InvalidInputError: no name, or one of them twice.
        csf_store.CsfError, manifests.ManifestError: a name means nothing here.
    """
    if not names or len(set(names)) != len(names):
        raise InvalidInputError("a council has at least one member, and none of them twice")
    known = {entry.id: entry for entry in entries}
    members: list[Member] = []
    for name in names:
        entry = known.get(name)
        if entry is not None and not entry.is_local:
            members.append(_remote(name, connect(f"{entry.endpoint}#{entry.model}"), style))
        elif entry is None and is_address(name):
            members.append(_remote(str(parse_address(name)), connect(name), style))
        else:
            target = entry.endpoint.removeprefix(LOCAL) if entry is not None else name
            repository.resolve(target)  # a name that means nothing is said before anything heavy is loaded
            members.append(LocalMember(name, load(target), style))
    return members


def _remote(name: str, client: EndpointClient, style: AskedStyle) -> EndpointMember:
    return EndpointMember(name, EndpointModel(client, style=endpoint_style(style)))
