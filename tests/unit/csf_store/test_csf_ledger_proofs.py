"""Proofs as an auditor meets them: from the ledger, in JSON, on the command line; and lines, canonical or refused."""

import json
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import rfc8785
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from csf_store import (
    Checkpoint,
    ConsistencyProof,
    CorruptError,
    Digest,
    InclusionProof,
    InvalidInputError,
    Ledger,
    NotFoundError,
    read_proof,
)
from csf_store.cli import main
from csf_store.durable import OsFileSystem
from csf_store.ledger.line import is_event, parse_line
from csf_store.ledger.merkle import EMPTY_ROOT, leaf_hash, nodes_of, root_of

ARCHIVE = bytes(16)
LINES = 23


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(OsFileSystem(), directory, ARCHIVE)
    for number in range(LINES - 1):
        ledger.append("note", number=number, text="é\u2028")
    ledger.close()
    return directory


@pytest.fixture
def ledger(made: Path) -> Ledger:
    return Ledger(OsFileSystem(), made, ARCHIVE)


def _leaves(directory: Path) -> list[bytes]:
    return [leaf_hash(line) for line in (directory / "ledger.jsonl").read_bytes().split(b"\n")[:-1]]


class TestLedger:
    def test_every_root_and_proof(self, ledger: Ledger, made: Path) -> None:
        leaves = _leaves(made)
        roots = [root_of(nodes_of(leaves), size) for size in range(LINES + 1)]
        lines = (made / "ledger.jsonl").read_bytes().split(b"\n")
        assert ledger.root(0) == EMPTY_ROOT
        for size in range(1, LINES + 1):
            assert ledger.root(size) == roots[size]
            assert ledger.checkpoint(size) == Checkpoint(size, roots[size])
            for seq in range(size):
                proof = ledger.inclusion_proof(seq, size)
                assert (proof.line, proof.checkpoint) == (lines[seq], Checkpoint(size, roots[size]))
                assert proof.holds()
            for old in range(size + 1):
                consistency = ledger.consistency_proof(old, size)
                assert (consistency.old, consistency.checkpoint) == (
                    Checkpoint(old, roots[old]),
                    Checkpoint(size, roots[size]),
                )
                assert consistency.holds()
        assert ledger.inclusion_proof(3).size == ledger.consistency_proof(3).size == ledger.checkpoint().size == LINES

    def test_what_is_not_there(self, ledger: Ledger) -> None:
        for call in (
            lambda: ledger.root(LINES + 1),
            lambda: ledger.root(-1),
            lambda: ledger.inclusion_proof(LINES),
            lambda: ledger.inclusion_proof(-1),
            lambda: ledger.inclusion_proof(5, 5),
            lambda: ledger.inclusion_proof(5, LINES + 1),
            lambda: ledger.consistency_proof(LINES + 1),
            lambda: ledger.consistency_proof(5, 4),
            lambda: ledger.consistency_proof(-1),
        ):
            with pytest.raises(NotFoundError, match="events"):
                call()

    def test_a_line_altered_in_the_file_is_not_proven(self, made: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(made, tmp_path / "copy", copy_function=shutil.copy2))
        content = (copy / "ledger.jsonl").read_bytes()
        ledger = Ledger(OsFileSystem(), copy, ARCHIVE)
        assert ledger.inclusion_proof(5).holds()
        with (copy / "ledger.jsonl").open("r+b") as file:
            file.write(content.replace(b'"number":4,', b'"number":5,'))
        for each in (ledger, Ledger(OsFileSystem(), copy, ARCHIVE)):
            with pytest.raises(CorruptError, match="ledger line 5 was altered"):
                each.inclusion_proof(5)

    def test_by_time(self, ledger: Ledger) -> None:
        times = [entry.time for entry in ledger.entries()]
        assert ledger.first_at("") == ledger.first_at("1999-01-01T00:00:00.000000Z") == 0
        assert ledger.first_at("2999-01-01T00:00:00.000000Z") == LINES
        for time in times:
            assert ledger.first_at(time) == times.index(time)


class TestJson:
    def test_back_and_forth(self, ledger: Ledger) -> None:
        for proof in (ledger.inclusion_proof(7, 20), ledger.consistency_proof(7), ledger.consistency_proof(0)):
            again = read_proof(json.dumps(proof.to_json()).encode())
            assert again == proof
            assert again.holds()
        assert Checkpoint.parse(str(ledger.checkpoint())) == ledger.checkpoint()

    def test_whatever_is_changed_in_a_proof_is_refused_or_does_not_hold(self, ledger: Ledger) -> None:
        random_ = random.Random(1)
        for proof in (ledger.inclusion_proof(7, 20), ledger.consistency_proof(7, 20)):
            text = json.dumps(proof.to_json())
            for _ in range(300):
                at = random_.randrange(len(text))
                other = random_.choice('0123456789abcdef",:{}[]x ')
                changed = text[:at] + other + text[at + 1 :]
                try:
                    found = read_proof(changed.encode())
                except InvalidInputError:
                    continue
                assert found == proof or not found.holds() or (found.checkpoint != proof.checkpoint), changed
                if isinstance(found, InclusionProof) and found.holds() and found.checkpoint == proof.checkpoint:
                    assert found.line == proof.line  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{}",
            "null",
            '{"proof":"inclusion"}',
            '{"proof":"existence"}',
            '{"proof":["inclusion"]}',
            "[" * 100_000,
            '{"proof":"consistency","old_size":true,"old_root":"","size":1,"root":"","path":[]}',
            '{"proof":"consistency","old_size":-1,"old_root":"","size":1,"root":"","path":[]}',
            '{"proof":"consistency","old_size":1e3,"old_root":"","size":1,"root":"","path":[]}',
            '{"proof":"consistency","old_size":99999999999999999999,"old_root":"","size":1,"root":"","path":[]}',
            '{"proof":"consistency","old_size":1,"old_root":"' + "zz" * 32 + '","size":1,"root":"","path":[]}',
            json.dumps({"proof": "inclusion", "seq": 0, "line": "\ud800", "size": 1, "root": "00" * 32, "path": []}),
            json.dumps({"proof": "inclusion", "seq": 0, "line": "x", "size": 1, "root": "00" * 32, "path": ["00"]}),
            json.dumps(
                {"proof": "inclusion", "seq": 0, "line": "x", "size": 1, "root": "00" * 32, "path": ["00" * 32] * 999}
            ),
            json.dumps(
                {
                    "proof": "inclusion",
                    "seq": 0,
                    "line": "x",
                    "leaf": "00" * 32,
                    "size": 1,
                    "root": "00" * 32,
                    "path": [],
                }
            ),
            " " * (2 << 20) + "{}",
        ],
    )
    def test_what_is_no_proof(self, text: str) -> None:
        with pytest.raises(InvalidInputError, match="proof"):
            read_proof(text.encode())

    @pytest.mark.parametrize(
        "text", ["", "5", "5:", f"5:{'0' * 63}", f"05:{'0' * 64}", f"-5:{'0' * 64}", "5:" + "g" * 64]
    )
    def test_what_is_no_checkpoint(self, text: str) -> None:
        with pytest.raises(InvalidInputError, match="SIZE:ROOT"):
            Checkpoint.parse(text)


def _csf(archive: Path, *arguments: object, text: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["--archive", str(archive), "log", *map(str, arguments)], input=text)


def _json(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


class TestCommand:
    @pytest.fixture
    def archive(self, made: Path, tmp_path: Path) -> Path:
        """The ledger as an archive, its events made to look an hour apart from each other."""
        path = tmp_path / "archive"
        (path / "segments").mkdir(parents=True)
        marker = {"format": "csf", "version": 1, "archive": ARCHIVE.hex()}
        (path / "csf.json").write_bytes(rfc8785.dumps(marker) + b"\n")
        start, previous = datetime(2026, 1, 31, 12, tzinfo=UTC), bytes(32)
        digest = str(Digest.of(b"x"))
        events: list[dict[str, object]] = [
            {"event": "archive.created", "archive": ARCHIVE.hex(), "format": 1},
            {"event": "pin", "digest": digest, "kind": "blob", "name": "model"},
            {"event": "ref.set", "ref": "prod", "from": None, "to": digest},
            {"event": "note", "text": "\x1b[31mred"},
            {"event": "ref.set", "ref": "test", "from": None, "to": digest},
            {"event": "unpin", "digest": digest},
        ]
        with (path / "ledger.jsonl").open("wb") as file:
            for seq, event in enumerate(events):
                time = (start + timedelta(hours=seq)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                line = rfc8785.dumps({**event, "seq": seq, "time": time, "prev": previous.hex()})  # type: ignore[dict-item]
                file.write(line + b"\n")
                previous = leaf_hash(line)
        return path

    @pytest.mark.parametrize(
        ("arguments", "numbers"),
        [
            ([], [0, 1, 2, 3, 4, 5]),
            (["-n", 2], [4, 5]),
            (["--limit", 9], [0, 1, 2, 3, 4, 5]),
            (["--tail", 1], [5]),
            (["--event", "ref.set"], [2, 4]),
            (["--event", "ref.set", "--event", "pin"], [1, 2, 4]),
            (["--event", "ref.set", "-n", 1], [4]),
            (["--event", "nothing"], []),
            (["--since", "2026-01-31T14:00:00Z"], [2, 3, 4, 5]),
            (["--since", "2026-01-31T14:00:00.000001Z"], [3, 4, 5]),
            (["--until", "2026-01-31T14:00:00Z"], [0, 1, 2]),
            (["--until", "2026-01-31T14:00:00Z", "-n", 2], [1, 2]),
            (["--since", "2026-01-31T15:00:00+01:00", "--until", "2026-01-31T16:00:00Z"], [2, 3, 4]),
            (["--since", "2026-01-31T15:00:00Z", "-n", 2], [4, 5]),
            (["--since", "2030-01-01T00:00:00Z"], []),
            (["--about", "prod"], [2]),
            (["--about", "model"], [1]),
            (["--about", str(Digest.of(b"x"))], [1, 2, 4, 5]),
            (["--about", Digest.of(b"x").hex[:8].upper()], [1, 2, 4, 5]),
            (["--about", Digest.of(b"x").hex[:7]], []),
            (["--about", "prod", "--event", "pin"], []),
        ],
    )
    def test_filters(self, archive: Path, arguments: list[object], numbers: list[int]) -> None:
        assert [line["seq"] for line in _json(_csf(archive, "--json", *arguments))] == numbers
        assert len(_csf(archive, *arguments).stdout.splitlines()) == len(numbers)

    def test_what_is_shown_can_not_drive_the_terminal(self, archive: Path) -> None:
        assert "\x1b" not in _csf(archive).stdout
        assert "\\x1b[31mred" in _csf(archive).stdout
        assert _json(_csf(archive, "--json"))[3]["text"] == "\x1b[31mred"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--since", "yesterday"],
            ["--since", "2026-01-31"],
            ["--until", "2026-01-31T12:00:00"],
            ["-n", 0],
            ["--prove", "x"],
            ["--prove", 1, "--checkpoint"],
            ["--prove", 1, "--event", "pin"],
            ["--checkpoint", "-n", 3],
            ["--size", 3],
            ["--consistency", "1", "--prove", "1"],
            ["--check", "no-such-file"],
        ],
    )
    def test_wrong_usage(self, archive: Path, arguments: list[object]) -> None:
        assert _csf(archive, *arguments).exit_code == 2

    def test_an_audit(self, archive: Path, tmp_path: Path) -> None:
        kept = _csf(archive, "--checkpoint").stdout.strip()
        assert _json(_csf(archive, "--checkpoint", "--json")) == [
            {"archive": ARCHIVE.hex(), "size": 6, "root": kept.split(":")[1]}
        ]
        early = _csf(archive, "--checkpoint", "--size", 3).stdout.strip()
        Ledger(OsFileSystem(), archive, ARCHIVE).append("note", text="later")

        shown = _csf(archive, "--consistency", kept)
        assert shown.exit_code == 0
        assert f"begins  {kept}" in shown.stdout
        (proof,) = _json(_csf(archive, "--consistency", kept, "--json"))
        assert (proof["old_size"], proof["size"]) == (6, 7)
        assert _json(_csf(archive, "--consistency", "6", "--json")) == [proof]
        assert _json(_csf(archive, "--consistency", early, "--size", 5, "--json"))[0]["size"] == 5

        saved = tmp_path / "proof.json"
        for arguments in (["--prove", 2], ["--prove", 2, "--size", 3], ["--consistency", early]):
            saved.write_text(_csf(archive, *arguments, "--json").stdout)
            checked = _csf(tmp_path / "no archive", "--check", saved)
            assert checked.exit_code == 0, checked.output
            assert checked.stdout.startswith("holds: ")
        assert early in checked.stdout
        from_pipe = _csf(archive, "--check", "-", text=saved.read_bytes())
        assert from_pipe.stdout == checked.stdout
        document = json.loads(saved.read_text())
        saved.write_text(json.dumps({**document, "root": "00" * 32}))
        wrong = _csf(archive, "--check", saved)
        assert wrong.exit_code == 1
        assert "DOES NOT HOLD" in wrong.stdout
        saved.write_text("{}")
        assert _csf(archive, "--check", saved).exit_code == 7

    def test_a_ledger_that_was_rewritten(self, archive: Path) -> None:
        kept = _csf(archive, "--checkpoint").stdout.strip()
        lines = (archive / "ledger.jsonl").read_bytes().splitlines()
        previous, forged = bytes(32), b""
        for original in lines:  # somebody who knows how to: all hashes fit again
            document = json.loads(original.replace(b"model", b"other"))
            line = rfc8785.dumps({**document, "prev": previous.hex()})
            previous, forged = leaf_hash(line), forged + line + b"\n"
        (archive / "ledger.jsonl").write_bytes(forged)
        found = _csf(archive, "--consistency", kept)
        assert found.exit_code == 1
        assert "NOT CONSISTENT" in found.stdout
        (archive / "ledger.jsonl").write_bytes(b"\n".join(lines[:4]) + b"\n")
        found = _csf(archive, "--consistency", kept, "--json")
        assert found.exit_code == 1
        assert json.loads(found.stdout) == {"ok": False, "kept": {"size": 6, "root": kept[2:]}, "found": None}

    def test_what_is_not_there(self, archive: Path) -> None:
        assert _csf(archive, "--prove", 99).exit_code == 5
        assert _csf(archive, "--prove", 3, "--size", 3).exit_code == 5
        assert _csf(archive, "--consistency", "99").exit_code == 5
        assert _csf(archive, "--consistency", "junk").exit_code == 7
        assert _csf(archive, "--checkpoint", "--size", 99).exit_code == 5


def _slow(line: bytes) -> bool:
    """By the library alone: is this an event in its canonical form?"""
    try:
        document = json.loads(line)
        return (
            isinstance(document, dict)
            and rfc8785.dumps(document) == line
            and {"event", "seq", "time", "prev"} <= document.keys()
        )
    except (ValueError, RecursionError, rfc8785.CanonicalizationError):
        return False


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53) - 2, (1 << 53) + 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class TestLines:
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(fields=st.dictionaries(st.text(), _VALUES, max_size=4), data=st.data())
    def test_the_fast_way_accepts_what_the_slow_way_accepts(
        self, fields: dict[str, object], data: st.DataObject
    ) -> None:
        document = {**fields, "event": "x", "seq": 0, "time": "2026-01-02T03:04:05.000006Z", "prev": "00" * 32}
        try:
            line = rfc8785.dumps(document)  # type: ignore[arg-type]
        except rfc8785.CanonicalizationError:
            line = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
                "utf-8", "replace"
            )
            assert not is_event(line)
        assert is_event(line) == _slow(line)
        if is_event(line):  # 2.0 ** 53 is written as a whole number, and too large for one when it is read
            entry = parse_line(line, 0, bytes(32), "")
            expected = {key: value for key, value in document.items() if key not in ("event", "seq", "time", "prev")}
            assert entry.fields == expected
        for other in (
            json.dumps(document).encode(),
            json.dumps(document, sort_keys=True, separators=(",", ":")).encode(),
            json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"),
        ):
            assert is_event(other) == _slow(other)
        at = data.draw(st.integers(0, len(line) - 1))
        for changed in (
            line[:at] + bytes([data.draw(st.integers(0, 255))]) + line[at + 1 :],
            line[:at]
            + data.draw(st.sampled_from([b" ", b"0", b"-0", b"1e2", b"NaN", b"\\u0041", b"9" * 20]))
            + line[at:],
        ):
            assert is_event(changed) == _slow(changed)

    @pytest.mark.parametrize(
        "value",
        [
            "1.0",
            "1e3",
            "-0",
            "NaN",
            "Infinity",
            "9007199254740993",
            "1" + "0" * 5000,
            '"\\u0041"',
            '"\\/"',
            " 1",
            "[1, 2]",
        ],
    )
    def test_other_ways_to_write_a_value(self, value: str) -> None:
        start = f'{{"a":{value},"event":"x","prev":"{"00" * 32}","seq":0,"time":"2026-01-02T03:04:05.000006Z"}}'
        with pytest.raises(CorruptError, match="line 0 was altered"):
            parse_line(start.encode(), 0, bytes(32), "")

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"[]",
            b"null",
            b"{}",
            b"[" * 200_000,
            b'{"a":' * 50_000,
            b"\xff\xfe",
            bytes(100),
            b'{"event":"x","event":"x","prev":"","seq":0,"time":"2026-01-02T03:04:05.000006Z"}',
            b'{"event":5,"prev":"","seq":0,"time":"2026-01-02T03:04:05.000006Z"}',
            b'{"event":"x","prev":"","seq":true,"time":"2026-01-02T03:04:05.000006Z"}',
            b'{"event":"x","prev":"","seq":0,"time":5}',
            b'{"event":"x","prev":"","seq":0,"time":"2026-01-02T03:04:05Z"}',
            b'"' + b"x" * (1 << 20) + b'"',
        ],
    )
    def test_what_is_no_line(self, line: bytes) -> None:
        with pytest.raises(CorruptError, match="line 0 was altered"):
            parse_line(line, 0, bytes(32), "")


def test_a_line_is_not_longer_than_a_line_may_be() -> None:
    start = {"event": "x", "seq": 0, "time": "2026-01-02T03:04:05.000006Z", "prev": "00" * 32, "text": ""}
    room = (1 << 20) - 1 - len(rfc8785.dumps(start))  # type: ignore[arg-type]
    assert parse_line(rfc8785.dumps({**start, "text": "x" * room}), 0, bytes(32), "").seq == 0
    with pytest.raises(CorruptError, match="line 0 was altered: it has more than"):
        parse_line(rfc8785.dumps({**start, "text": "x" * (room + 1)}), 0, bytes(32), "")


def test_a_line_is_not_older_than_the_one_above() -> None:
    line = rfc8785.dumps({"event": "x", "seq": 0, "time": "2026-01-02T03:04:05.000006Z", "prev": "00" * 32})
    assert parse_line(line, 0, bytes(32), "2026-01-02T03:04:05.000006Z").seq == 0
    with pytest.raises(CorruptError, match="before the line above"):
        parse_line(line, 0, bytes(32), "2026-01-02T03:04:05.000007Z")


def test_proofs_are_plain_values() -> None:
    inclusion = InclusionProof(0, b"x", 1, leaf_hash(b"x"), ())
    consistency = ConsistencyProof(1, leaf_hash(b"x"), 1, leaf_hash(b"x"), ())
    assert inclusion.holds()
    assert consistency.holds()
    assert not inclusion._replace(line=b"y").holds()
    assert not consistency._replace(old_root=bytes(32)).holds()
    assert inclusion.checkpoint == consistency.old == Checkpoint(1, leaf_hash(b"x"))
