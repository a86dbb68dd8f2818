"""``kill -9`` in the middle of a put: what was acknowledged is there, and the archive opens by itself.

Each round puts 50 files, reads a seeded number of acknowledgements, waits a seeded number of microseconds, and kills.
All rounds share one archive, so that every round also starts from what the kill before it left behind.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from csf_store import Archive, Digest

ROUNDS = 50
FILES = 50
SEED = 20240607


def _make_files(directory: Path, random_: random.Random, round_number: int) -> list[Path]:
    directory.mkdir()
    paths = []
    for number in range(FILES):
        path = directory / f"file-{number:02}.bin"
        path.write_bytes(b"round %d file %d " % (round_number, number) + random_.randbytes(random_.randrange(3000)))
        paths.append(path)
    return paths


def _put_and_kill(archive: Path, target: list[Path], lines: int, microseconds: int) -> list[dict[str, object]]:
    """Starts a put, kills it after so many lines and microseconds; returns every line it managed to print."""
    command = [sys.executable, "-m", "csf_store.cli", "--archive", str(archive), "put", "--json", *map(str, target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        printed = b"".join(process.stdout.readline() for _ in range(lines))
        deadline = time.perf_counter_ns() + microseconds * 1000
        while time.perf_counter_ns() < deadline:
            pass
        os.kill(process.pid, signal.SIGKILL)
        printed += process.stdout.read()
    complete = printed[: printed.rfind(b"\n") + 1]  # a line cut by the kill acknowledges nothing
    return [json.loads(line) for line in complete.splitlines()]


def test_everything_acknowledged_survives_50_kills(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    archive = tmp_path / "archive"
    between = 0
    acknowledged: dict[Digest, bytes] = {}
    for round_number in range(ROUNDS):
        directory = tmp_path / f"round-{round_number}"
        files = _make_files(directory, random_, round_number)
        target = [directory] if round_number % 2 else files  # a tree and single files take different ways
        lines = _put_and_kill(archive, target, random_.randrange(1, FILES - 2), random_.randrange(2000))
        total = FILES + (target == [directory])
        between += 1 <= len(lines) < total
        for line in lines:
            if line["kind"] == "blob":
                acknowledged[Digest.parse(str(line["digest"]))] = Path(str(line["path"])).read_bytes()
        with Archive.open(archive) as opened:
            for digest, content in acknowledged.items():
                assert opened.get_bytes(digest) == content
            assert opened.verify().findings == ()
    assert between >= 40
    assert len(acknowledged) > ROUNDS * 5

    last = tmp_path / "last"
    files = _make_files(last, random_, ROUNDS)
    with Archive.open(archive) as opened:
        tree = opened.put_tree(last)
        opened.get_tree(tree.digest, tmp_path / "out")
        assert opened.verify(deep=True).findings == ()
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in files)


def test_a_kill_before_the_first_line_leaves_an_archive_that_opens(tmp_path: Path) -> None:
    random_ = random.Random(SEED + 1)
    files = _make_files(tmp_path / "files", random_, 0)
    for delay in (20_000, 60_000, 100_000, 140_000):
        _put_and_kill(tmp_path / "archive", files, 0, delay)
        with Archive.open(tmp_path / "archive", create=True) as archive:
            assert archive.verify().findings == ()
    with Archive.open(tmp_path / "archive") as archive:
        stored = archive.put_file(files[0])
        assert archive.get_bytes(stored.digest) == files[0].read_bytes()
