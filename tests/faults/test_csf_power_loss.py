"""The power fails at every moment of everything the archive does: what was acknowledged is there, and life goes on."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_disk import Blocked, CrashDisk, CrashFileSystem, Killed
from crash_states import History
from power_loss import THOROUGH, Client, Content, Failure, Hurt, survey

from csf_store import Kind, StorageError

pytestmark = pytest.mark.usefixtures("one_thread")

BIG = random.Random(1).randbytes(70_000)
"""More than an object record holds itself, so it has a chunk."""


def safetensors(seed: int) -> bytes:
    """Four chunks: a header and three tensors."""
    sizes = {"a": 600, "b": 2400, "c": 90}
    header, at = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(at)


def directory(scratch: Path) -> Path:
    """Files of all sorts: two alike, one empty, one in a directory."""
    path = scratch / "source"
    if not path.exists():
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "empty").touch()
        (path / "config.json").write_text('{"hidden":256}')
        (path / "same.json").write_text('{"hidden":256}')
        (path / "model.safetensors").write_bytes(safetensors(3))
    return path


def content_of(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def few(failures: list[Failure]) -> str:
    """What to print of many failures."""
    return f"{len(failures)} states:\n" + "\n".join(map(str, failures[:8]))


def put_files(disk: CrashDisk, scratch: Path, seal_at: int) -> None:
    with Client(disk, seal_at=seal_at) as client:
        for content in (b"small" * 40, safetensors(1), BIG, b"", b"small" * 40):
            client.put(content)


def put_and_pin(disk: CrashDisk, scratch: Path, seal_at: int) -> None:
    with Client(disk, seal_at=seal_at) as client:
        first = client.put(b"first")
        client.pin(first, "a")
        client.pin(first, None)
        second = client.put(safetensors(2))
        manifest = client.put(b"a manifest", kind=Kind.MANIFEST, links=(first, second))
        client.move("prod", None, manifest)
        client.unpin(first)
        client.pin(first, "again")
        client.move("prod", manifest, manifest)


def put_trees(disk: CrashDisk, scratch: Path, seal_at: int) -> None:
    with Client(disk, seal_at=seal_at) as client:
        tree = client.put_tree(directory(scratch))
        client.pin(tree, "tree", kind=Kind.TREE)
        client.put(safetensors(3))


def reopen(disk: CrashDisk, scratch: Path, seal_at: int) -> None:
    for number in range(3):
        with Client(disk, seal_at=seal_at) as client:
            client.pin(client.put(b"opened %d times" % number), "x")


def two_writers(disk: CrashDisk, scratch: Path, seal_at: int) -> None:
    with Client(disk, seal_at=seal_at) as one, Client(disk, seal_at=seal_at) as two:
        shared = one.put(b"of both" * 50)
        two.pin(shared, "two")
        for number in range(3):
            one.pin(one.put(b"one %d" % number), "one")
            two.put(safetensors(number))
            two.put(b"one %d" % number)
        two.pin(two.put(b"doc", kind=Kind.MANIFEST, links=(shared,)), "doc", kind=Kind.MANIFEST)


def collect(disk: CrashDisk, scratch: Path, seal_at: int) -> None:
    with Client(disk, seal_at=seal_at) as client:
        kept = client.put(safetensors(1))
        client.pin(kept, "kept")
        gone = [client.put(b"gone %d" % number * 30) for number in range(3)]
        half = safetensors(1)[:-90] + b"." * 90  # shares all but one chunk with what is kept
        gone.append(client.put(half))
        client.pin(gone[0], "for now")
        client.collect(*gone[1:])
        client.unpin(gone[0])
        client.collect(gone[0])
        client.put(half)
        client.pin(client.put(b"gone 1" * 30), "back")


def repair(disk: CrashDisk, scratch: Path, seal_at: int) -> None:
    with Client(disk, seal_at=seal_at) as client:
        client.pin(client.put(safetensors(1)), "sound")
        hurt = client.put(safetensors(2))
        client.pin(client.put(b"sound too" * 30), "sound too")
        client.damage(hurt)
        client.repair()
        client.put(safetensors(2))
        disk.tell(Hurt(now=False))
        client.pin(hurt, "healed")


WORK: dict[str, Callable[[CrashDisk, Path, int], None]] = {
    each.__name__: each for each in (put_files, put_and_pin, put_trees, reopen, two_writers, collect, repair)
}


@pytest.mark.parametrize("seal_at", [1 << 20, 700], ids=["one segment", "many segments"])
@pytest.mark.parametrize("work", WORK)
def test_what_was_acknowledged_survives_at_every_moment(scratch: Path, work: str, seal_at: int) -> None:
    disk = CrashDisk(scratch / "live")
    WORK[work](disk, scratch, seal_at)
    failures = list(survey(disk, scratch, share=0.3))
    assert not failures, few(failures)


def test_an_output_is_whole_or_absent_and_stays_once_it_was_reported(scratch: Path) -> None:
    disk = CrashDisk(scratch / "live")
    source = directory(scratch)
    with Client(disk) as client:
        tree = client.put_tree(source)
        big = client.put(BIG)
        client.get_file(big, "file")
        client.get_file(big, "file", overwrite=True)
        client.get_tree(tree, "tree")
    outputs: dict[str, Content] = {"file": BIG, "tree": content_of(source)}
    failures = list(survey(disk, scratch, outputs=outputs, share=0.5))
    assert not failures, few(failures)


def test_overwriting_shows_the_old_or_the_new(scratch: Path) -> None:
    """Never a mixture. Between the two renames of a directory neither may be there; then both are beside it."""
    disk = CrashDisk(scratch / "live")
    source = directory(scratch)
    with Client(disk) as client:
        old = client.put(b"old" * 99)
        client.get_file(old, "file")
        client.get_tree(client.put_tree(source), "tree")
        begun = len(disk.journal)
        client.get_file(client.put(b"new" * 99), "file", overwrite=True)
        (source / "config.json").write_text("{}")
        client.get_tree(client.put_tree(source), "tree", overwrite=True)
    after = content_of(source)
    before = after | {"config.json": b'{"hidden":256}'}
    history = History(disk)
    seen = set()
    for number, moment in enumerate(disk.moments()):
        if number >= begun:
            for state in history.states(random.Random(number), 3):
                file = state.files.get("file")
                tree = {name[5:]: content for name, content in state.files.items() if name.startswith("tree/")}
                held = {name: content for name, content in tree.items() if content is not None}
                assert file in {b"old" * 99, b"new" * 99}, state.label
                assert held in (before, after, {}), state.label
                seen.add((file, tuple(sorted(held.items()))))
        if moment.op is not None:
            history.take(moment.op)
    assert len(seen) >= 4


@pytest.mark.parametrize("work", ["put_and_pin", "put_trees", "collect", "repair"])
def test_a_process_dies_another_goes_on_then_the_power_fails(scratch: Path, work: str) -> None:
    """What the dead one wrote and did not sync is in the page cache: the next must not take it for durable."""
    full = CrashDisk(scratch / "live")
    WORK[work](full, scratch, 900)
    for kill_at in range(0, len(full.journal), 1 if THOROUGH else 3):
        disk = CrashDisk(scratch / f"live-{kill_at}")
        disk.kill_at = kill_at
        with pytest.raises(Killed):
            WORK[work](disk, scratch, 900)
        begun = len(disk.journal)
        WORK[work](disk, scratch, 900)
        ends = range(begun, len(disk.journal) + 1)
        moments = ends if THOROUGH or kill_at == 27 else range(ends[-1], ends[-1] + 1)
        failures = list(survey(disk, scratch, moments=moments, samples=1, seed=kill_at, share=0.5))
        assert not failures, f"killed at {kill_at}, {few(failures)}"


def test_a_second_process_relies_only_on_what_is_durable(scratch: Path) -> None:
    """It puts the same while the first has written and not yet synced, at every moment of the first."""

    def second(disk: CrashDisk) -> None:
        fs = disk.process()
        try:
            with Client(disk, fs, seal_at=900) as client:
                client.pin(client.put(safetensors(1)), "same")
                client.put(b"shared" * 30)
                client.pin(client.put(b"shared", kind=Kind.RECORD), "same", kind=Kind.RECORD)
        except (Blocked, StorageError):  # it would wait for the lock that the first one holds
            fs.die()

    def first(disk: CrashDisk) -> None:
        with Client(disk, seal_at=900) as client:
            client.put(b"shared" * 30)
            client.pin(client.put(safetensors(1)), "same")
            client.pin(client.put(b"shared", kind=Kind.RECORD), "same", kind=Kind.RECORD)

    alone = CrashDisk(scratch / "live")
    first(alone)
    finished = 0
    for at in range(0, len(alone.journal), 1 if THOROUGH else 2):
        disk = CrashDisk(scratch / f"live-{at}")
        after: list[int] = []

        def meanwhile(disk: CrashDisk = disk, after: list[int] = after) -> None:
            told = len(disk.told)
            second(disk)
            after.append(len(disk.journal))
            nonlocal finished
            finished += len(disk.told) - told >= 5

        disk.interrupt = (at, meanwhile)
        first(disk)
        for moment in (after[0], len(disk.journal)):
            failures = list(survey(disk, scratch, moments=range(moment, moment + 1), samples=1, seed=at))
            assert not failures, f"met at {at}, {few(failures)}"
    assert finished > len(alone.journal) // (2 if THOROUGH else 4)


def test_the_power_fails_again_while_the_archive_recovers(scratch: Path) -> None:
    first = CrashDisk(scratch / "live")
    put_and_pin(first, scratch, 700)
    history = History(first)
    chance = random.Random(5)
    crashes = 0
    for number, moment in enumerate(first.moments()):
        if THOROUGH or number % 6 == 5:
            states = list(history.states(chance, 2))
            state = chance.choice(states[1:] or states)
            disk = CrashDisk(scratch / f"live-{number}")
            disk.adopt(state.files, chance.choice([{}, first.indexes[moment.index]]) if disk_has_archive(state) else {})
            disk.told.extend(first.told[: moment.told])
            begun = len(disk.journal)
            with Client(disk, seal_at=700) as client:
                client.pin(client.put(b"after the first crash"), "x")
            moments = range(begun, len(disk.journal) + 1)
            failures = list(survey(disk, scratch, moments=moments, samples=1, seed=number, share=0.3))
            assert not failures, f"first crash before {number}, {state.label}; {few(failures)}"
            crashes += 1
        if moment.op is not None:
            history.take(moment.op)
    assert crashes >= 8


def disk_has_archive(state: object) -> bool:
    return "kept/archive" in getattr(state, "files", {})


class LyingDevice(CrashFileSystem):
    """An fsync that fails once, and forgets what it was to write."""

    fail_at = -1
    calls = 0

    def fsync(self, fd: int) -> None:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            self.fail_sync(fd)
            raise OSError(5, "Input/output error")
        super().fsync(fd)


def test_after_a_failed_sync_nothing_rests_on_what_it_dropped(scratch: Path) -> None:
    """The system calls dropped pages clean, so that the next fsync succeeds without them."""
    contents = [safetensors(1), b"x" * 300, safetensors(2)]
    failed = 0
    for fail_at in range(40):
        disk = CrashDisk(scratch / f"live-{fail_at}")
        fs = LyingDevice(disk, None)
        fs.fail_at = fail_at
        try:
            with Client(disk, fs, seal_at=900) as client:
                for content in contents * 2:
                    for _ in range(2):
                        try:
                            client.pin(client.put(content), "x")
                        except StorageError:
                            failed += 1
        except StorageError:
            failed += 1
        failures = list(survey(disk, scratch, moments=range(len(disk.journal), len(disk.journal) + 1), samples=2))
        assert not failures, f"sync {fail_at} failed, {few(failures)}"
        if fs.calls <= fail_at:
            break
    assert failed >= 10
