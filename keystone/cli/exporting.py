"""`keystone export`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, human_size, json_option, pass_session, progress_bar
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from keystone.checkpoints.export import Exported, Format


@click.command("export")
@click.argument("target", metavar="MANIFEST|REF")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["transformers", "vendor", "gguf"]),
    default="transformers",
    show_default=True,
    help="Who is to load it: transformers, the vendor's engine, or llama.cpp.",
)
@click.option("--merge", is_flag=True, help="Add the adapters to the weights, and report what that changes.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Write the weights so. Default: as stored."
)
@click.option("--own-code", is_flag=True, help="Our modeling code even where transformers' own Llama would do.")
@click.option(
    "--compare/--no-compare",
    default=True,
    show_default=True,
    help="After a merge, run fixed prompts through merged and unmerged; both are held in fp32, one after the other.",
)
@click.option("--force", is_flag=True, help="Replace an earlier export in DIR.")
@json_option
@pass_session
def export_command(
    session: Session,
    *,
    target: str,
    directory: Path,
    layout: "Format",
    merge: bool,
    dtype: str | None,
    own_code: bool,
    compare: bool,
    force: bool,
) -> None:
    """Write a manifest as a directory that other software loads.

    Weights are streamed out of the archive, byte for byte where nothing about them changes. DIR appears when it is
    complete, with a model card and a keystone.json that names the digest of every file; a failure leaves nothing.

    \b
    Examples:
      keystone export nano nano-hf/
      keystone export prod merged/ --merge --dtype bfloat16
      keystone export prod vendor/ --format vendor
      keystone export smol smol-gguf/ --format gguf
    """  # noqa: D301 - \b is for click
    from keystone.checkpoints.export import ExportRequest, export, planned_bytes  # noqa: PLC0415 - torch

    quiet_libraries()
    request = ExportRequest(layout=layout, merge=merge, dtype=dtype, own_code=own_code, compare=compare, force=force)
    with session.open() as archive, progress_bar(session, "export", planned_bytes(archive, target)) as progress:
        exported = export(archive, target, directory, request, progress=progress)
    show(session, exported)


def show(session: Session, exported: "Exported") -> None:
    """Every file, then the export as a whole."""
    for file in exported.files:
        session.item(
            {"path": file.path, "digest": str(file.digest), "size": file.size},
            f"{file.digest}  {human_size(file.size):>10}  {file.path}",
        )
    fields: dict[str, Value] = {
        "manifest": str(exported.digest),
        "directory": str(exported.path),
        "format": exported.layout,
        "architecture": exported.architecture,
        "dtype": exported.dtype,
        "copied_weight_files": exported.copied,
        "adapters": exported.adapters,
        "left_out": list(exported.left_out),
        "merge": None,
    }
    lines = [f"{exported.path}: {exported.architecture} in {exported.dtype}, {len(exported.files)} files"]
    if exported.merge is not None:
        from dataclasses import asdict  # noqa: PLC0415 - only merges need it

        logits = exported.merge.logits
        fields["merge"] = {
            "max_rounding": exported.merge.max_rounding,
            "modules": {name: asdict(error) for name, error in exported.merge.modules.items()},
            "logits": None if logits is None else asdict(logits),
        }
        lines.append(
            f"  merged     {len(exported.merge.modules)} tensors, rounded by at most {exported.merge.max_rounding:.3g}"
        )
        if logits is not None:
            lines.append(
                f"  logits     differ by at most {logits.max_abs:.3g} (relative {logits.relative:.2g}) over"
                f" {logits.tokens} positions; the adapters move them by up to {logits.effect:.3g}"
            )
    if exported.adapters:
        lines.append(f"  adapters   {exported.adapters} beside the base, in adapters/")
    lines += [f"  left out   {path}" for path in exported.left_out]
    session.item(fields, "\n".join(lines))
