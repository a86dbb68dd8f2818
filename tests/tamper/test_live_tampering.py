"""A weight changed in a running process is caught by whoever asks it, and the tensor is named."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from live import LIVE, SCHEMES, Process, archive_with_adapters, process

from csf_store import Archive
from keystone.recomputing import Recomputation
from manifests import Attestation, LiveWeights, ServerAnswer


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive_with_adapters(tmp_path_factory.mktemp("live") / "archive") as opened:
        yield opened


@pytest.fixture(scope="module", params=SCHEMES)
def running(request: pytest.FixtureRequest, archive: Archive) -> Process:
    return process(archive, request.param, answered=True)


CLAIMED = ["training", "tripwire", "approvals"]
"""What nobody proved of the adapter in this archive; it is not about the running process."""


def told(running: Process) -> list[str]:
    return [alarm for alarm in running.alarms() if alarm.split(" ", 1)[0] not in CLAIMED]


def test_without_looking_at_the_live_tensors_nothing_shows(running: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken out once: a server that answers what the auditor expects, which is what a hostile one would do."""
    name = "a-bit-of-a-base-weight-in-a-running-process"
    with LIVE[name](running):
        assert told(running)
        monkeypatch.setattr("live.InProcess.attest", lambda _, __, nonce: right(running, nonce))
        assert told(running) == []


def right(running: Process, nonce: str) -> ServerAnswer:
    loaded = running.loaded
    with Archive.open(running.auditor._context.archive.path) as archive:
        expected = Recomputation()(archive, loaded.manifest, loaded.recipe.digest, nonce)
    assert isinstance(expected, LiveWeights)
    answer = Attestation(
        assembly=loaded.manifest.assembly.digest,
        recipe=loaded.recipe.digest,
        nonce=nonce,
        value=expected.value,
        tensors=len(expected.tensors),
        device="cpu",
        libraries={},
    )
    return ServerAnswer(str(loaded.digest), answer.to_bytes())


@pytest.mark.parametrize("name", sorted(LIVE))
def test_a_change_in_a_running_process_is_caught_and_named(running: Process, name: str) -> None:
    running.rng = random.Random(f"{name} 1")
    with LIVE[name](running) as says:
        alarms = told(running)
        assert len(alarms) == 1 and re.search(says, alarms[0]), (says, alarms)
        assert running.drifted(), "what the loader kept shows it, too"
    assert told(running) == [] and running.drifted() == {}
