"""The ledger: lines that follow each other by hash, one lock, and a tail that a crash may cut."""

import hashlib
import json
import multiprocessing
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from csf_store import ConflictError, CorruptError, Digest, InvalidInputError, Ledger, NotFoundError, StorageError
from csf_store.digest import Buffer
from csf_store.durable import OsFileSystem
from csf_store.ledger.merkle import EMPTY_ROOT, Frontier, leaf_hash, node_hash

ARCHIVE = bytes(16)
D1, D2 = Digest.of(b"1"), Digest.of(b"2")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return _open(tmp_path)


def _open(directory: Path) -> Ledger:
    return Ledger(OsFileSystem(), directory, ARCHIVE)


def _lines(directory: Path) -> list[bytes]:
    return (directory / "ledger.jsonl").read_bytes().splitlines()


def _plain_root(leaves: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, word for word: split at the largest power of two below n."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + _plain_root(leaves[:split]) + _plain_root(leaves[split:])).digest()


def test_the_frontier_equals_the_definition() -> None:
    leaves = [hashlib.sha256(b"\0%d" % number).digest() for number in range(70)]
    tree = Frontier()
    assert tree.root() == EMPTY_ROOT
    for number, leaf in enumerate(leaves, 1):
        tree.add(leaf)
        assert tree.root() == _plain_root(leaves[:number])
    assert node_hash(b"a", b"b") == hashlib.sha256(b"\1ab").digest()


def test_lines_are_canonical_and_chained(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append("note", text="é\n", number=3, nested={"b": [1, None], "a": True})
    ledger.append("note", text="second")
    lines = _lines(tmp_path)
    documents = [json.loads(line) for line in lines]
    assert [document["event"] for document in documents] == ["archive.created", "note", "note"]
    assert [document["seq"] for document in documents] == [0, 1, 2]
    previous = "00" * 32
    for line, document in zip(lines, documents, strict=True):
        assert document["prev"] == previous
        previous = hashlib.sha256(b"\0" + line).hexdigest()
        assert list(document) == sorted(document)
    assert ledger.root() == _plain_root([leaf_hash(line) for line in lines])
    assert [entry.time for entry in ledger.entries()] == sorted(document["time"] for document in documents)
    assert [entry.seq for entry in ledger.entries(1)] == [1, 2]
    assert ledger.entry(1).fields == {"text": "é\n", "number": 3, "nested": {"b": [1, None], "a": True}}
    with pytest.raises(NotFoundError):
        ledger.entry(3)


def test_pins_and_refs_are_what_the_events_add_up_to(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append("pin", digest=str(D1), kind="blob", name="a")
    ledger.append("pin", digest=str(D1), kind="blob", name="b")
    ledger.append("pin", digest=str(D2), kind="tree", name=None)
    ledger.append("unpin", digest=str(D1))
    ledger.append("ref.set", ref="prod", **{"from": None, "to": str(D1)})
    ledger.append("ref.set", ref="prod", reason="worse", **{"from": str(D1), "to": None})
    for each in (ledger, _open(tmp_path)):
        assert [(pin.digest, pin.kind, pin.name) for pin in each.pins()] == [(D2, "tree", None)]
        assert each.is_pinned(D2, "tree", None)
        assert not each.is_pinned(D1, "blob", "a")
        assert [move.target for move in each.refs()["prod"]] == [D1, None]
        assert each.refs()["prod"][1].fields["reason"] == "worse"


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("", {}),
        ("x", {"seq": 1}),
        ("x", {"prev": "1"}),
        ("x", {"number": 1 << 60}),
        ("x", {"number": float("nan")}),
        ("x", {"number": 2.0**53}),
        ("x", {"text": "\ud800"}),
        ("x", {"text": "y" * (1 << 20)}),
        ("pin", {"digest": "nonsense", "kind": "blob", "name": None}),
        ("pin", {"digest": str(D1), "name": None}),
        ("unpin", {}),
        ("ref.set", {"ref": "", "from": None, "to": None}),
        ("ref.set", {"ref": "r", "to": None}),
        ("ref.set", {"ref": "r", "from": None, "to": "prod"}),
    ],
)
def test_events_that_can_not_be_written(ledger: Ledger, tmp_path: Path, event: str, fields: dict[str, object]) -> None:
    ledger.append("first")
    before = _lines(tmp_path)
    with pytest.raises(InvalidInputError):
        ledger.append(event, **fields)
    assert _lines(tmp_path) == before
    ledger.append("after")
    assert _open(tmp_path).size == 3


def test_a_transaction_sees_its_drafts_and_writes_all_or_none(ledger: Ledger, tmp_path: Path) -> None:
    with ledger.locked() as transaction:
        transaction.append("ref.set", ref="r", **{"from": None, "to": str(D1)})
        assert transaction.refs()["r"][-1].target == D1
        assert transaction.size == 2
        assert not (tmp_path / "ledger.jsonl").exists()
        with pytest.raises(ConflictError):
            ledger.append("inside")
    with pytest.raises(RuntimeError, match="changed my mind"), ledger.locked() as transaction:
        transaction.append("ref.set", ref="r", **{"from": str(D1), "to": str(D2)})
        raise RuntimeError("changed my mind")
    assert ledger.refs()["r"][-1].target == D1
    assert ledger.size == _open(tmp_path).size == 2


def test_a_transaction_reads_its_own_lines_and_ends_with_its_block(ledger: Ledger) -> None:
    ledger.append("first")
    with ledger.locked() as transaction:
        transaction.append("pin", digest=str(D1), kind="blob", name="a")
        transaction.append("second", text="draft")
        assert [entry.event for entry in ledger.entries()] == ["archive.created", "first", "pin", "second"]
        assert [entry.seq for entry in ledger.entries(3)] == [3]
        assert ledger.entry(3).fields == {"text": "draft"}
        assert ledger.inclusion_proof(3).holds()
        assert ledger.consistency_proof(2).holds()
        assert transaction.has_pin(D1)
        assert not transaction.has_pin(D2)
    with pytest.raises(ConflictError, match="not locked any more"):
        transaction.append("too late")
    assert ledger.size == 4


def test_a_transaction_of_thousands_of_lines(ledger: Ledger, tmp_path: Path) -> None:
    with ledger.locked() as transaction:
        for number in range(3000):
            transaction.append("note", number=number)
    assert _open(tmp_path).size == 3001
    assert [entry.fields["number"] for entry in _open(tmp_path).entries(1)] == list(range(3000))


class TestAltered:
    @pytest.fixture
    def directory(self, ledger: Ledger, tmp_path: Path) -> Path:
        for number in range(6):
            ledger.append("note", number=number)
        return tmp_path

    def test_every_byte_of_every_line_but_the_last(self, directory: Path) -> None:
        path = directory / "ledger.jsonl"
        content = path.read_bytes()
        lines = content.splitlines(keepends=True)
        start = 0
        for number, line in enumerate(lines[:-1]):
            for offset in range(start, start + len(line), 7):
                changed = bytearray(content)
                changed[offset] ^= 1
                path.write_bytes(changed)
                with pytest.raises(CorruptError, match=f"line {number}"):
                    _open(directory).root()
            start += len(line)

    @pytest.mark.parametrize("number", [0, 1, 3])
    def test_a_line_removed_inserted_or_swapped(self, directory: Path, number: int) -> None:
        path = directory / "ledger.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        removed = lines[:number] + lines[number + 1 :]
        doubled = lines[: number + 1] + lines[number:]
        swapped = [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]]
        for wrong in (removed, doubled, swapped):
            path.write_bytes(b"".join(wrong))
            with pytest.raises(CorruptError, match="altered"):
                _open(directory).pins()

    def test_lines_cut_off_under_an_open_ledger(self, directory: Path) -> None:
        ledger = _open(directory)
        assert ledger.size == 7
        path = directory / "ledger.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
        with pytest.raises(CorruptError, match="shorter"):
            _ = ledger.size
        path.unlink()
        with pytest.raises(CorruptError, match="vanished"):
            _ = ledger.size

    def test_time_may_not_go_back(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        late = datetime(2999, 1, 1, tzinfo=UTC)
        with monkeypatch.context() as patched:
            patched.setattr("csf_store.ledger.ledger.datetime", SimpleNamespace(now=late.astimezone))
            assert _open(directory).append("the clock is wrong").time == "2999-01-01T00:00:00.000000Z"
        assert _open(directory).append("the clock was set right").time == "2999-01-01T00:00:00.000000Z"
        assert [entry.seq for entry in _open(directory).entries()] == list(range(9))


class TestTorn:
    def test_every_cut_of_the_last_line(self, ledger: Ledger, tmp_path: Path) -> None:
        path = tmp_path / "ledger.jsonl"
        ledger.append("kept")
        kept = path.read_bytes()
        ledger.append("last", text="it was cut short")
        whole = path.read_bytes()
        for cut in range(len(kept) + 1, len(whole)):
            for aside in tmp_path.glob("ledger.torn-*"):
                aside.unlink()
            path.write_bytes(whole[:cut])
            assert _open(tmp_path).size == 2  # readers do not count it and do not touch it
            assert path.read_bytes() == whole[:cut]
            after = _open(tmp_path)
            after.append("after")
            aside = [each.read_bytes() for each in tmp_path.glob("ledger.torn-*")]
            events = [entry.event for entry in _open(tmp_path).entries()]
            if cut == len(whole) - 1:  # only its newline was missing: it is completed, not dropped
                assert (events, aside) == (["archive.created", "kept", "last", "after"], [])
            else:
                assert (events, aside) == (["archive.created", "kept", "after"], [whole[len(kept) : cut]])


class _FullDisk(OsFileSystem):
    """Writes a little, then fails."""

    def __init__(self) -> None:
        self.left: int | None = None

    def write(self, fd: int, parts: list[Buffer]) -> int:
        if self.left is None:
            return super().write(fd, parts)
        if self.left == 0:
            raise OSError(28, "No space left on device")
        part = bytes(parts[0])[: self.left]
        self.left -= len(part)
        return super().write(fd, [part])


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    disk = _FullDisk()
    ledger = Ledger(disk, tmp_path, ARCHIVE)
    ledger.append("kept")
    before = (tmp_path / "ledger.jsonl").read_bytes()
    for left in (0, 1, 40):
        disk.left = left
        with pytest.raises(StorageError, match="free some space"):
            ledger.append("lost")
        assert (tmp_path / "ledger.jsonl").read_bytes() == before
    disk.left = None
    assert ledger.append("after").seq == 2


def _append_many(directory: Path, name: str) -> None:
    ledger = _open(directory)
    for number in range(25):
        with ledger.locked() as transaction:
            size = transaction.size
            entry = transaction.append("count", writer=name, number=number, seen=size)
            assert entry.seq == size


def test_processes_append_one_after_the_other(tmp_path: Path) -> None:
    _open(tmp_path).append("first")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(tmp_path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    entries = list(_open(tmp_path).entries(2))
    assert len(entries) == 50
    assert all(entry.fields["seen"] == entry.seq for entry in entries)
    for name in "ab":
        assert [entry.fields["number"] for entry in entries if entry.fields["writer"] == name] == list(range(25))


def test_the_lock_keeps_others_out_until_the_lines_are_written(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append("first")
    other = threading.Thread(target=_open(tmp_path).append, args=("other",))
    with ledger.locked() as transaction:
        other.start()
        other.join(timeout=0.3)
        assert other.is_alive()
        transaction.append("mine")
    other.join()
    assert [entry.event for entry in ledger.entries()] == ["archive.created", "first", "mine", "other"]
