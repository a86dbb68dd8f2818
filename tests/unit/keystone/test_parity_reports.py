"""Parity by the golden fixtures: what the vendor's code computed is the reference, ours passes, anything else fails."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from export_lab import PARITY, put_manifest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from csf_store import Archive, Digest, Kind
from keystone.checkpoints.export import export
from keystone.cli import main
from keystone.errors import InvalidInputError, OutputExistsError, RefusedError
from keystone.parity import is_verified, reports_of
from keystone.parity.capture import capture
from keystone.parity.checking import check
from keystone.parity.specification import ParityInput, Specification
from manifests import ParityReport, Repository


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.create(tmp_path / "archive") as opened:
        yield opened


def put_fixture(archive: Archive, tmp_path: Path, case: str) -> Digest:
    directory = tmp_path / case
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_bytes((PARITY / case / name).read_bytes())
    return put_manifest(archive, archive.put_tree(directory).digest)


def sequences(case: str) -> dict[str, tuple[Tensor, int, dict[str, Tensor]]]:
    """name -> (ids, how many at first, dtype -> logits), from a fixture's reference."""
    found = load_file(PARITY / case / "reference.safetensors")
    if case == "two-loops-fp32":
        return {"whole": (found["input_ids"], 120, {"float32": found["logits"]})}
    if case == "two-loops-bf16":
        logits = {"bfloat16": found["logits"], "float32": found["logits_fp32_compute"]}
        return {"whole": (found["input_ids"], len(found["input_ids"]), logits)}
    made = {}
    for row, length in enumerate(found["prompt_lens"].tolist()):
        ids = torch.cat([found["input_ids"][row, :length], found["decode_input_ids"][row]])
        made[f"row-{row}"] = (
            ids,
            length,
            {"float32": torch.cat([found[f"prefill_logits.{row}"], found["decode_logits"][row]])},
        )
    return made


def reference_of(archive: Archive, manifest: Digest, case: str, out: Path) -> Path:
    """Capture the fixture's own inputs, and write its logits as the vendor's engine would have."""
    found = sequences(case)
    inputs = tuple(ParityInput(name, tuple(ids.tolist()), first, "fixture") for name, (ids, first, _) in found.items())
    dtypes = tuple(sorted({dtype for _, _, logits in found.values() for dtype in logits}))
    specification = capture(archive, manifest, out, inputs=inputs, dtypes=dtypes)
    tensors = {
        f"{name}.{dtype}.logits": logits.contiguous()
        for name, (_, _, by_dtype) in found.items()
        for dtype, logits in by_dtype.items()
    }
    metadata = {"format": "pt", "spec": specification.to_bytes().decode(), "engine": "the vendor's, on a CPU"}
    save_file(tensors, out / "reference.safetensors", metadata)
    return out / "reference.safetensors"


def rewrite(path: Path, *, spec: bytes | None = None, **tensors: Tensor | None) -> Path:
    """The reference with some tensors changed, added or (None) taken away, or another specification."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    found = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    if spec is not None:
        metadata["spec"] = spec.decode()
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path, metadata)
    return path


@pytest.mark.parametrize("case", ["two-loops-fp32", "two-loops-bf16", "batched-decode-fp32"])
def test_the_fixtures_pass_and_verify_their_base(archive: Archive, tmp_path: Path, case: str) -> None:
    manifest = put_fixture(archive, tmp_path, case)
    base = Repository(archive).load(manifest).assembly.base
    reference = reference_of(archive, manifest, case, tmp_path / "parity")
    assert not is_verified(archive, base)
    digest, report = check(archive, manifest, reference)
    assert report.passed and is_verified(archive, base)
    assert report.reference == Digest.of(reference.read_bytes())
    assert report.inputs == Digest.of((tmp_path / "parity" / "spec.json").read_bytes())
    assert {(case.dtype, case.metric, case.bar) for case in report.cases} <= {
        ("float32", "max-abs-delta", 5e-4),
        ("bfloat16", "relative-frobenius", 0.045),
    }
    assert all(case.worst is not None and case.worst > 0 for case in report.cases)
    assert [found for found, _ in reports_of(archive, base)] == [digest]
    assert digest in {pin.digest for pin in archive.pins()}
    assert check(archive, manifest, reference)[0] == digest


def test_a_perturbed_base_fails_and_stays_unverified(archive: Archive, tmp_path: Path) -> None:
    case = "batched-decode-fp32"
    manifest = put_fixture(archive, tmp_path, case)
    directory = tmp_path / case
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.self_attn.plt_gate.bias"] += 0.01
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    other = put_manifest(archive, archive.put_tree(directory).digest)
    reference = reference_of(archive, other, case, tmp_path / "parity")
    _, report = check(archive, other, reference)
    assert not report.passed
    assert not is_verified(archive, report.base)
    with pytest.raises(RefusedError, match=str(report.base)):
        check(archive, manifest, reference)


@pytest.mark.parametrize("case", ["two-loops-fp32", "two-loops-bf16"])
def test_a_wrong_number_in_the_reference_fails(archive: Archive, tmp_path: Path, case: str) -> None:
    manifest = put_fixture(archive, tmp_path, case)
    reference = reference_of(archive, manifest, case, tmp_path / "parity")
    dtype = "float32" if case.endswith("fp32") else "bfloat16"
    logits = load_file(reference)[f"whole.{dtype}.logits"]
    changed = logits.clone()
    if dtype == "float32":
        changed[-1, 7] += 6e-4
    else:
        changed *= 1.06
    _, report = check(archive, manifest, rewrite(reference, **{f"whole__{dtype}__logits": changed}))
    assert [case.name for case in report.cases if not case.passed] == [f"whole.{dtype}"]
    assert not is_verified(archive, report.base)


def test_what_does_not_count(archive: Archive, tmp_path: Path) -> None:
    manifest = put_fixture(archive, tmp_path, "batched-decode-fp32")
    reference = reference_of(archive, manifest, "batched-decode-fp32", tmp_path / "parity")
    digest, report = check(archive, manifest, reference)
    archive.unpin(digest)
    with Archive.create(tmp_path / "other") as other:
        again = put_manifest(other, other.put_tree(tmp_path / "batched-decode-fp32").digest)
        repository = Repository(other)
        base = repository.load(again).assembly.base
        assert base == report.base
        wide = tuple(case.revised(bar=1.0) for case in report.cases)
        swapped = tuple(case.revised(metric="relative-frobenius") for case in report.cases)
        for document in (
            report.revised(code="keystone-plt/999"),
            report.revised(cases=wide),
            report.revised(cases=swapped),
        ):
            repository.put_record(document)
            assert not is_verified(other, base)
        of_another = report.revised(base=repository.load(again).assembly.tokenizer)
        other.put_bytes(of_another.to_bytes(), kind=Kind.RECORD, links=(base, of_another.base))  # links are a claim
        assert not is_verified(other, base)
        repository.put_record(report)
        assert is_verified(other, base)


def test_our_own_nan_is_a_failure_and_theirs_is_refused(archive: Archive, tmp_path: Path) -> None:
    case = "batched-decode-fp32"
    put_fixture(archive, tmp_path, case)
    directory = tmp_path / case
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    manifest = put_manifest(archive, archive.put_tree(directory).digest)
    reference = reference_of(archive, manifest, case, tmp_path / "parity")
    _, report = check(archive, manifest, reference)
    assert not report.passed
    assert {case.worst for case in report.cases} == {None}
    logits = load_file(reference)["row-1.float32.logits"]
    logits[0, 0] = float("inf")
    with pytest.raises(InvalidInputError, match="not finite"):
        check(archive, manifest, rewrite(reference, **{"row-1__float32__logits": logits}))


def test_a_reference_that_is_none_is_refused(archive: Archive, tmp_path: Path) -> None:
    manifest = put_fixture(archive, tmp_path, "batched-decode-fp32")
    reference = reference_of(archive, manifest, "batched-decode-fp32", tmp_path / "parity")
    good = reference.read_bytes()
    logits = load_file(reference)["row-0.float32.logits"]
    spec = json.loads((tmp_path / "parity" / "spec.json").read_bytes())

    def with_spec(**changes: object) -> bytes:
        return json.dumps({**spec, **changes}, separators=(",", ":"), sort_keys=True).encode()

    first = spec["inputs"][0]
    hostile: list[dict[str, object]] = [
        {"row-0__float32__logits": None},
        {"row-0__float32__logits": logits[:-1].contiguous()},
        {"row-0__float32__logits": logits.to(torch.int64)},
        {"row-9__float32__logits": logits},
        {"spec": b"{"},
        {"spec": with_spec(v=2)},
        {"spec": with_spec(dtypes=["float8"])},
        {"spec": with_spec(dtypes=[])},
        {"spec": with_spec(inputs=[])},
        {"spec": with_spec(inputs=[first, first])},
        {"spec": with_spec(inputs=[{**first, "ids": [0, 10**9], "prefill": 1}])},
        {"spec": with_spec(inputs=[{**first, "prefill": 0}])},
        {"spec": with_spec(inputs=[{**first, "ids": [True]}])},
        {"spec": with_spec(inputs=[{**first, "surplus": 1}])},
        {"spec": with_spec(vocab_size=1 << 40)},
    ]
    for changes in hostile:
        reference.write_bytes(good)
        with pytest.raises(InvalidInputError):
            check(archive, manifest, rewrite(reference, **changes))  # type: ignore[arg-type]
    for data in (b"", b"\x00" * 64, good[:-10]):
        reference.write_bytes(data)
        with pytest.raises(InvalidInputError):
            check(archive, manifest, reference)
    assert not list(archive.objects(Kind.RECORD))


def test_captured_inputs_reach_past_the_window_and_never_change(archive: Archive, tmp_path: Path) -> None:
    manifest = put_fixture(archive, tmp_path, "two-loops-fp32")
    made = capture(archive, manifest, tmp_path / "parity")
    assert {path.name for path in (tmp_path / "parity").iterdir()} == {
        "spec.json",
        "inputs.safetensors",
        "reference.py",
    }
    written = Specification.from_bytes((tmp_path / "parity" / "spec.json").read_bytes())
    assert written == made and made.dtypes == ("float32", "bfloat16")
    stored = load_file(tmp_path / "parity" / "inputs.safetensors")
    assert {name: tuple(ids.tolist()) for name, ids in stored.items()} == {
        f"{given.name}.input_ids": given.ids for given in made.inputs
    }
    by_name = {given.name: given for given in made.inputs}
    assert len(by_name["random-whole"].ids) > 3 * 65
    assert by_name["random-whole"].ids[:6] == (22, 5, 152, 3, 53, 25)
    assert by_name["random-stepped"].prefill < len(by_name["random-stepped"].ids)
    with pytest.raises(OutputExistsError):
        capture(archive, manifest, tmp_path / "parity")


def test_the_whole_way_from_the_command_line(archive: Archive, tmp_path: Path) -> None:
    """Our own exported model stands in for the vendor's: the script knows no difference."""
    manifest = put_fixture(archive, tmp_path, "batched-decode-fp32")
    export(archive, manifest, tmp_path / "vendor")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--archive", str(archive.path), "parity", *arguments, "--json"])

    assert run("show", str(manifest)).exit_code == 1
    assert run("capture", str(manifest), str(tmp_path / "parity"), "--dtype", "float32").exit_code == 0
    script = (
        "import sys, runpy, importlib.abc\n"
        "class Blocker(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'keystone', 'manifests', 'adapters', 'csf_store'}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-I", "-c", script, str(tmp_path / "parity" / "reference.py"), str(tmp_path / "vendor")]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    reference = str(tmp_path / "parity" / "reference.safetensors")
    result = run("check", str(manifest), reference)
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["passed"] is True and last["engine"].startswith("transformers ")
    shown = [json.loads(line) for line in run("show", str(manifest)).stdout.splitlines()]
    assert shown[-1] == {"base": last["base"], "verified": True}
    changed = load_file(reference)["text-0.float32.logits"] + 0.01
    rewrite(Path(reference), **{"text-0__float32__logits": changed})
    assert run("check", str(manifest), reference).exit_code == 1
    kinds = {json.loads(archive.get_bytes(info.digest))["kind"] for info in archive.objects(Kind.RECORD)}
    assert kinds == {ParityReport.kind_name()}
