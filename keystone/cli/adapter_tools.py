"""`keystone adapter merge`, `delta`, `import` and `check`: adapters as things to use."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session, progress_bar

if TYPE_CHECKING:
    from csf_store import Digest
    from keystone.combining import Merged, ModuleDelta
    from keystone.combining.trying import LogitDifference
    from manifests import AdapterUse, Repository


def _weights(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("say numbers with commas between them, such as 0.7,0.3") from None


@click.command("merge")
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@click.option("--weights", callback=_weights, metavar="W,W,...", help="One for each adapter. Default: 1 for each.")
@click.option("--rank", type=click.IntRange(1), help="The most any module may have; loses what the SVD cuts off.")
@click.option("--base", metavar="REF|MANIFEST|TREE", help="The base, where no record says it; and for --prompt.")
@click.option("-o", "--name", help="A name to pin the result under.")
@click.option("--prompt", help="Also load --base and compare the logits on this text.")
@json_option
@pass_session
def merge_command(
    session: Session,
    *,
    adapters: tuple[str, ...],
    weights: tuple[float, ...] | None,
    rank: int | None,
    base: str | None,
    name: str | None,
    prompt: str | None,
) -> None:
    """Make one adapter of several, and say how far it is from them.

    Without --rank the result adds exactly what its parents add at their weights: their pairs are put side by side, and
    the rank is the sum of theirs. With --rank it is the nearest adapter of that rank. Its record names its parents; it
    was not trained, so an audit calls its base a claim.

    \b
    Examples:
      keystone adapter merge b3:1a2b3c4d b3:5e6f7a8b --weights 0.7,0.3 -o both
      keystone adapter merge b3:1a2b3c4d b3:5e6f7a8b --rank 8 --base nano --prompt "def add("
    """  # noqa: D301 - \b is for click
    from adapters import archived_adapter  # noqa: PLC0415 - pydantic, not needed for --help
    from keystone.combining import merge_adapters  # noqa: PLC0415 - torch, likewise
    from manifests import AdapterUse, Repository  # noqa: PLC0415

    if weights is not None and len(weights) != len(adapters):
        raise click.UsageError(f"{len(adapters)} adapters and {len(weights)} weights")
    if prompt is not None and base is None:
        raise click.UsageError("--prompt needs --base, a manifest or ref of the base to load")
    from csf_store import Kind  # noqa: PLC0415
    from keystone.cli.adapter import resolve_base  # noqa: PLC0415 - that module registers this one

    with session.open() as archive:
        repository = Repository(archive)
        shares = weights or (1.0,) * len(adapters)
        uses = [
            AdapterUse(adapter=resolve_adapter(repository, text), weight=weight)
            for text, weight in zip(adapters, shares, strict=True)
        ]
        tree = resolve_base(repository, base) if base is not None else None
        modules = {module for use in uses for module in archived_adapter(archive, use.adapter).modules}
        with progress_bar(session, "merging", len(modules), unit="objects") as advance:
            merged = merge_adapters(repository, uses, base=tree, rank=rank, progress=advance)
        archive.pin(merged.adapter, kind=Kind.TREE, name=name)
        tried = _try(repository, uses, merged, base, prompt) if prompt and base else None
    session.item(_merge_fields(merged, tried), _merge_text(merged, tried, base))


def _try(
    repository: "Repository", uses: "list[AdapterUse]", merged: "Merged", base: str, prompt: str
) -> "LogitDifference":
    from keystone import load  # noqa: PLC0415 - see merge_command
    from keystone.cli.quiet import quiet_libraries  # noqa: PLC0415
    from keystone.combining.trying import logit_difference  # noqa: PLC0415

    quiet_libraries()
    loaded = load(repository.resolve(base), archive=repository.archive, quantization="none")
    return logit_difference(loaded, uses, merged.adapter, prompt, archive=repository.archive)


def _merge_fields(merged: "Merged", tried: "LogitDifference | None") -> dict[str, Value]:
    document = merged.document
    fields: dict[str, Value] = {
        "adapter": str(merged.adapter),
        "record": str(merged.record),
        "base": str(document.base),
        "parents": [{"adapter": str(use.adapter), "weight": use.weight} for use in document.parents],
        "method": document.method,
        "rank": document.rank,
        "modules": len(merged.modules),
        "largest_error": document.largest_error,
        "relative_error": document.relative_error,
    }
    if tried is not None:
        fields["logits"] = {
            "largest_difference": tried.largest,
            "largest_change": tried.scale,
            "agree": tried.agree,
            "positions": tried.positions,
        }
    return fields


def _merge_text(merged: "Merged", tried: "LogitDifference | None", base: str | None) -> str:
    document = merged.document
    lines = [f"adapter   {merged.adapter}", f"  base    {document.base}"]
    lines += [f"  parent  {use.adapter}  weight {use.weight:g}" for use in document.parents]
    exact = "exact" if document.method == "concatenation" else "nearest of this rank"
    lines += [
        f"  how     {document.method}, rank {document.rank}, {len(merged.modules)} modules, {exact}",
        f"  error   largest |delta W| {document.largest_error:.3g}, relative Frobenius {document.relative_error:.3g}",
    ]
    if tried is not None:
        lines.append(
            f"  logits  largest difference {tried.largest:.3g} where the adapters change up to {tried.scale:.3g};"
            f" same likeliest token at {tried.agree} of {tried.positions} positions"
        )
    lines.append(f"next: keystone manifest create --from {base or 'REF'} --adapter {merged.adapter.short}")
    return "\n".join(lines)


@click.command("delta")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@json_option
@pass_session
def delta_command(session: Session, *, first: str, second: str) -> None:
    """Show how two adapters differ, module by module, in what they add to the base.

    Norms are Frobenius norms of the added matrices, scale included. `same` means no difference that float32 could hold.

    \b
    Example:
      keystone adapter delta b3:1a2b3c4d b3:5e6f7a8b
    """  # noqa: D301 - \b is for click
    from keystone.combining import adapter_delta, read_low_rank, whole  # noqa: PLC0415 - see merge_command
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        a, b = (read_low_rank(archive, resolve_adapter(repository, text)) for text in (first, second))
    deltas = adapter_delta(a, b)
    width = max(len(delta.name) for delta in deltas)
    session.note(f"{'module':<{width}}  status    |A|        |B|        |B-A|      cosine")
    for delta in (*deltas, whole(deltas)):
        session.item(_delta_fields(delta), _delta_text(delta, width))


def _delta_fields(delta: "ModuleDelta") -> dict[str, Value]:
    return {
        "module": delta.name,
        "status": delta.status,
        "norm_a": delta.norm_a,
        "norm_b": delta.norm_b,
        "difference": delta.difference,
        "cosine": delta.cosine,
        "rank_a": delta.rank_a,
        "rank_b": delta.rank_b,
    }


def _delta_text(delta: "ModuleDelta", width: int) -> str:
    cosine = "-" if delta.cosine is None else f"{delta.cosine:+.4f}"
    numbers = "".join(f"{value:<11.4g}" for value in (delta.norm_a, delta.norm_b, delta.difference))
    return f"{delta.name:<{width}}  {delta.status:<8}  {numbers}{cosine}"


@click.command("import")
@click.argument("source", metavar="hf://ORG/NAME[@REV]|DIRECTORY")
@click.option("--base", metavar="REF|MANIFEST|TREE", help="The base it is for. Default: the one it claims, if here.")
@click.option("-o", "--name", help="A name to pin it under. Default: the last part of SOURCE.")
@json_option
@pass_session
def import_command(session: Session, *, source: str, base: str | None, name: str | None) -> None:
    """Bring a PEFT LoRA from a hub or a directory into the archive.

    Pickled weights are refused and not even fetched. What the configuration says of its base is kept as a claim.

    \b
    Examples:
      keystone adapter import hf://org/name@main --base nano
      keystone adapter import ./lora --base nano -o lora
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - see merge_command
    from keystone.cli.adapter import resolve_base  # noqa: PLC0415
    from keystone.combining import import_adapter  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        tree = resolve_base(repository, base) if base is not None else None
        found = import_adapter(repository, source, base=tree)
        last = source.partition("@")[0].rstrip("/").rpartition("/")[2]
        archive.pin(found.adapter, kind=Kind.TREE, name=name or last)
    claimed = found.document.claimed_base
    fields: dict[str, Value] = {
        "adapter": str(found.adapter),
        "base": str(found.record.base),
        "location": found.document.location,
        "claimed_base": claimed,
        "licence": found.document.licence,
        "rank": found.record.rank,
        "modules": len(found.record.targets),
        "notes": list(found.notes),
    }
    notes = "".join(f"\n  note    {note}" for note in found.notes)
    session.item(
        fields,
        f"adapter   {found.adapter}\n  from    {found.document.location}\n  base    {found.record.base}\n"
        f"  claims  {claimed or 'no base'}{notes}\n"
        f"next: keystone manifest create --from {base or 'REF'} --adapter {found.adapter.short}",
    )


@click.command("check")
@click.argument("adapter", metavar="ADAPTER|DIRECTORY")
@click.option("--base", required=True, metavar="REF|MANIFEST|TREE", help="The base it would be put on.")
@json_option
@pass_session
def check_command(session: Session, *, adapter: str, base: str) -> None:
    """Say whether an adapter works on a base, before anything is loaded; every mismatch is named.

    A merged adapter is compared with its parents again. Exits with 1 when it does not fit.

    \b
    Examples:
      keystone adapter check b3:1a2b3c4d --base nano
      keystone adapter check ./lora --base nano
    """  # noqa: D301 - \b is for click
    from keystone.cli.adapter import resolve_base  # noqa: PLC0415 - see merge_command
    from keystone.combining import check_archived, check_directory  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        tree = resolve_base(repository, base)
        if Path(adapter).is_dir():
            found = check_directory(repository, Path(adapter), tree)
        else:
            found = check_archived(repository, resolve_adapter(repository, adapter), tree)
    fields: dict[str, Value] = {
        "fits": found.fits,
        "base": str(tree),
        "problems": list(found.problems),
        "notes": list(found.notes),
        "modules": found.modules,
        "rank": found.rank,
    }
    verdict = "fits" if found.fits else "does not fit"
    lines = [f"{verdict} base {tree}: {found.modules} modules, rank {found.rank}"]
    lines += [f"  problem  {problem}" for problem in found.problems]
    lines += [f"  note     {note}" for note in found.notes]
    session.item(fields, "\n".join(lines))
    click.get_current_context().exit(0 if found.fits else 1)


def resolve_adapter(repository: "Repository", text: str) -> "Digest":
    """The adapter tree a person means: a digest or prefix, a pinned name, or a manifest or ref that wears just one."""
    from csf_store import InvalidInputError, Kind, NotFoundError  # noqa: PLC0415 - see merge_command
    from manifests import ManifestError  # noqa: PLC0415

    archive = repository.archive
    named = [pin.digest for pin in archive.pins() if pin.name == text and archive.contains(pin.digest, Kind.TREE)]
    if named:
        return named[-1]
    try:
        return archive.resolve(text, kind=Kind.TREE)
    except (NotFoundError, InvalidInputError) as not_a_tree:
        try:
            uses = repository.load(repository.resolve(text)).assembly.adapters
        except (NotFoundError, InvalidInputError, ManifestError):
            raise not_a_tree from None
        if len(uses) != 1:
            raise click.UsageError(f"{text} wears {len(uses)} adapters; name the one you mean") from None
        return uses[0].adapter


COMMANDS = (merge_command, delta_command, import_command, check_command)
