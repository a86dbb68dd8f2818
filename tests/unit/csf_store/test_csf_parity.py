"""Parity: rot within its reach is undone to the last bit, and what is beyond it is said."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from csf_store import Archive, CorruptError, Digest, InvalidInputError, Kind
from csf_store.cli import main
from csf_store.durable import OsFileSystem
from csf_store.upkeep.parity_file import BLOCK, HEADER_SIZE, Parity, shape_for, write_parity

IDS = (b"archive-" * 2, b"segment-" * 2)
FS = OsFileSystem()


def _healed(path: Path, parity: Path) -> bytes:
    content = bytearray(path.read_bytes())
    with Parity(FS, parity, *IDS) as opened, path.open("rb") as file:
        content = content.ljust(opened.shape.size, b"\0")[: opened.shape.size]
        for at, block in opened.patches(file.fileno()).items():
            content[at : at + len(block)] = block
    return bytes(content)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A file of some hundred blocks, and its parity."""
    folder = tmp_path_factory.mktemp("parity")
    content = random.Random(3).randbytes(777 * BLOCK + 123)
    (folder / "segment").write_bytes(content)
    size = write_parity(FS, folder / "segment", folder / "parity" / "p", ids=IDS, percent=5)
    assert (folder / "parity" / "p").stat().st_size == size < 0.075 * len(content)
    assert [path.name for path in (folder / "parity").iterdir()] == ["p"]
    return content, folder / "parity" / "p"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_hit_in_five_of_a_hundred_shares_comes_back(made: tuple[bytes, Path], data: st.DataObject) -> None:
    content, parity = made
    shape = shape_for(len(content), 5)
    hurt = bytearray(content)
    for row in range(shape.rows):
        for share in data.draw(st.sets(st.integers(0, shape.k - 1), max_size=shape.r)):
            at = share * shape.share + row * BLOCK
            if at < len(content):
                hurt[min(len(content) - 1, at + data.draw(st.integers(0, BLOCK - 1)))] ^= 1 << row % 8
    path = parity.with_name("hurt")
    path.write_bytes(hurt)
    assert _healed(path, parity) == content


def test_a_long_stretch_of_zeros_and_a_cut_are_undone(made: tuple[bytes, Path]) -> None:
    content, parity = made
    shape = shape_for(len(content), 5)
    path = parity.with_name("zeroed")
    stretch = (shape.r - 1) * shape.share
    path.write_bytes(content[:5000] + bytes(stretch) + content[5000 + stretch :])
    assert _healed(path, parity) == content
    path.write_bytes(content[: len(content) - stretch])
    assert _healed(path, parity) == content


def test_more_than_it_makes_up_for_is_refused(made: tuple[bytes, Path]) -> None:
    content, parity = made
    shape = shape_for(len(content), 5)
    hurt = bytearray(content)
    for share in range(shape.r + 1):
        hurt[share * shape.share + 9] ^= 1
    path = parity.with_name("lost")
    path.write_bytes(hurt)
    with pytest.raises(CorruptError, match="6 blocks of one row are damaged"):
        _healed(path, parity)


def test_damage_to_the_parity_itself(made: tuple[bytes, Path], tmp_path: Path) -> None:
    """Either end may go; of its blocks those that are sound are used; both ends gone is said."""
    content, parity = made
    sound = parity.read_bytes()
    shape = shape_for(len(content), 5)
    hurt = bytearray(content)
    hurt[100] ^= 1
    path, bad = tmp_path / "hurt", tmp_path / "bad"
    path.write_bytes(hurt)
    first_parity = HEADER_SIZE + shape.table
    for flips in ([0], [50], [HEADER_SIZE + 7], [first_parity + 1], [len(sound) - 1], [HEADER_SIZE, 3], [64, 65]):
        broken = bytearray(sound)
        for at in flips:
            broken[at] ^= 0x20
        bad.write_bytes(broken)
        assert _healed(path, bad) == content
    broken = bytearray(sound)
    for at in (3, len(sound) - 60):
        broken[at] ^= 1
    for content_of_bad in (bytes(broken), b"", sound[:HEADER_SIZE], sound[:-1], b"\0" * len(sound)):
        bad.write_bytes(content_of_bad)
        with pytest.raises(CorruptError, match="damaged at both ends"):
            Parity(FS, bad, *IDS)
    with pytest.raises(CorruptError, match="not this segment's"):
        Parity(FS, parity, IDS[0], IDS[0])


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 30 * BLOCK), percent=st.sampled_from([0.5, 5, 30, 100]), seed=st.integers(0, 99))
def test_every_size(tmp_path_factory: pytest.TempPathFactory, size: int, percent: float, seed: int) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    content = random.Random(seed).randbytes(size)
    (folder / "s").write_bytes(content)
    write_parity(FS, folder / "s", folder / "d" / "p", ids=IDS, percent=percent)
    hurt = bytearray(content)
    hurt[seed * 977 % size] ^= 4
    (folder / "s").write_bytes(hurt)
    assert _healed(folder / "s", folder / "d" / "p") == content


@pytest.mark.parametrize("percent", [0, -1, 101, float("nan")])
def test_impossible_shares_are_refused(percent: float) -> None:
    with pytest.raises(InvalidInputError, match="impossible"):
        shape_for(1000, percent)


def _archive(path: Path) -> tuple[dict[Digest, bytes], Path]:
    """Sealed segments full of blobs; which, and the largest segment."""
    random_ = random.Random(5)
    with Archive.open(path, create=True, seal_at=200_000) as archive:
        contents = {}
        for number in range(12):
            data = random_.randbytes(70_000 + number)
            digest = archive.put_bytes(data).digest
            archive.pin(digest, kind=Kind.BLOB, name=str(number))
            contents[digest] = data
    return contents, max((path / "segments").glob("*.csfs"), key=lambda file: file.stat().st_size)


class TestArchive:
    def test_rot_is_mended_and_the_segment_is_what_it_was(self, tmp_path: Path) -> None:
        contents, segment = _archive(tmp_path / "a")
        with Archive.open(tmp_path / "a") as archive:
            made = archive.add_parity()
            assert segment.name in made
            assert archive.add_parity() == ()
        sound = segment.read_bytes()
        hurt = bytearray(sound)
        hurt[len(hurt) // 3] ^= 8
        segment.write_bytes(hurt)
        with Archive.open(tmp_path / "a") as archive:
            assert not archive.verify().ok
            assert {state.segment: state.damaged for state in archive.parity(deep=True)}[segment.name] == 1
            assert any("has parity" in note for note in archive.repair(dry_run=True).notes)
            report = archive.repair()
            assert [(each.segment, each.blocks) for each in report.mended] == [(segment.name, 1)]
            assert report.ok
            assert not report.damaged
            assert segment.read_bytes() == sound
            assert archive.verify(deep=True).ok
            assert all(archive.get_bytes(digest) == data for digest, data in contents.items())
        assert sorted(path.name for path in segment.parent.iterdir()) == sorted(
            path.name for path in segment.parent.glob("*.csfs")
        )

    def test_what_parity_can_not_mend_is_salvaged_as_without(self, tmp_path: Path) -> None:
        contents, segment = _archive(tmp_path / "a")
        with Archive.open(tmp_path / "a") as archive:
            archive.add_parity(percent=1)
        hurt = bytearray(segment.read_bytes())
        for at in range(1000, len(hurt), BLOCK):
            hurt[at] ^= 1
        segment.write_bytes(hurt)
        with Archive.open(tmp_path / "a") as archive:
            report = archive.repair()
            assert not report.mended
            assert not report.ok
            assert [each.segment for each in report.damaged] == [segment.name]
            assert any("more than the parity makes up for" in note for note in report.notes)
            hurt_blobs = {each.digest for each in report.hurt}
            for digest, data in contents.items():
                if bytes(digest) not in hurt_blobs:
                    assert archive.get_bytes(digest) == data

    def test_parity_of_damage_is_refused_and_goes_with_its_segment(self, tmp_path: Path) -> None:
        contents, segment = _archive(tmp_path / "a")
        with Archive.open(tmp_path / "a") as archive:
            archive.add_parity()
            for digest in contents:
                archive.unpin(digest)
            archive.collect(grace=0, threshold=0)
            assert {path.stem for path in (tmp_path / "a" / "parity").iterdir()} <= {
                path.stem for path in segment.parent.glob("*.csfs")
            }
        _, other = _archive(tmp_path / "b")
        hurt = bytearray(other.read_bytes())
        hurt[5000] ^= 1
        other.write_bytes(hurt)
        with Archive.open(tmp_path / "b") as archive, pytest.raises(CorruptError, match="csf repair"):
            archive.add_parity()


def test_the_command_line(tmp_path: Path) -> None:
    _, segment = _archive(tmp_path / "a")
    runner = CliRunner()

    def run(*arguments: str) -> tuple[int, str]:
        result = runner.invoke(main, ["--archive", str(tmp_path / "a"), *arguments])
        return result.exit_code, result.stdout

    assert run("parity", "status")[1].splitlines()[-1].startswith("0 of")
    code, text = run("parity", "add", "--percent", "10")
    assert code == 0
    assert segment.name in text
    hurt = bytearray(segment.read_bytes())
    hurt[-9] ^= 1
    segment.write_bytes(hurt)
    assert run("parity", "status")[0] == 0
    assert run("parity", "status", "--deep")[0] == 1
    code, text = run("repair")
    assert code == 0
    assert f"mended   segment {segment.name}: 1 blocks from parity" in text
    assert run("parity", "status", "--deep")[0] == 0
    assert run("verify", "--all", "--deep")[0] == 0
    assert run("parity", "remove")[0] == 0
    assert not list((tmp_path / "a" / "parity").iterdir())
    assert run("parity", "add", "--percent", "0")[0] == 2


def test_without_zfec_it_says_what_to_install(tmp_path: Path) -> None:
    _archive(tmp_path / "a")
    code = "import sys; sys.modules['zfec'] = None; from csf_store.cli import main; main()"
    command = [sys.executable, "-c", code, "--archive", str(tmp_path / "a"), "parity", "add"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 7
    assert "pip install 'keystone-sigma0[parity]'" in result.stderr
