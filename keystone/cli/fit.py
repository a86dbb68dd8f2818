"""`keystone fit`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, human_size, json_option, pass_session, progress_bar
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from csf_store import Archive
    from keystone.boxes import Box
    from keystone.fit import ModelSize, Need
    from keystone.quantize import Quantization
    from manifests import Measurement

_NAMES = {"none": "bf16", "int8": "int8", "nf4": "nf4"}


@click.command("fit")
@click.argument("target", metavar="MANIFEST|REF|CONFIG")
@click.option("--vram", metavar="SIZE", help="A card with so much memory: 8GB, 7.5GiB.")
@click.option("--ram", metavar="SIZE", help="A machine with so much memory.")
@click.option("--device", help="cpu, cuda or cuda:1. Default: the first NVIDIA card, else this machine's memory.")
@click.option(
    "--context", type=click.IntRange(1), help="Tokens of one sequence. Default: 4096, or all the model was made for."
)
@click.option("--prompt", default=512, show_default=True, type=click.IntRange(1), help="Tokens one forward takes.")
@click.option("--quantize", "quantization", type=click.Choice(["none", "int8", "nf4"]), help="Only this scheme.")
@click.option("--require", is_flag=True, help="Fail (exit code 1) if no scheme that was asked about fits.")
@click.option("--measure", "measured", is_flag=True, help="Load it, let it work, and keep what that took as evidence.")
@json_option
@pass_session
def fit_command(
    session: Session,
    *,
    target: str,
    vram: str | None,
    ram: str | None,
    device: str | None,
    context: int | None,
    prompt: int,
    quantization: "Quantization | None",
    require: bool,
    measured: bool,
) -> None:
    """Say whether a model fits a box, and how much context does, for each way to hold its weights.

    Weights, cache, adapters and overhead are computed before anything is loaded. CONFIG is a config.json, or a
    directory with one, of a model that is not here yet. The answer may be no: that is exit code 0, unless --require
    is given.

    \b
    Examples:
      keystone fit nano
      keystone fit prod --vram 8GB --context 32768
      keystone fit ./LoopCoder-V2/config.json --ram 16GB --json
      keystone fit prod --measure --quantize int8
    """  # noqa: D301 - \b is for click
    from keystone.boxes import find_box, parse_size  # noqa: PLC0415 - torch and transformers from here on
    from keystone.cli.lean import import_lean  # noqa: PLC0415

    import_lean(bitsandbytes=True)
    from keystone.fit import needs  # noqa: PLC0415 - only after the lean imports

    quiet_libraries()
    box = find_box(vram=parse_size(vram) if vram else None, ram=parse_size(ram) if ram else None, device=device)
    path = Path(target)
    if path.name == "config.json" or (path / "config.json").is_file():
        size = _size_of_config(path)
        tokens = context or min(4096, size.config.max_position_embeddings)
        found = _asked(needs(size, box, tokens, prompt=prompt), quantization)
        _print(session, box, size, tokens, found)
        if measured:
            raise click.UsageError("--measure loads the model: import it, and name its manifest")
    else:
        with session.open() as archive:
            size = _size_of_manifest(archive, target)
            tokens = context or min(4096, size.config.max_position_embeddings)
            found = _asked(needs(size, box, tokens, prompt=prompt), quantization)
            _print(session, box, size, tokens, found)
            if measured:
                fitting = [need.quantization for need in found if need.fits]
                _measure(session, archive, target, box, schemes=fitting, prompt=prompt)
    if require and not any(need.fits for need in found):
        raise click.exceptions.Exit(1)


def _asked(found: "list[Need]", quantization: "Quantization | None") -> "list[Need]":
    return [need for need in found if quantization in (None, need.quantization)]


def _size_of_manifest(archive: "Archive", target: str) -> "ModelSize":
    from keystone.fit import ModelSize  # noqa: PLC0415 - as above
    from manifests import Repository  # noqa: PLC0415

    repository = Repository(archive)
    return ModelSize.of_manifest(archive, repository.load(repository.resolve(target)))


def _size_of_config(path: Path) -> "ModelSize":
    import json  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from keystone.errors import InvalidInputError  # noqa: PLC0415
    from keystone.fit import ModelSize  # noqa: PLC0415
    from keystone.model import KeystoneConfig  # noqa: PLC0415

    file = path if path.is_file() else path / "config.json"
    try:
        fields = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{file} is no configuration: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInputError(f"{file} holds a JSON {type(fields).__name__}, not an object")
    stated = str(fields.get("torch_dtype") or fields.get("dtype") or "bfloat16")
    dtype = getattr(torch, stated, None)
    return ModelSize.of_config(
        KeystoneConfig.from_dict(fields), dtype=dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    )


def _print(session: Session, box: "Box", size: "ModelSize", context: int, found: "list[Need]") -> None:
    session.note(f"{human_size(box.nbytes)} of {box.kind} ({box.source}), {context} tokens of context")
    if not session.json:
        heads = ("", "weights", "cache", "adapters", "overhead", "all", "fits", "longest context")
        session.note("{:<5} {:>11} {:>11} {:>11} {:>11} {:>11}  {:<4} {:>15}".format(*heads))
    for need in found:
        recipe = size.recipes[need.quantization]
        fields: dict[str, Value] = {
            "quantization": need.quantization,
            "dtype": recipe.dtype,
            "weight_bytes": need.weights,
            "cache_bytes": need.cache,
            "adapter_bytes": need.adapters,
            "overhead_bytes": need.overhead,
            "total_bytes": need.total,
            "fits": need.fits,
            "longest_context": need.longest_context,
            "context": context,
            "box_bytes": box.nbytes,
            "box_kind": box.kind,
            "box_source": box.source,
            "device": box.device,
            "parameters": size.parameters,
        }
        name = _NAMES[need.quantization] if recipe.dtype == "bfloat16" else need.quantization
        sizes = (need.weights, need.cache, need.adapters, need.overhead, need.total)
        cells = " ".join(f"{human_size(amount):>11}" for amount in sizes)
        session.item(fields, f"{name:<5} {cells}  {'yes' if need.fits else 'no':<4} {need.longest_context:>15,}")


def _measure(
    session: Session, archive: "Archive", target: str, box: "Box", *, schemes: "list[Quantization]", prompt: int
) -> None:
    from keystone.errors import RefusedError  # noqa: PLC0415 - as above
    from keystone.loader import planned_bytes  # noqa: PLC0415
    from keystone.measuring import keep, measure  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    if not schemes:
        raise RefusedError("nothing that was asked about fits this box, so nothing was loaded to be measured")
    digest = Repository(archive).resolve(target)
    for scheme in schemes:
        total = planned_bytes(archive, digest, quantization=scheme, device=box.device)
        with progress_bar(session, f"measure {scheme}", total) as progress:
            made = measure(
                archive, digest, box, quantization=scheme, prompt_tokens=prompt, new_tokens=32, progress=progress
            )
        _print_measurement(session, made, scheme, str(keep(archive, made)))


def _print_measurement(session: Session, made: "Measurement", scheme: str, digest: str) -> None:
    fields: dict[str, Value] = {**made.to_json(), "measurement": digest, "quantization": scheme, "error": made.error}
    session.item(
        fields,
        f"{scheme}: {human_size(made.peak_bytes)} measured, {human_size(made.planned_bytes)} planned "
        f"({made.error:+.1%}); prefill {made.prefill_tokens_per_second:.0f} and decode "
        f"{made.decode_tokens_per_second:.1f} tokens/s; {digest}",
    )
