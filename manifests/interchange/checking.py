"""Reading a bill back: is it the one that the archive would write?

One manifest has one bill, so a bill is checked by making it again and comparing the two field by field. A bill of an
exported directory lists files that the archive may not hold; those rows are taken as told, except where the archive
knows the same content, and `keystone audit DIR` compares them with the directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from csf_store import Archive, CsfError, Digest
from manifests.canonical import Json
from manifests.errors import InvalidDocumentError
from manifests.interchange.contents import HashedFile, Progress
from manifests.interchange.cyclonedx import ExportedFiles, check_cyclonedx, cyclonedx_problem, write_cyclonedx
from manifests.interchange.facts import Facts, collect_facts
from manifests.interchange.model_card import PREFIX

MAX_BILL_BYTES = 256 << 20
"""A bill has about 500 bytes for each file; more than this is none."""


def bill_subject(data: bytes) -> Digest:
    """The manifest that a bill is of.

    Raises:
        MissingExtraError: the CycloneDX library is not installed.
        InvalidDocumentError: the bytes are no CycloneDX document that this package wrote.
    """
    check_cyclonedx()
    if len(data) > MAX_BILL_BYTES:
        raise InvalidDocumentError(f"{len(data)} bytes are more than any bill of materials has")
    try:
        problem = cyclonedx_problem(data)
        version = _at(json.loads(data), "metadata", "component", "version")
    except (ValueError, RecursionError) as error:
        raise InvalidDocumentError(f"this is no bill of materials in JSON: {error}") from error
    if problem is not None:
        raise InvalidDocumentError(f"this is no valid CycloneDX bill: {problem[:300]}")
    try:
        return Digest.parse(str(version))
    except CsfError as error:
        raise InvalidDocumentError(f"the model of this bill has version {version!r}, which is no manifest") from error


def bill_differences(archive: Archive, data: bytes, *, progress: Progress | None = None) -> tuple[str, ...]:
    """Every field in which a bill is not the one that the archive would write, by path; empty when there is none.

    Args:
        archive: where the manifest is.
        data: the bill.
        progress: told the bytes hashed, `planned_hashing` of them in all.

    Raises:
        InvalidDocumentError: see `bill_subject`.
        ManifestError, csf_store.CsfError: the manifest is not there, or its evidence is not what it says.
    """
    facts = collect_facts(archive, bill_subject(data), progress=progress)
    told = json.loads(data)
    made = json.loads(write_cyclonedx(facts, _exported(told, facts)))
    return tuple(_differences("", told, made))


def _exported(bill: Json, facts: Facts) -> ExportedFiles | None:
    """The directory a bill is of, as it says itself; content that the archive knows has the hash that it knows."""
    properties = _named(_at(bill, "metadata", "component", "properties"))
    layout = properties.get(f"{PREFIX}:export:format")
    if layout is None:
        return None
    known = {file.blake3: file.sha256 for _, files in facts.trees for file in files}
    rows = _at(bill, "metadata", "component", "components")
    files = [_file(row, known) for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    return ExportedFiles(layout, tuple(files))


def _file(row: Mapping[str, Json], known: Mapping[Digest, str]) -> HashedFile:
    hashes = {str(_at(each, "alg")): str(_at(each, "content")) for each in _list(row.get("hashes"))}
    size = _named(row.get("properties")).get(f"{PREFIX}:size", "")
    try:
        digest = Digest.parse(f"b3:{hashes.get('BLAKE3')}")
        return HashedFile(str(row.get("name")), int(size), digest, known.get(digest, hashes.get("SHA-256", "")))
    except (CsfError, ValueError) as error:
        raise InvalidDocumentError(f"the file {row.get('name')!r} of this bill has no size or no BLAKE3") from error


def _differences(path: str, told: Json, made: Json) -> Iterator[str]:
    if isinstance(told, dict) and isinstance(made, dict):
        for key in sorted(told.keys() | made.keys()):
            at = f"{path}.{key}" if path else key
            if key not in made:
                yield f"{at} is nothing that the archive tells"
            elif key not in told:
                yield f"{at} is missing"
            else:
                yield from _differences(at, told[key], made[key])
    elif isinstance(told, list) and isinstance(made, list) and len(told) == len(made):
        for number, (one, other) in enumerate(zip(told, made, strict=True)):
            yield from _differences(f"{path}[{number}]", one, other)
    elif told != made or type(told) is not type(made):
        yield f"{path} says {_short(told)}, the archive {_short(made)}"


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _at(value: Json, *path: str) -> Json:
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _list(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list) else []


def _named(properties: Json) -> Mapping[str, str]:
    return {str(_at(each, "name")): str(_at(each, "value")) for each in _list(properties)}
