"""The storage bench itself: its inputs are what they claim, and its report hides nothing. No peer runs here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.storage import run
from bench.storage.inputs import SETS, Inputs, draw, exponent_entropy, from_bf16, make_inputs, nudge, to_bf16
from bench.storage.install import Peer
from bench.storage.peers import Csf, CsfDelta, CsfLibrary, LibraryPeer, Restic, Tool
from bench.storage.place import Place, ToolFailedError
from bench.storage.rounds import Row, measure
from bench.storage.tables import puts, sizes
from bench.storage.targets import Results, checklist, targets


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), 40)


def test_rounding_to_bf16_is_that_of_torch() -> None:
    values = np.random.default_rng(5).standard_normal(20_000).astype(np.float32)
    ties = (np.arange(1 << 12, dtype=np.uint32) << 15).view(np.float32)
    for numbers in (values, ties, -values):
        theirs = torch.from_numpy(numbers.copy()).to(torch.bfloat16)
        assert np.array_equal(to_bf16(numbers), theirs.view(torch.uint16).numpy())
        assert np.array_equal(from_bf16(to_bf16(numbers)), theirs.float().numpy())


def test_a_tensor_depends_on_its_name_alone() -> None:
    first = draw("model.layers.0.mlp.up_proj.weight", (64, 128))
    assert np.array_equal(first, draw("model.layers.0.mlp.up_proj.weight", (64, 128)))
    assert not np.array_equal(first, draw("model.layers.1.mlp.up_proj.weight", (64, 128)))


def test_exponents_are_as_skewed_as_those_of_trained_weights(inputs: Inputs) -> None:
    assert 2.5 < inputs.entropy < 2.9
    assert exponent_entropy([np.zeros(10, np.uint16)]) == 0


def test_noise_has_the_strength_it_is_asked_for() -> None:
    base = draw("a.layers.weight", (512, 512))
    moved = from_bf16(nudge("a.layers.weight", base, 0.03)) - from_bf16(base)
    assert 0.028 < moved.std() / from_bf16(base).std() < 0.032


def test_the_fine_tune_moves_its_share_and_resharding_moves_nothing(inputs: Inputs) -> None:
    base, tuned = load_file(inputs.base_file), load_file(inputs.fine_tune_file)
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert moved == set(inputs.changed)
    share = sum(base[name].nbytes for name in moved) / sum(tensor.nbytes for tensor in base.values())
    assert 0.28 < share <= 0.30
    assert share == inputs.share
    shards = sorted(inputs.directory("re-sharded").iterdir())
    again = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert len(shards) == 3
    assert again.keys() == tuned.keys()
    assert all(torch.equal(again[name], tuned[name]) for name in tuned)
    assert {name: inputs.size(name) for name in SETS} == {
        name: sum(file.stat().st_size for file in inputs.directory(name).iterdir()) for name in SETS
    }


def rows(inputs: Inputs, *, csf: float, peer: float) -> list[Row]:
    """Rows as one round would leave them: seconds of a durable put of ours, and of a peer's."""
    tools: list[Tool] = [Csf(), CsfLibrary(), CsfDelta(), Restic(), LibraryPeer(Path("venv"), "zipnn", "none.py")]
    made = [Row(tool) for tool in tools]
    for row, seconds in zip(made, (csf, csf, csf, peer, peer), strict=True):
        row.stored = {name: inputs.size(name) // 4 for name in SETS}
        row.seconds |= {"put base": [seconds], "flush base": [0.0], "put known": [seconds / 4], "flush known": [0.0]}
    return made


def test_targets_are_judged_by_the_run(inputs: Inputs) -> None:
    def verdicts(csf: float, peer: float) -> dict[str, bool | None]:
        found = targets(Results(inputs, rows(inputs, csf=csf, peer=peer), [], [], []))
        return {target.promise: target.met for target in found}

    fast, slow = verdicts(1.0, 3.5), verdicts(1.0, 2.5)
    durable = next(promise for promise in fast if promise.startswith("durable put"))
    assert fast[durable] is True
    assert slow[durable] is False
    assert fast["stored/logical without delta ≤ 0.290"] is True
    assert next(met for promise, met in fast.items() if "get to memory" in promise) is None
    assert "not measured" in checklist(targets(Results(inputs, rows(inputs, csf=1, peer=1), [], [], [])))


def test_a_peer_that_is_not_there_keeps_its_row(inputs: Inputs, tmp_path: Path) -> None:
    missing = {"restic": Peer("restic", "", "not installed (package restic)")}
    made = measure([Restic()], missing, inputs, tmp_path, rounds=1, say=lambda _: None)
    assert made[0].problem == "not installed (package restic)"
    for table in (sizes(made, inputs, missing), puts(made, inputs, missing)):
        assert "| restic |" in table
        assert "not installed" in table


class Forgetful(Csf):
    """Gives back something else."""

    def get(self, place: Place, name: str) -> float:
        (place.out / "model.safetensors").write_bytes(b"something else")
        return 1.0

    def put(self, place: Place, name: str, source: Path) -> float:
        return 1.0

    def start(self, place: Place) -> None:
        pass


class Broken(Forgetful):
    """Fails with a message."""

    def start(self, place: Place) -> None:
        place.run("sh", "-c", "echo no | tr n N; exit 3")


def test_wrong_bytes_and_failures_are_reported_in_the_row(inputs: Inputs, tmp_path: Path) -> None:
    made = measure([Forgetful(), Broken()], {}, inputs, tmp_path, rounds=2, say=lambda _: None)
    assert "other bytes" in made[0].problem
    assert "exited with 3: No" in made[1].problem
    with pytest.raises(ToolFailedError):
        Place(tmp_path).run("false")


def test_writing_replaces_only_what_is_between_the_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme, plot = tmp_path / "README.md", tmp_path / "plot.svg"
    monkeypatch.setattr(run, "README", readme)
    monkeypatch.setattr(run, "PLOT", plot)
    readme.write_text("# Benches\n")
    run.write("first", "<svg/>")
    assert readme.read_text() == f"# Benches\n\n## Storage\n\n{run.BEGIN}\nfirst\n{run.END}\n"
    readme.write_text(readme.read_text() + "\n## After\n")
    run.write("second", "")
    assert readme.read_text() == f"# Benches\n\n## Storage\n\n{run.BEGIN}\nsecond\n{run.END}\n\n## After\n"
    assert plot.read_text() == "<svg/>"
