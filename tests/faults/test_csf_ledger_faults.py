"""The ledger under everything that happens to files: kills, cuts, full disks, crowds, and people with an editor.

The lines are checked here by hand, without the code that wrote them.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from csf_store import Archive, Checkpoint, CorruptError, CsfError, Digest, Kind, Ledger, StorageError
from csf_store.cli import main
from csf_store.digest import Buffer
from csf_store.durable import OsFileSystem

ARCHIVE = bytes(16)
CACHE = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm")
DIGEST = Digest.of(b"pinned")


def opened(directory: Path, fs: OsFileSystem | None = None) -> Ledger:
    return Ledger(fs or OsFileSystem(), directory, ARCHIVE)


def forget(directory: Path) -> None:
    for name in CACHE:
        (directory / name).unlink(missing_ok=True)


def checked(directory: Path) -> list[dict[str, object]]:
    """Every line: numbered, chained by hash, in the order of time, and the last one ended."""
    content = (directory / "ledger.jsonl").read_bytes()
    assert content[-1:] == b"\n"
    previous, before, found = "00" * 32, "", []
    for number, line in enumerate(content[:-1].split(b"\n")):
        document = json.loads(line)
        assert (document["seq"], document["prev"]) == (number, previous)
        assert document["time"] >= before
        previous, before = hashlib.sha256(b"\0" + line).hexdigest(), document["time"]
        found.append({**document, "leaf": previous})
    assert found[0]["event"] == "archive.created"
    return found


def sound(directory: Path) -> Ledger:
    """A ledger opened anew, that agrees with its lines and with whatever cache there is."""
    ledger = opened(directory)
    lines = checked(directory)
    assert (ledger.size, ledger.entry(len(lines) - 1).leaf.hex()) == (len(lines), lines[-1]["leaf"])
    audit = ledger.audit()
    assert (audit.findings, audit.notes) == ((), ())
    return ledger


# -- kills -----------------------------------------------------------------------------------------------------------


class Victim:
    """Starts children that die."""

    def __init__(self, directory: Path) -> None:
        script = Path(__file__).with_name("ledger_victim.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, at: int, cut: int) -> tuple[list[dict[str, object]], bool]:
        """What a child was promised, and whether it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"at": at, "cut": cut}) + "\n")
        self._process.stdin.flush()
        promised = []
        for line in self._process.stdout:
            said = json.loads(line)
            if "ended" in said:
                assert said["ended"] in (0, signal.SIGKILL)
                return promised, said["ended"] == signal.SIGKILL
            promised.append(said)
        raise AssertionError("the victim itself is gone")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait() == 0
        self._process.stdout.close()


@pytest.fixture
def victim(scratch: Path) -> Iterator[Victim]:
    (scratch / "ledger").mkdir()
    victim = Victim(scratch / "ledger")
    yield victim
    victim.close()


def _goes_on(directory: Path, promised: list[dict[str, object]]) -> None:
    """Whole and in order, whatever was promised; at most one more than was promised; and the next event follows."""
    there = opened(directory).append("after").seq
    lines = checked(directory)
    sound(directory)
    for line in promised:
        assert lines[int(str(line["seq"]))]["leaf"] == line["leaf"]
    notes = [line["number"] for line in lines if line["event"] == "note"]
    assert notes == [0, 1][: len(notes)]
    assert len(promised) <= len(notes) <= len(promised) + 1
    assert there == len(lines) - 1


@pytest.mark.parametrize("start", ["nothing", "lines", "a torn line", "a line without newline", "no cache"])
def test_sigkill_before_every_call_of_an_append(scratch: Path, victim: Victim, start: str) -> None:
    directory = scratch / "ledger"
    template = scratch / "template"
    template.mkdir()
    if start != "nothing":
        for number in range(3):
            opened(template).append("before", number=number)
    kept = (template / "ledger.jsonl").read_bytes() if start != "nothing" else b""
    if start == "a torn line":
        (template / "ledger.jsonl").write_bytes(kept + b'{"event":"half')
    if start == "a line without newline":
        (template / "ledger.jsonl").write_bytes(kept[:-1])
        kept = kept[:-1]
    if start == "no cache":
        forget(template)
    kills = 0
    for cut in (0, 60, 10_000):
        for at in range(200):
            shutil.rmtree(directory)
            shutil.copytree(template, directory, copy_function=shutil.copy2)
            promised, killed = victim.run(at, cut)
            kills += killed
            if promised or (directory / "ledger.jsonl").exists():
                assert (directory / "ledger.jsonl").read_bytes().startswith(kept)
            _goes_on(directory, promised)
            if not killed:
                assert len(promised) == 2
                break
        else:
            raise AssertionError("it never came to the end")
    assert kills > 45


def test_one_ledger_that_is_killed_over_and_over(scratch: Path, victim: Victim) -> None:
    """Each child starts from what the one before it left."""
    directory = scratch / "ledger"
    random_ = random.Random(17)
    promised: dict[int, object] = {}
    killed = 0
    for _ in range(100):
        told, dead = victim.run(random_.randrange(60), random_.choice([0, 1, 50, 149, 150, 10_000]))
        killed += dead
        for line in told:
            assert int(str(line["seq"])) not in promised
            promised[int(str(line["seq"]))] = line["leaf"]
        if random_.random() < 0.1:
            forget(directory)
    opened(directory).append("after")
    lines = checked(directory)
    sound(directory)
    assert {seq: lines[seq]["leaf"] for seq in promised} == promised
    assert killed > 40
    assert len(promised) > 40
    for aside in directory.glob("ledger.torn-*"):
        with pytest.raises(ValueError, match=r".*"):
            json.loads(aside.read_bytes())


def _append_until_killed(directory: Path, name: str, pipe: "multiprocessing.connection.Connection") -> None:
    ledger = opened(directory)
    for number in range(1_000_000):
        entry = ledger.append("note", writer=name, number=number)
        pipe.send((entry.seq, entry.leaf.hex()))


def test_sigkill_in_a_crowd_leaves_the_others_at_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    random_ = random.Random(3)
    promised: dict[int, str] = {}
    running = {}
    for name in "abc":
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_append_until_killed, args=(tmp_path, name, send), daemon=True)
        process.start()
        send.close()
        running[name] = (process, receive)
    for name in "bca":
        for _ in range(random_.randrange(15, 40)):
            for each, (_, receive) in running.items():
                seq, leaf = receive.recv()
                assert seq not in promised, each
                promised[seq] = leaf
        process, receive = running.pop(name)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        try:
            while True:
                seq, leaf = receive.recv()
                promised[seq] = leaf
        except (EOFError, OSError):
            receive.close()
    opened(tmp_path).append("after")
    lines = checked(tmp_path)
    assert {seq: lines[seq]["leaf"] for seq in promised} == promised
    for name in "abc":
        numbers = [line["number"] for line in lines if line.get("writer") == name]
        assert numbers == list(range(len(numbers)))
    sound(tmp_path)


# -- crowds ----------------------------------------------------------------------------------------------------------

PROCESSES, THREADS, EVENTS = 3, 2, 25


def _one_of_the_crowd(ledger: Ledger, directory: Path, name: str, random_: random.Random, forgetting: bool) -> None:
    """Appends, in transactions too, and looks whether what it saw before is still there."""
    kept, number = ledger.checkpoint(), 0
    while number < EVENTS:
        with ledger.locked() as transaction:
            start = transaction.size
            for _ in range(min(random_.choice([1, 1, 3]), EVENTS - number)):
                assert transaction.append("note", writer=name, number=number, seen=start).seq >= start
                number += 1
        if random_.random() < 0.3:
            digest = Digest.of(b"%d" % number)
            ledger.append("pin", digest=str(digest), kind="blob", name=name)
            if not forgetting:  # without a cache, what others are about to write is not relied on
                assert all(each.is_pinned(digest, "blob", name) for each in (ledger, opened(directory)))
        proof = ledger.consistency_proof(kept.size)
        assert proof.holds()
        assert proof.old == kept
        kept = Checkpoint(proof.size, proof.root)
        if forgetting and random_.random() < 0.2:
            forget(directory)


def _crowd(directory: Path, process: int, forgetting: bool) -> None:
    """One process: threads that share a ledger or have their own."""
    shared = opened(directory)
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        ledger = shared if thread % 2 else opened(directory)
        try:
            random_ = random.Random(process * 10 + thread)
            _one_of_the_crowd(ledger, directory, f"{process}/{thread}", random_, forgetting)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("forgetting", [False, True], ids=["one cache", "a cache that keeps vanishing"])
def test_a_crowd_of_processes_and_threads(tmp_path: Path, forgetting: bool) -> None:
    context = multiprocessing.get_context("spawn")
    crowd = [context.Process(target=_crowd, args=(tmp_path, number, forgetting)) for number in range(PROCESSES)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * PROCESSES
    lines = checked(tmp_path)
    for process in range(PROCESSES):
        for thread in range(THREADS):
            mine = [line for line in lines if line.get("writer") == f"{process}/{thread}"]
            assert [line["number"] for line in mine] == list(range(EVENTS))
            for line in mine:  # nobody came between the lines of one transaction
                assert all(
                    lines[between].get("seen") == line["seen"]
                    for between in range(int(str(line["seen"])), int(str(line["seq"])))
                    if line["seen"]
                )
    if not forgetting:
        sound(tmp_path)
    assert opened(tmp_path).audit().findings == ()
    forget(tmp_path)
    sound(tmp_path)


# -- cuts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["none", "of the time", "ahead"])
def test_a_cut_at_every_byte_of_the_last_lines(scratch: Path, cache: str) -> None:
    """Of two lines written together; the cache is gone, or from before them, or knows them."""
    ledger = opened(scratch)
    ledger.append("kept")
    ledger.close()
    path = scratch / "ledger.jsonl"
    kept = path.read_bytes()
    if cache == "of the time":
        shutil.copy2(scratch / "ledger.sqlite", scratch / "cache")
    with ledger.locked() as transaction:
        transaction.append("last", text="one")
        transaction.append("last", text="two")
    ledger.close()
    whole = path.read_bytes()
    if cache == "ahead":
        shutil.copy2(scratch / "ledger.sqlite", scratch / "cache")
    ends = [len(kept), whole.index(b"\n", len(kept)) + 1, len(whole)]
    for cut in range(len(kept), len(whole)):
        for each in (*CACHE, *(found.name for found in scratch.glob("ledger.torn-*"))):
            (scratch / each).unlink(missing_ok=True)
        if cache != "none":
            shutil.copy2(scratch / "cache", scratch / "ledger.sqlite")
        path.write_bytes(whole[:cut])
        lines = sum(end <= cut for end in ends[1:])
        assert opened(scratch).size == 2 + lines
        assert path.read_bytes() == whole[:cut]  # readers touch nothing
        opened(scratch).append("after")
        completed = cut + 1 in ends
        events = [line["event"] for line in checked(scratch)]
        assert events == ["archive.created", "kept", *["last"] * (lines + completed), "after"]
        torn = whole[ends[lines] : cut]
        assert [aside.read_bytes() for aside in scratch.glob("ledger.torn-*")] == (
            [torn] if torn and not completed else []
        )
        findings = opened(scratch).audit().findings
        # They were promised, and the cache has not forgotten.
        assert len(findings) == (cache == "ahead" and cut < len(whole) - 1), findings


@pytest.mark.parametrize("length", [1, 5 << 20])
@pytest.mark.parametrize("filling", [b"\0", b"x"])
def test_a_long_torn_end_is_set_aside_in_bounded_memory(tmp_path: Path, length: int, filling: bytes) -> None:
    opened(tmp_path).append("kept")
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(filling * length)
    assert opened(tmp_path).size == 2
    assert opened(tmp_path).append("after").seq == 2
    assert [aside.read_bytes() for aside in tmp_path.glob("ledger.torn-*")] == [filling * length]
    sound(tmp_path)


def test_a_line_without_end_in_the_middle_is_named(tmp_path: Path) -> None:
    for number in range(3):
        opened(tmp_path).append("note", number=number)
    lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join([*lines[:2], b"y" * (9 << 20) + b"\n", *lines[2:]]))
    for _ in range(2):
        with pytest.raises(CorruptError, match="ledger line 2 was altered"):
            opened(tmp_path).append("after")
        forget(tmp_path)


# -- calls that fail -------------------------------------------------------------------------------------------------

CALLS = {
    "open": errno.EIO,
    "write": errno.ENOSPC,
    "pread": errno.EIO,
    "fsync": errno.EIO,
    "fsync_directory": errno.EIO,
    "truncate": errno.EIO,
    "stat": errno.EIO,
    "lock": errno.EIO,
    "try_lock": errno.EIO,
    "close": errno.EIO,
}


class Failing(OsFileSystem):
    """The n-th call of a kind fails, or all from then on; a write that fails may have written something."""

    def __init__(self, call: str, number: int, *, lasting: bool, cut: int) -> None:
        self.failed = 0
        self.mended = False
        self._left, self._lasting, self._cut, self._call = number, lasting, cut, call
        real = getattr(super(), call)

        def failing(*arguments: object) -> object:
            self._left -= 1
            if self.mended or not (self._left == -1 or (self._lasting and self._left < 0)):
                return real(*arguments)
            self.failed += 1
            if call == "write" and self._cut:
                fd, parts = arguments
                os.write(fd, b"".join(parts)[: self._cut])  # type: ignore[arg-type]
            if call == "close":
                real(*arguments)
            raise OSError(CALLS[call], os.strerror(CALLS[call]))

        setattr(self, call, failing)


def _work(ledger: Ledger, promised: list[str]) -> None:
    """Everything a ledger does; what it promises is noted at once."""
    promised.append(ledger.append("note", number=1).leaf.hex())
    if not ledger.is_pinned(DIGEST, "blob", "x"):
        promised.append(ledger.append("pin", digest=str(DIGEST), kind="blob", name="x").leaf.hex())
    with ledger.locked() as transaction:
        entries = [transaction.append("note", number=number) for number in (2, 3)]
    promised.extend(entry.leaf.hex() for entry in entries)
    assert len(list(ledger.entries())) == ledger.size
    assert ledger.inclusion_proof(0).holds()


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("call", sorted(CALLS))
def test_every_call_fails_once(scratch: Path, call: str, lasting: bool) -> None:
    template = scratch / "template"
    template.mkdir()
    opened(template).append("before")
    torn = scratch / "torn"
    shutil.copytree(template, torn)
    forget(torn)
    with (torn / "ledger.jsonl").open("ab") as file:
        file.write(b'{"event":"ha')
    starts: list[Path | None] = [None, template, torn]
    for start in starts:
        for cut in (0, 1, 200) if call == "write" else (0,):
            for number in range(200):
                directory = scratch / "work"
                shutil.rmtree(directory, ignore_errors=True)
                if start is None:
                    directory.mkdir()
                else:
                    shutil.copytree(start, directory, copy_function=shutil.copy2)
                fs = Failing(call, number, lasting=lasting, cut=cut)
                ledger = opened(directory, fs)
                promised: list[str] = []
                try:
                    _work(ledger, promised)
                except CsfError as error:
                    assert fs.failed, error
                fs.mended = True
                if not fs.failed:
                    break
                # Neither the one that saw the failure nor anybody else is any the worse for it.
                assert ledger.append("after, by the same").seq == ledger.size - 1
                assert opened(directory).append("after, by another").seq == ledger.size - 1
                lines = checked(directory)
                leaves = [line["leaf"] for line in lines]
                assert [leaf for leaf in leaves if leaf in promised] == promised
                numbers = [line["number"] for line in lines if line["event"] == "note"]
                assert numbers in ([], [1], [1, 2], [1, 2, 3])
                sound(directory)
            else:
                raise AssertionError("it never came to the end")


def test_a_failed_append_leaves_nothing(scratch: Path) -> None:
    """Not even a whole line, which others would take for an event, nor for the one who tried."""
    for call in ("write", "fsync"):
        for cut in (1, 150, 10_000):
            shutil.rmtree(scratch / "work", ignore_errors=True)
            (scratch / "work").mkdir()
            opened(scratch / "work").append("kept")
            before = (scratch / "work" / "ledger.jsonl").read_bytes()
            fs = Failing(call, 0, lasting=False, cut=cut)
            ledger = opened(scratch / "work", fs)
            with pytest.raises(StorageError, match=r"free some space|device is failing"):
                ledger.append("lost")
            assert (scratch / "work" / "ledger.jsonl").read_bytes() == before
            assert ledger.size == opened(scratch / "work").size == 2
            assert ledger.append("after").seq == 2
            sound(scratch / "work")


def test_writes_that_are_short(scratch: Path) -> None:
    class Short(OsFileSystem):
        def write(self, fd: int, parts: Sequence[Buffer]) -> int:
            return super().write(fd, [b"".join(parts)[:7]])

    promised: list[str] = []
    _work(opened(scratch, Short()), promised)
    assert [line["leaf"] for line in checked(scratch)][1:] == promised
    sound(scratch)


# -- people ----------------------------------------------------------------------------------------------------------

Edit = Callable[[list[bytes], int], list[bytes]]
EDITS: dict[str, Edit] = {
    "altered": lambda lines, at: [*lines[:at], lines[at].replace(b'"time":"2', b'"time":"3'), *lines[at + 1 :]],
    "removed": lambda lines, at: [*lines[:at], *lines[at + 1 :]],
    "swapped": lambda lines, at: [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
    "duplicated": lambda lines, at: [*lines[: at + 1], *lines[at:]],
    "zeroed": lambda lines, at: [*lines[:at], bytes(len(lines[at]) - 1) + b"\n", *lines[at + 1 :]],
    "zeroed with its newline": lambda lines, at: [*lines[:at], bytes(len(lines[at])), *lines[at + 1 :]],
    "emptied": lambda lines, at: [*lines[:at], b"\n", *lines[at + 1 :]],
    "truncated": lambda lines, at: [*lines[:at], lines[at][:50] + b"\n", *lines[at + 1 :]],
    "joined": lambda lines, at: [*lines[:at], lines[at].rstrip(b"\n"), *lines[at + 1 :]],
    "invented": lambda lines, at: [*lines[:at], b'{"event":"x"}\n', *lines[at:]],
}


@pytest.mark.parametrize("edit", sorted(EDITS))
def test_an_earlier_line_that_was_changed_is_found_and_named(scratch: Path, edit: str) -> None:
    archive = scratch / "archive"
    with Archive.open(archive, create=True) as opening:
        for number in range(5):
            opening.pin(opening.put_bytes(b"%d" % number).digest, kind=Kind.BLOB, name=f"{number}")
    path = archive / "ledger.jsonl"
    original = path.read_bytes()
    before = path.stat()
    lines = original.splitlines(keepends=True)
    runner = CliRunner()
    for at in range(len(lines) - 1):
        content = b"".join(EDITS[edit](lines, at))
        assert content != original
        for cached in (True, False):
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the cache notices nothing by itself
            if not cached:
                kept = [(archive / name, (archive / name).read_bytes()) for name in CACHE if (archive / name).exists()]
                forget(archive)
            found = runner.invoke(main, ["--archive", str(archive), "verify", "--json"])
            assert found.exit_code == 1, found.output
            findings = [json.loads(line)["what"] for line in found.stdout.splitlines() if '"what"' in line]
            near = {f"line {number} " for number in (at - 1, at, at + 1)}
            assert any(each in finding for each in near for finding in findings), findings
            assert "altered" in str(findings)
            assert path.read_bytes() == content  # nothing is repaired
            if not cached:
                for file, bytes_ in kept:
                    file.write_bytes(bytes_)
        path.write_bytes(original)
        assert runner.invoke(main, ["--archive", str(archive), "verify"]).exit_code == 0
