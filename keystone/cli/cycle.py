"""`keystone cycle`: run the guarded cycle, see where it is, and tell its story."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session, progress_bar
from keystone.cli.holdout import state_option
from keystone.cli.options import sandbox_option
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from csf_store import JSON
    from keystone.cycle.steps import Cycle

_TRIPPED = 1
_REFUSED = 10


@click.group("cycle")
def cycle_command() -> None:
    """The only way weights change: collect, gate, train, evaluate, tripwire, and stop at the operator."""


@cycle_command.command("policy")
@json_option
@pass_session
def policy(session: Session) -> None:
    """Print a whole policy file with every default, to be edited. TOML is read as well.

    \b
    Example:
      keystone cycle policy > policy.json
    """  # noqa: D301 - \b is for click
    import json  # noqa: PLC0415 - with pydantic below

    from keystone.cycle.plan import CyclePlan  # noqa: PLC0415 - pydantic, not needed for --help

    fields = CyclePlan().to_json()
    session.item(fields, json.dumps(fields, indent=2))


@cycle_command.command("run")
@click.argument("ref")
@click.option("--suite", help="The suite to practise and to be judged on. Default: the policy's.")
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The rules, TOML or JSON; `keystone cycle policy` prints the defaults, which hold where you give none.",
)
@click.option("--seed", type=click.IntRange(0, 2**32), help="Of tasks, samples and training. Default: the policy's.")
@sandbox_option
@state_option
@json_option
@pass_session
def run(
    session: Session,
    *,
    ref: str,
    suite: str | None,
    policy_file: Path | None,
    seed: int | None,
    sandbox_name: str,
    state: Path | None,
) -> None:
    """Run one guarded cycle for REF, or go on with the one that was interrupted.

    The rules are hashed and recorded first, and a fresh draw of held-out tasks is committed to. Then the model on REF
    answers practice tasks; what passes its tests trains an adapter, after the source gate has executed it again; the
    candidate is compared item by item with the incumbent and with the bare base. REF does not move: that takes
    `keystone approve` and `keystone promote`.

    Exits with 1 when the tripwire tripped or the cycle was halted, and with 10 when nothing may train.

    \b
    Examples:
      keystone cycle run prod
      keystone cycle run prod --suite basics --policy policy.toml --seed 7
    """  # noqa: D301 - \b is for click
    from keystone.cycle.draw_key import DrawKey  # noqa: PLC0415 - torch and transformers
    from keystone.cycle.models import ModelHands  # noqa: PLC0415
    from keystone.cycle.places import state_folder  # noqa: PLC0415
    from keystone.cycle.plan import CyclePlan, read_plan  # noqa: PLC0415
    from keystone.cycle.running import Listener, Runner  # noqa: PLC0415
    from keystone.cycle.switching import check_switch, unchecked_move  # noqa: PLC0415
    from keystone.evaluation.opening import open_sandbox  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    quiet_libraries()
    plan = read_plan(policy_file) if policy_file is not None else CyclePlan()
    changes = {"suite": suite, "seed": seed}
    plan = plan.revised(**{name: value for name, value in changes.items() if value is not None})

    class Told(Listener):
        def done(self, cycle: str, step: str, fields: "Mapping[str, JSON]") -> None:
            said = {key: value for key, value in fields.items() if not str(value).startswith("b3:")}
            session.item(
                {"cycle": cycle, "step": step, **fields},
                f"{cycle}  {step:<20}  " + ", ".join(f"{key} {value}" for key, value in said.items()),
            )

    folder = state or state_folder()
    with session.open() as archive, open_sandbox(sandbox_name) as sandbox:
        repository = Repository(archive)
        move = unchecked_move(repository, ref) if repository.refs.find(ref) else None
        if move is not None:  # a promotion whose process died before its check
            switched = check_switch(repository, ref, move)
            session.note(f"checked the promotion that was left unchecked: {switched.problem or 'well'}")
        hands = ModelHands(repository, plan, sandbox, folder, _bars(session))
        cycle = Runner(repository, plan, hands, DrawKey(folder, archive), folder, Told()).run(ref)
    _show(session, cycle, last=True)
    if cycle.outcome in {"REGRESSED", "HALTED"}:
        click.get_current_context().exit(_TRIPPED)
    if cycle.outcome == "REFUSED":
        click.get_current_context().exit(_REFUSED)


@cycle_command.command("status")
@click.argument("ref", required=False)
@json_option
@pass_session
def status(session: Session, *, ref: str | None) -> None:
    """Every cycle, or one ref's: how it ended, or after which step it stands.

    \b
    Example:
      keystone cycle status prod
    """  # noqa: D301 - \b is for click
    from keystone.cycle.steps import CycleLog  # noqa: PLC0415 - numpy, not needed for --help

    with session.open() as archive:
        cycles = CycleLog(archive).cycles(ref)
    for cycle in cycles:
        _show(session, cycle, last=cycle is cycles[-1])
    if not cycles:
        session.note("no cycle has run here; begin one with `keystone cycle run REF`")


@cycle_command.command("report")
@click.argument("ref", required=False)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a page (HTML) here.")
@json_option
@pass_session
def report(session: Session, *, ref: str | None, output: Path | None) -> None:
    """Tell the story of a ref's cycles, and write it as one self-contained page.

    \b
    Examples:
      keystone cycle report prod
      keystone cycle report prod -o cycles.html
    """  # noqa: D301 - \b is for click
    from keystone.cycle.page import page  # noqa: PLC0415 - pydantic and numpy, not needed for --help
    from keystone.cycle.steps import CycleLog  # noqa: PLC0415
    from keystone.cycle.telling import chapters, lines_of  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        refs = CycleLog(archive).refs()
        if ref is None and len(refs) != 1:
            raise click.UsageError(f"say which ref; cycles ran for {', '.join(refs) or 'none'}")
        chosen = ref or refs[0]
        told = chapters(Repository(archive), chosen)
    for chapter in told:
        candidate = chapter.fresh.get("candidate")
        fields: dict[str, Value] = {
            "cycle": chapter.cycle.name,
            "outcome": chapter.outcome,
            "promoted": chapter.promoted,
            "fresh": candidate.value if candidate else None,
            "low": candidate.low if candidate else None,
            "high": candidate.high if candidate else None,
            "tripped": [f"{reason.guard} {reason.reference}: {reason.text}" for reason in chapter.tripped],
        }
        session.item(fields, "\n".join(lines_of(chapter)))
    if output is not None:
        try:
            output.write_text(page(chosen, told), encoding="utf-8")
        except OSError as error:
            from keystone.errors import StorageError  # noqa: PLC0415

            raise StorageError(f"{output} cannot be written: {error.strerror}") from error
        session.item({"page": str(output)}, f"wrote {output}")


def _show(session: Session, cycle: "Cycle", *, last: bool) -> None:
    stands = next(reversed([step for step in cycle.steps if not step.startswith("checked")]))
    manifest = cycle.text("finished", "manifest") or None
    fields: dict[str, Value] = {
        "cycle": cycle.name,
        "began": cycle.time,
        "outcome": cycle.outcome,
        "stands": stands,
        "manifest": manifest,
        "report": cycle.text("judged", "report") or None,
        "policy": cycle.text("calibrated", "policy") or None,
        "why": cycle.text("finished", "why") or None,
        "at": cycle.text("finished", "at") or None,
    }
    lines = [f"{cycle.name:<20}  {cycle.outcome or f'stands after {stands}'}  {manifest or ''}".rstrip()]
    if why := cycle.text("finished", "why"):
        lines.append(f"  {why}")
    if last:
        lines.append(f"  {_next(cycle, manifest)}")
    session.item(fields, "\n".join(lines))


def _next(cycle: "Cycle", manifest: str | None) -> str:
    if not cycle.is_finished:
        return f"next: keystone cycle run {cycle.ref}, with the same policy; it goes on after {len(cycle.steps)} steps"
    if cycle.text("judged", "status") == "clear":
        return f"next: keystone approve {cycle.ref} {str(manifest)[:15]} --key NAME, then keystone promote"
    told = {
        "REGRESSED": "harm was shown; the candidate goes nowhere, and the ref is at its last good manifest",
        "UNDERPOWERED": "nobody can tell this candidate from a worse one; it is not promoted",
        "HALTED": "the run was stopped, and the ref is at its last good manifest",
        "REFUSED": "nothing was trained",
    }
    return f"{told.get(str(cycle.outcome), '')}; see keystone cycle report {cycle.ref}"


def _bars(session: Session) -> "Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]":
    @contextlib.contextmanager
    def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
        with progress_bar(session, what, total, unit="objects") as progress:
            yield progress or (lambda _: None)

    return bar
