"""`keystone import`."""

import click

from csf_store import Session, json_option, pass_session


@click.command("import")
@click.argument("source", type=click.Choice(["nano"]), metavar="SOURCE")
@click.option("--ref", default=None, help="The ref to set. Default: the source's name.")
@json_option
@pass_session
def import_command(session: Session, *, source: str, ref: str | None) -> None:
    """Bring a base into the archive, write its manifest, and name it.

    SOURCE is `nano`, the base that ships with this package. A missing archive is made. Importing again changes nothing.

    \b
    Example:
      keystone import nano
    """  # noqa: D301 - \b is for click
    from keystone.nano.embedded import import_nano  # noqa: PLC0415 - pydantic, not needed for --help
    from manifests import Repository  # noqa: PLC0415

    name = ref or source
    with session.open(create=True) as archive:
        digest = import_nano(archive, ref=name)
        at = Repository(archive).refs.get(name)
        assembly = Repository(archive).load(digest).assembly
        fields = {"base": str(assembly.base), "tokenizer": str(assembly.tokenizer)}
    for role, tree in fields.items():
        session.item({"kind": role, "digest": tree}, f"{role:<9}  {tree}")
    session.item({"manifest": str(digest), "ref": name, "ref_at": str(at), **fields}, f"manifest   {digest}")
    if at == digest:
        session.note(f"ref        {name}\nnext: keystone load {name} --prompt 'def keep_even(values):'")
    else:
        session.note(f"ref        {name} stays at {at}; `keystone ref set {name} {digest.short}` would move it")
