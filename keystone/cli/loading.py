"""`keystone load`."""

from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, human_size, json_option, pass_session, progress_bar
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from csf_store import Archive
    from keystone.loader import LoadedModel
    from keystone.quantize import Quantization


@click.command("load")
@click.argument("target", metavar="MANIFEST|REF")
@click.option("--prompt", "prompts", multiple=True, help="A text to continue; may be given several times.")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="The most to generate.")
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(["none", "int8", "nf4"]),
    help="How to hold the weights. Default: the manifest's recipe, else int8 on a CPU and nf4 on a CUDA card.",
)
@click.option("--device", help="cpu, cuda, cuda:1 ... Default: the first CUDA card, else the CPU.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy.")
@click.option("--seed", default=0, show_default=True, help="Of the sampling.")
@click.option("--no-cache", is_flag=True, help="Quantize from the base, whatever is cached, and cache nothing.")
@json_option
@pass_session
def load_command(
    session: Session,
    *,
    target: str,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    quantization: "Quantization | None",
    device: str | None,
    temperature: float,
    seed: int,
    no_cache: bool,
) -> None:
    """Assemble a manifest from verified bytes, quantize it, and let it answer.

    Quantized weights are kept in the archive, so that the next load of the same recipe only reads them. What is
    quantized and what is not is listed, module by module with --json.

    \b
    Examples:
      keystone load nano
      keystone load nano --prompt "def mean(values):" --quantize nf4
      keystone load b3:1a2b3c4d --json
    """  # noqa: D301 - \b is for click
    from keystone.cli.lean import import_lean  # noqa: PLC0415 - torch and transformers

    with session.open() as archive:
        import_lean(bitsandbytes=quantization != "none" or _adapted(archive, target))
        from keystone.loader import load, planned_bytes  # noqa: PLC0415 - only after the lean imports

        quiet_libraries()
        total = planned_bytes(archive, target, quantization=quantization, device=device)
        with progress_bar(session, "load", total) as progress:
            loaded = load(
                target,
                archive=archive,
                quantization=quantization,
                device=device,
                cache="ignore" if no_cache else "use",
                progress=progress,
            )
    _print_loaded(session, loaded)
    answers = loaded.complete(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    for prompt, answer in zip(prompts, answers, strict=True):
        session.item({"prompt": prompt, "completion": answer}, f"\n{prompt}{answer}")


def _adapted(archive: "Archive", target: str) -> bool:
    """Whether a load will need PEFT, which needs bitsandbytes."""
    from manifests import Repository  # noqa: PLC0415 - pydantic

    repository = Repository(archive)
    return bool(repository.load(repository.resolve(target)).assembly.adapters)


def _print_loaded(session: Session, loaded: "LoadedModel") -> None:
    from keystone.quantize import list_modules  # noqa: PLC0415 - imported by now

    assembly, recipe, kept = loaded.manifest.assembly, loaded.recipe, loaded.kept_modules
    fields: dict[str, Value] = {
        "manifest": str(loaded.digest),
        "assembly": str(assembly.digest),
        "base": str(assembly.base),
        "adapters": [{"adapter": str(use.adapter), "weight": use.weight} for use in assembly.adapters],
        "tokenizer": str(assembly.tokenizer),
        "code": assembly.code,
        "recipe": str(recipe.digest),
        "dtype": recipe.dtype,
        "quantization": recipe.quantization,
        "quantized_modules": len(recipe.modules),
        "modules": list(recipe.modules),
        "modules_left": list(kept),
        "derived": None if loaded.derived is None else str(loaded.derived),
        "quantized_here": loaded.quantized_here,
        "notes": list(loaded.notes),
        "read_bytes": loaded.read_bytes,
        "weight_bytes": loaded.weight_bytes,
        "seconds": round(loaded.seconds, 3),
    }
    adapters = [f"  adapter    {use.adapter}  x {use.weight:g}" for use in assembly.adapters]
    quantized = [f"    {recipe.quantization:<8} {line}" for line in list_modules(recipe.modules)]
    left = [f"    {recipe.dtype:<8} {line}" for line in list_modules(kept)] if quantized else []
    origin = ""
    if loaded.derived is not None:
        where = "made now" if loaded.quantized_here else "from the cache"
        origin = f"  {recipe.quantization:<9}  {loaded.derived}, {where}"
    read, held = human_size(loaded.read_bytes), human_size(loaded.weight_bytes)
    lines = [
        f"manifest     {loaded.digest}",
        f"  base       {assembly.base}",
        *adapters,
        f"  tokenizer  {assembly.tokenizer}",
        f"  code       {assembly.code}",
        f"  recipe     {recipe.dtype}, {recipe.quantization}, {len(recipe.modules)} modules quantized",
        *quantized,
        *left,
        *([origin] if origin else []),
        *(f"  note       {note}" for note in loaded.notes),
        f"{read} verified in {loaded.seconds:.2f} s, {held} in memory",
    ]
    session.item(fields, "\n".join(lines))
