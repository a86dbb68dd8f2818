"""The registry as a file for other programs, `local-registry.json`, and such a file back.

`{"_doc": ..., "models": [...]}`, each model with exactly eleven fields. On the way out `verified` is always written,
and always what was found just now. On the way in it is a claim like any other: a file can say `true` as often as it
likes; it becomes true by a report that is here. The same goes for `vramGB`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from csf_store import CsfError, Digest, Value
from keystone.endpoints import parse_address
from keystone.errors import InvalidInputError, KeystoneError
from keystone.registry.registering import Claims, claimed, local_entry
from keystone.registry.standing import LOCAL, Standing, standing_of
from keystone.registry.store import ModelRegistry
from manifests import ManifestError, RegistryDocument, RegistryEntry

FIELDS: Final = (
    "id",
    "endpoint",
    "selfConverges",
    "toolCalling",
    "vramGB",
    "ctxTokens",
    "taskTypes",
    "rank",
    "capabilityScore",
    "verified",
    "note",
)
DOC: Final = (
    "Models as Keystone offers them. verified: a signed head-to-head on the exporting archive was won, checked at"
    " export. vramGB: from keystone fit, a measurement, or the endpoint; null where unknown."
)
_LARGEST: Final = 4 << 20
_MOST: Final = 4096


@dataclass
class Imported:
    """What became of a file.

    Attributes:
        taken: ids that are registered now as the file has them.
        skipped: ids that are not, and why.
        doubts: id and what was in the file and was not believed.
        head: the registry after it.
    """

    taken: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    doubts: list[tuple[str, str]] = field(default_factory=list)
    head: Digest | None = None


def public_fields(standing: Standing) -> dict[str, Value]:
    """The eleven fields of a model, as they stand now."""
    entry = standing.entry
    at = entry.endpoint if entry.is_local or entry.model == entry.id else f"{entry.endpoint}#{entry.model}"
    vram = standing.vram_bytes
    return {
        "id": entry.id,
        "endpoint": at,
        "selfConverges": entry.self_converges,
        "toolCalling": entry.tool_calling,
        "vramGB": None if vram is None else math.ceil(vram / 10**6) / 1000,
        "ctxTokens": entry.ctx_tokens,
        "taskTypes": list(entry.task_types),
        "rank": entry.rank,
        "capabilityScore": standing.capability,
        "verified": standing.verified,
        "note": entry.note,
    }


def export_registry(registry: ModelRegistry) -> str:
    """The file's text."""
    models = [public_fields(standing_of(registry.repository, entry)) for entry in registry.load().models]
    return json.dumps({"_doc": DOC, "models": models}, indent=2, ensure_ascii=False) + "\n"


def import_registry(registry: ModelRegistry, data: bytes) -> Imported:
    """Merge a file by id: what it names is replaced, what it does not name stays.

    Args:
        registry: to merge into.
        data: the file.

    Raises:
        InvalidInputError: the file is not of this shape; nothing was taken from it.
    """
    told = _models(data)
    result = Imported()
    before = {entry.id: entry for entry in registry.load().models}
    made: dict[str, RegistryEntry] = {}
    for fields in told:
        name = str(fields["id"])
        try:
            made[name] = _entry(registry, fields, before.get(name))
        except (KeystoneError, CsfError, ManifestError) as error:
            result.skipped.append((name, str(error)))
            continue
        result.taken.append(name)
        if fields.get("verified") is True and not standing_of(registry.repository, made[name]).verified:
            result.doubts.append((name, "the file says verified, and there is no report here that says so"))
        if fields.get("vramGB") is not None and made[name].vram_bytes is None:
            result.doubts.append((name, f"the file says {fields['vramGB']} GB, and that is not measured here"))

    def edit(document: RegistryDocument) -> RegistryDocument:
        others = tuple(entry for entry in document.models if entry.id not in made)
        return document.revised(models=(*others, *made.values()))

    if made:
        result.head = registry.change(edit, reason=f"models: import of {len(made)}")
    return result


def _models(data: bytes) -> Sequence[Mapping[str, Value]]:
    if len(data) > _LARGEST:
        raise InvalidInputError(f"the file has {len(data)} bytes; a registry has at most {_LARGEST}")
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the file is not JSON: {error}") from error
    models = found.get("models") if isinstance(found, dict) else None
    if not isinstance(models, list) or not all(isinstance(each, dict) for each in models) or len(models) > _MOST:
        raise InvalidInputError(f'the file is no {{"_doc": ..., "models": [...]}} of at most {_MOST} models')
    if surplus := sorted(found.keys() - {"_doc", "models"}):
        raise InvalidInputError(f"the file has a field {surplus[0][:80]!r}, which a registry has not")
    seen: set[str] = set()
    for number, fields in enumerate(models):
        _check(number, fields)
        if fields["id"] in seen:
            raise InvalidInputError(f"model {fields['id']!r} comes twice")
        seen.add(fields["id"])
    return models


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field comes twice in one object")
    return found


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: object, most: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _is_size(value: object) -> bool:
    return value is None or _is_number(value, 10**6)


def _is_score(value: object) -> bool:
    return value is None or _is_number(value, 100)


def _is_length(value: object) -> bool:
    return value is None or (type(value) is int and 0 < value < 2**53)


def _are_types(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(map(_is_text, value))


_SHAPES: Mapping[str, Callable[[object], bool]] = {
    "id": _is_text,
    "endpoint": _is_text,
    "selfConverges": _is_flag,
    "toolCalling": _is_flag,
    "vramGB": _is_size,
    "ctxTokens": _is_length,
    "taskTypes": _are_types,
    "rank": _is_count,
    "capabilityScore": _is_score,
    "verified": _is_flag,
    "note": _is_text,
}


def _check(number: int, fields: Mapping[str, object]) -> None:
    where = f"model {number + 1} of the file"
    if surplus := sorted(fields.keys() - set(FIELDS)):
        raise InvalidInputError(f"{where} has a field {surplus[0][:80]!r}; a model has {', '.join(FIELDS)}")
    if missing := [name for name in ("id", "endpoint") if name not in fields]:
        raise InvalidInputError(f"{where} has no {missing[0]}")
    for name, value in fields.items():
        if not _SHAPES[name](value):
            raise InvalidInputError(f"{where}: {name} cannot be {json.dumps(value)[:80]}")


def _entry(registry: ModelRegistry, fields: Mapping[str, Value], known: RegistryEntry | None) -> RegistryEntry:
    name, endpoint = str(fields["id"]), str(fields["endpoint"])
    types, score = fields.get("taskTypes", ()), fields.get("capabilityScore")
    length, rank = fields.get("ctxTokens"), fields.get("rank", 0)
    claims = Claims(
        task_types=tuple(map(str, types)) if isinstance(types, list) else (),
        rank=rank if isinstance(rank, int) else 0,
        capability=float(score) if isinstance(score, int | float) else None,
        self_converges=fields.get("selfConverges") is True,
        tool_calling=fields.get("toolCalling") is True,
        note=str(fields.get("note", "")),
    )
    if endpoint.startswith(LOCAL):
        same = known.recipe if known is not None and known.endpoint == endpoint else None
        made = local_entry(registry.repository, name, endpoint.removeprefix(LOCAL), claims, keep=same)
    else:
        address = parse_address(endpoint, model=None if "#" in endpoint else name)
        made = RegistryEntry(
            id=name,
            endpoint=address.url,
            model=address.model,
            tool_calling=bool(claims.tool_calling),
            ctx_tokens=length if isinstance(length, int) else None,
        )
        made = claimed(made, claims)
    if known is None or known.identity != made.identity:
        return made
    # What was found out here about the same model is better than what a file says, and so is what was proven here.
    kept = made.revised(report=known.report)
    if kept.vram_bytes is None:
        kept = kept.revised(vram_bytes=known.vram_bytes, vram_source=known.vram_source)
    return kept
