"""`keystone manifest`: show, create and list the documents that name models."""

import click

from csf_store import Session, Value, json_option, pass_session


@click.group("manifest")
def manifest_command() -> None:
    """Show, create and list manifests. A manifest never changes; its digest names the model."""


@manifest_command.command("show")
@click.argument("target", metavar="MANIFEST|REF")
@json_option
@pass_session
def show(session: Session, *, target: str) -> None:
    """Print a manifest: indented for people, its canonical bytes with --json.

    \b
    Examples:
      keystone manifest show nano
      keystone manifest show nano --json | b3sum        (less the final newline, this is its digest)
    """  # noqa: D301 - \b is for click
    import json  # noqa: PLC0415 - with the others
    import sys  # noqa: PLC0415

    from manifests import Repository  # noqa: PLC0415 - pydantic, not needed for --help

    with session.open() as archive:
        repository = Repository(archive)
        digest = repository.resolve(target)
        data = repository.load(digest).to_bytes()
    if session.json:
        sys.stdout.write(data.decode() + "\n")
    else:
        session.note(f"{digest}\n{json.dumps(json.loads(data), indent=2, ensure_ascii=False)}")


@manifest_command.command("create")
@click.option("--from", "parent", metavar="MANIFEST|REF", help="Take everything that is not given from this one.")
@click.option("--base", metavar="TREE", help="Without --from: the base's tree (config.json and safetensors).")
@click.option("--tokenizer", metavar="TREE", help="Without --from: the tokenizer's tree.")
@click.option("--licence", metavar="SPDX", help="Without --from: the licence of the base, such as Apache-2.0.")
@click.option("--adapter", "adapters", multiple=True, metavar="DIGEST[:WEIGHT]", help="An adapter; order counts.")
@click.option("--bare", is_flag=True, help="With --from: no adapters, the frozen base alone.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A free label.")
@json_option
@pass_session
def create(
    session: Session,
    *,
    parent: str | None,
    base: str | None,
    tokenizer: str | None,
    licence: str | None,
    adapters: tuple[str, ...],
    bare: bool,
    labels: tuple[str, ...],
) -> None:
    """Write a manifest: other adapters on a known base, or a first one for a base that was put.

    Evidence stays with the weights it was measured on; a new manifest starts without any.

    \b
    Examples:
      keystone manifest create --from nano --adapter b3:1a2b3c4d
      keystone manifest create --from nano --adapter b3:1a2b3c4d:0.5 --adapter b3:5e6f7a8b --label team=search
      keystone manifest create --base b3:1a2b3c4d --tokenizer b3:5e6f7a8b --licence Apache-2.0
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - see show
    from keystone.identity import source_digest  # noqa: PLC0415
    from manifests import AdapterUse, Assembly, Manifest, Repository, Source  # noqa: PLC0415

    first = base and tokenizer and licence
    if parent is None and not first:
        raise click.UsageError("give --from, or --base with --tokenizer and --licence")
    if parent is not None and (base or tokenizer or licence or bool(adapters) == bare):
        raise click.UsageError("with --from, give --adapter at least once, or --bare for the base alone")
    with session.open() as archive:
        repository = Repository(archive)
        above = repository.resolve(parent) if parent is not None else None
        if above is not None:
            old = repository.load(above)
            assembly, source, recipe = old.assembly, old.source, old.recipe
        else:
            trees = [archive.resolve(str(text), kind=Kind.TREE) for text in (base, tokenizer)]
            assembly, recipe = Assembly(base=trees[0], tokenizer=trees[1]), None
            source = Source(kind="directory", location="put by hand", licence=str(licence))
        pairs = [_split_weight(text) for text in adapters]
        uses = [AdapterUse(adapter=archive.resolve(text, kind=Kind.TREE), weight=weight) for text, weight in pairs]
        digest = repository.put(
            Manifest(
                assembly=assembly.revised(adapters=tuple(uses)),
                code_source=source_digest(),
                recipe=recipe,
                source=source,
                lineage=repository.trace((use.adapter for use in uses), base=assembly.base),
                parent=above,
                labels=dict(_split_label(label) for label in labels),
            )
        )
    fields: dict[str, Value] = {"manifest": str(digest), "parent": str(above) if above else None}
    session.item(fields, f"{digest}\nnext: keystone ref set NAME {digest.short}")


@manifest_command.command("list")
@json_option
@pass_session
def list_manifests(session: Session) -> None:
    """List every manifest in the archive.

    \b
    Example:
      keystone manifest list
    """  # noqa: D301 - \b is for click
    from manifests import Repository  # noqa: PLC0415 - see show

    with session.open() as archive:
        repository = Repository(archive)
        names: dict[str, list[str]] = {}
        for name in repository.refs.names():
            names.setdefault(str(repository.refs.find(name)), []).append(name)
        for digest in repository.manifests():
            manifest = repository.load(digest)
            refs = names.get(str(digest), [])
            session.item(
                {
                    "manifest": str(digest),
                    "base": str(manifest.assembly.base),
                    "adapters": len(manifest.assembly.adapters),
                    "tripwire": manifest.tripwire.status,
                    "refs": refs,
                },
                f"{digest}  base {manifest.assembly.base.short}  {len(manifest.assembly.adapters)} adapters  "
                f"tripwire {manifest.tripwire.status}  {' '.join(refs)}",
            )


def _split_label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise click.UsageError(f"{text!r}: a label is KEY=VALUE")
    return key, value


def _split_weight(text: str) -> tuple[str, float]:
    """`DIGEST` or `DIGEST:WEIGHT`; the digest may itself begin with `b3:`."""
    head, separator, tail = text.rpartition(":")
    if not separator or head == "b3" or not head:
        return text, 1.0
    try:
        return head, float(tail)
    except ValueError:
        raise click.UsageError(f"{text!r}: the weight after the last colon is not a number") from None
