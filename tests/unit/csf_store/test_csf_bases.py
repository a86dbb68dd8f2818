"""Differences: what becomes one, against which chunk, and that depth never exceeds one."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from checkpoint_maker import fine_tuned, make_safetensors, weights
from click.testing import CliRunner

from csf_store import Archive, CorruptError, Digest, InvalidInputError, Kind, allocate
from csf_store.cli import main
from csf_store.codecs import codec
from csf_store.framing import CHUNK_SIZE, ZERO_DIGEST
from csf_store.segment import chunk_header

Tensors = Mapping[str, tuple[str, list[int], bytes]]
DELTA = 3


def _checkpoint(seed: int) -> dict[str, tuple[str, list[int], bytes]]:
    return {
        "embed": ("BF16", [300, 200], weights(300, 200, seed)),
        "layer.q": ("BF16", [200, 200], weights(200, 200, seed + 1)),
        "norm": ("BF16", [3], b"\x80\x3f" * 3),
    }


def _fine_tune(tensors: Tensors, seed: int) -> dict[str, tuple[str, list[int], bytes]]:
    return {name: (dtype, shape, fine_tuned(raw, seed)) for name, (dtype, shape, raw) in tensors.items()}


def _location(archive: Archive, raw: bytes) -> tuple[int, bytes]:
    where = archive._store.find_chunk(bytes(Digest.of(raw)))
    assert where is not None
    return where.codec, where.base


def test_a_fine_tune_is_stored_as_differences_and_comes_back(tmp_path: Path) -> None:
    base = _checkpoint(1)
    tuned = _fine_tune(base, 2)
    content = make_safetensors(tuned)
    (tmp_path / "tuned.safetensors").write_bytes(content)
    with Archive.open(tmp_path / "a", create=True) as archive:
        first = archive.put_bytes(make_safetensors(base)).digest
        stored = archive.put_file(tmp_path / "tuned.safetensors", base=archive.base(first))
        assert stored.stored < 0.25 * len(content)
        for name in ("embed", "layer.q"):
            assert _location(archive, tuned[name][2]) == (DELTA, bytes(Digest.of(base[name][2])))
        assert _location(archive, tuned["norm"][2])[1] == ZERO_DIGEST  # three values: nothing to gain
        assert archive.get_bytes(stored.digest) == content
        assert bytes(archive.read_tensor(stored.digest, "embed")) == tuned["embed"][2]
        assert archive.verify(deep=True).ok
    with Archive.open(tmp_path / "b", create=True) as alone:
        assert alone.put_bytes(content).stored > 2 * stored.stored


def test_file_and_order_do_not_matter_and_a_tree_is_a_base(tmp_path: Path) -> None:
    base = _checkpoint(3)
    tuned = _fine_tune(base, 4)
    for name, shard in (("one", ["layer.q"]), ("two", ["norm", "embed"])):
        (tmp_path / "tuned").mkdir(exist_ok=True)
        (tmp_path / "tuned" / f"{name}.safetensors").write_bytes(make_safetensors({key: tuned[key] for key in shard}))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(make_safetensors(base))
    (tmp_path / "base" / "config.json").write_text("{}")
    with Archive.open(tmp_path / "a", create=True) as archive:
        tree = archive.put_tree(tmp_path / "base").digest
        other = archive.put_tree(tmp_path / "tuned", base=archive.base(tree)).digest
        for name in ("embed", "layer.q"):
            assert _location(archive, tuned[name][2])[0] == DELTA
        archive.get_tree(other, tmp_path / "out")
    for path in (tmp_path / "tuned").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_depth_is_one_along_a_chain_of_fine_tunes(tmp_path: Path) -> None:
    versions = [_checkpoint(5)]
    for step in range(4):
        versions.append(_fine_tune(versions[-1], 10 + step))
    with Archive.open(tmp_path / "a", create=True) as archive:
        digests = [archive.put_bytes(make_safetensors(versions[0])).digest]
        for number, version in enumerate(versions[1:], 1):
            path = tmp_path / f"{number}.safetensors"
            path.write_bytes(make_safetensors(version))
            digests.append(archive.put_file(path, base=archive.base(digests[-1])).digest)
            assert _location(archive, version["embed"][2]) == (DELTA, bytes(Digest.of(versions[0]["embed"][2])))
        for digest, version in zip(digests, versions, strict=True):
            assert archive.get_bytes(digest) == make_safetensors(version)


def test_only_the_same_name_dtype_and_shape_meet(tmp_path: Path) -> None:
    raw = weights(200, 200, 6)
    base = {"t": ("BF16", [200, 200], raw)}
    others: list[Tensors] = [
        {"u": ("BF16", [200, 200], fine_tuned(raw, 1))},
        {"t": ("F16", [200, 200], fine_tuned(raw, 2))},
        {"t": ("BF16", [40000], fine_tuned(raw, 3))},
    ]
    with Archive.open(tmp_path / "a", create=True) as archive:
        against = archive.base(archive.put_bytes(make_safetensors(base)).digest)
        assert against.names == {"t"}
        for number, tensors in enumerate(others):
            path = tmp_path / f"{number}.safetensors"
            path.write_bytes(make_safetensors(tensors))
            archive.put_file(path, base=against)
            ((_, _, content),) = tensors.values()
            assert _location(archive, content)[1] == ZERO_DIGEST


def test_each_chunk_of_a_long_tensor_meets_its_own(tmp_path: Path) -> None:
    rows = CHUNK_SIZE // 2000 + 50
    raw = weights(rows, 1000, 7)
    tuned = fine_tuned(raw, 8)
    path = tmp_path / "t.safetensors"
    path.write_bytes(make_safetensors({"t": ("BF16", [rows, 1000], tuned)}))
    with Archive.open(tmp_path / "a", create=True) as archive:
        base = archive.put_bytes(make_safetensors({"t": ("BF16", [rows, 1000], raw)})).digest
        digest = archive.put_file(path, base=archive.base(base)).digest
        for start in (0, CHUNK_SIZE):
            against = bytes(Digest.of(raw[start : start + CHUNK_SIZE]))
            assert _location(archive, tuned[start : start + CHUNK_SIZE]) == (DELTA, against)
        assert archive.get_bytes(digest) == path.read_bytes()


def test_a_base_must_hold_tensors(tmp_path: Path) -> None:
    with Archive.open(tmp_path, create=True) as archive:
        digest = archive.put_bytes(b"no tensors here").digest
        with pytest.raises(InvalidInputError, match=f"{digest}: no safetensors blob"):
            archive.base(digest)
        assert archive.last_under("never pinned") is None


def _forged(archive: Archive, raw: bytes, other: bytes, base: bytes) -> None:
    """A chunk record that says it is the difference of ``raw`` to ``other``, filed as if ``base`` were ``other``."""
    from csf_store.codecs import Hint  # noqa: PLC0415

    stored = codec(DELTA).encode(raw, Hint("BF16", other))
    archive._store.append(chunk_header(bytes(Digest.of(raw)), DELTA, len(raw), stored, base), stored)


def test_circles_and_chains_of_differences_are_refused(tmp_path: Path) -> None:
    one = weights(100, 100, 9)
    two, three = fine_tuned(one, 10), fine_tuned(one, 11)
    with Archive.open(tmp_path, create=True) as archive:
        _forged(archive, one, two, bytes(Digest.of(two)))  # one needs two, and two needs one
        _forged(archive, two, one, bytes(Digest.of(one)))
        _forged(archive, three, three, bytes(Digest.of(three)))  # three needs itself
        archive._store.commit()
        for raw in (one, two, three):
            blob = archive.put_bytes(make_safetensors({"t": ("BF16", [100, 100], raw)})).digest
            with pytest.raises(CorruptError, match="a difference itself"):
                archive.get_bytes(blob)
            assert not archive.verify(deep=True).ok


def test_a_lost_or_damaged_base_is_named(tmp_path: Path) -> None:
    base = {"t": ("BF16", [200, 200], weights(200, 200, 12))}
    tuned = _fine_tune(base, 13)
    path = tmp_path / "t.safetensors"
    path.write_bytes(make_safetensors(tuned))
    with Archive.open(tmp_path / "a", create=True) as archive:
        first = archive.put_bytes(make_safetensors(base)).digest
        digest = archive.put_file(path, base=archive.base(first)).digest
        raw = bytes(Digest.of(base["t"][2]))
        where = archive._store.find_chunk(raw)
        assert where is not None
        segment = tmp_path / "a" / "segments" / archive._store.segment_name(where.segment)
    content = bytearray(segment.read_bytes())
    content[where.offset + 128 + 100] ^= 1
    segment.write_bytes(content)
    with Archive.open(tmp_path / "a") as archive:
        with pytest.raises(CorruptError, match=f"{Digest(raw)}: segment .* at offset {where.offset}"):
            archive.get_bytes(digest)
        with pytest.raises(CorruptError, match=str(Digest(raw))):
            archive.read_tensor(digest, "t")
        # What can not be read is no base: the next version is stored alone, and is sound.
        later = tmp_path / "later.safetensors"
        later.write_bytes(make_safetensors(_fine_tune(base, 14)))
        assert archive.get_bytes(archive.put_file(later, base=archive.base(first)).digest) == later.read_bytes()


def test_load_tensors_gives_writable_aligned_memory(tmp_path: Path) -> None:
    tensors = _checkpoint(15) | {"empty": ("F32", [0, 4], b""), "scalar": ("F64", [], bytes(8))}
    with Archive.open(tmp_path, create=True) as archive:
        digest = archive.put_bytes(make_safetensors(tensors)).digest
        loaded = archive.load_tensors(digest)
    assert {name: bytes(view) for name, view in loaded.items()} == {name: raw for name, (_, _, raw) in tensors.items()}
    loaded["norm"][0] = 7
    assert np.frombuffer(loaded["embed"], np.uint8).ctypes.data % 64 == 0
    assert [len(piece) for piece in allocate([5, 0, 130])] == [5, 0, 130]


class TestCommandLine:
    def _put(self, tmp_path: Path, *arguments: str) -> str:
        result = CliRunner().invoke(main, ["--archive", str(tmp_path / "a"), "put", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout.split()[0]

    def _codec_of(self, tmp_path: Path, raw: bytes) -> int:
        with Archive.open(tmp_path / "a") as archive:
            return _location(archive, raw)[0]

    def test_the_next_version_under_the_same_name_grows_from_the_last(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        base = _checkpoint(20)
        path.write_bytes(make_safetensors(base))
        self._put(tmp_path, str(path))
        for seed, options, expected in ((21, (), DELTA), (22, ("--no-base",), 2)):
            tuned = _fine_tune(base, seed)
            path.write_bytes(make_safetensors(tuned))
            self._put(tmp_path, str(path), *options)
            assert self._codec_of(tmp_path, tuned["embed"][2]) == expected

    def test_a_named_base_and_tags(self, tmp_path: Path) -> None:
        base = _checkpoint(23)
        tuned = _fine_tune(base, 24)
        (tmp_path / "base.safetensors").write_bytes(make_safetensors(base))
        (tmp_path / "tuned.safetensors").write_bytes(make_safetensors(tuned))
        digest = self._put(tmp_path, str(tmp_path / "base.safetensors"))
        self._put(tmp_path, str(tmp_path / "tuned.safetensors"), "--base", digest[:14], "--tag", "bot", "--tag", "v2")
        assert self._codec_of(tmp_path, tuned["embed"][2]) == DELTA
        with Archive.open(tmp_path / "a") as archive:
            assert [pin.name for pin in archive.pins()] == ["base.safetensors", "tuned.safetensors", "bot", "v2"]
            assert {pin.kind for pin in archive.pins()} == {Kind.BLOB}

    def test_contradictions_and_strangers_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.bin").write_bytes(b"x")
        runner = CliRunner()
        for options, code in ((["--base", "b3:" + "0" * 64], 5), (["--base", "00000000", "--no-base"], 2)):
            result = runner.invoke(main, ["--archive", str(tmp_path / "a"), "put", str(tmp_path / "x.bin"), *options])
            assert result.exit_code == code, result.output
