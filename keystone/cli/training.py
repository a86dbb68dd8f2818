"""`keystone adapter train, reproduce, curve`: from records to an adapter, and back from an adapter to its run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session, progress_bar
from keystone.cli.experience import holdout_option
from keystone.cli.experience_lines import chosen_records, judged, read_holdouts, show_gated, state_folder
from keystone.cli.lean import import_lean
from keystone.cli.options import sandbox_option
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from csf_store import Digest
    from keystone.quantize import Quantization
    from keystone.training import Trained, TrainSettings
    from keystone.training.settings import Progress
    from manifests import Repository

_VERDICT_CODES = {"SAME": 0, "DIFFERENT": 1, "UNKNOWN": 3}


@click.command("train")
@click.option("--base", "target", required=True, metavar="MANIFEST|REF", help="A bare base, or a base and one adapter.")
@click.option("--data", multiple=True, metavar="RECORD|BATCH", help="What to train on; may be repeated.")
@click.option("--records", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="From a file.")
@click.option(
    "--gate", "report", metavar="REPORT", help="A report over exactly these records. Default: judge them now."
)
@click.option("--external-share", type=click.FloatRange(0, 1, max_open=True), help="Default: all external records.")
@click.option("--rank", type=click.IntRange(1), help="Default: the parent's, or 8.")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), help="Default: the parent's, or twice the rank.")
@click.option(
    "--target", "targets", multiple=True, help="Modules to adapt, by their last name. Default: all linear ones."
)
@click.option("--dropout", default=0.0, show_default=True, type=click.FloatRange(0, 1, max_open=True))
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps. Default: by --epochs.")
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1), help="How often an example is seen.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Examples in a step.")
@click.option("--learning-rate", default=1e-3, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--warmup", default=10, show_default=True, type=click.IntRange(0), help="Steps, a tenth of all at most.")
@click.option("--max-tokens", default=1024, show_default=True, type=click.IntRange(2), help="Longest example.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--quantize", "quantization", type=click.Choice(["none", "int8", "nf4"]), default="none", show_default=True
)
@click.option("--device", help="cpu, cuda, cuda:1 ... Default: cpu, where runs can be reproduced to the last bit.")
@click.option("--curve", "picture", type=click.Path(dir_okay=False, path_type=Path), help="Write the loss as an SVG.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), help="Where an unfinished run waits.")
@holdout_option
@sandbox_option
@json_option
@pass_session
def train_command(
    session: Session,
    *,
    target: str,
    data: tuple[str, ...],
    file: Path | None,
    report: str | None,
    external_share: float | None,
    rank: int | None,
    alpha: float | None,
    targets: tuple[str, ...],
    dropout: float,
    steps: int | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup: int,
    max_tokens: int,
    seed: int,
    quantization: "Quantization",
    device: str | None,
    picture: Path | None,
    state: Path | None,
    holdout_files: tuple[Path, ...],
    sandbox_name: str,
) -> None:
    """Train a LoRA adapter on a frozen base, on records that the source gate lets in.

    Records that no model wrote are the external share. The base is hashed before and after, in memory and in the
    archive. On a CPU the same records and seed give the same adapter digest. Killed and started again, it goes on where
    it was. No ref moves: the last line names a new manifest, to be evaluated and approved.

    \b
    Examples:
      keystone adapter train --base nano --data b3:1a2b3c4d --steps 60
      keystone adapter train --base prod --records records.jsonl --data b3:5e6f7a8b --external-share 0.25 --seed 7
    """  # noqa: D301 - \b is for click
    import_lean(bitsandbytes=True)
    from keystone.training import TrainSettings  # noqa: PLC0415 - torch and transformers, not needed for --help
    from manifests import Repository  # noqa: PLC0415

    quiet_libraries()
    settings = TrainSettings(
        rank=rank,
        alpha=alpha,
        targets=tuple(targets) or None,
        dropout=dropout,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        warmup_steps=warmup,
        learning_rate=learning_rate,
        seed=seed,
        external_share=external_share,
        max_tokens=max_tokens,
        quantization=quantization,
        device=device,
    )
    with session.open() as archive:
        repository = Repository(archive)
        parent = repository.resolve(target)
        chosen = chosen_records(repository, data, file)
        gate_report = _report(session, repository, chosen, report, holdout_files, sandbox_name)
        made = _train(session, repository, _Asked(parent, chosen, gate_report, settings, state))
        if picture is not None:
            _write_picture(made.losses, made.adapter, picture)
            session.note(f"curve written to {picture}")
        _show(session, made)


@dataclass(frozen=True)
class _Asked:
    parent: "Digest"
    records: "tuple[Digest, ...]"
    report: "Digest"
    settings: "TrainSettings"
    state: Path | None


def _report(  # noqa: PLR0917 - one step of `train`
    session: Session,
    repository: "Repository",
    records: "tuple[Digest, ...]",
    named: str | None,
    holdout_files: tuple[Path, ...],
    sandbox_name: str,
) -> "Digest":
    """The gate's report over the records: the one that is named, or a new one."""
    from adapters import require_admitted  # noqa: PLC0415 - see train
    from csf_store import Kind  # noqa: PLC0415
    from keystone.evaluation import open_sandbox  # noqa: PLC0415

    if named is not None:
        return repository.archive.resolve(named, kind=Kind.RECORD)
    with open_sandbox(sandbox_name) as sandbox:
        gated = judged(session, repository, records, sandbox, read_holdouts(session, holdout_files))
    if not session.json:
        show_gated(session, gated)
    require_admitted(gated.report, records)
    return gated.digest


def _train(session: Session, repository: "Repository", asked: _Asked) -> "Trained":
    from keystone.experience import load_records  # noqa: PLC0415 - see train
    from keystone.training import train_adapter  # noqa: PLC0415

    documents = dict(zip(asked.records, load_records(repository, asked.records), strict=True))
    external = [digest for digest, record in documents.items() if record.source.kind != "model"]
    own = [digest for digest in asked.records if digest not in external]
    settings = asked.settings
    total = settings.steps or settings.epochs * -(-len(documents) // settings.batch_size)
    with progress_bar(session, "train", total, unit="objects") as advance:
        return train_adapter(
            repository,
            asked.parent,
            own,
            asked.report,
            settings,
            external=external,
            checkpoint_dir=asked.state or state_folder("training"),
            progress=_advancing(advance),
        )


def _advancing(advance: "object") -> "Progress | None":
    """From (steps done, ...) to how many more were done; a resumed run begins with many at once."""
    if not callable(advance):
        return None
    done = 0

    def told(step: int, _total: int, _loss: float) -> None:
        nonlocal done
        advance(step - done)
        done = step

    return told


def _show(session: Session, made: "Trained") -> None:
    from keystone.training.curve import curve_text  # noqa: PLC0415 - see train

    for note in made.notes:
        session.note(note)
    fields: dict[str, Value] = {
        "adapter": str(made.adapter),
        "training": str(made.record),
        "run": str(made.run),
        "curve": str(made.curve),
        "external_share": made.external_share,
        "steps": len(made.losses),
        "first_loss": made.losses[0],
        "final_loss": made.losses[-1],
        "manifest": str(made.manifest),
    }
    lines = [
        curve_text(made.losses),
        f"adapter   {made.adapter}",
        f"training  {made.record}",
        f"run       {made.run}",
        f"external  {made.external_share:.0%} of the examples",
        f"manifest  {made.manifest}",
    ]
    session.item(fields, "\n".join(lines))


@click.command("reproduce")
@click.argument("adapter", metavar="ADAPTER")
@json_option
@pass_session
def reproduce_command(session: Session, *, adapter: str) -> None:
    """Train an adapter once more from its records, and compare bit for bit.

    SAME (0): the same tensors. DIFFERENT (1): others, on a machine like the first. UNKNOWN (3): it cannot be made again
    here, or came out otherwise where libraries, threads, instruction set or device differ; the reason names them.

    \b
    Example:
      keystone adapter reproduce b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    import_lean(bitsandbytes=True)
    from csf_store import Kind  # noqa: PLC0415 - see train
    from keystone.training import reproduce  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    quiet_libraries()
    with session.open() as archive:
        digest = archive.resolve(adapter, kind=Kind.TREE)
        repository = Repository(archive)
        with progress_bar(session, "train", _recorded_steps(repository, digest), unit="objects") as advance:
            found = reproduce(repository, digest, checkpoint_dir=state_folder("training"), progress=_advancing(advance))
    fields: dict[str, Value] = {
        "adapter": str(digest),
        "verdict": found.verdict,
        "reason": found.reason,
        "expected": str(found.expected) if found.expected else None,
        "found": str(found.found) if found.found else None,
        "differences": list(found.differences),
    }
    session.item(fields, f"{found.verdict}  {found.reason}")
    click.get_current_context().exit(_VERDICT_CODES[found.verdict])


@click.command("curve")
@click.argument("adapter", metavar="ADAPTER")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write an SVG.")
@json_option
@pass_session
def curve_command(session: Session, *, adapter: str, output: Path | None) -> None:
    """Show the loss of an adapter's training, as it is recorded.

    \b
    Example:
      keystone adapter curve b3:1a2b3c4d -o loss.svg
    """  # noqa: D301 - \b is for click
    from csf_store import Kind, NotFoundError  # noqa: PLC0415 - see train
    from keystone.training.curve import curve_text  # noqa: PLC0415
    from manifests import Repository, TrainingRecord  # noqa: PLC0415

    with session.open() as archive:
        digest = archive.resolve(adapter, kind=Kind.TREE)
        repository = Repository(archive)
        record = repository.adapter_record(digest)
        if record is None or record.training is None:
            raise NotFoundError(f"no training record says how adapter {digest} came to be")
        losses = repository.load_record(record.training, TrainingRecord).losses
    if output is not None:
        _write_picture(losses, digest, output)
    session.item({"adapter": str(digest), "losses": list(losses)}, curve_text(losses))


def _write_picture(losses: tuple[float, ...], adapter: "Digest", path: Path) -> None:
    from keystone.errors import StorageError  # noqa: PLC0415 - see train
    from keystone.training.curve import curve_svg  # noqa: PLC0415

    try:
        path.write_text(curve_svg(losses, title=f"Training loss of adapter {adapter.short}"), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def _recorded_steps(repository: "Repository", adapter: "Digest") -> int:
    from manifests import TrainingRecord  # noqa: PLC0415 - see train

    record = repository.adapter_record(adapter)
    if record is None or record.training is None:
        return 1
    return repository.load_record(record.training, TrainingRecord).config.steps


COMMANDS = (train_command, reproduce_command, curve_command)
"""For the group `keystone adapter`."""
