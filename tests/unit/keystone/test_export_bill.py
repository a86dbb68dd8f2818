"""A bill and a signature beside an export, each read by the software it is for."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from export_lab import put_adapter, put_base, put_manifest, write_base

from csf_store import Archive, Digest
from keystone.checkpoints.export import ExportRequest, Signer, examine_export, export
from keystone.cli import main
from manifests import AdapterUse, cyclonedx_problem, verify_directory


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.create(tmp_path / "archive") as opened:
        yield opened


def write_key(path: Path, private: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> Path:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    path.write_bytes(private_bytes(private, encryption))
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path.with_suffix(".pub").write_bytes(public)
    return path


def private_bytes(private: object, encryption: serialization.KeySerializationEncryption) -> bytes:
    assert isinstance(private, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey)
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def files_of(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_a_merged_export_with_bill_and_signature(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base")
    base = archive.put_tree(directory).digest
    adapter = put_adapter(archive, base, directory, tmp_path, seed=1)
    manifest = put_manifest(archive, base, AdapterUse(adapter=adapter, weight=0.5))
    key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    out = tmp_path / "out"
    request = ExportRequest(merge=True, compare=False, bill=True, signer=Signer(key))
    exported = export(archive, manifest, out, request)
    assert {file.path for file in exported.files} == files_of(out)
    assert not list(tmp_path.glob(".out*"))

    # The bill: every file but itself and what speaks of it, and the hashes that other programs print.
    data = (out / "bom.cdx.json").read_bytes()
    assert cyclonedx_problem(data) is None
    model = json.loads(data)["metadata"]["component"]
    listed = {each["name"]: {h["alg"]: h["content"] for h in each["hashes"]} for each in model["components"]}
    assert set(listed) == files_of(out) - {"bom.cdx.json", "keystone.json", "model.sig"}
    printed = subprocess.run(["sha256sum", *listed], cwd=out, capture_output=True, text=True, check=True).stdout
    sums = {line.split("  ")[1]: line.split("  ")[0] for line in printed.splitlines()}
    for name, hashes in listed.items():
        content = (out / name).read_bytes()
        assert hashes == {"BLAKE3": blake3(content).hexdigest(), "SHA-256": sums[name]}, name
        assert sums[name] == hashlib.sha256(content).hexdigest()

    # The signature: model-signing's own verification takes it, in another process and here, until a byte is flipped.
    public = key.with_suffix(".pub")
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(out)]
    command += ["--signature", str(out / "model.sig"), "--public_key", str(public)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert not examine_export(out).problems
    for name in ("model.safetensors", "keystone.json", "bom.cdx.json"):
        assert refused_when_flipped(out, out / name, public), name
    (out / "extra.py").write_text("print()")
    assert "extra.py" in str(verify_directory(out, public))
    assert examine_export(out).problems == {"extra.py": "is not in the list"}
    (out / "extra.py").unlink()
    assert verify_directory(out, public) is None
    other = write_key(tmp_path / "other.pem", ec.generate_private_key(ec.SECP256R1()))
    assert verify_directory(out, other.with_suffix(".pub")) is not None


def refused_when_flipped(directory: Path, path: Path, public: Path) -> bool:
    before = path.read_bytes()
    assert verify_directory(directory, public) is None
    path.write_bytes(bytes([*before[:-2], before[-2] ^ 1, before[-1]]))
    problem = verify_directory(directory, public)
    path.write_bytes(before)
    return problem is not None and path.name in problem


def test_keys_that_cannot_sign_are_refused_before_anything_is_written(archive: Archive, tmp_path: Path) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    plain = serialization.NoEncryption()
    bad = {
        "ed25519": private_bytes(ed25519.Ed25519PrivateKey.generate(), plain),
        "koblitz": private_bytes(ec.generate_private_key(ec.SECP256K1()), plain),
        "text": b"no key at all",
        "missing": None,
    }
    for name, data in bad.items():
        key = tmp_path / f"{name}.pem"
        if data is not None:
            key.write_bytes(data)
        result = run(archive, str(manifest), tmp_path / "out", "--model-signing", "--signing-key", key, code=None)
        assert result.exit_code == (5 if name == "missing" else 7), result.output
        assert "openssl ecparam" in result.stderr
        assert f"{name}.pem" in result.stderr
    assert not list(tmp_path.glob("*out*"))


def test_a_passphrase_opens_an_encrypted_key(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()), b"correct horse")
    arguments = (str(manifest), tmp_path / "out", "--model-signing", "--signing-key", key)
    monkeypatch.setenv("KEYSTONE_PASSPHRASE", "wrong")
    assert "does not open" in run(archive, *arguments, code=10).stderr
    monkeypatch.setenv("KEYSTONE_PASSPHRASE", "correct horse")
    run(archive, *arguments)
    assert verify_directory(tmp_path / "out", key.with_suffix(".pub")) is None


def test_the_bill_alone_on_the_command_line(archive: Archive, tmp_path: Path) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    shown = run(archive, str(manifest), "--sbom", "cyclonedx").stdout
    assert cyclonedx_problem(shown.encode()) is None
    told = json.loads(run(archive, str(manifest), "--sbom", "cyclonedx", "-o", tmp_path / "b.json", "--json").stdout)
    assert (tmp_path / "b.json").read_text() == shown
    assert (told["manifest"], told["size"]) == (str(manifest), len(shown.encode()))
    run(archive, str(manifest), "--sbom", "cyclonedx", "-o", tmp_path / "b.json", code=8)
    run(archive, str(manifest), "--sbom", "cyclonedx", "--check", tmp_path / "b.json")
    (tmp_path / "forged.json").write_text(shown.replace('"Apache-2.0"', '"MIT"', 1))
    forged = run(archive, str(manifest), "--sbom", "cyclonedx", "--check", tmp_path / "forged.json", code=1).stdout
    assert 'says "MIT", the archive "Apache-2.0"' in forged
    assert Digest.parse(json.loads(shown)["metadata"]["component"]["version"]) == manifest
    for wrong in (
        (),
        (tmp_path / "x", "--sbom", "cyclonedx", "-o", tmp_path / "y"),
        ("--sbom", "cyclonedx", "--model-signing", "--signing-key", "k"),
        (tmp_path / "x", "--model-signing"),
    ):
        run(archive, str(manifest), *wrong, code=2)


def run(archive: Archive, target: str, *arguments: object, code: int | None = 0) -> Result:
    command = ["--archive", str(archive.path), "export", target, *map(str, arguments)]
    result = CliRunner().invoke(main, command)
    assert code is None or result.exit_code == code, result.output
    return result
