"""The vectors in SPEC.md and the golden documents, recomputed."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import adapters  # noqa: F401 - its kinds are among KINDS
from csf_store import Digest
from manifests import (
    KINDS,
    CheckpointNote,
    Envelope,
    Manifest,
    PublicKey,
    TensorEntry,
    canonical_bytes,
    parse_canonical,
    tensor_set_digest,
)

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "manifests"
TYPES = {name: kind for name, kind in KINDS.items() if kind.__module__.split(".")[0] in {"manifests", "adapters"}}
"""Kinds of these floors; which of the models' own are known depends on what other tests imported."""


def vectors() -> list[tuple[str, bytes, str]]:
    found, inside = [], False
    for line in (ROOT / "manifests" / "SPEC.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```vectors"
        elif inside:
            name, rest = line.split(" ", 1)
            document, digest = rest.rsplit(" ", 1)
            found.append((name, document.encode(), digest))
    return found


@pytest.mark.parametrize(("name", "data", "digest"), vectors())
def test_spec_vectors(name: str, data: bytes, digest: str) -> None:
    assert digest == f"b3:{blake3(data).hexdigest()}"  # the vector itself, without our code
    assert canonical_bytes(parse_canonical(data)) == data
    if name in TYPES:
        document = TYPES[name].from_bytes(data)
        assert document.to_bytes() == data and str(document.digest) == digest
    elif name == "tensor-set":
        rows = json.loads(data)["tensors"]
        entries = [TensorEntry(n, dtype, tuple(shape), Digest.parse(d)) for n, dtype, shape, d in rows]
        assert str(tensor_set_digest(reversed(entries))) == digest


def test_the_spec_has_vectors_of_every_identity() -> None:
    named = {"approval", "attestation", "envelope", "source-gate-report", "tripwire-policy", "tripwire-report"}
    assert {name for name, _, _ in vectors()} >= {"canonical", "assembly", "recipe", "tensor-set", "manifest"} | named


def test_tensor_set_vector_from_bytes() -> None:
    entries = [
        TensorEntry("b", "BF16", (2,), Digest.of(b"\x80\x3f\x00\xc0")),  # 1.0, -2.0
        TensorEntry("a.weight", "F32", (1, 1), Digest.of(b"\x00\x00\x80\x3f")),  # 1.0
    ]
    assert str(tensor_set_digest(entries)) == vectors_of("tensor-set")[1]


def vectors_of(wanted: str) -> list[str]:
    return [digest for name, _, digest in vectors() if name == wanted]


DIGESTS: dict[str, str] = json.loads((GOLDEN / "digests.json").read_text())


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_golden_documents_stay_readable(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    assert f"b3:{blake3(data).hexdigest()}" == DIGESTS[name]
    document = TYPES[json.loads(data)["kind"]].from_bytes(data)
    assert document.to_bytes() == data and str(document.digest) == DIGESTS[name]


def test_every_golden_document_is_accounted_for() -> None:
    assert {p.name for p in GOLDEN.glob("*.v1.json")} == DIGESTS.keys()
    assert {json.loads((GOLDEN / name).read_bytes())["kind"] for name in DIGESTS} == TYPES.keys()


def test_a_golden_manifest_says_what_it_says() -> None:
    manifest = Manifest.from_bytes((GOLDEN / "manifest-full.v1.json").read_bytes())
    assert manifest.assembly.adapters[1].weight == -1.25e-7
    assert str(manifest.assembly.digest) == DIGESTS["assembly-adapters.v1.json"]
    assert manifest.recipe is not None and str(manifest.recipe.digest) == DIGESTS["recipe-nf4.v1.json"]
    assert [(e.metric, e.passed) for e in manifest.evals] == [("bits_per_byte", None), ("pass@1", 61)]
    assert manifest.source.note.endswith("\U0001f642") and list(manifest.labels) == ["owner", "stage"]
    assert len(manifest.links()) == len(set(manifest.links())) == 13


def test_signature_vectors() -> None:
    """With nothing of ours but the reading: the key is made again, the envelope and the note are checked by hand."""
    spec = (ROOT / "manifests" / "SPEC.md").read_text(encoding="utf-8")
    private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"alice").digest())
    public = private.public_key().public_bytes_raw()
    vkey = PublicKey("alice", public)
    assert f"`{vkey}`" in spec
    data = next(data for name, data, _ in vectors() if name == "envelope")
    envelope = json.loads(data)
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == f"b3:{blake3(public).hexdigest()}"
    assert base64.b64encode(private.sign(message)).decode() == signature["sig"]
    assert Envelope.parse(data).statement.to_bytes() == payload
    predicate = canonical_bytes(json.loads(payload)["predicate"])
    assert f"b3:{blake3(predicate).hexdigest()}" == DIGESTS["approval.v1.json"]
    note = spec.split("```note\n")[1].split("```")[0]
    CheckpointNote.parse(note).check(vkey)
    body = note.split("\n\n")[0] + "\n"
    assert base64.b64decode(note.rstrip().split(" ")[-1]) == vkey.note_hash + private.sign(body.encode())
