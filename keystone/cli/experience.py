"""`keystone experience`: what may train, collected, added, judged and looked at."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, json_option, pass_session, progress_bar
from keystone.cli.experience_lines import (
    as_batch,
    batch_fields,
    batch_text,
    chosen_records,
    judged,
    named_records,
    plain,
    read_holdouts,
    record_text,
    show_gated,
    show_report,
    state_folder,
    training_tasks,
)
from keystone.cli.lean import import_lean
from keystone.cli.options import sandbox_option
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from keystone.quantize import Quantization

REFUSED = 10

holdout_option = click.option(
    "--holdout",
    "holdout_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A suite of your own that is held out, too; may be repeated.",
)


@click.group("experience")
def experience_command() -> None:
    """Collect, add, judge and show verified experience: the only thing that trains.

    A record says: this program solves this task; here is the test that anybody can run again; this is who wrote it,
    under which licence. Records come from a model's own answers that passed (collect) or from outside (add).
    """


@experience_command.command("collect")
@click.argument("target", metavar="MANIFEST|REF")
@click.option("--suite", default="basics", show_default=True, metavar="NAME|FILE", help="basics, or a .jsonl file.")
@click.option("--tasks", default=100, show_default=True, type=click.IntRange(1), help="Training tasks to draw.")
@click.option("--samples", default=4, show_default=True, type=click.IntRange(1), help="Answers for each task.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the draw and of the sampling.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(0), help="0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True))
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(1), help="The most per answer.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Answers decoded together.")
@click.option("--known", multiple=True, metavar="BATCH", help="Earlier batches: what repeats them is a duplicate.")
@click.option("--quantize", "quantization", type=click.Choice(["none", "int8", "nf4"]), help="As for `keystone load`.")
@click.option("--device", help="cpu, cuda, cuda:1 ... Default: the first CUDA card, else the CPU.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where an unfinished collection waits. Default: keystone/experience in your state directory.",
)
@holdout_option
@sandbox_option
@json_option
@pass_session
def collect_command(
    session: Session,
    *,
    target: str,
    suite: str,
    tasks: int,
    samples: int,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    known: tuple[str, ...],
    quantization: "Quantization | None",
    device: str | None,
    state: Path | None,
    holdout_files: tuple[Path, ...],
    sandbox_name: str,
) -> None:
    """Let a manifest answer training tasks, execute every answer, keep what passed.

    Answers that repeat another (the same program in other names) or come from a hold-out, or near one, are counted and
    left out. Killed and started again with the same settings, it goes on where it was. The last line is the batch.

    \b
    Examples:
      keystone experience collect nano --tasks 200 --samples 4 --seed 7
      keystone experience collect prod --suite mine.jsonl --json > records.jsonl
    """  # noqa: D301 - \b is for click
    import_lean(bitsandbytes=True)
    from keystone.evaluation import open_sandbox  # noqa: PLC0415 - torch and transformers, not needed for --help
    from keystone.experience import collect  # noqa: PLC0415
    from keystone.loader import load  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    quiet_libraries()
    chosen = training_tasks(suite, tasks, seed)
    with open_sandbox(sandbox_name) as sandbox, session.open() as archive:
        repository = Repository(archive)
        earlier = named_records(repository, known)
        loaded = load(target, archive=archive, quantization=quantization, device=device)
        holdouts = read_holdouts(session, holdout_files)
        with progress_bar(session, "answers", len(chosen) * samples, unit="objects") as progress:
            report = collect(
                repository,
                loaded,
                loaded.digest,
                chosen,
                samples=samples,
                seed=seed,
                sandbox=sandbox,
                holdouts=holdouts,
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                known=earlier,
                state=state or state_folder("experience"),
                progress=progress,
            )
        show_report(session, report)


@experience_command.command("add")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--licence", required=True, metavar="SPDX", help="Of the solutions; NOASSERTION is none.")
@click.option("--source", required=True, help="What to call the data set, with its revision.")
@holdout_option
@sandbox_option
@json_option
@pass_session
def add_command(
    session: Session, *, file: Path, licence: str, source: str, holdout_files: tuple[Path, ...], sandbox_name: str
) -> None:
    """Add external data: items with tests and a solution, each executed before it counts.

    FILE is a suite as keystone/evaluation/SUITES.md describes it. Items whose solution fails, or whose tests a function
    that returns nothing satisfies, are named and not kept. The last line is the batch.

    \b
    Example:
      keystone experience add exercises.jsonl --licence CC-BY-4.0 --source "our-exercises@2026-05"
    """  # noqa: D301 - \b is for click
    from keystone.evaluation import open_sandbox  # noqa: PLC0415 - see collect
    from keystone.experience import add_external  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    with open_sandbox(sandbox_name) as sandbox, session.open() as archive:
        holdouts = read_holdouts(session, holdout_files)
        with progress_bar(session, "items", _count_lines(file), unit="objects") as progress:
            report = add_external(
                Repository(archive),
                file,
                licence=licence,
                source=source,
                sandbox=sandbox,
                holdouts=holdouts,
                progress=progress,
            )
        show_report(session, report)


@experience_command.command("gate")
@click.argument("records", nargs=-1, metavar="[RECORD|BATCH]...")
@click.option("--records", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="From a file.")
@holdout_option
@sandbox_option
@json_option
@pass_session
def gate_command(
    session: Session,
    *,
    records: tuple[str, ...],
    file: Path | None,
    holdout_files: tuple[Path, ...],
    sandbox_name: str,
) -> None:
    """Judge a training set: every record's evidence is executed again, now.

    What is unverified, self-scored, from a public benchmark, without a licence, or a hold-out (exactly or nearly) is
    refused by name. The report is stored as evidence either way. Exits with 10 when a record is refused: a set passes
    as a whole, or not at all. The last line is the report.

    \b
    Examples:
      keystone experience gate b3:1a2b3c4d
      keystone experience gate --records records.jsonl --json
    """  # noqa: D301 - \b is for click
    from keystone.evaluation import open_sandbox  # noqa: PLC0415 - see collect
    from manifests import Repository  # noqa: PLC0415

    with open_sandbox(sandbox_name) as sandbox, session.open() as archive:
        repository = Repository(archive)
        chosen = chosen_records(repository, records, file)
        gated = judged(session, repository, chosen, sandbox, read_holdouts(session, holdout_files))
        show_gated(session, gated)
    if gated.rejected:
        click.get_current_context().exit(REFUSED)


@experience_command.command("list")
@json_option
@pass_session
def list_command(session: Session) -> None:
    """List the batches of experience that are here, oldest first.

    \b
    Example:
      keystone experience list
    """  # noqa: D301 - \b is for click
    from keystone.experience import experience_batches  # noqa: PLC0415 - see collect
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        for found in experience_batches(Repository(archive)):
            fields = {"batch": str(found.digest), "time": found.time, **batch_fields(found.batch)}
            session.item(fields, f"{found.digest.short}  {found.time[:19]}  {batch_text(found.batch)}")


@experience_command.command("show")
@click.argument("digest", metavar="RECORD|BATCH")
@json_option
@pass_session
def show_command(session: Session, *, digest: str) -> None:
    """Show a batch with its records, or one record with its program.

    \b
    Example:
      keystone experience show b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    from adapters import ConvergenceRecord  # noqa: PLC0415 - see collect
    from csf_store import Kind  # noqa: PLC0415
    from keystone.experience import load_records  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        found = archive.resolve(digest, kind=Kind.RECORD)
        batch = as_batch(repository, found)
        if batch is None:
            record = repository.load_record(found, ConvergenceRecord)
            session.item({"record": str(found), **record.to_json()}, record_text(record))
            return
        for name, each in zip(batch.records, load_records(repository, batch.records), strict=True):
            session.item({"record": str(name), "task": each.claim.task}, f"{name.short}  {each.claim.task}")
        for task, reason in (*batch.contaminated, *batch.refused):
            session.item({"left_out": task, "reason": reason}, plain(f"left out  {task}: {reason}"))
        session.item({"batch": str(found), **batch_fields(batch)}, batch_text(batch))


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
