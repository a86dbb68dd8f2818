"""Reading yesterday's documents: pure steps from one schema version to the next.

A stored document never changes, and its name stays the digest of the bytes it was stored with. What changes is how
today's code reads it: a step takes the JSON object of version *n* of one kind and returns that of version *n+1*,
touching nothing else and asking nothing of the outside world. Types that *are* identities (`assembly`, `recipe`) have
no steps: a new version of those would be another identity, so their readers keep every version they ever had.

Version 1 is the first, so the table is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from manifests.canonical import JsonObject
from manifests.errors import SchemaVersionError

Step: TypeAlias = Callable[[JsonObject], JsonObject]
"""From one version of a kind to the next."""

STEPS: Mapping[tuple[str, int], Step] = {}
"""(kind, version it reads) -> step."""


def upgrade(
    document: JsonObject, *, kind: str, version: int, steps: Mapping[tuple[str, int], Step] = STEPS
) -> JsonObject:
    """Bring a document of any known version to `version`.

    Args:
        document: a parsed JSON object.
        kind: the kind the caller asked for.
        version: the version today's model has.
        steps: the table, a parameter so that a step can be tested before its version is current.

    Raises:
        SchemaVersionError: when the kind is another one, the version is newer than this release, or no step leads on.
    """
    found_kind, found = document.get("kind"), document.get("v")
    if found_kind != kind:
        raise SchemaVersionError(f"expected a document of kind {kind!r}, this one says {str(found_kind)[:80]!r}")
    if type(found) is not int or found < 1:
        raise SchemaVersionError(f"a {kind} carries its schema version in 'v', this one has {str(found)[:80]!r}")
    if found > version:
        raise SchemaVersionError(
            f"this {kind} has schema version {found}, this release reads up to {version}; upgrade keystone-sigma0"
        )
    while found < version:
        step = steps.get((kind, found))
        if step is None:
            raise SchemaVersionError(f"no migration leads from version {found} of {kind} to {version}")
        document = step(document)
        found += 1
        if document.get("v") != found or document.get("kind") != kind:
            raise SchemaVersionError(f"the migration of {kind} to version {found} did not say so in its result")
    return document
