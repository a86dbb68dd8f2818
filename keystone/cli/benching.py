"""`keystone bench`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, human_size, json_option, pass_session, progress_bar
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from keystone.quality import Quality
    from keystone.quantize import Quantization

_SCHEMES: "tuple[Quantization, ...]" = ("none", "int8", "nf4")


@click.group("bench")
def bench_command() -> None:
    """Measure a model on this machine.

    \b
    Example:
      keystone bench quality nano
    """  # noqa: D301 - \b is for click


@bench_command.command("quality")
@click.argument("target", metavar="MANIFEST|REF")
@click.option(
    "--text",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Held-out text. Default: files of Python's library that nano never read.",
)
@click.option("--characters", default=60_000, show_default=True, type=click.IntRange(1), help="The most to predict.")
@click.option("--quantize", "schemes", multiple=True, type=click.Choice(_SCHEMES), help="Only these schemes.")
@click.option("--device", help="cpu, cuda, cuda:1 ... Default: the first CUDA card, else the CPU.")
@json_option
@pass_session
def quality_command(
    session: Session,
    *,
    target: str,
    path: Path | None,
    characters: int,
    schemes: "tuple[Quantization, ...]",
    device: str | None,
) -> None:
    """Say what each scheme costs: bits per byte, KL to the unquantized model, agreement, speed, disk and memory.

    \b
    Examples:
      keystone bench quality nano
      keystone bench quality prod --text held-out.txt --quantize nf4 --json
    """  # noqa: D301 - \b is for click
    from keystone.cli.lean import import_lean  # noqa: PLC0415 - torch and transformers from here on

    import_lean(bitsandbytes=True)
    from keystone.quality import compare_schemes  # noqa: PLC0415 - only after the lean imports
    from manifests import Repository  # noqa: PLC0415

    quiet_libraries()
    texts = _texts(path, characters)
    chosen: tuple[Quantization, ...] = schemes or _SCHEMES
    total = sum(map(len, texts)) * len(chosen)
    with session.open() as archive:
        digest = Repository(archive).resolve(target)
        heads = ("", "bits/byte", "KL bits", "same top-1", "tokens/s", "on disk", "weights", "peak memory")
        session.note("{:<5} {:>10} {:>9} {:>10} {:>9} {:>11} {:>11} {:>12}".format(*heads))
        with progress_bar(session, "predict", total) as progress:
            for row in compare_schemes(archive, digest, texts, chosen, device=device, progress=progress):
                _print(session, row)


def _texts(path: Path | None, characters: int) -> list[str]:
    from keystone.errors import InvalidInputError  # noqa: PLC0415

    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")[:characters]
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{path} is not UTF-8 text: {error}") from error
        if len(text) < 2:
            raise InvalidInputError(f"{path} holds too little text to predict anything")
        return [text]
    from keystone.nano.corpus import stdlib_documents  # noqa: PLC0415 - reads the library's files

    texts: list[str] = []
    size = 0
    for document in stdlib_documents("held-out"):
        if size >= characters:
            break
        texts.append(document.text[: characters - size])
        size += len(texts[-1])
    return texts


def _print(session: Session, row: "Quality") -> None:
    fields: dict[str, Value] = {
        "quantization": row.quantization,
        "bits_per_byte": row.bits_per_byte,
        "kl_bits": row.kl_bits,
        "top1_agreement": row.top1_agreement,
        "tokens": row.tokens,
        "tokens_per_second": row.tokens_per_second,
        "stored_bytes": row.stored_bytes,
        "weight_bytes": row.weight_bytes,
        "peak_bytes": row.peak_bytes,
    }
    sizes: Sequence[str] = [human_size(size) for size in (row.stored_bytes, row.weight_bytes, row.peak_bytes)]
    session.item(
        fields,
        f"{row.quantization:<5} {row.bits_per_byte:>10.4f} {row.kl_bits:>9.5f} {row.top1_agreement:>10.2%} "
        f"{row.tokens_per_second:>9.1f} {sizes[0]:>11} {sizes[1]:>11} {sizes[2]:>12}",
    )
