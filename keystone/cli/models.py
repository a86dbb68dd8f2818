"""`keystone models`: who is registered, what each is worth, and who may lead a task."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from csf_store import Session, Value, json_option, pass_session
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from csf_store import Archive, Digest
    from keystone.endpoints import EndpointClient
    from keystone.registry import ModelRegistry, Standing

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group("models")
def models_command() -> None:
    """The model registry: local and external models, and which of them may lead.

    What a person says of a model is a claim. Memory comes from `keystone fit`, a measurement or the endpoint, and
    `verified` from a signed head-to-head that was won here (`keystone eval --against`), looked at again each time.
    """


def _claim_options(command: _Command) -> _Command:
    for option in (
        click.option("--task", "tasks", multiple=True, help="A task type it may be offered for. None: any."),
        click.option("--rank", default=0, show_default=True, type=click.IntRange(0), help="Less is earlier."),
        click.option("--capability", type=click.FloatRange(0, 100), help="A claim; a measured pass rate replaces it."),
        click.option("--tools/--no-tools", default=None, help="It takes tools. Default: what the endpoint says."),
        click.option("--self-converges", is_flag=True, help="It converges without a council."),
        click.option("--note", default="", help="A line for people."),
    ):
        command = option(command)
    return command


@models_command.command("add")
@click.argument("name", metavar="ID")
@click.argument("target", metavar="REF|MANIFEST|URL#MODEL")
@_claim_options
@click.option("--quantize", "quantization", type=click.Choice(["none", "int8", "nf4"]), help="As for `keystone load`.")
@click.option(
    "--context", type=click.IntRange(1), help="Tokens to have room for. Default: 4096, or all it was made for."
)
@click.option("--no-probe", is_flag=True, help="Do not ask the endpoint; its memory and context stay unknown.")
@click.option("--replace", is_flag=True, help="Take the place of an entry of this id.")
@json_option
@pass_session
def add(
    session: Session,
    *,
    name: str,
    target: str,
    tasks: tuple[str, ...],
    rank: int,
    capability: float | None,
    tools: bool | None,
    self_converges: bool,
    note: str,
    quantization: str | None,
    context: int | None,
    no_probe: bool,
    replace: bool,
) -> None:
    """Register a manifest of this archive, or a model behind an endpoint of OpenAI's or Ollama's API.

    \b
    Examples:
      keystone models add nano nano --task coding
      keystone models add coder:7b http://127.0.0.1:11434#qwen2.5-coder:7b --task coding --rank 2
    """  # noqa: D301 - \b is for click
    from keystone.endpoints.address import is_address, parse_address  # noqa: PLC0415 - httpx, not needed for --help
    from keystone.registry.registering import Claims, external_entry, local_entry  # noqa: PLC0415

    claims = Claims(tasks, rank, capability, self_converges, tools, note)
    with _registry(session) as (_, registry):
        if is_address(target):
            address = parse_address(target, model=None if "#" in target else name)
            entry = external_entry(name, _client(str(address)), claims, probe=not no_probe)
        else:
            quiet_libraries()
            entry = local_entry(registry.repository, name, target, claims, quantization=quantization, context=context)
        registry.put(entry, replace=replace)
        _print(session, registry, name)


@models_command.command("list")
@json_option
@pass_session
def list_models(session: Session) -> None:
    """Every registered model, as it stands now. With --json, exactly the fields of local-registry.json.

    \b
    Example:
      keystone models list
    """  # noqa: D301 - \b is for click
    from keystone.registry import public_fields, standing_of  # noqa: PLC0415 - pydantic

    with _registry(session) as (_, registry):
        for entry in registry.load().models:
            standing = standing_of(registry.repository, entry)
            session.item(public_fields(standing), _line(standing))


@models_command.command("show")
@click.argument("name", metavar="ID")
@json_option
@pass_session
def show(session: Session, *, name: str) -> None:
    """One model, with what its fields rest on.

    \b
    Example:
      keystone models show nano
    """  # noqa: D301 - \b is for click
    with _registry(session) as (_, registry):
        _print(session, registry, name)


@models_command.command("remove")
@click.argument("name", metavar="ID")
@json_option
@pass_session
def remove(session: Session, *, name: str) -> None:
    """Take a model out of the registry. Earlier versions of the registry stay in the archive.

    \b
    Example:
      keystone models remove coder:7b
    """  # noqa: D301 - \b is for click
    with _registry(session) as (_, registry):
        head = registry.remove(name)
        session.item({"removed": name, "registry": str(head)}, f"removed {name}; registry {head}")


@models_command.command("verify")
@click.argument("name", metavar="ID")
@click.option("--report", required=True, metavar="DIGEST", help="A head-to-head that this model won.")
@json_option
@pass_session
def verify(session: Session, *, name: str, report: str) -> None:
    """Link a head-to-head to a model: the one way in which it becomes verified.

    The report has to be in this archive, of this very model, won, borne out by its items, and signed by a trusted key.

    \b
    Example:
      keystone models verify nano --report b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - numpy
    from keystone.errors import RefusedError  # noqa: PLC0415
    from keystone.registry.standing import verification_problem  # noqa: PLC0415
    from manifests import HeadToHead  # noqa: PLC0415

    with _registry(session) as (archive, registry):
        digest = archive.resolve(report, kind=Kind.RECORD)
        entry = registry.entry(name)
        found = registry.repository.load_record(digest, HeadToHead)
        problem = verification_problem(registry.repository, entry, digest, found)
        if problem is not None:
            raise RefusedError(f"{name} stays as it is: {problem}")
        registry.put(entry.revised(report=digest), replace=True)
        _print(session, registry, name)


@models_command.command("refresh")
@click.argument("names", metavar="[ID]...", nargs=-1)
@json_option
@pass_session
def refresh(session: Session, *, names: tuple[str, ...]) -> None:
    """Find out anew what can be found out: where refs point, what fits, what endpoints say. Default: of all models.

    Exits with 1 when an endpoint gave no answer; its entry stays as it was.

    \b
    Example:
      keystone models refresh coder:7b
    """  # noqa: D301 - \b is for click
    from keystone.errors import EndpointError  # noqa: PLC0415
    from keystone.registry.registering import refreshed  # noqa: PLC0415

    quiet_libraries()
    silent = False
    with _registry(session) as (_, registry):
        for name in names or [entry.id for entry in registry.load().models]:
            entry = registry.entry(name)
            client = None if entry.is_local else _client(f"{entry.endpoint}#{entry.model}")
            try:
                registry.put(refreshed(registry.repository, entry, client), replace=True)
            except EndpointError as error:
                silent = True
                session.item({"id": name, "error": str(error)}, f"{name}: {error}")
                continue
            _print(session, registry, name)
    if silent:
        click.get_current_context().exit(1)


@models_command.command("select")
@click.argument("task", metavar="TASK-TYPE")
@click.option("--tools", is_flag=True, help="It has to take tools.")
@click.option("--tokens", type=click.IntRange(1), help="Of context that it has to hold.")
@json_option
@pass_session
def select(session: Session, *, task: str, tools: bool, tokens: int | None) -> None:
    """Who may lead a task, in order; then who may not, and why. Exits with 5 when nobody may.

    Memory first (VRAM_BUDGET_GB, else the largest NVIDIA card, else 8 GB), then evidence, then capability. For the task
    type `kernel` the ranks decide.

    \b
    Examples:
      keystone models select coding
      VRAM_BUDGET_GB=24 keystone models select coding --tools --json
    """  # noqa: D301 - \b is for click
    from keystone.errors import ModelNotFoundError  # noqa: PLC0415
    from keystone.registry import Task, choose, public_fields, standing_of, vram_budget  # noqa: PLC0415

    budget = vram_budget()
    session.note(f"{budget.nbytes / 10**9:.2f} GB for models ({budget.source})")
    with _registry(session) as (_, registry):
        standings = [standing_of(registry.repository, entry) for entry in registry.load().models]
        choices = choose(standings, Task(task, tools, tokens), budget)
    for choice in choices:
        name = choice.standing.entry.id
        fields: dict[str, Value] = {
            "place": choice.place,
            "refused": choice.refused,
            "model": public_fields(choice.standing),
        }
        if choice.place is None:
            session.item(fields, f"   -  {_shown(name)}: {_shown(choice.refused or '')}")
        else:
            session.item(fields, f"{choice.place:>4}  {_line(choice.standing)}")
    if not any(choice.place for choice in choices):
        raise ModelNotFoundError(f"no registered model may be offered for {task!r} on this box")


@models_command.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@pass_session
def export(session: Session, *, file: Path | None) -> None:
    """Write the registry as local-registry.json, to a file or to standard output.

    \b
    Example:
      keystone models export local-registry.json
    """  # noqa: D301 - \b is for click
    from keystone.errors import StorageError  # noqa: PLC0415
    from keystone.registry import export_registry  # noqa: PLC0415

    with _registry(session) as (_, registry):
        text = export_registry(registry)
    if file is None:
        sys.stdout.write(text)
        return
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)  # a reader finds the old file or the new one, and never half
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error


@models_command.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@pass_session
def import_models(session: Session, *, file: Path) -> None:
    """Merge a local-registry.json by id. What it says of `verified` and `vramGB` is not believed.

    Exits with 1 when an entry could not be taken.

    \b
    Example:
      keystone models import local-registry.json
    """  # noqa: D301 - \b is for click
    from keystone.registry import import_registry  # noqa: PLC0415

    quiet_libraries()
    with _registry(session) as (_, registry):
        result = import_registry(registry, file.read_bytes())
    for name, doubt in result.doubts:
        session.item({"id": name, "not_believed": doubt}, f"{_shown(name)}: {_shown(doubt)}")
    for name, reason in result.skipped:
        session.item({"id": name, "skipped": reason}, f"{_shown(name)} is not taken: {_shown(reason)}")
    fields: dict[str, Value] = {"taken": list(result.taken), "registry": str(result.head) if result.head else None}
    session.item(fields, f"{len(result.taken)} taken, {len(result.skipped)} not")
    if result.skipped:
        click.get_current_context().exit(1)


class _registry:  # noqa: N801 - used like a function
    """The archive and its registry, for the length of a block."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._archive: Archive | None = None

    def __enter__(self) -> "tuple[Archive, ModelRegistry]":
        from keystone.registry import ModelRegistry  # noqa: PLC0415 - pydantic
        from manifests import Repository  # noqa: PLC0415

        self._archive = self._session.open()
        return self._archive, ModelRegistry(Repository(self._archive))

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()


def _client(address: str) -> "EndpointClient":
    from keystone.endpoints import EndpointClient, parse_address, token_for  # noqa: PLC0415 - httpx

    found = parse_address(address)
    return EndpointClient(found, token=token_for(found))


def _print(session: Session, registry: "ModelRegistry", name: str) -> None:
    from keystone.registry import public_fields, standing_of  # noqa: PLC0415 - pydantic

    standing = standing_of(registry.repository, registry.entry(name))
    entry = standing.entry

    def text_of(digest: "Digest | None") -> str | None:
        return None if digest is None else str(digest)

    fields: dict[str, Value] = {
        **public_fields(standing),
        "reason": standing.reason,
        "stale": standing.stale,
        "vramSource": entry.vram_source,
        "report": text_of(entry.report),
        "manifest": text_of(standing.current),
        "assembly": text_of(entry.assembly),
        "recipe": text_of(entry.recipe),
        "registry": text_of(registry.head()),
    }
    why = f"\n      {_shown(standing.reason)}"
    memory = f"\n      memory: {entry.vram_source or 'not known'}"
    session.item(fields, _line(standing) + why + memory)


def _line(standing: "Standing") -> str:
    from keystone.registry import public_fields  # noqa: PLC0415 - pydantic

    fields = public_fields(standing)
    vram = "?" if fields["vramGB"] is None else f"{fields['vramGB']:g}"
    score = "-" if standing.capability is None else f"{standing.capability:g}"
    mark = "verified" if standing.verified else "claimed "
    types = ",".join(standing.entry.task_types) or "any"
    line = f"{fields['id']:<20}  {mark}  {score:>6}  {vram:>7} GB  {types:<16}  {fields['endpoint']}"
    return _shown(line)


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
