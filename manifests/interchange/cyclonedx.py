"""A manifest as a CycloneDX 1.6 bill of materials for machine learning.

| CycloneDX | what it is here |
|---|---|
| `metadata.component` | the model: hashes of its manifest, licence, model card, pedigree, approvals as properties |
| `components` | base, tokenizer and adapters, each with its files; files of an export, if there is one |
| `pedigree.ancestors` | of the model: base, adapters, parent manifest; of an adapter: its parent and its base |
| `dependencies` | what runs needs what |
| `serialNumber` | made from the manifest's digest, so one manifest has one bill |
| `metadata.timestamp` | when the ledger first heard of the manifest |

Nothing in it depends on the day or the machine: the same manifest and the same ledger give the same bytes. The
library's own validator, in its strict form and with the schemas it brings, has accepted every bill that leaves here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from csf_store import Archive, Digest
from manifests.canonical import JsonObject
from manifests.errors import InvalidDocumentError, MissingExtraError
from manifests.interchange.components import (
    UNKNOWN_LICENCE,
    file_components,
    hashes,
    hashes_of,
    licences,
    properties,
    references,
    tools,
)
from manifests.interchange.contents import HashedFile, Progress
from manifests.interchange.facts import AdapterFacts, Facts, collect_facts
from manifests.interchange.hub import CLAIMED, source_url
from manifests.interchange.model_card import PREFIX, adapter_card, model_card

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.validation.json import JsonStrictValidator

SPEC_VERSION = "1.6"
_NAMESPACE = UUID("6b657973-746f-5e65-9369-676d61300000")


@dataclass(frozen=True, slots=True)
class ExportedFiles:
    """A directory that was made from the manifest: in which format, and every file in it but the bill itself."""

    layout: str
    files: tuple[HashedFile, ...]


def cyclonedx_bill(
    archive: Archive, digest: Digest, *, exported: ExportedFiles | None = None, progress: Progress | None = None
) -> bytes:
    """The bill of a manifest as JSON.

    Args:
        archive: where everything is.
        digest: the manifest's.
        exported: the directory the bill is for; without one it tells the files as the archive holds them.
        progress: told the bytes hashed, `planned_hashing` of them in all.

    Raises:
        MissingExtraError: the CycloneDX library is not installed.
        RefusedError: evidence does not say what the manifest says of it.
        ManifestError, csf_store.CsfError: something is missing or altered.
    """
    check_cyclonedx()
    return write_cyclonedx(collect_facts(archive, digest, progress=progress), exported)


def check_cyclonedx() -> None:
    """Find out whether a bill can be made here before a long work is begun.

    Raises:
        MissingExtraError: it cannot.
    """
    try:
        import_module("cyclonedx.validation.json")
        import_module("jsonschema")  # the library would notice only when it has made everything
    except ImportError as error:
        raise MissingExtraError(
            "a CycloneDX bill needs its library, the extra `sbom`: pip install 'cyclonedx-python-lib[json-validation]'"
            f" ({error})"
        ) from error


def write_cyclonedx(facts: Facts, exported: ExportedFiles | None = None) -> bytes:
    """The bill of what was collected, accepted by the library's strict validator."""
    return _Bill(facts, exported).to_bytes()


def cyclonedx_problem(data: bytes) -> str | None:
    """What the CycloneDX library's strict validator has against a bill, or None."""
    found = _validator().validate_str(data.decode())
    return None if found is None else str(found.data)


@cache
def _validator() -> JsonStrictValidator:
    """Made once: reading its schemas takes longer than any bill."""
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 - an extra
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    return JsonStrictValidator(SchemaVersion.from_version(SPEC_VERSION))


@dataclass
class _Bill:
    """The making of one bill. `cards` are the model cards by bom-ref, which the library has no classes for."""

    facts: Facts
    exported: ExportedFiles | None
    cards: dict[str, JsonObject] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415 - an extra
        from cyclonedx.output import make_outputter  # noqa: PLC0415
        from cyclonedx.schema import OutputFormat, SchemaVersion  # noqa: PLC0415

        model, parts = self._model(), self._parts()
        metadata = BomMetaData(component=model, tools=tools(), timestamp=self.facts.arrived)
        bom = Bom(serial_number=self._serial(), metadata=metadata, components=parts)
        bom.register_dependency(model, parts)
        base = next(part for part in parts if part.bom_ref.value == f"base:{self.facts.manifest.assembly.base}")
        for part in parts:
            bom.register_dependency(part, [base] if str(part.bom_ref.value).startswith("adapter:") else [])
        written = make_outputter(bom, OutputFormat.JSON, SchemaVersion.from_version(SPEC_VERSION)).output_as_string()
        return self._finished(json.loads(written))

    def _finished(self, document: dict[str, Any]) -> bytes:
        """With the model cards, without a time that nobody knows, and proven to be what it should be."""
        if self.facts.arrived is None:
            del document["metadata"]["timestamp"]  # the library would have it that this is now
        for component in [document["metadata"]["component"], *document["components"]]:
            if card := self.cards.get(component["bom-ref"]):
                component["modelCard"] = card
        data = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
        if problem := cyclonedx_problem(data):
            raise InvalidDocumentError(
                f"the bill of manifest {self.facts.digest} is no CycloneDX {SPEC_VERSION}: {problem}"
            )
        return data

    def _serial(self) -> UUID:
        """One for the manifest; another for a directory made from it, whose bill has other files."""
        name = str(self.facts.digest)
        if self.exported is not None:
            rows = [[file.path, str(file.blake3)] for file in self.exported.files]
            name += f" as {self.exported.layout} {Digest.of(json.dumps(sorted(rows)).encode())}"
        return uuid5(_NAMESPACE, name)

    def _model(self) -> Component:
        from cyclonedx.model.component import Component, ComponentType, Pedigree  # noqa: PLC0415 - an extra

        facts, manifest = self.facts, self.facts.manifest
        bom_ref = f"manifest:{facts.digest}"
        self.cards[bom_ref] = model_card(facts)
        return Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=bom_ref,
            name=manifest.labels.get("name", manifest.source.location or "model"),
            version=str(facts.digest),
            description="The hashes are those of the manifest, whose RFC 8785 bytes name everything else.",
            hashes=hashes(facts.document),
            licenses=licences(manifest.source.licence),
            external_references=references(source_url(manifest.source)),
            pedigree=Pedigree(ancestors=self._ancestors()),
            properties=properties(self._told()),
            components=file_components(bom_ref, self.exported.files) if self.exported is not None else (),
        )

    def _ancestors(self) -> Iterable[Component]:
        """What the model came from. Only the order of a sorted set is stable, so each says what it is."""
        from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415 - an extra

        manifest = self.facts.manifest
        yield self._ancestor("base", manifest.assembly.base)
        for each in self.facts.adapters:
            yield self._ancestor("adapter" if each.use is not None else "parent adapter", each.adapter)
        if manifest.parent is not None:
            yield Component(
                type=ComponentType.MACHINE_LEARNING_MODEL,
                name="parent manifest",
                version=str(manifest.parent),
                hashes=hashes_of(manifest.parent),
                bom_ref=f"ancestor:{manifest.parent}",
            )

    @staticmethod
    def _ancestor(role: str, tree: Digest) -> Component:
        from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415 - an extra

        return Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            name=role,
            version=str(tree),
            bom_ref=f"ancestor:{tree}",
            properties=properties({f"{PREFIX}:tree": str(tree)}),
        )

    def _parts(self) -> list[Component]:
        """Base, tokenizer and adapters in use, each with its files as the archive holds them."""
        from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415 - an extra

        manifest = self.facts.manifest
        source = manifest.source
        base, tokenizer = manifest.assembly.base, manifest.assembly.tokenizer
        told = {f"{PREFIX}:source:kind": source.kind, f"{PREFIX}:source:location": source.location}
        told |= {f"{PREFIX}:source:note": source.note} if source.note else {}
        found = [
            Component(
                type=ComponentType.MACHINE_LEARNING_MODEL,
                bom_ref=f"base:{base}",
                name=f"base {source.location}",
                version=str(base),
                licenses=licences(source.licence),
                external_references=references(source_url(source)),
                properties=properties({f"{PREFIX}:tree": str(base), **told}),
                components=file_components(f"base:{base}", self.facts.files(base)),
            ),
            Component(
                type=ComponentType.DATA,
                bom_ref=f"tokenizer:{tokenizer}",
                name="tokenizer",
                version=str(tokenizer),
                properties=properties({f"{PREFIX}:tree": str(tokenizer)}),
                components=file_components(f"tokenizer:{tokenizer}", self.facts.files(tokenizer)),
            ),
        ]
        return found + [
            self._adapter(number, each) for number, each in enumerate(self.facts.adapters, start=1) if each.use
        ]

    def _adapter(self, number: int, each: AdapterFacts) -> Component:
        from cyclonedx.model.component import Component, ComponentType, Pedigree  # noqa: PLC0415 - an extra

        bom_ref = f"adapter:{each.adapter}"
        if each.training is not None:
            self.cards[bom_ref] = adapter_card(self.facts.manifest.assembly.code, each.training)
        ancestors = [self._ancestor("base", each.record.base)]
        if each.record.parent is not None:
            ancestors.append(self._ancestor("parent adapter", each.record.parent))
        for ancestor in ancestors:
            ancestor.bom_ref.value = f"{bom_ref}/{ancestor.bom_ref.value}"
        told = {
            f"{PREFIX}:tree": str(each.adapter),
            f"{PREFIX}:adapter:weight": repr(each.use.weight if each.use is not None else 0.0),
            f"{PREFIX}:adapter:rank": str(each.record.rank),
            f"{PREFIX}:adapter:alpha": repr(each.record.alpha),
            f"{PREFIX}:adapter:targets": " ".join(each.record.targets),
            f"{PREFIX}:adapter:training": str(each.record.training or "a claim without a training record"),
        }
        return Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=bom_ref,
            name=f"adapter {number}",
            version=str(each.adapter),
            pedigree=Pedigree(ancestors=ancestors),
            properties=properties(told),
            components=file_components(bom_ref, self.facts.files(each.adapter)),
        )

    def _told(self) -> dict[str, str]:
        """Everything about the model that CycloneDX has no field for."""
        manifest, wire = self.facts.manifest, self.facts.wire
        told = {
            f"{PREFIX}:assembly": str(manifest.assembly.digest),
            f"{PREFIX}:code": manifest.assembly.code,
            f"{PREFIX}:tripwire:status": manifest.tripwire.status,
        }
        if manifest.code_source is not None:
            told[f"{PREFIX}:code_source"] = str(manifest.code_source)
        if manifest.source.licence == UNKNOWN_LICENCE:
            told[f"{PREFIX}:licence"] = "nobody says which it is"
        if (recipe := manifest.recipe) is not None:
            told |= {
                f"{PREFIX}:recipe": str(recipe.digest),
                f"{PREFIX}:recipe:dtype": recipe.dtype,
                f"{PREFIX}:recipe:quantization": recipe.quantization,
                f"{PREFIX}:recipe:quantized_modules": str(len(recipe.modules)),
            }
        if wire is not None:
            told |= {
                f"{PREFIX}:tripwire:report": str(manifest.tripwire.report),
                f"{PREFIX}:tripwire:policy": str(wire.policy),
                f"{PREFIX}:tripwire:recipe": str(wire.recipe),
            }
        if self.exported is not None:
            told[f"{PREFIX}:export:format"] = self.exported.layout
        for name, value in manifest.labels.items():
            what = f"claim:{name.removeprefix(CLAIMED)}" if name.startswith(CLAIMED) else f"label:{name}"
            told[f"{PREFIX}:{what}"] = value
        return told | self._approvals()

    def _approvals(self) -> dict[str, str]:
        told: dict[str, str] = {}
        for number, (envelope, signed) in enumerate(self.facts.approvals, start=1):
            at = f"{PREFIX}:approval:{number}"
            told |= {at: str(envelope), f"{at}:ref": signed.approval.ref}
            told[f"{at}:counts"] = "yes" if signed.counts else "no"
            for place, each in enumerate(signed.signatures, start=1):
                told[f"{at}:signature:{place}"] = f"{each.name or 'nobody known'} {each.key}: {each.state.value}"
        return told
