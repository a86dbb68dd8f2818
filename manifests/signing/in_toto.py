"""in-toto statements: what a signature is about, in the form that other supply-chain tools read.

A statement names its subjects by digest and says one thing of them, its *predicate*. Ours:

- a manifest: this is what we vouch for; predicate `MANIFEST`.
- an approval: the whole approval document is the predicate; predicate `APPROVAL`.
- an evaluation: in-toto's own test-result predicate, with the names of the items that passed and failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csf_store import Digest
from manifests import canonical
from manifests.canonical import Json, JsonObject
from manifests.errors import InvalidDocumentError
from manifests.evidence import EvalReport
from manifests.schema import Manifest
from manifests.statements import Approval

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
MANIFEST = "urn:keystone-sigma0:predicate:manifest:1"
APPROVAL = "urn:keystone-sigma0:predicate:approval:1"


@dataclass(frozen=True, slots=True)
class Statement:
    """Some subjects, by name and digest, and what is said of them."""

    subjects: tuple[tuple[str, Digest], ...]
    predicate_type: str
    predicate: JsonObject

    def to_bytes(self) -> bytes:
        """Its RFC 8785 form: what is signed."""
        subjects: Json = [{"name": name, "digest": {"blake3": digest.hex}} for name, digest in self.subjects]
        return canonical.encode(
            {
                "_type": STATEMENT,
                "subject": subjects,
                "predicateType": self.predicate_type,
                "predicate": self.predicate,
            }
        )

    def subject(self, name: str) -> Digest | None:
        """The subject of that name."""
        return next((digest for found, digest in self.subjects if found == name), None)

    @classmethod
    def parse(cls, data: bytes) -> Statement:
        """Read a statement in its canonical form.

        Raises:
            NotCanonicalError, InvalidDocumentError: when it is none.
        """
        found = canonical.parse(data)
        subjects, kind, predicate = found.get("subject"), found.get("predicateType"), found.get("predicate")
        if found.get("_type") != STATEMENT or len(found) != 4:
            raise InvalidDocumentError("these bytes are no in-toto statement, version 1")
        if not isinstance(subjects, Sequence) or not isinstance(kind, str) or not isinstance(predicate, Mapping):
            raise InvalidDocumentError("this in-toto statement lacks its subject, its predicate or the type of it")
        return cls(tuple(map(_subject, subjects)), kind, predicate)


def _subject(found: Json) -> tuple[str, Digest]:
    digests = found.get("digest") if isinstance(found, Mapping) else None
    text = digests.get("blake3") if isinstance(digests, Mapping) else None
    name = found.get("name") if isinstance(found, Mapping) else None
    if not isinstance(text, str) or not isinstance(name, str) or len(text) != 64:
        raise InvalidDocumentError("a subject of this in-toto statement has no name, or no BLAKE3 digest")
    return name, Digest.parse(text)


def manifest_statement(digest: Digest, manifest: Manifest, ledger: str) -> Statement:
    """What is signed of a manifest: its digest, and the pair that evidence is bound to.

    Args:
        digest: its digest.
        manifest: the manifest itself.
        ledger: `SIZE:ROOT` of the ledger it was seen with.
    """
    recipe = str(manifest.recipe.digest) if manifest.recipe is not None else None
    about = {"assembly": str(manifest.assembly.digest), "recipe": recipe, "ledger": ledger}
    return Statement((("manifest", digest),), MANIFEST, about)


def approval_statement(approval: Approval) -> Statement:
    """What is signed of an approval: all of it. Its subjects are the assembly and the recipe."""
    subjects = [("assembly", approval.assembly)]
    if approval.recipe is not None:
        subjects.append(("recipe", approval.recipe))
    return Statement(tuple(subjects), APPROVAL, approval.to_json())


def eval_statement(digest: Digest, report: EvalReport, items: Mapping[str, bool]) -> Statement:
    """What is signed of an evaluation, as a test result.

    in-toto's result is PASSED only if every test passed, which a model's evaluation rarely is; the score is in the
    report that the statement names.

    Args:
        digest: of the report.
        report: the report.
        items: the name of each item, and whether it passed; empty for metrics that do not count items.
    """
    subjects = (("eval-report", digest), ("assembly", report.assembly), ("recipe", report.recipe))
    passed = [name for name, good in items.items() if good]
    failed = [name for name, good in items.items() if not good]
    suite: Json = {"name": report.result.suite, "digest": {"blake3": report.result.suite_digest.hex}}
    result: JsonObject = {
        "result": "FAILED" if failed or report.result.passed != report.result.n else "PASSED",
        "configuration": [suite],
        "passedTests": passed,
        "failedTests": failed,
    }
    return Statement(subjects, TEST_RESULT, result)
