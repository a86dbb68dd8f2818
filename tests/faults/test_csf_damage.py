"""Every file of an archive, hurt in every way: what is hurt is named, what is not is given out, and a re-put heals."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_csf_power_loss import safetensors

from csf_store import Archive, CorruptError, CsfError, Digest, Kind, NotFoundError

pytestmark = pytest.mark.usefixtures("one_thread")

CONTENTS = [b"one " * 40, safetensors(1), b"three" * 30, safetensors(2), b"five" * 9]


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def zeroed_middle(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def emptied(data: bytes) -> bytes:
    return b""


def bit_flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def reversed_(data: bytes) -> bytes:
    return data[::-1]


def noise(data: bytes) -> bytes:
    return random.Random(3).randbytes(len(data))


def doubled(data: bytes) -> bytes:
    return data + data


HURTS: list[Callable[[bytes], bytes]] = [
    zeroed, zeroed_middle, truncated, emptied, bit_flipped, reversed_, noise, doubled,
]  # fmt: skip


@pytest.fixture
def made(scratch: Path) -> Path:
    with Archive.open(scratch / "a", create=True, seal_at=1500) as archive:
        for number, content in enumerate(CONTENTS):
            archive.pin(archive.put_bytes(content).digest, kind=Kind.BLOB, name=f"{number}")
    return scratch / "a"


def _given(archive: Archive) -> list[bool]:
    """Which contents come out; every one that does is right."""
    given = []
    for content in CONTENTS:
        try:
            assert archive.get_bytes(Digest.of(content)) == content
            given.append(True)
        except (CorruptError, NotFoundError) as error:
            assert Digest.of(content).hex in str(error) or ".csfs" in str(error) or "chunk" in str(error)
            given.append(False)
    return given


def _forget(path: Path) -> None:
    for file in path.glob("*.sqlite*"):
        file.unlink()


def _check(path: Path, *, loses: bool = True) -> None:
    """Wrong bytes never come out; if something is missing verify says so; a re-put brings it back."""
    with Archive.open(path) as archive:
        given = _given(archive)
        report = archive.verify(deep=True)
        if loses:
            assert not report.ok
        assert report.ok <= all(given)
        for content in CONTENTS:
            archive.put_bytes(content)
    _forget(path)
    with Archive.open(path) as archive:
        for content in CONTENTS:
            archive.put_bytes(content)
    with Archive.open(path) as archive:
        again = _given(archive)
        assert all(now or not before for now, before in zip(again, given, strict=True))


@pytest.mark.parametrize("known", [True, False], ids=["with index", "without index"])
@pytest.mark.parametrize("hurt", HURTS, ids=lambda hurt: hurt.__name__.strip("_"))
def test_a_segment(made: Path, hurt: Callable[[bytes], bytes], known: bool) -> None:
    for segment in sorted((made / "segments").iterdir()):
        copy = Path(shutil.copytree(made, made.with_name(f"{segment.stem}")))
        victim = copy / "segments" / segment.name
        victim.write_bytes(hurt(victim.read_bytes()))
        if not known:
            _forget(copy)
        _check(copy, loses=hurt is not doubled)


@pytest.mark.parametrize("known", [True, False], ids=["with index", "without index"])
@pytest.mark.parametrize("hurt", [zeroed, zeroed_middle, bit_flipped, reversed_, noise], ids=lambda hurt: hurt.__name__)
def test_a_chunk(made: Path, hurt: Callable[[bytes], bytes], known: bool) -> None:
    """The stored bytes of one chunk, in place: that chunk is named, and whatever does not need it comes out."""
    with Archive.open(made) as archive:
        chunks = [(digest, archive._store.find_chunk(digest)) for digest in archive._store.chunk_digests()]
        names = {state.id: state.name for state in archive._store.segments().values()}
        needed = {
            content: {chunk.digest for chunk in archive._retrieve.open(Digest.of(content), Kind.BLOB).body.chunks}
            for content in CONTENTS
        }
    for digest, where in chunks:
        assert where is not None
        copy = Path(shutil.copytree(made, made.with_name(digest.hex())))
        victim = copy / "segments" / names[where.segment]
        data = bytearray(victim.read_bytes())
        start = where.offset + 128
        before = bytes(data[start : start + where.stored])
        data[start : start + where.stored] = hurt(before)
        if data == victim.read_bytes():
            continue
        victim.write_bytes(data)
        if not known:
            _forget(copy)
        with Archive.open(copy) as archive:
            assert _given(archive) == [digest not in needed[content] for content in CONTENTS]
            report = archive.verify()
            assert any(found.digest == Digest(digest) for found in report.findings) or not known
            assert not report.ok


def test_two_segments_swapped(made: Path) -> None:
    one, two, *_ = sorted((made / "segments").iterdir())
    for known in (True, False):
        copy = Path(shutil.copytree(made, made.with_name(f"copy {known}")))
        (copy / "segments" / one.name).write_bytes(two.read_bytes())
        (copy / "segments" / two.name).write_bytes(one.read_bytes())
        if not known:
            _forget(copy)
        with Archive.open(copy) as archive:
            _given(archive)
            named = {found.segment for found in archive.verify().findings}
            assert {one.name, two.name} <= named


@pytest.mark.parametrize("hurt", HURTS, ids=lambda hurt: hurt.__name__.strip("_"))
def test_the_index(made: Path, hurt: Callable[[bytes], bytes]) -> None:
    """Nothing is lost: it is a cache."""
    for file in sorted(made.glob("index.sqlite*")):
        file.write_bytes(hurt(file.read_bytes()))
    with Archive.open(made) as archive:
        assert all(_given(archive))
        assert archive.verify(deep=True).ok


def test_an_index_of_another_archive(made: Path, scratch: Path) -> None:
    with Archive.open(scratch / "b", create=True) as other:
        foreign = other.put_bytes(b"foreign").digest
    _forget(made)
    shutil.copy(scratch / "b" / "index.sqlite", made)
    with Archive.open(made) as archive:
        assert all(_given(archive))
        assert not archive.contains(foreign)
        assert archive.verify(deep=True).ok


@pytest.mark.parametrize("known", [True, False], ids=["with cache", "without cache"])
@pytest.mark.parametrize("hurt", HURTS, ids=lambda hurt: hurt.__name__.strip("_"))
def test_a_ledger_line(made: Path, hurt: Callable[[bytes], bytes], known: bool) -> None:
    """Any but the last: it is named, nothing is appended behind it, and what was stored is still given out."""
    lines = (made / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for number in range(len(lines) - 1):
        altered = hurt(lines[number][:-1]) + b"\n"
        (made / "ledger.jsonl").write_bytes(b"".join([*lines[:number], altered, *lines[number + 1 :]]))
        if not known:
            _forget(made)
        with Archive.open(made) as archive:
            findings = archive.verify().findings
            assert any("ledger" in found.what for found in findings), number
            with pytest.raises(CorruptError, match="ledger"):
                archive.ledger.append("note")
            assert all(_given(archive))
        assert (made / "ledger.jsonl").read_bytes().count(b"\n") == len(lines) + altered[:-1].count(b"\n")


def test_ledger_lines_swapped_removed_or_doubled(made: Path) -> None:
    lines = (made / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for number in range(len(lines) - 2):
        for change in (
            [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]],
            [*lines[:number], *lines[number + 1 :]],
            [*lines[: number + 1], *lines[number:]],
        ):
            (made / "ledger.jsonl").write_bytes(b"".join(change))
            with Archive.open(made) as archive:
                with pytest.raises(CorruptError, match=r"altered|removed"):
                    archive.ledger.append("note")
                assert not archive.verify().ok


def test_a_ledger_of_another_archive(made: Path, scratch: Path) -> None:
    with Archive.open(scratch / "b", create=True) as other:
        other.pin(other.put_bytes(b"foreign").digest, kind=Kind.BLOB, name="x")
    for known in (True, False):
        shutil.copy(scratch / "b" / "ledger.jsonl", made)
        if not known:
            _forget(made)
        with pytest.raises(CorruptError, match="another"), Archive.open(made) as archive:
            archive.ledger.append("note")


@pytest.mark.parametrize("hurt", HURTS, ids=lambda hurt: hurt.__name__.strip("_"))
def test_the_marker(made: Path, hurt: Callable[[bytes], bytes]) -> None:
    (made / "csf.json").write_bytes(hurt((made / "csf.json").read_bytes()))
    with pytest.raises(CsfError, match=r"csf\.json|belongs to archive|another"), Archive.open(made) as archive:
        for content in CONTENTS:
            archive.get_bytes(Digest.of(content))
