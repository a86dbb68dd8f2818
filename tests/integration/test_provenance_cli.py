"""Keys, signatures, protected refs and the audit, as an operator types them."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keystone.cli import main


@pytest.fixture
def keystone(own_nano_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Keystone":
    monkeypatch.setenv("KEYSTONE_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("KEYSTONE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("KEYSTONE_PASSPHRASE", "correct horse")
    return Keystone(own_nano_archive)


class Keystone:
    def __init__(self, archive: Path) -> None:
        self.archive = archive

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["--archive", str(self.archive), *arguments])
        assert result.exit_code == code, f"{arguments}: {result.output}"
        assert "Traceback" not in result.output
        return result

    def told(self, *arguments: str, code: int = 0) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.run(*arguments, "--json", code=code).stdout.splitlines()]

    def one(self, *arguments: str, code: int = 0) -> dict[str, object]:
        return self.told(*arguments, code=code)[-1]


def test_keys_signatures_and_what_they_are_worth(keystone: Keystone, tmp_path: Path) -> None:
    made = keystone.one("key", "new", "alice")
    assert keystone.one("key", "list")["state"] == "untrusted"
    assert "verify-signature" not in keystone.run("verify-signature", "nano", code=4).stderr
    keystone.run("sign", "nano", "--key", "alice")
    (state,) = keystone.told("verify-signature", "nano", code=1)
    assert (state["state"], state["name"], state["key"]) == ("untrusted", "alice", made["key"])
    assert keystone.one("key", "trust", "alice")["state"] == "trusted"
    assert keystone.told("verify-signature", "nano", code=1)[0]["state"] == "untrusted"  # it was signed before that
    keystone.run("sign", "nano", "--key", "alice")
    assert [each["state"] for each in keystone.told("verify-signature", "nano", code=1)] == ["untrusted", "valid"]
    keystone.run("key", "revoke", "alice", "--reason", "laptop lost")
    assert keystone.told("verify-signature", "nano", code=1)[-1]["state"] == "revoked_later"
    keystone.run("sign", "nano", "--key", "alice")
    assert keystone.told("verify-signature", "nano", code=1)[-1]["state"] == "revoked"
    line = keystone.run("key", "show", "alice").stdout.strip()
    assert keystone.one("key", "show", "alice")["verifier"] == line
    keystone.run("key", "trust", line, code=10)
    keystone.run("key", "new", "alice", code=8)
    keystone.run("sign", "nano", "--key", "nobody", code=5)
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    assert (
        "passphrase" in keystone.run("sign", "nano", "--key", "alice", "--passphrase-file", str(wrong), code=10).stderr
    )


def test_a_protected_ref_by_hand(keystone: Keystone) -> None:
    keystone.run("key", "new", "alice")
    keystone.run("key", "trust", "alice")
    keystone.run("ref", "set", "prod", "nano")
    first = keystone.one("ref", "log", "prod")["manifest"]
    moment = datetime.now(UTC).isoformat()
    keystone.run("ref", "protect", "prod", "--reason", "served")
    other = str(keystone.one("manifest", "create", "--from", "nano", "--bare", "--label", "n=2")["manifest"])
    assert "protected" in keystone.run("ref", "set", "prod", other, code=10).stderr
    approval = keystone.one("approve", "prod", other, "--key", "alice", "--note", "looks right")
    assert approval["incumbent"] == first
    moved = keystone.one("promote", "prod", other, "--approval", str(approval["approval"]))
    assert (moved["manifest"], moved["approval"]) == (other, approval["approval"])
    assert "spent" in keystone.run("promote", "prod", other, "--approval", str(approval["approval"]), code=10).stderr
    assert keystone.one("ref", "at", "prod", "--time", moment)["manifest"] == first
    keystone.run("ref", "at", "prod", "--time", "yesterday", code=2)
    keystone.run("ref", "at", "prod", "--time", "1999-01-01T00:00:00Z", code=5)
    assert keystone.one("rollback", "prod", "--dry-run")["manifest"] == first
    assert keystone.one("rollback", "prod", "--reason", "a test")["manifest"] == first
    assert [each["protected"] for each in keystone.told("ref", "list")] == [False, True]


def test_signed_checkpoints(keystone: Keystone, tmp_path: Path) -> None:
    keystone.run("key", "new", "alice")
    keystone.run("key", "new", "bob")
    note = tmp_path / "note"
    note.write_text(keystone.run("checkpoint", "sign", "--key", "alice").stdout, encoding="utf-8")
    keystone.run("key", "trust", "alice")
    assert keystone.one("checkpoint", "verify", str(note), "--key", "alice")["ok"] is True
    assert "no signature" in keystone.run("checkpoint", "verify", str(note), "--key", "bob", code=1).stderr
    note.write_text(note.read_text(encoding="utf-8").replace("keystone", "Keystone"), encoding="utf-8")
    keystone.run("checkpoint", "verify", str(note), "--key", "alice", code=1)
    note.write_text("nonsense", encoding="utf-8")
    keystone.run("checkpoint", "verify", str(note), "--key", "alice", code=7)


def verdicts(told: list[dict[str, object]]) -> dict[str, str]:
    return {str(line["check"]): str(line["verdict"]) for line in told if "check" in line}


def test_an_audit_remembers_what_it_saw(keystone: Keystone, tmp_path: Path) -> None:
    first = keystone.told("audit", "nano")
    assert first[-1]["verdict"] == "UNSIGNED"
    assert any("first sight" in str(line.get("message")) for line in first)
    assert [path.suffix for path in (tmp_path / "state").iterdir()] == [".json"]
    keystone.run("ref", "set", "prod", "nano")
    again = keystone.told("audit", "nano", "--quick")
    told = {str(line.get("check")): str(line.get("message")) for line in again}
    assert "begins with the" in told["checkpoint"] and "unchanged since" in told["objects"]
    keystone.run("audit", "nano", "--require-signatures", code=4)
    keystone.run("key", "new", "alice")
    keystone.run("key", "trust", "alice")
    keystone.run("sign", "nano", "--key", "alice")
    assert keystone.one("audit", "nano", "--require-signatures")["verdict"] == "PASS"
    ledger = keystone.archive / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-2]))
    for cache in keystone.archive.glob("ledger.sqlite*"):
        cache.unlink()
    assert verdicts(keystone.told("audit", "nano", code=1))["checkpoint"] == "FAIL"


def test_a_ref_as_it_was(keystone: Keystone) -> None:
    keystone.run("ref", "set", "prod", "nano")
    moment = datetime.now(UTC).isoformat()
    other = str(keystone.one("manifest", "create", "--from", "nano", "--bare", "--label", "n=2")["manifest"])
    keystone.run("ref", "set", "prod", other)
    assert keystone.one("audit", "prod")["manifest"] == other
    then = keystone.told("audit", f"prod@{moment}")
    assert then[-1]["manifest"] != other and verdicts(then)["ref"] == "PASS"
    keystone.run("audit", "prod@yesterday", code=7)
    keystone.run("audit", "prod@2026-01-01T00:00:00", code=7)
    keystone.run("audit", "prod@1999-01-01T00:00:00Z", code=5)
    keystone.run("audit", "nobody", code=5)


def test_one_page_to_read(keystone: Keystone, tmp_path: Path) -> None:
    label = "note=<script>alert(1)</script>"
    other = str(keystone.one("manifest", "create", "--from", "nano", "--bare", "--label", label)["manifest"])
    page = tmp_path / "audit.html"
    keystone.run("audit", other, "--html", str(page))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "<svg" in text and "frozen base" in text and other in text
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    assert "UNSIGNED" in text


def test_an_exported_directory(keystone: Keystone, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    keystone.run("export", "nano", str(out))
    told = keystone.told("audit", str(out))
    assert verdicts(told)["export"] == "PASS" and told[-1]["verdict"] == "UNSIGNED"
    config = out / "config.json"
    config.write_text(config.read_text() + " ")
    changed = keystone.told("audit", str(out), code=1)
    (line,) = (line for line in changed if line.get("check") == "export")
    assert line["verdict"] == "FAIL" and "config.json" in str(line["message"])
    (out / "keystone.json").unlink()
    keystone.run("audit", f"{out}/", code=keystone_error(out))


def keystone_error(directory: Path) -> int:
    """What an export without its list is refused with."""
    from keystone.checkpoints.export import examine_export  # noqa: PLC0415 - as the command does
    from keystone.errors import CheckpointError  # noqa: PLC0415

    with pytest.raises(CheckpointError) as caught:
        examine_export(directory)
    return caught.value.exit_code
