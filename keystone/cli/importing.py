"""`keystone import`: somebody else's weights become a base of ours, or nothing at all happens."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, human_size, json_option, pass_session, progress_bar
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from csf_store import Archive, Digest
    from keystone.checkpoints.importing import Plan
    from keystone.checkpoints.names import TensorLine

NANO = "nano"
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@click.command("import")
@click.argument("source", metavar="SOURCE")
@click.option("--ref", metavar="NAME", help="The ref to set, if it does not exist yet. Default: the source's name.")
@click.option("--licence", metavar="SPDX", help="The base's licence. Default: what its config, card or text says.")
@click.option(
    "--dtype", type=click.Choice(list(DTYPES)), help="Store weights so. Default: as they are; bfloat16 for GGUF."
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Take the tokenizer from this directory.",
)
@click.option(
    "--ignore-field", "ignored", multiple=True, metavar="NAME", help="Declare a field of config.json to change nothing."
)
@click.option("--loops", type=click.IntRange(2, 16), metavar="N", help="Make a base of N loops from one with one loop.")
@click.option("--trainable", is_flag=True, help="With --loops: gates and scale that adapters can train, not the proof.")
@click.option("--dry-run", is_flag=True, help="Compare names and shapes with the configuration; store nothing.")
@click.option("--verbose", "-v", is_flag=True, help="Print a line for every tensor.")
@json_option
@pass_session
def import_command(
    session: Session,
    *,
    source: str,
    ref: str | None,
    licence: str | None,
    dtype: str | None,
    tokenizer: Path | None,
    ignored: tuple[str, ...],
    loops: int | None,
    trainable: bool,
    dry_run: bool,
    verbose: bool,
) -> None:
    """Bring a base into the archive, write its manifest, and name it.

    SOURCE is `nano` (the base that ships with this package), a Hugging Face directory, a .gguf file, or
    hf://org/name[@revision]. LoopCoder-V2 comes as it is; Llama, Mistral, Qwen2 and others of exactly that
    architecture become bases with one loop. Anything missing, misshapen, surplus or unknown refuses the import, by
    name. A missing archive is made. Importing again changes nothing.

    With --loops, SOURCE may also be a manifest or ref of a base with one loop. The base of several loops computes the
    same function, number for number; with --trainable it is a start for adapters, and how far off it begins is said.

    \b
    Examples:
      keystone import nano
      keystone import ./SmolLM2-135M-Instruct --dry-run --verbose
      keystone import hf://HuggingFaceTB/SmolLM2-135M-Instruct@main --ref smol
      keystone import SmolLM2-135M-Instruct-Q8_0.gguf --licence Apache-2.0
      keystone import smol --loops 2 --trainable --ref smol-loops
    """  # noqa: D301 - \b is for click
    from keystone.checkpoints.opening import is_source  # noqa: PLC0415 - torch, not needed for --help

    quiet_libraries(bars=not session.json)
    if trainable and loops is None:
        raise click.UsageError("--trainable says how loops are made; give --loops")
    if source == NANO and loops is None:
        if dry_run or licence or dtype or tokenizer or ignored:
            raise click.UsageError("nano comes as it is: --ref is its only option; ./nano would be a directory")
        _import_nano(session, ref or NANO)
        return
    if loops is not None and not is_source(source):
        _upcycle(session, source, ref, loops, trainable=trainable)
        return
    if not is_source(source):
        raise click.UsageError(f"{source!r} is no directory, no file and no hub address (hf://org/name)")
    plan = _plan(source, licence, dtype, ignored, tokenizer, dry_run=dry_run)
    if loops is not None and plan.checkpoint.config.plt_num_loops != 1:
        held = plan.checkpoint.config.plt_num_loops
        raise click.UsageError(f"{source} has {held} loops already; leave --loops away")
    _report(session, plan, verbose=verbose)
    if dry_run:
        _dry_run(session, plan)
        return
    _store(session, plan, source, ref, loops, trainable=trainable)


def _import_nano(session: Session, name: str) -> None:
    from keystone.nano.embedded import import_nano  # noqa: PLC0415 - pydantic, not needed for --help
    from manifests import Repository  # noqa: PLC0415

    with session.open(create=True) as archive:
        digest = import_nano(archive, ref=name)
        at = Repository(archive).refs.get(name)
        assembly = Repository(archive).load(digest).assembly
    _acknowledge(session, digest, {"base": str(assembly.base), "tokenizer": str(assembly.tokenizer)}, name, at)
    if at == digest:
        session.note(f"next: keystone load {name} --prompt 'def keep_even(values):'")


def _plan(
    source: str,
    licence: str | None,
    dtype: str | None,
    ignored: tuple[str, ...],
    tokenizer: Path | None,
    *,
    dry_run: bool,
) -> "Plan":
    from keystone.checkpoints.huggingface import Choices  # noqa: PLC0415 - torch
    from keystone.checkpoints.importing import plan_import  # noqa: PLC0415
    from keystone.checkpoints.opening import open_source  # noqa: PLC0415

    choices = Choices(licence, DTYPES[dtype] if dtype else None, ignored, tokenizer)
    return plan_import(open_source(source, choices, fetch="small" if dry_run else "all"))


def _report(session: Session, plan: "Plan", *, verbose: bool) -> None:
    """What is known before anything is stored; a faulty tensor always has its line."""
    from keystone.checkpoints.names import FAULTS  # noqa: PLC0415 - torch

    origin, config = plan.checkpoint.origin, plan.checkpoint.config
    fields: dict[str, Value] = {
        "kind": "source",
        "source": origin.kind,
        "location": origin.location,
        "licence": origin.licence,
        "layout": plan.checkpoint.layout,
        "loops": config.plt_num_loops,
        "parameters": plan.parameters,
        "bytes": plan.nbytes,
        "tensors": dict(plan.fates),
    }
    fates = ", ".join(f"{count} {fate}" for fate, count in plan.fates.items())
    session.item(
        fields,
        f"source     {origin.location}  ({plan.checkpoint.layout}, {origin.licence})\n"
        f"model      {plan.parameters:,} parameters in {config.num_hidden_layers} layers, {config.plt_num_loops} "
        f"loop{'s' if config.plt_num_loops > 1 else ''}\n"
        f"tensors    {fates}; {human_size(plan.nbytes)} to store",
    )
    for line in plan.lines:
        if verbose or line.fate in FAULTS:
            _print_line(session, line)
    for (what, name, reason), count in Counter((n.what, n.name, n.reason) for n in plan.notes).items():
        repeated = f" (x {count})" if count > 1 else ""
        session.item({"kind": "left-out", what: name, "reason": reason}, f"left out   {name}: {reason}{repeated}")


def _print_line(session: Session, line: "TensorLine") -> None:
    tensor = line.tensor
    fields: dict[str, Value] = {
        "kind": "tensor",
        "fate": line.fate,
        "name": line.name,
        "source": tensor.name if tensor else None,
        "file": tensor.file if tensor else None,
        "dtype": tensor.dtype if tensor else None,
        "stored_as": tensor.stored or tensor.dtype if tensor else None,
        "shape": list(tensor.shape) if tensor else None,
        "wanted": list(line.wanted) if line.wanted is not None else None,
        "reason": line.reason,
    }
    held = f"{tensor.stored or tensor.dtype} {list(tensor.shape)}" if tensor else f"{list(line.wanted or ())}"
    was = f" <- {tensor.name}" if tensor and tensor.name != line.name else ""
    because = f"  ({line.reason})" if line.reason else ""
    session.item(fields, f"{line.fate:<9}  {line.name}{was}  {held}{because}")


def _dry_run(session: Session, plan: "Plan") -> None:
    from keystone.checkpoints.names import refuse_faults  # noqa: PLC0415 - torch

    refuse_faults(plan.checkpoint.origin.location, plan.lines)
    seen = "names" if plan.checkpoint.headless else "names and shapes"
    if plan.checkpoint.headless and plan.checkpoint.named is None:
        seen = "no weights"
    session.item(
        {"dry_run": True, "parameters": plan.parameters, "compared": seen, "tensors": dict(plan.fates)},
        f"dry run    {seen} compared; nothing was stored",
    )


def _store(session: Session, plan: "Plan", source: str, ref: str | None, loops: int | None, *, trainable: bool) -> None:
    from keystone.checkpoints.importing import import_checkpoint  # noqa: PLC0415 - torch
    from keystone.checkpoints.names import refuse_faults  # noqa: PLC0415
    from keystone.checkpoints.opening import suggested_ref  # noqa: PLC0415

    refuse_faults(plan.checkpoint.origin.location, plan.lines)  # before an archive is made
    with session.open(create=True) as archive:
        _check_name(archive, ref)
        with progress_bar(session, "import", plan.nbytes) as progress:
            done = import_checkpoint(archive, plan, progress=progress)
        session.note(f"stored     {human_size(done.stored)} that the archive did not hold")
        name = suggested_ref(source)
        if loops is not None:
            _add_loops(session, archive, done.manifest, ref or f"{name}-{loops}loops", loops, trainable=trainable)
            return
        named, at = _name(archive, done.manifest, ref or name)
    trees = {"base": str(done.base), "tokenizer": str(done.tokenizer)}
    _acknowledge(session, done.manifest, trees, named, at)


def _upcycle(session: Session, target: str, ref: str | None, loops: int, *, trainable: bool) -> None:
    """Loops for a base that is in the archive already."""
    from manifests import Repository  # noqa: PLC0415 - pydantic, not needed for --help

    with session.open() as archive:
        _check_name(archive, ref)
        source = Repository(archive).resolve(target)
        name = target if target in Repository(archive).refs.names() else source.hex[:12]
        _add_loops(session, archive, source, ref or f"{name}-{loops}loops", loops, trainable=trainable)


def _add_loops(
    session: Session, archive: "Archive", source: "Digest", ref: str, loops: int, *, trainable: bool
) -> None:
    from keystone.checkpoints.upcycle import TRAINABLE_MODULES, upcycle  # noqa: PLC0415 - torch

    done = upcycle(archive, source, loops=loops, mode="trainable" if trainable else "exact")
    name, at = _name(archive, done.manifest, ref)
    fields: dict[str, Value] = {
        "kind": "upcycle",
        "parent": str(source),
        "loops": loops,
        "mode": "trainable" if trainable else "exact",
        "hidden_scale": done.hidden_scale,
        "logit_difference": done.logit_difference,
        "logit_size": done.logit_size,
        "modules_to_save": list(TRAINABLE_MODULES) if trainable else [],
    }
    train = f"; train with modules_to_save={list(TRAINABLE_MODULES)}" if trainable else ""
    session.item(
        fields,
        f"upcycled   {source.short} to {loops} loops; logits differ by at most {done.logit_difference:.3g} "
        f"(the largest is {done.logit_size:.3g}){train}",
    )
    trees = {"base": str(done.base), "tokenizer": str(done.tokenizer)}
    _acknowledge(session, done.manifest, trees, name, at)


def _check_name(archive: "Archive", ref: str | None) -> None:
    """Refuse a bad name before anything is stored."""
    from manifests import Repository  # noqa: PLC0415 - pydantic, not needed for --help

    if ref is not None:
        Repository(archive).refs.find(ref)


def _name(archive: "Archive", manifest: "Digest", name: str) -> tuple[str | None, "Digest | None"]:
    """Let a ref that does not exist yet point at what was imported; one that exists stays."""
    from manifests import InvalidNameError, Repository  # noqa: PLC0415 - pydantic, not needed for --help

    refs = Repository(archive).refs
    try:
        known = refs.find(name)
    except InvalidNameError:  # the source's name is none for a ref; one that was asked for was looked at before
        return None, None
    if known is None:
        refs.set(name, manifest, expected=None, reason="import")
    return name, refs.get(name)


def _acknowledge(
    session: Session, manifest: "Digest", trees: dict[str, str], name: str | None, at: "Digest | None"
) -> None:
    for role, tree in trees.items():
        session.item({"kind": role, "digest": tree}, f"{role:<9}  {tree}")
    fields: dict[str, Value] = {"manifest": str(manifest), "ref": name, "ref_at": str(at) if at else None, **trees}
    session.item(fields, f"manifest   {manifest}")
    if name is None:
        session.note(f"next: keystone ref set NAME {manifest.short}")
    elif at == manifest:
        session.note(f"ref        {name}")
    else:
        session.note(f"ref        {name} stays at {at}; `keystone ref set {name} {manifest.short}` would move it")
