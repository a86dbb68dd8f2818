"""`keystone export`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, human_size, json_option, pass_session, progress_bar
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from keystone.checkpoints.export import Exported, Format, Signer

_BESIDE = {"bom.cdx.json": "bill     ", "model.sig": "signature"}


@click.command("export")
@click.argument("target", metavar="MANIFEST|REF")
@click.argument("directory", type=click.Path(path_type=Path), metavar="[DIR]", required=False)
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
@click.option(
    "--sbom",
    type=click.Choice(["cyclonedx"]),
    help="Also write a bill of materials, CycloneDX 1.6, into DIR; without DIR, only that.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Without DIR: where the bill goes. Default: standard output.",
)
@click.option(
    "--check",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With --sbom: compare a bill with the one that the archive would write, field by field.",
)
@click.option("--model-signing", is_flag=True, help="Also sign DIR as OpenSSF model-signing does: DIR/model.sig.")
@click.option(
    "--signing-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PEM",
    help="With --model-signing: an elliptic-curve private key; its passphrase, if any, from $KEYSTONE_PASSPHRASE.",
)
@json_option
@pass_session
def export_command(
    session: Session,
    *,
    target: str,
    directory: Path | None,
    layout: "Format",
    merge: bool,
    dtype: str | None,
    own_code: bool,
    compare: bool,
    force: bool,
    sbom: str | None,
    output: Path | None,
    check: Path | None,
    model_signing: bool,
    signing_key: Path | None,
) -> None:
    """Write a manifest as a directory that other software loads.

    Weights are streamed out of the archive, byte for byte where nothing about them changes. DIR appears when it is
    complete, with a model card and a keystone.json that names the digest of every file; a failure leaves nothing.

    --sbom writes what other software reads about supply chains: every file with BLAKE3 and SHA-256, scores with their
    intervals, where base and adapters came from, who approved. --model-signing signs the directory so that
    `model_signing verify key` accepts it and finds any changed, new or missing file.

    \b
    Examples:
      keystone export nano nano-hf/
      keystone export prod merged/ --merge --dtype bfloat16
      keystone export prod vendor/ --format vendor
      keystone export smol smol-gguf/ --format gguf
      keystone export prod --sbom cyclonedx -o prod.cdx.json
      keystone export prod --sbom cyclonedx --check prod.cdx.json
      keystone export prod signed/ --sbom cyclonedx --model-signing --signing-key EC.pem
    """  # noqa: D301 - \b is for click
    _check_usage(directory, sbom, output, signing_key, model_signing=model_signing)
    if check is not None:
        if sbom is None or directory is not None or output is not None:
            raise click.UsageError("--check goes with --sbom, and writes nothing")
        _check_bill(session, target, check)
        return
    if directory is None:
        _bill_alone(session, target, output, force=force)
        return
    from keystone.checkpoints.export import ExportRequest, export, planned_bytes  # noqa: PLC0415 - torch

    quiet_libraries()
    request = ExportRequest(
        layout=layout,
        merge=merge,
        dtype=dtype,
        own_code=own_code,
        compare=compare,
        force=force,
        bill=sbom is not None,
        signer=_signer(signing_key) if signing_key is not None else None,
    )
    with session.open() as archive, progress_bar(session, "export", planned_bytes(archive, target, request)) as bar:
        exported = export(archive, target, directory, request, progress=bar)
    show(session, exported)


def _check_usage(
    directory: Path | None, sbom: str | None, output: Path | None, signing_key: Path | None, *, model_signing: bool
) -> None:
    if model_signing != (signing_key is not None):
        raise click.UsageError("--model-signing and --signing-key go together")
    if directory is None and sbom is None:
        raise click.UsageError("give DIR, or --sbom cyclonedx for a bill of materials alone")
    if directory is None and model_signing:
        raise click.UsageError("--model-signing signs a directory; give DIR")
    if directory is not None and output is not None:
        raise click.UsageError("with DIR the bill lies in it as bom.cdx.json; -o is for a bill alone")


def _signer(key: Path) -> "Signer":
    from keystone.checkpoints.export import Signer  # noqa: PLC0415 - torch
    from manifests import needs_passphrase  # noqa: PLC0415 - pydantic

    if not needs_passphrase(key):
        return Signer(key)
    told = os.environ.get("KEYSTONE_PASSPHRASE") or click.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    return Signer(key, str(told).encode())


def _bill_alone(session: Session, target: str, output: Path | None, *, force: bool) -> None:
    """The bill of a manifest, with the files as the archive holds them."""
    from manifests import Repository, check_cyclonedx, cyclonedx_bill, planned_hashing  # noqa: PLC0415 - pydantic

    check_cyclonedx()
    if output is not None and output.exists() and not force:
        from keystone.errors import OutputExistsError  # noqa: PLC0415 - with the others

        raise OutputExistsError(f"{output} exists; choose another file, or replace it with --force")
    with session.open() as archive:
        repository = Repository(archive)
        digest = repository.resolve(target)
        with progress_bar(session, "hash", planned_hashing(archive, repository.load(digest))) as progress:
            bill = cyclonedx_bill(archive, digest, progress=progress)
    if output is None:
        click.echo(bill, nl=False)
        return
    _write(output, bill)
    fields: dict[str, Value] = {"manifest": str(digest), "path": str(output), "size": len(bill)}
    session.item(fields, f"{output}: CycloneDX bill of {digest}, {human_size(len(bill))}")


def _check_bill(session: Session, target: str, file: Path) -> None:
    """A bill against the archive; exits with 1 when they differ."""
    from keystone.errors import InvalidInputError  # noqa: PLC0415 - with the others
    from manifests import Repository, bill_differences, bill_subject, planned_hashing  # noqa: PLC0415 - pydantic

    data = file.read_bytes()
    with session.open() as archive:
        repository = Repository(archive)
        digest = repository.resolve(target)
        if bill_subject(data) != digest:
            raise InvalidInputError(f"{file} is the bill of {bill_subject(data)}; {target} is {digest}")
        with progress_bar(session, "hash", planned_hashing(archive, repository.load(digest))) as progress:
            found = bill_differences(archive, data, progress=progress)
    for each in found:
        session.item({"difference": each}, f"FAIL  {each}")
    fields: dict[str, Value] = {"manifest": str(digest), "path": str(file), "ok": not found}
    session.item(fields, f"{file}: {'differs from' if found else 'is'} the bill of {digest}")
    if found:
        click.get_current_context().exit(1)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a reader must not find half a bill."""
    from keystone.errors import StorageError  # noqa: PLC0415 - with the others

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}; choose another place") from error
    finally:
        part.unlink(missing_ok=True)


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
    names = [file.path for file in exported.files]
    lines += [f"  {what}  {name}" for name, what in _BESIDE.items() if name in names]
    if exported.adapters:
        lines.append(f"  adapters   {exported.adapters} beside the base, in adapters/")
    lines += [f"  left out   {path}" for path in exported.left_out]
    session.item(fields, "\n".join(lines))
