"""From a manifest or an endpoint to an entry: what can be found out is found out, and what cannot is unknown.

Memory is never typed in. Of a model of this archive it is the peak of a measurement on a card, if there is one of this
assembly and recipe, else the sum that `keystone fit` computes. Of one behind an endpoint it is what the engine says it
holds, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from csf_store import CsfError, Digest
from keystone.endpoints import EndpointClient, EndpointFacts, describe
from keystone.errors import ModelNotFoundError
from keystone.registry.standing import LOCAL
from manifests import ManifestError, Measurement, RegistryEntry, Repository

_PROBED_SECONDS = 30.0


@dataclass(frozen=True)
class Claims:
    """What a person says of a model; nothing here verifies anything.

    Attributes:
        task_types: what it may be offered for; none means anything.
        rank: its place where ranks decide; less is earlier.
        capability: on a scale of 0 to 100.
        self_converges: whether it converges without a council.
        tool_calling: whether it takes tools; None leaves it to what the endpoint says.
        note: for people.
    """

    task_types: tuple[str, ...] = ()
    rank: int = 0
    capability: float | None = None
    self_converges: bool = False
    tool_calling: bool | None = None
    note: str = ""


def local_entry(
    repository: Repository,
    name: str,
    target: str,
    claims: Claims,
    *,
    quantization: str | None = None,
    context: int | None = None,
    keep: Digest | None = None,
) -> RegistryEntry:
    """An entry for a manifest of this archive.

    Args:
        repository: where it is.
        name: the entry's id.
        target: a ref, which the entry will follow, or a digest.
        claims: what is said of it.
        quantization: how it will be held; default, as `keystone load` holds it here.
        context: tokens of one sequence to have room for; default 4096, or all the model was made for.
        keep: a recipe to stay with, where the model can be held by it.

    Raises:
        RefusedError: the scheme cannot be honoured here.
        csf_store.CsfError, manifests.ManifestError: it is not there.
    """
    from keystone.boxes import Box  # noqa: PLC0415 - torch and transformers from here on
    from keystone.checkpoints import BaseCheckpoint  # noqa: PLC0415
    from keystone.fit import ModelSize, needs  # noqa: PLC0415
    from keystone.loader import default_device  # noqa: PLC0415
    from keystone.quantize import SCHEMES, choose_recipe  # noqa: PLC0415

    digest = repository.resolve(target)
    manifest = repository.load(digest)
    checkpoint = BaseCheckpoint.open(repository.archive, manifest.assembly.base)
    recipe = choose_recipe(
        checkpoint.blank,
        asked=next((scheme for scheme in SCHEMES if scheme == quantization), None),
        manifests_own=manifest.recipe,
        device=default_device(),
        dtype=checkpoint.dtype,
    ).recipe
    longest = checkpoint.config.max_position_embeddings
    size = ModelSize.of_manifest(repository.archive, manifest)
    recipe = next((each for each in size.recipes.values() if each.digest == keep), recipe)
    card = Box("vram", 1, "cuda", "any card")
    planned = needs(size, card, min(context or 4096, longest))
    need = next(each for each in planned if each.quantization == recipe.quantization)
    entry = RegistryEntry(
        id=name,
        endpoint=LOCAL + (str(digest) if target.startswith("b3:") else target),
        assembly=manifest.assembly.digest,
        recipe=recipe.digest,
        vram_bytes=need.total,
        vram_source="fit",
        ctx_tokens=longest,
        tool_calling=bool(claims.tool_calling),
    )
    entry = claimed(entry, claims)
    measured = _measured(repository, entry)
    return entry if measured is None else entry.revised(vram_bytes=measured, vram_source="measurement")


def external_entry(name: str, client: EndpointClient, claims: Claims, *, probe: bool = True) -> RegistryEntry:
    """An entry for a model behind an endpoint.

    Args:
        name: the entry's id.
        client: for its endpoint.
        claims: what is said of it.
        probe: ask the endpoint; without, nothing is known of memory, context and tools.

    Raises:
        ModelNotFoundError: the endpoint does not list the model.
        EndpointError: it gives no answer.
    """
    address = client.address
    facts = describe(client, seconds=_PROBED_SECONDS) if probe else EndpointFacts(listed=True)
    if not facts.listed:
        raise ModelNotFoundError(f"{address.url} does not list a model {address.model!r}")
    tools = claims.tool_calling if claims.tool_calling is not None else bool(facts.tool_calling)
    entry = RegistryEntry(
        id=name,
        endpoint=address.url,
        model=address.model,
        vram_bytes=facts.vram_bytes,
        vram_source="endpoint" if facts.vram_bytes is not None else None,
        ctx_tokens=facts.ctx_tokens,
        tool_calling=tools,
    )
    return claimed(entry, claims)


def claimed(entry: RegistryEntry, claims: Claims) -> RegistryEntry:
    """An entry with what is said of the model; whether it takes tools is the caller's to decide."""
    return entry.revised(
        task_types=claims.task_types,
        rank=claims.rank,
        capability=claims.capability,
        self_converges=claims.self_converges,
        note=claims.note,
    )


def claims_of(entry: RegistryEntry) -> Claims:
    """What was said of a model when it was registered."""
    return Claims(
        task_types=entry.task_types,
        rank=entry.rank,
        capability=entry.capability,
        self_converges=entry.self_converges,
        tool_calling=entry.tool_calling,
        note=entry.note,
    )


def refreshed(repository: Repository, entry: RegistryEntry, client: EndpointClient | None) -> RegistryEntry:
    """The same entry with everything that can be found out found out again.

    The report stays linked; if it is of what the model was before, it verifies nothing any more.

    Args:
        repository: where models of this archive are.
        entry: as registered.
        client: for its endpoint; None for a model of this archive.
    """
    claims = claims_of(entry)
    if client is None:
        made = local_entry(repository, entry.id, entry.endpoint.removeprefix(LOCAL), claims, keep=entry.recipe)
    else:
        made = external_entry(entry.id, client, claims)
    return made.revised(report=entry.report)


def _measured(repository: Repository, entry: RegistryEntry) -> int | None:
    """The newest peak on a card of this very assembly and recipe."""
    from keystone.measuring import PIN_PREFIX  # noqa: PLC0415 - torch

    if entry.assembly is None:
        return None
    name, found = PIN_PREFIX + entry.assembly.hex, None
    for pin in repository.archive.pins():
        if pin.name != name:
            continue
        try:
            made = repository.load_record(pin.digest, Measurement)
        except (CsfError, ManifestError):
            continue
        if (made.assembly, made.recipe, made.memory) == (entry.assembly, entry.recipe, "cuda"):
            found = made.peak_bytes
    return found
