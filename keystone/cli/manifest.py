"""`keystone manifest`: show, create and list the documents that name models."""

import click

from keystone.cli.session import Session, json_option, pass_session


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
@click.option("--from", "parent", required=True, metavar="MANIFEST|REF", help="Take everything else from this one.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIGEST[:WEIGHT]",
    help="An adapter, in order; replaces the parent's.",
)
@click.option("--bare", is_flag=True, help="No adapters: the frozen base alone.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A free label.")
@json_option
@pass_session
def create(session: Session, *, parent: str, adapters: tuple[str, ...], bare: bool, labels: tuple[str, ...]) -> None:
    """Write a manifest for other adapters on the same base. Evidence stays with the weights it was measured on.

    \b
    Examples:
      keystone manifest create --from nano --adapter b3:1a2b3c4d
      keystone manifest create --from nano --adapter b3:1a2b3c4d:0.5 --adapter b3:5e6f7a8b --label team=search
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - see show
    from manifests import AdapterUse, Manifest, Repository  # noqa: PLC0415

    if bool(adapters) == bare:
        raise click.UsageError("give --adapter at least once, or --bare for the base alone")
    pairs = [label.partition("=") for label in labels]
    if any(not separator for _, separator, _ in pairs):
        raise click.UsageError("a label is KEY=VALUE")
    with session.open() as archive:
        repository = Repository(archive)
        above = repository.resolve(parent)
        old = repository.load(above)
        uses = []
        for text in adapters:
            prefix, weight = _split_weight(text)
            uses.append(AdapterUse(adapter=archive.resolve(prefix, kind=Kind.TREE), weight=weight))
        digest = repository.put(
            Manifest(
                assembly=old.assembly.revised(adapters=tuple(uses)),
                recipe=old.recipe,
                source=old.source,
                lineage=repository.trace((use.adapter for use in uses), base=old.assembly.base),
                parent=above,
                labels={key: value for key, _, value in pairs},
            )
        )
    session.item(
        {"manifest": str(digest), "parent": str(above)}, f"{digest}\nnext: keystone ref set NAME {digest.short}"
    )


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


def _split_weight(text: str) -> tuple[str, float]:
    """`DIGEST` or `DIGEST:WEIGHT`; the digest may itself begin with `b3:`."""
    head, separator, tail = text.rpartition(":")
    if not separator or head == "b3" or not head:
        return text, 1.0
    try:
        return head, float(tail)
    except ValueError:
        raise click.UsageError(f"{text!r}: the weight after the last colon is not a number") from None
