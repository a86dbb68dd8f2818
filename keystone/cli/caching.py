"""`keystone cache`."""

import click

from csf_store import Session, Value, human_size, json_option, pass_session


@click.command("cache")
@click.argument("blobs", metavar="[DIGEST]...", nargs=-1)
@click.option(
    "--drop", is_flag=True, help="Let go of those named; of all, if none is. `csf gc` then takes their bytes."
)
@json_option
@pass_session
def cache_command(session: Session, *, blobs: tuple[str, ...], drop: bool) -> None:
    """List the quantized weights that loads have kept, or drop them.

    They are made again from their base when they are needed. Dropping them loses time, nothing else.

    \b
    Examples:
      keystone cache
      keystone cache --drop b3:1a2b3c4d
      keystone cache --drop && csf gc
    """  # noqa: D301 - \b is for click
    from csf_store import NotFoundError  # noqa: PLC0415 - the archive, not needed for --help
    from keystone.quantize.derived import drop as drop_blob  # noqa: PLC0415 - torch
    from keystone.quantize.derived import list_derived  # noqa: PLC0415

    with session.open() as archive:
        wanted = {archive.resolve(text) for text in blobs}
        found = [entry for entry in list_derived(archive) if not wanted or entry.blob in wanted]
        missing = wanted - {entry.blob for entry in found}
        if missing:
            raise NotFoundError(f"{min(missing)} is not in the cache; `keystone cache` lists what is")
        for entry in found:
            scheme, base = entry.metadata.get("keystone.quantization", "?"), entry.metadata.get("keystone.base", "?")
            if drop:
                drop_blob(archive, entry.blob)
            fields: dict[str, Value] = {
                "blob": str(entry.blob),
                "size": entry.size,
                "quantization": scheme,
                "base": base,
                "dropped": drop,
            }
            state = "  dropped" if drop else ""
            session.item(fields, f"{entry.blob}  {human_size(entry.size):>10}  {scheme:<4}  of {base}{state}")
