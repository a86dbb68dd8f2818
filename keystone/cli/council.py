"""`keystone council`: ask several models, believe the tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from csf_store import Session, Value, json_option, pass_session, progress_bar
from keystone.cli.experience import holdout_option
from keystone.cli.experience_lines import read_holdouts
from keystone.cli.options import sandbox_option
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from adapters import HoldoutIndex
    from csf_store import Archive
    from keystone.council import CouncilTask, Member, Outcome
    from keystone.council.members import AskedStyle
    from keystone.council.outcome import Spoken
    from keystone.endpoints import EndpointClient
    from keystone.loader import LoadedModel
    from keystone.quantize import Quantization
    from manifests import Deliberation, Repository


def _names(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, text.split(",")) if part)


@click.group("council")
def council_command() -> None:
    """Several models propose, tests decide, and what happened is written down whatever it was."""


@council_command.command("ask")
@click.argument("task")
@click.option("--tests", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Python.")
@click.option(
    "--members", required=True, callback=_names, metavar="A,B,C", help="Ids of the registry, refs, URL#MODEL."
)
@click.option("--samples", default=1, show_default=True, type=click.IntRange(1, 64), help="Turns of each member.")
@click.option("--budget", default=300.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Seconds.")
@click.option("--first", "mode", flag_value="first", default=True, help="Stop at the first verified answer (default).")
@click.option("--best", "mode", flag_value="best", help="Hear everybody; the program that most members wrote wins.")
@click.option("--function", help="The function to write. Default: the one that the tests call.")
@click.option("--search", default=0, show_default=True, type=click.IntRange(0, 20), help="Earlier records to show.")
@click.option("--style", type=click.Choice(["auto", "completion", "chat"]), default="auto", show_default=True)
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="The most per answer.")
@click.option(
    "--temperature", default=0.8, show_default=True, type=click.FloatRange(0), help="From the second turn on."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of all draws.")
@sandbox_option
@click.option("--quantize", "quantization", type=click.Choice(["none", "int8", "nf4"]), help="As for `keystone load`.")
@click.option("--device", help="cpu, cuda, cuda:1 ... Default: the first CUDA card, else the CPU.")
@json_option
@pass_session
def ask(
    session: Session,
    *,
    task: str,
    tests: Path,
    members: tuple[str, ...],
    samples: int,
    budget: float,
    mode: Literal["first", "best"],
    function: str | None,
    search: int,
    style: "AskedStyle",
    max_new_tokens: int,
    temperature: float,
    seed: int,
    sandbox_name: str,
    quantization: "Quantization | None",
    device: str | None,
) -> None:
    """Ask members to write a function, and execute what they write against tests.

    The last line is the verified answer, or that there is none: then the exit code is 1. Either way the deliberation is
    in the ledger, with everybody who spoke. Models of this archive stay in memory until all have been heard.

    \b
    Examples:
      keystone council ask "Add two numbers." --tests test_add.py --members nano,http://127.0.0.1:11434#coder:7b
      keystone council ask "$(cat task.txt)" --tests t.py --members a,b --samples 8 --best --budget 120 --search 3
    """  # noqa: D301 - \b is for click
    from keystone.council import Plan, council_task, deliberate, seat_members  # noqa: PLC0415 - torch, transformers
    from keystone.evaluation.opening import open_sandbox  # noqa: PLC0415
    from keystone.registry import ModelRegistry  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    quiet_libraries()
    asked = council_task(task, tests.read_text(encoding="utf-8", errors="replace"), function=function)
    plan = Plan(samples, mode, budget, search, max_new_tokens, temperature, seed=seed)
    with session.open() as archive, open_sandbox(sandbox_name) as sandbox:
        repository = Repository(archive)

        def load(target: str) -> "LoadedModel":
            return _loaded(session, archive, target, quantization, device)

        entries = ModelRegistry(repository).load().models
        seats = seat_members(repository, members, entries, load=load, connect=_client, style=style)
        outcome = deliberate(
            repository, asked, seats, sandbox=sandbox, plan=plan, heard=lambda each: _tell(session, seats, each)
        )
    _show(session, asked, outcome)
    if not outcome.verified:
        click.get_current_context().exit(1)


@council_command.command("show")
@click.argument("deliberation", metavar="DELIBERATION")
@json_option
@pass_session
def show(session: Session, *, deliberation: str) -> None:
    """What a council did: who spoke, what the tests said, who won.

    \b
    Example:
      keystone council show b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - numpy
    from manifests import Deliberation, Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        digest = archive.resolve(deliberation, kind=Kind.RECORD)
        found = repository.load_record(digest, Deliberation)
        fields: dict[str, Value] = {"deliberation": str(digest), **found.to_json()}
        session.item(fields, _story(repository, found))


@council_command.command("keep")
@click.argument("deliberation", metavar="DELIBERATION")
@click.option("--licence", help="Of an endpoint's answer, an SPDX expression; yours to know.")
@holdout_option
@sandbox_option
@json_option
@pass_session
def keep(
    session: Session, *, deliberation: str, licence: str | None, holdout_files: tuple[Path, ...], sandbox_name: str
) -> None:
    """Let a verified answer become training experience, if the source gate lets it.

    \b
    Examples:
      keystone council keep b3:1a2b3c4d
      keystone council keep b3:1a2b3c4d --licence Apache-2.0
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - numpy
    from keystone.council import keep as keep_answer  # noqa: PLC0415 - torch and transformers
    from keystone.evaluation.opening import open_sandbox  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    quiet_libraries()

    def holdouts() -> "HoldoutIndex":
        return read_holdouts(session, holdout_files)

    with session.open() as archive, open_sandbox(sandbox_name) as sandbox:
        digest = archive.resolve(deliberation, kind=Kind.RECORD)
        kept = keep_answer(Repository(archive), digest, sandbox=sandbox, holdouts=holdouts, licence=licence)
    fields: dict[str, Value] = {
        "record": str(kept.record),
        "batch": str(kept.batch),
        "gate": str(kept.gated.digest),
        "data": str(kept.gated.data),
    }
    session.item(fields, f"record    {kept.record}\nbatch     {kept.batch}\ngate      {kept.gated.digest}")


def _loaded(
    session: Session, archive: "Archive", target: str, quantization: "Quantization | None", device: str | None
) -> "LoadedModel":
    from keystone.loader import load, planned_bytes  # noqa: PLC0415 - torch and transformers

    total = planned_bytes(archive, target, quantization=quantization, device=device)
    with progress_bar(session, f"load {target[:24]}", total) as progress:
        loaded = load(target, archive=archive, quantization=quantization, device=device, progress=progress)
    for note in loaded.notes:
        session.note(note)
    return loaded


def _client(address: str) -> "EndpointClient":
    from keystone.endpoints import ClientLimits, EndpointClient, parse_address, token_for  # noqa: PLC0415 - httpx

    found = parse_address(address)
    return EndpointClient(found, limits=ClientLimits(tries=2), token=token_for(found))


def _tell(session: Session, members: "Sequence[Member]", spoken: "Spoken") -> None:
    verdict = "unanswered" if spoken.judged is None else spoken.judged.verdict.value
    detail = spoken.detail if spoken.judged is None else spoken.judged.detail if not spoken.passed else ""
    name = members[spoken.member].seat.id
    session.note(_shown(f"{name:<24}  turn {spoken.sample + 1}  {verdict:<10}  {detail}").rstrip())


def _show(session: Session, task: "CouncilTask", outcome: "Outcome") -> None:
    from keystone.council import program_text  # noqa: PLC0415 - torch and transformers

    found, winner = outcome.deliberation, outcome.winner
    program = program_text(task, winner) if winner is not None else None
    fields: dict[str, Value] = {
        "verified": outcome.verified,
        "agreement": found.agreement,
        "winner": found.members[winner.member].id if winner is not None else None,
        "program": program,
        "proposals": [
            {"member": found.members[each.member].id, "sample": each.sample, "verdict": each.verdict}
            for each in found.proposals
        ],
        "cited": [str(each) for each in found.cited],
        "record": str(found.record),
        "deliberation": str(outcome.digest),
    }
    if winner is None or program is None:
        text = f"no answer was verified ({len(found.proposals)} were heard)\n\ndeliberation  {outcome.digest}"
    else:
        lines = "\n".join(map(_shown, program.splitlines()))
        name = found.members[winner.member].id
        text = f"\n{lines}\n\nverified, by {name}; {found.agreement}\ndeliberation  {outcome.digest}"
    session.item(fields, text)


def _story(repository: "Repository", found: "Deliberation") -> str:
    words = repository.archive.get_bytes(found.task).decode("utf-8", "replace")
    lines = [_shown(" ".join(words.split()))[:200], ""]
    for number, each in enumerate(found.proposals):
        mark = "*" if number == found.winner else " "
        seat = found.members[each.member]
        who = f"{seat.id} ({seat.manifest.short})" if seat.manifest is not None else f"{seat.endpoint}#{seat.model}"
        lines.append(_shown(f"{mark} {who:<40}  turn {each.sample + 1}  {each.verdict:<10}  {each.detail}").rstrip())
    lines += [f"  shown: record {digest}" for digest in found.cited]
    return "\n".join([*lines, "", f"agreement: {found.agreement}", f"record     {found.record}"])


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
