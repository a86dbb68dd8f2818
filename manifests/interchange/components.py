"""The small pieces of a CycloneDX document, in the words of its library: files, hashes, licences, properties.

The library is an extra and slow to import, so every function fetches what it needs of it when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from csf_store import Digest
from manifests.interchange.contents import HashedFile
from manifests.interchange.model_card import PREFIX

if TYPE_CHECKING:
    from cyclonedx.model import ExternalReference, HashType, Property
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License
    from cyclonedx.model.tool import ToolRepository

UNKNOWN_LICENCE: Final = "NOASSERTION"
"""SPDX for: nobody told us."""

_DISTRIBUTION: Final = "keystone-sigma0"


def tools() -> ToolRepository:
    """What made the bill."""
    from importlib.metadata import version  # noqa: PLC0415 - slow to import, and every command comes by here

    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415 - an extra
    from cyclonedx.model.tool import ToolRepository  # noqa: PLC0415

    ours = Component(type=ComponentType.APPLICATION, name=_DISTRIBUTION, version=version(_DISTRIBUTION))
    return ToolRepository(components=[ours])


def file_components(owner: str, files: Sequence[HashedFile]) -> list[Component]:
    """Files inside a component, each with both hashes."""
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415 - an extra

    return [
        Component(
            type=ComponentType.FILE,
            bom_ref=f"{owner}/{file.path}",
            name=file.path,
            hashes=hashes(file),
            properties=properties({f"{PREFIX}:size": str(file.size)}),
        )
        for file in files
    ]


def hashes(file: HashedFile) -> list[HashType]:
    """Both hashes of a file."""
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415 - an extra

    return [*hashes_of(file.blake3), HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)]


def hashes_of(digest: Digest) -> list[HashType]:
    """A digest as the one hash it is."""
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415 - an extra

    return [HashType(alg=HashAlgorithm.BLAKE3, content=digest.hex)]


def licences(expression: str) -> list[License]:
    """A licence as whoever published it declared it; none where nobody said which."""
    from cyclonedx.contrib.license.factories import LicenseFactory  # noqa: PLC0415 - an extra
    from cyclonedx.model.license import LicenseAcknowledgement  # noqa: PLC0415

    if expression == UNKNOWN_LICENCE:
        return []
    declared = LicenseAcknowledgement.DECLARED
    return [LicenseFactory().make_from_string(expression, license_acknowledgement=declared)]


def references(url: str | None) -> list[ExternalReference]:
    """Where on the web a base came from, if anywhere."""
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri  # noqa: PLC0415 - an extra

    if url is None:
        return []
    return [ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(url), comment="source of the base")]


def properties(told: Mapping[str, str]) -> list[Property]:
    """What CycloneDX has no field for, in its own order."""
    from cyclonedx.model import Property  # noqa: PLC0415 - an extra

    return [Property(name=name, value=value) for name, value in told.items()]
