"""Keys, envelopes and signed checkpoints, each also read by a plain second reader that shares no code with ours."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf import json_format
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1.statement import Statement as TheirStatement
from manifest_house import House, signer

from csf_store import Checkpoint, Digest, Kind
from manifests import (
    Approval,
    BadSignatureError,
    CheckpointNote,
    Envelope,
    EvalReport,
    InvalidDocumentError,
    InvalidKeyError,
    KeyExistsError,
    KeyLockedError,
    KeyNotFoundError,
    KeyStore,
    PublicKey,
    RefusedError,
    Score,
    SignatureState,
    Standing,
    Statement,
    TrustBook,
    approval_statement,
    canonical_bytes,
    eval_statement,
    ledger_origin,
    load_envelope,
    manifest_statement,
    put_envelope,
    revoke_key,
    seal,
    signatures_of,
    trust_key,
)

SUITE = Digest.of(b"suite")


def statement(house: House) -> Statement:
    digest = house.put()
    return manifest_statement(digest, house.repository.load(digest), str(house.archive.ledger.checkpoint()))


def test_a_key_is_made_locked_and_opened(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    public = store.new("alice", b"correct horse")
    private = tmp_path / "keys" / "alice.pem"
    assert private.stat().st_mode & 0o777 == 0o600 and (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert b"ENCRYPTED PRIVATE KEY" in private.read_bytes()
    assert store.names() == ("alice",) and store.public("alice") == public
    key = store.unlock("alice", b"correct horse")
    assert key.public == public and public.verifies(key.sign(b"x"), b"x") and not public.verifies(key.sign(b"x"), b"y")
    with pytest.raises(KeyLockedError, match="alice"):
        store.unlock("alice", b"wrong")
    with pytest.raises(KeyExistsError, match="alice"):
        store.new("alice", b"other")
    assert store.unlock("alice", b"correct horse").public == public


def test_keys_that_are_refused(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    for name in ("", "../x", "a b", "a+b", "\u00e4", "x" * 65):
        with pytest.raises(InvalidKeyError):
            store.new(name, b"p")
    with pytest.raises(InvalidKeyError, match="empty passphrase"):
        store.new("alice", b"")
    with pytest.raises(KeyNotFoundError, match="bob"):
        store.public("bob")
    store.new("alice", b"p")
    store.new("bob", b"p")
    (tmp_path / "alice.pub").write_text((tmp_path / "bob.pub").read_text())
    with pytest.raises(InvalidKeyError, match="not the private half"):
        store.unlock("alice", b"p")


def test_a_public_key_is_one_line_that_shows_any_change() -> None:
    public = signer().public
    assert PublicKey.parse(str(public)) == public
    for at in range(len(str(public))):
        text = str(public)
        changed = text[:at] + ("B" if text[at] != "B" else "C") + text[at + 1 :]
        with pytest.raises(InvalidKeyError):
            PublicKey.parse(changed)


def test_trust_goes_by_the_number_of_the_event(house: House) -> None:
    archive, alice, bob = house.archive, signer().public, signer("bob").public
    first = trust_key(archive, alice)
    assert trust_key(archive, alice) == first
    middle = archive.ledger.append("something").seq
    last = revoke_key(archive, alice.id, reason="left")
    book = TrustBook(archive.ledger.entries())
    assert [book.standing(alice.id, seq) for seq in (first - 1, first, middle, last, last + 1)] == [
        Standing.NOT_YET,
        Standing.NOT_YET,
        Standing.REVOKED_LATER,
        Standing.REVOKED,
        Standing.REVOKED,
    ]
    assert book.standing(bob.id, last) is Standing.UNKNOWN
    with pytest.raises(KeyNotFoundError):
        revoke_key(archive, alice.id)
    with pytest.raises(RefusedError, match="was revoked"):
        trust_key(archive, alice)
    with pytest.raises(KeyNotFoundError):
        revoke_key(archive, bob.id)


def test_a_revocation_can_reach_back(house: House) -> None:
    archive, alice = house.archive, signer().public
    trust_key(archive, alice)
    before, after = archive.ledger.append("a").seq, archive.ledger.append("b").seq
    with pytest.raises(RefusedError, match="since number"):
        revoke_key(archive, alice.id, since=10_000)
    revoke_key(archive, alice.id, since=after)
    book = TrustBook(archive.ledger.entries())
    assert book.standing(alice.id, before) is Standing.REVOKED_LATER
    assert book.standing(alice.id, after) is Standing.REVOKED


def test_key_events_that_cannot_be_are_faults_and_change_nothing(house: House) -> None:
    ledger, alice = house.archive.ledger, signer().public
    ledger.append("key.trust", key=str(alice.id), name="alice", public=signer("bob").public.raw.hex())
    ledger.append("key.trust", key=str(alice.id), name="alice", public="zz")
    ledger.append("key.revoke", key=str(alice.id))
    book = TrustBook(ledger.entries())
    assert len(book.faults) == 3 and book.spans() == {}


def independent_check(data: bytes, public: PublicKey) -> dict[str, object]:
    """DSSE as its specification says, with nothing of ours; the statement that was signed."""
    envelope = json.loads(data)
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    message = b"DSSEv1 " + b" ".join([str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload])
    (signature,) = envelope["signatures"]
    Ed25519PublicKey.from_public_bytes(public.raw).verify(base64.b64decode(signature["sig"]), message)
    found: dict[str, object] = json.loads(payload)
    return found


def test_an_envelope_is_read_by_others(house: House) -> None:
    key, told = signer(), statement(house)
    data = seal(told, key).to_bytes()
    found = independent_check(data, key.public)
    theirs = TheirStatement.copy_from_pb(json_format.ParseDict(found, TheirStatement([], "x", {}).pb))
    theirs.validate()
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["subject"][0]["digest"]["blake3"] == told.subjects[0][1].hex  # type: ignore[index]
    with pytest.raises(InvalidSignature):
        independent_check(data, signer("bob").public)


def test_an_evaluation_is_a_test_result_that_others_read() -> None:
    score = Score(suite="basics", suite_digest=SUITE, metric="pass@1", n=2, passed=1, score=0.5)
    report = EvalReport(assembly=SUITE, recipe=SUITE, result=score)
    told = eval_statement(report.digest, report, {"one": True, "two": False})
    found = json.loads(told.to_bytes())
    assert found["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    parsed = json_format.ParseDict(found["predicate"], test_result_pb2.TestResult())
    assert (parsed.result, list(parsed.passed_tests), list(parsed.failed_tests)) == ("FAILED", ["one"], ["two"])
    assert parsed.configuration[0].name == "basics"
    perfect = report.revised(result=score.revised(passed=2, score=1.0))
    assert eval_statement(perfect.digest, perfect, {"one": True, "two": True}).predicate["result"] == "PASSED"


def test_every_changed_byte_of_an_envelope_is_seen(house: House) -> None:
    key = signer()
    trust_key(house.archive, key.public)
    book = TrustBook(house.archive.ledger.entries())
    data = seal(statement(house), key).to_bytes()
    assert Envelope.parse(data).judge(100, book)[0].state is SignatureState.VALID
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            states = [each.state for each in Envelope.parse(changed).judge(100, book)]
        except Exception as error:  # noqa: BLE001 - refusing to read is seeing it; by an error of ours
            assert type(error).__module__.split(".")[0] in {"manifests", "csf_store"}, error
        else:
            assert not any(state.counts for state in states), f"byte {at}"


def test_envelopes_that_are_none(house: House) -> None:
    good = json.loads(seal(statement(house), signer()).to_bytes())
    for change in (
        {"signatures": []},
        {"payloadType": "text/plain"},
        {"extra": 1},
        {"payload": "!"},
        {"payload": base64.b64encode(b'{"a":1}').decode()},
        {"signatures": [{"keyid": "b3:00", "sig": "AA=="}]},
        {"signatures": good["signatures"] * 17},
    ):
        with pytest.raises(InvalidDocumentError):
            Envelope.parse(canonical_bytes({**good, **change}))


def respelled(text: str) -> str:
    """The same bytes in base64 with other unused bits: 64 bytes leave four of them."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    assert text.endswith("==")
    changed = text[:-3] + alphabet[alphabet.index(text[-3]) ^ 1] + "=="
    assert base64.b64decode(changed) == base64.b64decode(text)
    return changed


def test_there_is_no_second_spelling(house: House) -> None:
    """Else one signature could be in the archive under two digests."""
    envelope = json.loads(seal(statement(house), signer()).to_bytes())
    envelope["signatures"][0]["sig"] = respelled(envelope["signatures"][0]["sig"])
    with pytest.raises(InvalidDocumentError, match="second spelling"):
        Envelope.parse(canonical_bytes(envelope))
    note = str(CheckpointNote("o", Checkpoint(7, bytes(32))).signed(signer()))
    lines = note.split("\n")
    root = lines[2][:-2] + chr(ord(lines[2][-2]) + 1) + "="
    assert root != lines[2] and base64.b64decode(root) == bytes(32)
    lines[2] = root
    with pytest.raises(InvalidDocumentError, match="second spelling"):
        CheckpointNote.parse("\n".join(lines))


def test_each_kind_of_key_is_reported_as_what_it_is(house: House) -> None:
    archive = house.archive
    keys = {name: signer(name) for name in ("good", "late", "gone", "left", "stranger", "local")}
    for name in ("good", "gone", "left"):
        trust_key(archive, keys[name].public)
    revoke_key(archive, keys["gone"].public.id)
    told = statement(house)
    envelope = seal(told, *keys.values())
    digest = put_envelope(archive, envelope)
    size = archive.ledger.size
    assert put_envelope(archive, envelope) == digest and archive.ledger.size == size
    revoke_key(archive, keys["left"].public.id)
    trust_key(archive, keys["late"].public)
    subject = told.subjects[0][1]
    (found,) = signatures_of(archive, subject, known={keys["local"].public.id: keys["local"].public})
    assert [each.state for each in found.signatures] == [
        SignatureState.VALID,
        SignatureState.UNTRUSTED,
        SignatureState.REVOKED,
        SignatureState.REVOKED_LATER,
        SignatureState.UNKNOWN_KEY,
        SignatureState.UNTRUSTED,
    ]
    assert [each.state.counts for each in found.signatures] == [True, False, False, True, False, False]
    assert signatures_of(archive, digest)[0].envelope == digest and signatures_of(archive, SUITE) == ()
    assert load_envelope(archive, digest) == envelope and archive.ledger.has_pin(digest)


def test_a_signature_that_is_not_of_these_bytes(house: House) -> None:
    key = signer()
    trust_key(house.archive, key.public)
    told = statement(house)
    forged = Envelope(told, ((key.public.id, key.sign(b"something else")),))
    put_envelope(house.archive, forged)
    (found,) = signatures_of(house.archive, told.subjects[0][1])
    assert found.signatures[0].state is SignatureState.BAD


def test_an_event_that_lies_about_its_envelope(house: House) -> None:
    told = statement(house)
    digest = put_envelope(house.archive, seal(told, signer()))
    house.archive.ledger.append("signed", envelope=str(digest), subjects=[str(SUITE)], predicate="x", keys=[])
    house.archive.ledger.append("signed", envelope=str(SUITE), subjects=[str(SUITE)], predicate="x", keys=[])
    problems = [found.problem or "" for found in signatures_of(house.archive, SUITE)]
    assert "does not speak of" in problems[0] and "cannot be read" in problems[1]


def test_an_approval_travels_whole(house: House) -> None:
    approval = Approval(ref="prod", assembly=SUITE, recipe=SUITE, ledger=f"1:{'00' * 32}", note="yes")
    data = seal(approval_statement(approval), signer()).to_bytes()
    read = Envelope.parse(data).statement
    assert Approval.from_bytes(canonical_bytes(read.predicate)) == approval
    house.archive.put_bytes(b"not an envelope", kind=Kind.RECORD)
    with pytest.raises(InvalidDocumentError):
        load_envelope(house.archive, Digest.of(b"not an envelope"))


def independent_note(text: str, vkey: str) -> tuple[str, int, bytes]:
    """C2SP signed-note and tlog-checkpoint as they are specified, with nothing of ours."""
    name, key_hash, encoded = vkey.split("+")
    key = base64.b64decode(encoded)
    assert key[0] == 1 and hashlib.sha256(f"{name}\n".encode() + key).digest()[:4].hex() == key_hash
    body, signatures = text.split("\n\n")
    for line in signatures.splitlines():
        dash, signer_name, blob = line.split(" ")
        raw = base64.b64decode(blob)
        if dash == "\u2014" and signer_name == name and raw[:4].hex() == key_hash:
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(raw[4:], f"{body}\n".encode())
            origin, size, root = body.split("\n")
            return origin, int(size), base64.b64decode(root)
    raise AssertionError("no signature of that key")


def test_a_signed_checkpoint_is_read_by_others(house: House) -> None:
    alice, bob = signer(), signer("bob")
    checkpoint = house.archive.ledger.checkpoint()
    origin = ledger_origin(house.archive.id)
    note = CheckpointNote(origin, checkpoint).signed(alice).signed(bob)
    for key in (alice, bob):
        assert independent_note(str(note), str(key.public)) == (origin, *checkpoint)
        note.check(key.public)
    assert CheckpointNote.parse(str(note)) == note
    with pytest.raises(BadSignatureError, match="no signature of it"):
        note.check(signer("carol").public)
    moved = CheckpointNote(origin, Checkpoint(checkpoint.size + 1, checkpoint.root), note.signatures)
    with pytest.raises(BadSignatureError, match="not of these bytes"):
        moved.check(alice.public)


def test_every_changed_character_of_a_checkpoint_is_seen() -> None:
    alice = signer()
    text = str(CheckpointNote("o", Checkpoint(7, bytes(range(32)))).signed(alice))
    for at in range(len(text)):
        changed = text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]
        with pytest.raises((InvalidDocumentError, BadSignatureError)):
            CheckpointNote.parse(changed).check(alice.public)
