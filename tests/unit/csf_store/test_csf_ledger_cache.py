"""The ledger's cache: as fast as it should be, and harmless whatever it says. The plain reference reads all lines."""

import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csf_store import Archive, ConflictError, CorruptError, Digest, Kind, Ledger
from csf_store.digest import Buffer
from csf_store.durable import FileStat, OsFileSystem
from csf_store.ledger.cache import LedgerCache
from csf_store.ledger.cache_errors import CacheDamagedError, CacheUnwritableError
from csf_store.ledger.file import LedgerFile, LedgerLock
from csf_store.ledger.line import parse_line
from csf_store.ledger.merkle import leaf_hash, nodes_of, root_of
from csf_store.ledger.state import LedgerState

ARCHIVE = bytes(16)
DIGESTS = [Digest.of(b"%d" % number) for number in range(5)]
FILES = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm")


class Watched(OsFileSystem):
    """Counts what is read and synced of the ledger."""

    def __init__(self) -> None:
        self.read = 0
        self.syncs: list[str] = []

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        data = super().pread(fd, length, offset)
        self.read += len(data)
        return data

    def fsync(self, fd: int) -> None:
        self.syncs.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        super().fsync(fd)


def opened(directory: Path, fs: OsFileSystem | None = None) -> Ledger:
    return Ledger(fs or OsFileSystem(), directory, ARCHIVE)


def fill(directory: Path, count: int) -> None:
    """Many events at once, of every type, with moves and unpins among them."""
    ledger = opened(directory)
    with ledger.locked() as transaction:
        for number in range(count):
            digest = str(DIGESTS[number % len(DIGESTS)])
            if number % 7 == 3:
                transaction.append("ref.set", ref=f"r{number % 3}", **{"from": None, "to": digest})
            elif number % 11 == 5:
                transaction.append("unpin", digest=digest)
            elif number % 2:
                transaction.append("note", number=number)
            else:
                transaction.append("pin", digest=digest, kind="blob", name=f"n{number % 3}" if number % 3 else None)
    ledger.close()


def append_behind_its_back(directory: Path, count: int) -> None:
    """Lines written by somebody who keeps no cache."""
    aside = directory / "aside"
    aside.mkdir()
    shutil.copy(directory / "ledger.jsonl", aside)
    other = opened(aside)
    for number in range(count):
        other.append("pin", digest=str(DIGESTS[number % 5]), kind="tree", name=f"behind {number}")
    other.close()
    shutil.copyfile(aside / "ledger.jsonl", directory / "ledger.jsonl")
    shutil.rmtree(aside)


def tell(ledger: Ledger) -> dict[str, object]:
    """Everything a ledger says."""
    return {
        "size": ledger.size,
        "root": ledger.root(),
        "pins": ledger.pins(),
        "refs": dict(ledger.refs()),
        "each ref": {name: ledger.ref(name) for name in ("r0", "r1", "r2")},
        "each digest": [digest for digest in DIGESTS if ledger.has_pin(digest)],
        "pinned": [
            (digest, kind, name)
            for digest in DIGESTS
            for kind in ("blob", "tree")
            for name in (None, "n0", "n1", "n2")
            if ledger.is_pinned(digest, kind, name)
        ],
    }


def truth(directory: Path) -> dict[str, object]:
    """The same from the lines alone."""
    state, leaves = LedgerState(), []
    for line in (directory / "ledger.jsonl").read_bytes().splitlines():
        document = json.loads(line)
        fields = {key: value for key, value in document.items() if key not in ("seq", "time", "prev", "event")}
        state.apply(document["seq"], document["time"], document["event"], fields)
        leaves.append(leaf_hash(line))
    pins = state.pinned()
    return {
        "size": len(leaves),
        "root": root_of(nodes_of(leaves), len(leaves)),
        "pins": pins,
        "refs": {name: tuple(moves) for name, moves in state.refs.items()},
        "each ref": {name: tuple(state.refs.get(name, ())) for name in ("r0", "r1", "r2")},
        "each digest": [digest for digest in DIGESTS if any(pin.digest == digest for pin in pins)],
        "pinned": [
            (digest, kind, name)
            for digest in DIGESTS
            for kind in ("blob", "tree")
            for name in (None, "n0", "n1", "n2")
            if any((pin.digest, pin.kind, pin.name) == (digest, kind, name) for pin in pins)
        ],
    }


def forget(directory: Path) -> None:
    for name in FILES:
        (directory / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def lengths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short ledger and a long one."""
    made = tmp_path_factory.mktemp("lengths")
    for count in (20, 3000):
        (made / str(count)).mkdir()
        fill(made / str(count), count)
    return made


class TestFlat:
    @pytest.fixture
    def read(self, lengths: Path) -> Callable[[int, Callable[[Ledger], object]], int]:
        def measure(count: int, action: Callable[[Ledger], object]) -> int:
            fs = Watched()
            ledger = opened(lengths / str(count), fs)
            action(ledger)
            ledger.close()
            return fs.read

        return measure

    @pytest.mark.parametrize(
        "action",
        [
            lambda ledger: ledger.size,
            lambda ledger: ledger.root(),
            lambda ledger: ledger.pins(),
            lambda ledger: ledger.refs(),
            lambda ledger: ledger.is_pinned(DIGESTS[0], "blob", None),
            lambda ledger: ledger.entry(9),
            lambda ledger: ledger.root(9),
            lambda ledger: ledger.inclusion_proof(9),
            lambda ledger: ledger.consistency_proof(9),
            lambda ledger: ledger.append("note", number=1),
            lambda ledger: list(ledger.entries(ledger.size - 1)),
        ],
    )
    def test_no_more_is_read_of_a_long_ledger(
        self, read: Callable[[int, Callable[[Ledger], object]], int], action: Callable[[Ledger], object]
    ) -> None:
        short, long = read(20, action), read(3000, action)
        assert 0 < long < 2000
        assert abs(long - short) < 200  # numbers have more digits

    def test_only_new_lines_are_read(self, tmp_path: Path) -> None:
        fill(tmp_path, 500)
        size = (tmp_path / "ledger.jsonl").stat().st_size
        append_behind_its_back(tmp_path, 5)
        grown = (tmp_path / "ledger.jsonl").stat().st_size - size
        fs = Watched()
        assert tell(opened(tmp_path, fs)) == truth(tmp_path)
        assert grown < fs.read < grown + 4000
        again = Watched()
        assert opened(tmp_path, again).size == 506
        assert again.read < 400

    def test_a_failed_append_does_not_make_the_next_look_read_everything(self, tmp_path: Path) -> None:
        fill(tmp_path, 500)

        class Failing(OsFileSystem):
            def fsync(self, fd: int) -> None:
                raise OSError(5, "Input/output error")

        ledger = opened(tmp_path, Failing())
        with pytest.raises(Exception, match="failing"):
            ledger.append("note")
        ledger.close()
        fs = Watched()
        assert opened(tmp_path, fs).size == 501
        assert fs.read < 400

    def test_setting_a_torn_line_aside_does_not_either(self, tmp_path: Path) -> None:
        fill(tmp_path, 500)
        with (tmp_path / "ledger.jsonl").open("ab") as file:
            file.write(b'{"half')
        fs = Watched()
        assert opened(tmp_path, fs).append("after").seq == 501
        assert fs.read < 1000


_NAMES = st.sampled_from([None, "n0", "n1", "n2"])
_DIGESTS = st.sampled_from(DIGESTS)
_EVENT = st.one_of(
    st.tuples(st.just("pin"), _DIGESTS, st.sampled_from(["blob", "tree"]), _NAMES),
    st.tuples(st.just("unpin"), _DIGESTS),
    st.tuples(st.just("ref"), st.sampled_from(["r0", "r1", "r2"]), st.none() | _DIGESTS),
    st.tuples(st.just("note"), st.integers(-5, 5)),
)
_STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 1), st.lists(_EVENT, min_size=1, max_size=6)),
    st.tuples(st.just("roll back"), st.integers(0, 1), st.lists(_EVENT, max_size=3)),
    st.tuples(st.just("forget"), st.just(0), st.just([])),
    st.tuples(st.just("reopen"), st.integers(0, 1), st.just([])),
    st.tuples(st.just("behind"), st.just(0), st.just([])),
)


def _append(transaction: object, event: tuple[object, ...]) -> None:
    name, *rest = event
    append = transaction.append  # type: ignore[attr-defined]
    if name == "pin":
        append("pin", digest=str(rest[0]), kind=rest[1], name=rest[2])
    elif name == "unpin":
        append("unpin", digest=str(rest[0]))
    elif name == "ref":
        append("ref.set", ref=rest[0], why="ø", **{"from": None, "to": str(rest[1]) if rest[1] else None})
    else:
        append("note", number=rest[0])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=st.lists(_STEP, max_size=12))
def test_the_cache_says_what_the_lines_say(steps: list[tuple[str, int, list[tuple[object, ...]]]]) -> None:
    directory = Path(tempfile.mkdtemp())
    ledgers = [opened(directory), opened(directory)]
    try:
        ledgers[0].append("begun")
        for what, which, events in steps:
            if what == "append":
                with ledgers[which].locked() as transaction:
                    for event in events:
                        _append(transaction, event)
                    within = tell(ledgers[which])
                assert within == truth(directory)
            elif what == "roll back":
                with pytest.raises(RuntimeError), ledgers[which].locked() as transaction:
                    for event in events:
                        _append(transaction, event)
                    raise RuntimeError
            elif what == "forget":
                forget(directory)
            elif what == "behind":
                append_behind_its_back(directory, 2)
            else:
                ledgers[which].close()
                ledgers[which] = opened(directory)
            for ledger in (*ledgers, opened(directory)):
                assert tell(ledger) == truth(directory)
        assert ledgers[0].audit().findings == ledgers[0].audit().notes == ()
    finally:
        for ledger in ledgers:
            ledger.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of 120 lines with its cache in one file. Copy it."""
    directory = tmp_path_factory.mktemp("filled")
    fill(directory, 119)
    assert not (directory / "ledger.sqlite-wal").exists()
    return directory


@pytest.fixture
def directory(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "copy", copy_function=shutil.copy2))


def proofs(ledger: Ledger) -> list[object]:
    return [
        *(ledger.inclusion_proof(seq, size) for seq, size in ((0, 120), (63, 64), (70, 101))),
        *(ledger.consistency_proof(old, size) for old, size in ((1, 120), (64, 65), (77, 119))),
        *(ledger.root(size) for size in (0, 1, 31, 119, 120)),
        *(ledger.entry(seq) for seq in (0, 1, 60, 119)),
    ]


@pytest.fixture(scope="module")
def expected(filled: Path) -> tuple[dict[str, object], list[object]]:
    assert truth(filled) == tell(opened(filled))
    return truth(filled), proofs(opened(filled))


class TestLies:
    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE head SET size=119",
            "UPDATE head SET start=0",
            "UPDATE head SET end=end+1",
            "UPDATE head SET leaf=zeroblob(32)",
            "UPDATE head SET time='9999-01-01T00:00:00.000000Z'",
            "UPDATE head SET subtrees=zeroblob(128)",
            "UPDATE head SET subtrees=x''",
            "UPDATE head SET mtime=1",
            "UPDATE head SET pins=0, pins_sum=0",
            "UPDATE head SET checksum=0",
            "UPDATE head SET size='many'",
            "DELETE FROM head",
            "DELETE FROM pins",
            "DELETE FROM pins WHERE seq=(SELECT max(seq) FROM pins)",
            "UPDATE pins SET kind='tree'",
            "UPDATE pins SET name='other' WHERE seq=(SELECT max(seq) FROM pins)",
            "UPDATE pins SET seq=1000 WHERE seq=(SELECT max(seq) FROM pins)",
            "UPDATE pins SET digest=zeroblob(32)",
            "UPDATE pins SET digest='text'",
            "UPDATE pins SET checksum=NULL",
            "DELETE FROM moves",
            "DELETE FROM moves WHERE seq=(SELECT max(seq) FROM moves)",
            "DELETE FROM refs WHERE ref='r1'",
            "UPDATE refs SET moves=moves-1",
            "UPDATE refs SET ref='r9' WHERE ref='r0'",
            "DELETE FROM moves WHERE seq=(SELECT min(seq) FROM moves)",
            "UPDATE moves SET ref='r1'",
            "UPDATE moves SET target=NULL",
            "UPDATE moves SET fields='{}'",
            "UPDATE lines SET start=start+1",
            "UPDATE lines SET start=0",
            "UPDATE lines SET start=-5",
            "UPDATE lines SET start=1<<62",
            "UPDATE lines SET start='x'",
            "UPDATE lines SET leaf=zeroblob(32)",
            "DELETE FROM lines",
            "DELETE FROM lines WHERE seq=60",
            "UPDATE nodes SET hash=zeroblob(32)",
            "UPDATE nodes SET hash='text'",
            "UPDATE nodes SET hash=(SELECT leaf FROM lines WHERE seq=3)",
            "DELETE FROM nodes",
            "DROP TABLE nodes",
            "DROP TABLE pins",
            "DROP TABLE head",
            "PRAGMA user_version=7",
            "PRAGMA user_version=0",
            "INSERT INTO lost VALUES (200, zeroblob(32), zeroblob(32), 5)",
        ],
    )
    def test_one_statement(
        self, directory: Path, expected: tuple[dict[str, object], list[object]], change: str
    ) -> None:
        self._change(directory, change)
        for _ in range(2):
            ledger = opened(directory)
            assert proofs(ledger) == expected[1]
            assert tell(ledger) == expected[0]
            assert ledger.audit().findings == ()
            ledger.close()
        assert opened(directory).append("after").seq == 120
        assert tell(opened(directory)) == truth(directory)

    @staticmethod
    def _change(directory: Path, change: str, values: Sequence[object] = ()) -> None:
        db = sqlite3.connect(directory / "ledger.sqlite")
        with db:
            db.execute(change.replace("checksum=NULL", "checksum=1"), values)
        db.close()

    def test_a_pin_that_was_never_made_with_a_checksum_that_fits(
        self, directory: Path, expected: tuple[dict[str, object], list[object]]
    ) -> None:
        """Who relies on a pin does not pin again: the cache is not believed without the line itself."""
        gone = Digest.of(b"never pinned")
        cache = LedgerCache(directory / "ledger.sqlite", ARCHIVE.hex())
        row = (3, bytes(gone), "blob", None, "2026-01-01T00:00:00.000000Z")
        checksum = cache._checksum("pin", *row)
        cache.close()
        self._change(directory, "INSERT OR REPLACE INTO pins VALUES (?,?,?,?,?,?)", (*row, checksum))
        assert not opened(directory).is_pinned(gone, "blob", None)
        assert tell(opened(directory)) == expected[0]

    @staticmethod
    def _forge(directory: Path, *, root: bool, refs: bool) -> None:
        """Makes the cache lie with checksums that fit."""
        cache = LedgerCache(directory / "ledger.sqlite", ARCHIVE.hex())
        cache.begin()
        assert cache._working is not None
        head, totals = cache._working
        if root:
            head = head._replace(subtrees=tuple(bytes(32) for _ in head.subtrees))
        if refs:
            totals = totals._replace(refs=0, refs_sum=0)
            cache._db.execute("DELETE FROM moves")
            cache._db.execute("DELETE FROM refs")
        cache._working = head, totals
        cache.commit((directory / "ledger.jsonl").stat().st_mtime_ns)
        cache.close()

    @pytest.mark.parametrize(("root", "refs"), [(True, True), (True, False), (False, True)])
    def test_one_whose_checksums_fit(
        self, directory: Path, expected: tuple[dict[str, object], list[object]], root: bool, refs: bool
    ) -> None:
        """Only reading every line tells; that does, and heals it."""
        self._forge(directory, root=root, refs=refs)
        assert (opened(directory).refs() == {}) == refs
        assert (opened(directory).root() != expected[0]["root"]) == root
        audit = opened(directory).audit()
        assert audit.findings == ()
        assert audit.refs == expected[0]["refs"]
        assert (audit.checkpoint.size, audit.checkpoint.root) == (120, expected[0]["root"])
        assert tell(opened(directory)) == expected[0]
        assert proofs(opened(directory)) == expected[1]
        assert opened(directory).audit()[3:] == ((), ())

    def test_reading_all_lines_heals_a_root_that_lies(
        self, directory: Path, expected: tuple[dict[str, object], list[object]]
    ) -> None:
        self._forge(directory, root=True, refs=False)
        assert len(list(opened(directory).entries())) == 120
        assert opened(directory).root() == expected[0]["root"]

    def test_flipped_bits(self, directory: Path, expected: tuple[dict[str, object], list[object]]) -> None:
        path = directory / "ledger.sqlite"
        content = path.read_bytes()
        random_ = random.Random(5)
        for _ in range(120):
            changed = bytearray(content)
            for _ in range(random_.choice([1, 1, 3])):
                changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
            forget(directory)
            path.write_bytes(changed)
            ledger = opened(directory)
            told, true = tell(ledger), dict(expected[0])
            # A pin that is not found is made once more; one that is found is there.
            assert set(told.pop("pinned")) <= set(true.pop("pinned"))  # type: ignore[call-overload]
            assert told == true
            assert proofs(ledger) == expected[1]
            assert ledger.audit().findings == ()
            ledger.close()

    @pytest.mark.parametrize("content", [b"", b"not a database", bytes(4096), b"SQLite format 3\0" + bytes(5000)])
    def test_no_database(
        self, directory: Path, expected: tuple[dict[str, object], list[object]], content: bytes
    ) -> None:
        (directory / "ledger.sqlite").write_bytes(content)
        for _ in range(2):
            assert tell(opened(directory)) == expected[0]
        (directory / "ledger.sqlite").write_bytes(content)
        assert opened(directory).append("after").seq == 120

    @pytest.mark.parametrize("part", [100, 4096, 9000])
    def test_cut_short(self, directory: Path, expected: tuple[dict[str, object], list[object]], part: int) -> None:
        path = directory / "ledger.sqlite"
        path.write_bytes(path.read_bytes()[:part])
        assert tell(opened(directory)) == expected[0]

    def test_another_archives(
        self, directory: Path, tmp_path: Path, expected: tuple[dict[str, object], object]
    ) -> None:
        other = tmp_path / "other"
        other.mkdir()
        ledger = Ledger(OsFileSystem(), other, bytes([7]) * 16)
        ledger.append("pin", digest=str(DIGESTS[0]), kind="tree", name="theirs")
        ledger.close()
        shutil.copy(other / "ledger.sqlite", directory)
        assert tell(opened(directory)) == expected[0]
        assert opened(directory).audit().findings == ()

    def test_one_from_the_past(self, directory: Path, tmp_path: Path) -> None:
        shutil.copy(directory / "ledger.sqlite", tmp_path / "old")
        ledger = opened(directory)
        ledger.append("unpin", digest=str(DIGESTS[0]))
        ledger.close()
        shutil.copy(tmp_path / "old", directory / "ledger.sqlite")
        assert tell(opened(directory)) == truth(directory)
        assert opened(directory).audit().findings == ()

    def test_one_that_vanishes_under_two_that_have_it_open(self, directory: Path) -> None:
        one, two = opened(directory), opened(directory)
        for ledger, other in itertools.islice(itertools.cycle([(one, two), (two, one)]), 6):
            forget(directory)
            ledger.append("pin", digest=str(DIGESTS[1]), kind="tree", name="n1")
            other.append("unpin", digest=str(DIGESTS[1]))
            assert tell(one) == tell(two) == tell(opened(directory)) == truth(directory)

    def test_none_can_be_made(self, directory: Path) -> None:
        forget(directory)
        (directory / "ledger.sqlite").mkdir()
        (directory / "ledger.sqlite" / "in the way").touch()
        ledger = opened(directory)
        assert tell(ledger) == truth(directory)
        assert ledger.append("pin", digest=str(DIGESTS[2]), kind="tree", name="n2").seq == 120
        opened(directory).append("unpin", digest=str(DIGESTS[3]))
        assert tell(ledger) == tell(opened(directory)) == truth(directory)
        assert ledger.audit().findings == ()

    @pytest.mark.skipif(os.geteuid() == 0, reason="permissions mean nothing to root")
    def test_a_directory_that_can_not_be_written(self, directory: Path) -> None:
        directory.chmod(0o500)
        try:
            assert tell(opened(directory)) == truth(directory)
        finally:
            directory.chmod(0o700)


class TestFailing:
    """The cache fails in the middle; the ledger does not."""

    @pytest.fixture(params=[CacheDamagedError, CacheUnwritableError])
    def failure(self, request: pytest.FixtureRequest) -> type[Exception]:
        found: type[Exception] = request.param
        return found

    @pytest.mark.parametrize("method", ["begin", "absorb", "commit", "head"])
    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_every_call_once(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception], method: str, at: int
    ) -> None:
        real = getattr(LedgerCache, method)
        calls = itertools.count(1)

        def failing(cache: LedgerCache, *arguments: object) -> object:
            if cache.path is not None and next(calls) == at:
                raise failure("no more")
            return real(cache, *arguments)

        other = opened(directory)
        assert other.size == 120
        with monkeypatch.context() as patched:
            patched.setattr(LedgerCache, method, failing)
            ledger = opened(directory)
            with ledger.locked() as transaction:
                first = transaction.append("pin", digest=str(DIGESTS[1]), kind="tree", name="n1")
                second = transaction.append("ref.set", ref="r0", **{"from": None, "to": None})
                assert ledger.is_pinned(DIGESTS[1], "tree", "n1")
                assert [move.target for move in transaction.ref("r0")][-1] is None
            assert (first.seq, second.seq) == (120, 121)
            assert tell(ledger) == truth(directory)
        for each in (ledger, other, opened(directory)):
            assert tell(each) == truth(directory)
            assert each.append("after").seq == each.size - 1
        assert opened(directory).audit().findings == ()

    def test_a_cache_that_missed_an_event_is_not_left_for_others(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Acknowledged, and then somebody looks while the next writer is at work: it must be seen."""

        def full(cache: LedgerCache, mtime: int) -> None:
            raise CacheUnwritableError("database or disk is full")

        reader = opened(directory)
        assert reader.size == 120
        with monkeypatch.context() as patched:
            patched.setattr(LedgerCache, "commit", full)
            opened(directory).append("acknowledged")
        with LedgerLock(OsFileSystem(), directory / "ledger.lock").waiting():
            assert reader.size == opened(directory).size == 121


class TestSettled:
    """Lines that somebody is still writing do not count."""

    @pytest.fixture
    def writing(self, directory: Path) -> Iterator[bytes]:
        """Another process has written a line, holds the lock, and has not synced yet."""
        before = (directory / "ledger.jsonl").read_bytes()
        aside = directory / "aside"
        aside.mkdir()
        (aside / "ledger.jsonl").write_bytes(before)
        opened(aside).append("pin", digest=str(DIGESTS[4]), kind="tree", name="in flight")
        line = (aside / "ledger.jsonl").read_bytes()[len(before) :]
        shutil.rmtree(aside)
        with LedgerLock(OsFileSystem(), directory / "ledger.lock").waiting():
            with (directory / "ledger.jsonl").open("ab") as file:
                file.write(line)
            yield line

    def _is_pinned(self, ledger: Ledger) -> bool:
        return ledger.is_pinned(DIGESTS[4], "tree", "in flight")

    def test_a_reader_waits_for_nobody_and_counts_what_was_settled(self, directory: Path, writing: bytes) -> None:
        ledger = opened(directory)
        assert ledger.size == len(list(ledger.entries())) == 120
        assert not self._is_pinned(ledger)
        assert all(pin.name != "in flight" for pin in ledger.pins())

    def test_lines_that_are_taken_back_were_never_there(self, directory: Path, writing: bytes) -> None:
        readers = [opened(directory)]
        forget(directory)
        readers.append(opened(directory))
        sizes = [reader.size for reader in readers]
        assert sizes[0] in (120, 121)
        assert not any(self._is_pinned(reader) for reader in readers)
        os.truncate(directory / "ledger.jsonl", (directory / "ledger.jsonl").stat().st_size - len(writing))
        assert {**tell(readers[1]), "pinned": truth(directory)["pinned"]} == truth(directory)
        for reader in (readers[0], opened(directory)):
            assert reader.size == 120
            assert reader.audit().findings == ()

    def test_without_a_cache_all_lines_are_told_and_none_is_relied_on(self, directory: Path, writing: bytes) -> None:
        forget(directory)
        ledger = opened(directory)
        assert ledger.size == 121
        assert [pin.name for pin in ledger.pins()][-1] == "in flight"
        assert not self._is_pinned(ledger)

    def test_what_a_dead_writer_left_is_made_durable_before_it_counts(self, directory: Path) -> None:
        append_behind_its_back(directory, 1)
        fs = Watched()
        ledger = opened(directory, fs)
        assert ledger.is_pinned(DIGESTS[0], "tree", "behind 0")
        assert fs.syncs == ["ledger.jsonl"]
        again = Watched()
        assert opened(directory, again).is_pinned(DIGESTS[0], "tree", "behind 0")
        assert again.syncs == []

    def test_what_can_not_be_made_durable_does_not_count(self, directory: Path) -> None:
        append_behind_its_back(directory, 1)

        class Failing(OsFileSystem):
            def fsync(self, fd: int) -> None:
                raise OSError(5, "Input/output error")

        with pytest.raises(Exception, match="failing"):
            opened(directory, Failing()).is_pinned(DIGESTS[0], "tree", "behind 0")
        with LedgerLock(OsFileSystem(), directory / "ledger.lock").waiting():
            assert opened(directory).size == 120


class TestAlteredUnderAWarmCache:
    """The cache knows all lines, the file is as long and as old as before, and one line in it is another."""

    @pytest.fixture
    def short(self, tmp_path: Path) -> Path:
        ledger = opened(tmp_path)
        for number in range(9):
            ledger.append("note", number=number)
        ledger.close()
        return tmp_path

    @staticmethod
    def _rewrite(directory: Path, lines: list[bytes]) -> None:
        """Replaces the ledger without a trace in its size or time."""
        path = directory / "ledger.jsonl"
        before = path.stat()
        path.write_bytes(b"".join(lines))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size

    @staticmethod
    def _lines(directory: Path) -> list[bytes]:
        return (directory / "ledger.jsonl").read_bytes().splitlines(keepends=True)

    def _named(self, directory: Path, number: int) -> None:
        named = rf"line {number} "  # a line whose prev was altered is named beside the one it does not follow
        assert opened(directory).size == 10  # nobody has looked
        with pytest.raises(CorruptError, match=named):
            list(opened(directory).entries())
        (finding,) = opened(directory).audit().findings
        assert re.search(named, finding)
        with pytest.raises(CorruptError, match=named):
            opened(directory).entry(number)

    def test_every_line_in_every_way(self, short: Path) -> None:
        original = self._lines(short)
        random_ = random.Random(3)
        for number in range(9):
            line = original[number]
            at = random_.randrange(len(line) - 1)
            flipped = line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]
            zeroed = bytes(len(line) - 1) + b"\n"
            other = line.replace(b'"number":', b'"numbor":').replace(b'"format":', b'"farmot":')
            assert other != line
            for wrong in (flipped, zeroed, other):
                self._rewrite(short, [*original[:number], wrong, *original[number + 1 :]])
                self._named(short, number)
            self._rewrite(short, original)
            assert opened(short).audit().findings == ()
            assert len(list(opened(short).entries())) == 10

    def test_lines_swapped_and_doubled(self, short: Path) -> None:
        original = self._lines(short)
        assert len({len(line) for line in original[1:]}) == 1
        for number in range(1, 8):
            swapped = [*original[:number], original[number + 1], original[number], *original[number + 2 :]]
            doubled = [*original[: number + 1], original[number], *original[number + 2 :]]
            for wrong in (swapped, doubled):
                self._rewrite(short, wrong)
                with pytest.raises(CorruptError, match="altered"):
                    list(opened(short).entries())
                assert len(opened(short).audit().findings) == 1
        self._rewrite(short, original)
        assert opened(short).audit().findings == ()

    def test_a_change_that_leaves_a_new_time_is_found_by_the_next_look(self, short: Path) -> None:
        original = self._lines(short)
        for number in range(9):
            path = short / "ledger.jsonl"
            before = path.stat()
            wrong = original[number].replace(b'"number":', b'"numbor":').replace(b'"format":', b'"farmot":')
            path.write_bytes(b"".join([*original[:number], wrong, *original[number + 1 :]]))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
            for _ in range(2):
                with pytest.raises(CorruptError, match=f"ledger line {number} "):
                    opened(short).pins()
                with pytest.raises(CorruptError, match=f"ledger line {number} "):
                    opened(short).append("more")
            path.write_bytes(b"".join(original))

    def test_a_copy_with_new_times_is_the_same_ledger(self, short: Path) -> None:
        os.utime(short / "ledger.jsonl", ns=(1, 1))
        fs = Watched()
        assert opened(short, fs).size == 10
        assert fs.read > 1000  # all of it was read, once
        fs = Watched()
        assert opened(short, fs).size == 10
        assert fs.read < 400
        assert opened(short).audit().findings == ()

    @pytest.mark.parametrize("kept", [9, 5, 1])
    def test_lines_cut_off_the_end_are_missed(self, short: Path, kept: int) -> None:
        """What is left is a perfectly good ledger; only the cache knows that there was more."""
        root = opened(short).root().hex()
        original = self._lines(short)
        (short / "ledger.jsonl").write_bytes(b"".join(original[:kept]))
        for _ in range(2):
            findings = opened(short).audit().findings
            assert len(findings) == 1
            assert "once had 10 lines" in findings[0]
            assert root in findings[0]
        opened(short).append("life goes on")
        assert len(opened(short).audit().findings) == 1
        (short / "ledger.jsonl").write_bytes(b"".join(original))  # the message says: restore it,
        assert (len(opened(short).audit().findings), opened(short).size) == (0, 10)
        (short / "ledger.jsonl").write_bytes(b"".join(original[:kept]))
        assert len(opened(short).audit().findings) == 1
        forget(short)  # or go on with what is here
        assert opened(short).audit().findings == ()

    def test_a_last_line_replaced_by_another_good_one_is_missed(self, short: Path) -> None:
        original = self._lines(short)
        changed = original[-1].replace(b'"number":8', b'"number":9')
        self._rewrite(short, [*original[:-1], changed])
        assert opened(short).entry(9).fields == {"number": 9}
        findings = opened(short).audit().findings
        assert len(findings) == 1
        assert "once had 10 lines" in findings[0]
        self._rewrite(short, original)
        assert opened(short).audit().findings == ()  # restored

    def test_a_ledger_that_is_gone_is_not_begun_anew(self, short: Path) -> None:
        (short / "ledger.jsonl").unlink()
        with pytest.raises(CorruptError, match=r"vanished.*backup.*delete ledger.sqlite"):
            _ = opened(short).size
        with pytest.raises(CorruptError, match="vanished"):
            opened(short).append("a new beginning")
        assert not (short / "ledger.jsonl").exists()
        assert "vanished" in opened(short).audit().findings[0]
        forget(short)
        assert opened(short).append("a new beginning").seq == 1

    def test_verify_names_it(self, tmp_path: Path) -> None:
        with Archive.open(tmp_path / "archive", create=True) as archive:
            for number in range(5):
                archive.pin(archive.put_bytes(b"%d" % number).digest, kind=Kind.BLOB, name=f"{number}")
        path = tmp_path / "archive"
        original = self._lines(path)
        self._rewrite(path, [*original[:2], original[2].replace(b'"name":"1"', b'"name":"7"'), *original[3:]])
        with Archive.open(path) as archive:
            assert [str(found) for found in archive.verify().findings if "ledger line 2" in str(found)]
        self._rewrite(path, original)
        with Archive.open(path) as archive:
            assert archive.verify().ok
        (path / "ledger.jsonl").write_bytes(b"".join(original[:4]))
        with Archive.open(path) as archive:
            assert ["once had 6 lines" in str(found) for found in archive.verify().findings] == [True]

    def test_another_archives_ledger(self, short: Path) -> None:
        forget(short)
        with pytest.raises(CorruptError, match=r"line 0.*another archive"):
            _ = Ledger(OsFileSystem(), short, bytes([1]) * 16).size


class TestPowerFailure:
    """Pieces of a line that reached the disk out of order, newline included."""

    @pytest.mark.parametrize("piece", [b'e":"2026-01-01T00:00:00.000000Z"}\n', bytes(300) + b'"}\n', b"\n", b"\n\n"])
    def test_behind_what_the_cache_knows(self, directory: Path, piece: bytes) -> None:
        content = (directory / "ledger.jsonl").read_bytes()
        (directory / "ledger.jsonl").write_bytes(content + piece)
        ledger = opened(directory)
        assert ledger.size == 120
        assert f"{len(piece)} bytes" in ledger.audit().notes[0]
        assert ledger.append("after").seq == 120
        assert [path.read_bytes() for path in directory.glob("ledger.torn-*")] == [piece]
        assert opened(directory).audit()[3:] == ((), ())

    def test_without_the_cache_only_what_a_lost_page_left(self, directory: Path) -> None:
        content = (directory / "ledger.jsonl").read_bytes()
        forget(directory)
        (directory / "ledger.jsonl").write_bytes(content + bytes(300) + b'"}\n')
        assert opened(directory).size == 120
        forget(directory)
        (directory / "ledger.jsonl").write_bytes(content + b'{"altered":1}\n')
        with pytest.raises(CorruptError, match="ledger line 120 was altered"):
            _ = opened(directory).size

    def test_a_good_event_behind_it_was_settled_so_something_was_altered(self, directory: Path) -> None:
        content = (directory / "ledger.jsonl").read_bytes()
        append_behind_its_back(directory, 2)
        lines = (directory / "ledger.jsonl").read_bytes()[len(content) :].splitlines(keepends=True)
        (directory / "ledger.jsonl").write_bytes(content + bytes(len(lines[0]) - 1) + b"\n" + lines[1])
        with pytest.raises(CorruptError, match="ledger line 120 was altered"):
            opened(directory).append("after")
        assert list(directory.glob("ledger.torn-*")) == []


def test_somebody_who_writes_without_the_lock_is_noticed(directory: Path) -> None:
    class Rude(OsFileSystem):
        done = False

        def open(self, path: Path, flags: int) -> int:
            if path.name == "ledger.jsonl" and flags & os.O_APPEND and not self.done:
                self.done = True
                with path.open("ab") as file:
                    file.write(b"no manners\n")
            return super().open(path, flags)

    with pytest.raises(ConflictError, match=r"without taking ledger\.lock"):
        opened(directory, Rude()).append("mine")


def test_readers_read_while_a_writer_holds_the_lock(directory: Path) -> None:
    writer, reader = opened(directory), opened(directory)
    with writer.locked() as transaction:
        transaction.append("pin", digest=str(DIGESTS[0]), kind="tree", name="n0")
        assert tell(reader) == tell(opened(directory)) == truth(directory)
    assert tell(reader) == truth(directory)


class _Sized(OsFileSystem):
    """Says that the ledger is larger than it is, as a file may be that shrinks while it is read."""

    def stat(self, fd: int) -> FileStat:
        found = super().stat(fd)
        return found._replace(size=found.size + 10) if found.size > 1000 else found

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:
        return super().write(fd, [bytes(part)[:7] for part in parts][:1])


def test_of_a_line_without_end_only_the_beginning_is_held(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b"a\n" + b"x" * (30 << 20) + b"\nb\n" + b"y" * 100)
    file = LedgerFile(OsFileSystem(), tmp_path / "ledger.jsonl")
    sizes = [len(line) for line in file.lines(0, (30 << 20) + 105)]
    assert (sizes[0], sizes[2], len(sizes)) == (1, 1, 3)
    assert 1 << 20 < sizes[1] < 6 << 20
    assert len(file.read(0, 30 << 20)) <= (1 << 20) + 1


def test_a_file_that_ends_early_is_no_trouble(directory: Path) -> None:
    assert opened(directory, _Sized()).size == 120
    assert parse_line((directory / "ledger.jsonl").read_bytes().splitlines()[0], 0, bytes(32), "").seq == 0


def test_a_pin_that_another_process_adds_after_we_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is shared and may know more than this process has looked at: then it is not sure, and looks again."""
    fill(tmp_path, 3)
    ledger, other = opened(tmp_path), opened(tmp_path)
    digest = Digest(b"\7" * 32)
    assert not ledger.is_pinned(digest, "blob", "late")
    ask = LedgerCache.pin
    appended: list[int] = []

    def late(cache: LedgerCache, *what: object) -> object:
        if not appended:
            appended.append(1)
            other.append("pin", digest=str(digest), kind="blob", name="late")
        return ask(cache, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(LedgerCache, "pin", late)
    assert not ledger.is_pinned(digest, "blob", "late")
    assert ledger.is_pinned(digest, "blob", "late")
    ledger.close()
    other.close()
