"""Each rule of the write order, taken out: the tour of ``test_csf_power_loss`` must notice.

The disk is made deaf to one kind of sync, or a step is skipped or swapped with another. Were one of these tests to find
nothing, the tour would prove nothing about that rule.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_disk import CrashDisk, Killed, Op, Sync, SyncNames
from power_loss import Client, Content, survey
from test_csf_power_loss import BIG, LyingDevice, content_of, directory, put_files, safetensors

from csf_store import Digest, StorageError, intake
from csf_store.durable import FileStat, FileSystem
from csf_store.intake import Intake
from csf_store.ledger.file import LedgerFile
from csf_store.recovery import Scan, scan
from csf_store.segment import SegmentWriter
from csf_store.store import Store
from csf_store.upkeep.rewrite import Rewriter

pytestmark = pytest.mark.usefixtures("one_thread")

Deaf = Callable[[Op, Path], bool]


def deaf_to_file(ending: str) -> Deaf:
    return lambda op, path: isinstance(op, Sync) and path.name.endswith(ending)


def deaf_to_names_in(name: str) -> Deaf:
    return lambda op, path: isinstance(op, SyncNames) and path.name == name


def complaints(
    disk: CrashDisk, scratch: Path, outputs: dict[str, Content] | None = None, last: bool = False
) -> Iterator[str]:
    """What the tour complains of; with ``last``, of the last moment only."""
    end = len(disk.journal)
    yield from (
        failure.what
        for failure in survey(disk, scratch, outputs=outputs, moments=range(end, end + 1) if last else None)
    )


def bites(complaints: Iterator[str], expected: str) -> bool:
    return any(re.search(expected, each) for each in complaints)


SYNCS: dict[str, tuple[Deaf, str]] = {
    "a segment's bytes": (deaf_to_file(".csfs"), "is gone"),
    "a segment's name": (deaf_to_names_in("segments"), "is gone"),
    "the names in the archive": (deaf_to_names_in("archive"), "is not a CSF archive"),
    "the archive's own name": (deaf_to_names_in("kept"), "is not a CSF archive"),
    "the marker's bytes": (deaf_to_file(".tmp"), r"csf\.json"),
    "a ledger line": (deaf_to_file("ledger.jsonl"), "the ledger lost a line"),
}


@pytest.mark.parametrize("rule", SYNCS)
def test_a_sync_left_out(scratch: Path, rule: str) -> None:
    deaf, expected = SYNCS[rule]
    disk = CrashDisk(scratch / "live")
    with Client(disk, disk.process(deaf=deaf)) as client:
        client.pin(client.put(BIG), "x")
    assert bites(complaints(disk, scratch), expected)


OUTPUTS: dict[str, tuple[Deaf, str]] = {
    "the bytes of a file that was got": (deaf_to_file(".tmp"), "file is neither whole nor absent"),
    "the bytes in a tree that was got": (deaf_to_file("config.json"), "tree holds"),
    "the names in a tree that was got": (lambda op, path: ".tree." in str(path) and path.name == "deep", "tree holds"),
    "the names of what was got": (deaf_to_names_in("live"), "was got and is gone"),
}


@pytest.mark.parametrize("rule", OUTPUTS)
def test_a_sync_of_an_output_left_out(scratch: Path, rule: str) -> None:
    deaf, expected = OUTPUTS[rule]
    disk = CrashDisk(scratch / "live")
    source = directory(scratch)
    with Client(disk, disk.process(deaf=deaf)) as client:
        tree = client.put_tree(source)
        big = client.put(BIG)
        client.get_file(big, "file")
        client.get_tree(tree, "tree")
    assert bites(complaints(disk, scratch, {"file": BIG, "tree": content_of(source)}), expected)


COLLECTING: dict[str, tuple[Deaf, str]] = {
    "the bytes of what is kept": (deaf_to_file(".csfs.part"), "is gone|damaged|no record"),
    "the bytes of the note": (deaf_to_file("collecting.json.new"), "collecting.json is damaged"),
}


@pytest.mark.parametrize("rule", COLLECTING)
def test_a_sync_of_a_collection_left_out(scratch: Path, rule: str) -> None:
    deaf, expected = COLLECTING[rule]
    disk = CrashDisk(scratch / "live")
    with Client(disk, disk.process(deaf=deaf), seal_at=900) as client:
        client.pin(client.put(safetensors(1)), "kept")
        client.collect(client.put(safetensors(2)))
    assert bites(complaints(disk, scratch), expected)


def test_the_names_of_what_is_kept_left_out(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Rewriter.publish

    def hasty(rewriter: Rewriter) -> tuple[str, ...]:
        rewriter._fs = _Without(rewriter._fs, "fsync_directory")  # type: ignore[assignment]
        return publish(rewriter)

    monkeypatch.setattr(Rewriter, "publish", hasty)
    disk = CrashDisk(scratch / "live")
    with Client(disk, seal_at=900) as client:
        client.pin(client.put(safetensors(1)), "kept")
        client.collect(client.put(safetensors(2)))
    assert bites(complaints(disk, scratch), "No such file|is gone|damaged")


def test_the_index_before_the_bytes(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, sync = Store.commit, SegmentWriter.sync

    def too_early(store: Store) -> None:
        writer = store._writer
        with monkeypatch.context() as patch:
            patch.setattr(SegmentWriter, "sync", unsynced)
            commit(store)
        if writer is not None and not writer.closed:
            sync(writer)

    def unsynced(writer: SegmentWriter) -> FileStat:
        return writer._fs.stat(writer._fd)

    monkeypatch.setattr(Store, "commit", too_early)
    disk = CrashDisk(scratch / "live")
    put_files(disk, scratch, 1 << 20)
    monkeypatch.undo()
    assert bites(complaints(disk, scratch), "was there once and is gone|damaged")


def test_the_ledger_before_the_object(scratch: Path) -> None:
    disk = CrashDisk(scratch / "live")
    with Client(disk) as client:
        content = safetensors(1)
        client.archive.ledger.append("pin", digest=str(Digest.of(content)), kind="blob", name="x")
        client.put(content)
    assert bites(complaints(disk, scratch), "is needed and is in no segment")


def test_the_footer_before_what_it_lists(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal, sync = SegmentWriter.seal, SegmentWriter.sync

    def hasty(writer: SegmentWriter) -> FileStat:
        def not_yet() -> FileStat:
            del writer.sync
            return writer._fs.stat(writer._fd)

        writer.sync = not_yet  # type: ignore[method-assign]
        return seal(writer)

    monkeypatch.setattr(SegmentWriter, "seal", hasty)
    disk = CrashDisk(scratch / "live")
    put_files(disk, scratch, 700)
    monkeypatch.undo()
    assert SegmentWriter.sync is sync
    assert bites(complaints(disk, scratch), "there is no record here|the stored bytes are damaged")


@pytest.mark.parametrize("left_out", [False, True])
def test_the_first_ledger_line_without_the_ledgers_name(scratch: Path, left_out: bool) -> None:
    disk = CrashDisk(scratch / "live")

    def deaf(op: Op, path: Path) -> bool:
        return left_out and isinstance(op, SyncNames) and (path / "ledger.jsonl").exists()

    with Client(disk, disk.process(deaf=deaf)) as client:
        client.move("prod", None, Digest.of(b""))
    assert bites(complaints(disk, scratch, last=True), "the ledger lost a line") == left_out


class _Without:
    """A file system of which some calls do nothing."""

    def __init__(self, fs: FileSystem, *calls: str) -> None:
        self._fs = fs
        self._calls = calls

    def __getattr__(self, name: str) -> object:
        return (lambda *_: None) if name in self._calls else getattr(self._fs, name)


def _killed_before(disk: CrashDisk, kind: type[Op], path: str) -> None:
    """Puts and pins, and dies when it is about to sync something for the first time."""
    content = safetensors(1)
    fs = disk.process()

    def dies(op: Op, at: Path) -> bool:
        if isinstance(op, kind) and at.name.endswith(path):
            fs.die()
            raise Killed
        return False

    fs._deaf = dies
    with pytest.raises(Killed), Client(disk, fs) as client:
        client.pin(client.put(content), "x")


@pytest.mark.parametrize(
    ("kind", "path", "call"), [(Sync, ".csfs", "fsync"), (SyncNames, "segments", "fsync_directory")]
)
def test_taking_in_what_another_wrote_without_syncing_it(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Op], path: str, call: str
) -> None:
    disk = CrashDisk(scratch / "live")
    with Client(disk):
        pass
    _killed_before(disk, kind, path)
    begin = Intake.__init__

    def careless(self: Intake, fs: FileSystem, *rest: object) -> None:
        begin(self, _Without(fs, call), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Intake, "__init__", careless)
    with Client(disk) as client:
        client.put(safetensors(1))
    monkeypatch.undo()
    assert bites(complaints(disk, scratch, last=True), "is gone")


def test_relying_on_a_ledger_line_of_another_without_syncing_it(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = CrashDisk(scratch / "live")
    with Client(disk) as client:
        client.put(safetensors(1))
    _killed_before(disk, Sync, "ledger.jsonl")
    monkeypatch.setattr(LedgerFile, "sync", lambda *_, **__: None)
    with Client(disk) as client:
        client.pin(client.put(safetensors(1)), "x")
    monkeypatch.undo()
    assert bites(complaints(disk, scratch, last=True), "the ledger lost a line")


def test_taking_in_objects_without_their_chunks(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = CrashDisk(scratch / "live")
    put_files(disk, scratch, 1 << 20)
    monkeypatch.setattr(Intake, "_has_all", lambda *_: True)
    assert bites(complaints(disk, scratch), "is in no segment")


def test_taking_in_a_segment_whose_header_is_not_there(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = CrashDisk(scratch / "live")
    put_files(disk, scratch, 1 << 20)
    monkeypatch.setattr(intake, "segment_header_is_torn", lambda *_: False)
    assert bites(complaints(disk, scratch), "the segment header is damaged")


def test_writing_on_behind_a_gap(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = CrashDisk(scratch / "live")
    put_files(disk, scratch, 1 << 20)

    def blind(fs: FileSystem, fd: int, segment_id: bytes, start: int, size: int) -> Scan:
        return scan(fs, fd, segment_id, start, size)._replace(gaps=[])

    monkeypatch.setattr(intake, "scan", blind)
    assert bites(complaints(disk, scratch), "there is no record here|damaged")


def test_going_on_in_a_segment_whose_sync_failed(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandon = Store._abandon

    def forgetful(store: Store) -> None:
        abandon(store)
        store._distrusted.clear()

    monkeypatch.setattr(Store, "_abandon", forgetful)
    disk = CrashDisk(scratch / "live")
    fs = LyingDevice(disk, None)
    with Client(disk, fs) as client:
        client.put(b"goes well")
        fs.fail_at = fs.calls
        with pytest.raises(StorageError):
            client.put(safetensors(1))
        client.put(safetensors(1))
    assert bites(complaints(disk, scratch, last=True), "is gone")
