"""A weight changed in a running process is caught by whoever asks it, and the tensor is named."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from live import LIVE, SCHEMES, Process, archive_with_adapters, process

from csf_store import Archive


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


@pytest.mark.parametrize("name", sorted(LIVE))
def test_a_change_in_a_running_process_is_caught_and_named(running: Process, name: str) -> None:
    running.rng = random.Random(f"{name} 1")
    with LIVE[name](running) as says:
        alarms = told(running)
        assert len(alarms) == 1 and re.search(says, alarms[0]), (says, alarms)
        assert running.drifted(), "what the loader kept shows it, too"
    assert told(running) == [] and running.drifted() == {}
