"""The `keystone` command as a user meets it: one walk through everything, and the errors along the way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model

from adapters import write_adapter
from csf_store import Archive
from keystone import KeystoneForCausalLM
from keystone.cli import main
from keystone.nano.embedded import DATA


def keystone(archive: Path, *arguments: str) -> Result:
    own = {"KEYSTONE_STATE": str(archive.parent / "audits"), "KEYSTONE_KEYS": str(archive.parent / "keys")}
    return CliRunner().invoke(main, ["--archive", str(archive), *arguments], env=own)


def lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code in {0, 3}, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = KeystoneForCausalLM.from_pretrained(DATA / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return write_adapter(get_peft_model(model, config), tmp_path / "lora")


def test_from_an_empty_directory_to_a_rollback(tmp_path: Path, lora: Path) -> None:
    archive = tmp_path / "archive"
    base = lines(keystone(archive, "import", "nano", "--json"))[-1]
    assert base["ref"] == "nano"

    added = lines(keystone(archive, "adapter", "add", str(lora), "--base", "nano", "--json"))[-1]
    assert added["base"] == base["base"]
    assert added["claim"] is True
    out = tmp_path / "out"
    with Archive.open(archive) as opened:
        opened.get_tree(opened.resolve(str(added["adapter"])), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {p.name: p.read_bytes() for p in lora.iterdir()}

    prefix = str(added["adapter"])[3:15]
    created = lines(keystone(archive, "manifest", "create", "--from", "nano", "--adapter", f"{prefix}:0.5", "--json"))[
        -1
    ]
    shown = lines(keystone(archive, "manifest", "show", str(created["manifest"]), "--json"))[-1]
    assert shown["assembly"]["adapters"] == [{"adapter": added["adapter"], "weight": 0.5}]
    assert shown["parent"] == base["manifest"]
    assert {entry["manifest"] for entry in lines(keystone(archive, "manifest", "list", "--json"))} == {
        base["manifest"],
        created["manifest"],
    }

    for target in ("nano", str(created["manifest"])):
        assert keystone(archive, "ref", "set", "prod", target, "--reason", "a test").exit_code == 0
    rehearsal = lines(keystone(archive, "rollback", "prod", "--dry-run", "--json"))[-1]
    assert (rehearsal["manifest"], rehearsal["dry_run"]) == (base["manifest"], True)
    assert lines(keystone(archive, "rollback", "prod", "--json"))[-1]["manifest"] == base["manifest"]
    history = lines(keystone(archive, "ref", "log", "prod", "--json"))
    assert [event["manifest"] for event in history] == [base["manifest"], created["manifest"], base["manifest"]]
    assert [event["rollback"] for event in history] == [False, False, True]

    loaded = lines(
        keystone(
            archive, "load", str(created["manifest"]), "--prompt", "def f(x):\n", "--max-new-tokens", "4", "--json"
        )
    )
    assert loaded[0]["adapters"] == [{"adapter": added["adapter"], "weight": 0.5}]
    assert loaded[0]["quantization"] == "int8"
    assert set(loaded[1]) == {"prompt", "completion"}

    audit = keystone(archive, "audit", str(created["manifest"]), "--json")
    assert audit.exit_code == 3
    assert lines(audit)[-1]["verdict"] == "UNKNOWN"
    assert keystone(archive, "audit", "nano").exit_code == 0


def test_text_for_people_names_what_was_assembled(nano_archive: Path) -> None:
    result = keystone(
        nano_archive, "load", "nano", "--quantize", "none", "--prompt", "import os\n", "--max-new-tokens", "3"
    )
    assert result.exit_code == 0, result.output
    for word in ("manifest", "base", "tokenizer", "keystone-plt/1", "MiB verified", "in memory", "import os"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["load", "nobody"], 5, "nobody"),
        (["load", "b3:00000000"], 5, "00000000"),
        (["load", "nano", "--quantize", "int3"], 2, "int3"),
        (["audit", "ffffffffff"], 5, "ffffffffff"),
        (["ref", "log", "nobody"], 5, "nobody"),
        (["ref", "set", "Bad Name", "nano"], 7, "Bad Name"),
        (["rollback", "nano"], 10, "nano"),
        (["load", "nano", "--device", "teapot"], 7, "teapot"),
        (["load", "nano", "--device", "cuda:99"], 10, "cuda:99"),
        (["manifest", "create", "--from", "nano"], 2, "--bare"),
        (["manifest", "create", "--base", "b3:00000000"], 2, "--tokenizer"),
        (["manifest", "create", "--from", "nano", "--adapter", "ffffffffff"], 5, "ffffffffff"),
        (["adapter", "add", str(Path(__file__).parent), "--base", "nano"], 5, "adapter_config.json"),
        (["import", "no-such-source"], 2, "no-such-source"),
    ],
)
def test_errors_are_one_line_with_a_stable_code(
    nano_archive: Path, arguments: list[str], code: int, named: str
) -> None:
    before = sorted((path.name, path.stat().st_size) for path in (nano_archive / "segments").iterdir())
    ledger = (nano_archive / "ledger.jsonl").read_bytes()
    result = keystone(nano_archive, *arguments)
    assert result.exit_code == code, result.output
    assert named in result.stderr
    assert "Traceback" not in result.output
    assert code == 2 or len(result.stderr.strip().splitlines()) == 1
    assert sorted((path.name, path.stat().st_size) for path in (nano_archive / "segments").iterdir()) == before
    assert (nano_archive / "ledger.jsonl").read_bytes() == ledger


def test_a_first_manifest_for_a_base_that_was_put(own_nano_archive: Path) -> None:
    shown = lines(keystone(own_nano_archive, "manifest", "show", "nano", "--json"))[-1]["assembly"]
    assert isinstance(shown, dict)
    trees = ["--base", str(shown["base"]), "--tokenizer", str(shown["tokenizer"])]
    create = ["manifest", "create", *trees, "--licence", "Apache-2.0", "--label", "made=by hand", "--json"]
    created = lines(keystone(own_nano_archive, *create))[-1]
    made = lines(keystone(own_nano_archive, "manifest", "show", str(created["manifest"]), "--json"))[-1]
    assert made["assembly"] == shown
    assert made["labels"] == {"made": "by hand"}
    assert created["parent"] is None
    assert keystone(own_nano_archive, "audit", str(created["manifest"])).exit_code == 0


def test_manifests_are_found_and_compared(own_nano_archive: Path) -> None:
    create = ["manifest", "create", "--from", "nano", "--bare", "--label", "team=search", "--json"]
    created = lines(keystone(own_nano_archive, *create))[-1]["manifest"]
    everything = lines(keystone(own_nano_archive, "manifest", "find", "--base", "nano", "--json"))
    nano = next(each["manifest"] for each in everything if each["refs"] == ["nano"])
    assert {each["manifest"] for each in everything} == {nano, created}
    base = str(everything[0]["base"])
    for asked, expected in (
        (["--base", base[:20]], {nano, created}),
        (["--label", "team=search"], {created}),
        (["--tripwire", "not-clear"], {nano, created}),
        (["--tripwire", "clear"], set()),
        (["--parent", "nano"], {created}),
        (["--suite", "basics"], set()),
    ):
        found = lines(keystone(own_nano_archive, "manifest", "find", *asked, "--json"))
        assert {each["manifest"] for each in found} == expected, asked
    told = lines(keystone(own_nano_archive, "manifest", "diff", "nano", str(created), "--json"))
    assert {each["path"]: each["after"] for each in told} == {"label team": "search", "parent": nano}
    assert "They say the same" in keystone(own_nano_archive, "manifest", "diff", "nano", "nano").stdout


def test_schemas_are_exported(tmp_path: Path) -> None:
    kinds = {each["kind"] for each in lines(keystone(tmp_path, "manifest", "schema", "--json"))}
    assert {"manifest", "eval-report", "approval", "attestation", "tripwire-policy"} <= kinds
    schema = json.loads(keystone(tmp_path, "manifest", "schema", "approval").stdout)
    assert schema["properties"]["kind"]["const"] == "approval" and schema["additionalProperties"] is False
    missing = keystone(tmp_path, "manifest", "schema", "nonsense")
    assert missing.exit_code == 5 and "nonsense" in missing.stderr


def test_errors_in_json(nano_archive: Path) -> None:
    result = keystone(nano_archive, "load", "nobody", "--json")
    document = json.loads(result.stderr)
    assert (document["exit_code"], result.exit_code) == (5, 5)
    assert "nobody" in document["message"]


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    result = keystone(tmp_path / "nowhere", "load", "nano")
    assert result.exit_code == 5
    assert "nowhere" in result.stderr


def test_a_pickled_adapter_is_refused(own_nano_archive: Path, lora: Path) -> None:
    torch.save({"x": torch.ones(1)}, lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()
    result = keystone(own_nano_archive, "adapter", "add", str(lora), "--base", "nano")
    assert result.exit_code == 7
    assert "adapter_model.bin" in result.stderr


def test_an_adapter_for_another_base_is_refused(own_nano_archive: Path, lora: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(DATA / "base", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    with Archive.open(own_nano_archive) as archive:
        second = archive.put_tree(other).digest
    assert keystone(own_nano_archive, "adapter", "add", str(lora), "--base", "nano").exit_code == 0
    result = keystone(own_nano_archive, "adapter", "add", str(lora), "--base", str(second))
    assert result.exit_code == 10
    assert second.hex in result.stderr
    fields = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**fields, "r": 3}))
    result = keystone(own_nano_archive, "adapter", "add", str(lora), "--base", "nano")
    assert result.exit_code == 10
    assert "lora_A" in result.stderr


def test_the_command_is_installed_and_says_its_version() -> None:
    program = Path(sys.executable).with_name("keystone")
    outcome = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
    assert outcome.stdout.startswith("keystone, version ")
