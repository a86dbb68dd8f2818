"""The archive against a plain dict, through whatever may happen to it.

Files, trees, tensors and documents come in and out through two handles at once; pins come and go; garbage is collected;
processes die, the power fails (on the disk of ``tests/faults/crash_disk.py``), indexes vanish. What is pinned or was
put since the last collection is there, byte for byte, at every step; everything else may be there, and then is right.
"""

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from crash_disk import CrashDisk, CrashFileSystem
from crash_states import History, State

from csf_store import Archive, Digest, Kind, NotFoundError

Key = tuple[Digest, Kind]
_MEMORY = Path("/dev/shm")
_CHANCE = st.integers(0, 2**32)


def checkpoint(seed: int, noise: float) -> bytes:
    """A small safetensors file; with the same seed and another noise, nearly the same one."""
    base, other = np.random.default_rng(seed), np.random.default_rng(int(noise * 1e6))
    header: dict[str, object] = {}
    data = b""
    for name, count in (("a", 700), ("b", 90), ("empty", 0), ("c", 333)):
        values = (base.standard_normal(count) + noise * other.standard_normal(count)).astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": [count], "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


class ArchiveThroughEverything(RuleBasedStateMachine):
    """Two handles on one archive, and what must be in it."""

    @initialize(seal_at=st.sampled_from([700, 5000, 1 << 28]))
    def begin(self, seal_at: int) -> None:
        self.scratch = Path(
            tempfile.mkdtemp(prefix="csf-stateful-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
        )
        self.seal_at = seal_at
        self.disks = self.outs = 0
        self.contents: dict[Key, bytes] = {}
        self.links: dict[Key, tuple[Digest, ...]] = {}
        self.present: set[Key] = set()
        self.pins: dict[Digest, set[tuple[str, str | None]]] = {}
        self.targets: set[Digest] = set()
        self.disk = self._new_disk()
        self._open()

    # -- handles and disks ---------------------------------------------------------------------------------------------

    def _new_disk(self) -> CrashDisk:
        self.disks += 1
        return CrashDisk(self.scratch / f"disk-{self.disks}")

    def _open(self) -> None:
        self.processes: list[CrashFileSystem] = [self.disk.process(), self.disk.process()]
        self.handles = [
            Archive.open(self.disk.archive, create=True, fs=fs, seal_at=self.seal_at) for fs in self.processes
        ]

    def _close(self) -> None:
        for handle in self.handles:
            handle.close()

    def _die(self, number: int) -> None:
        """The process is gone; Python's objects of it are let go without a word."""
        self.processes[number].die()
        handle = self.handles[number]
        handle._store.keeper.close()
        handle.ledger.close()
        handle._pipeline.close()

    # -- putting -------------------------------------------------------------------------------------------------------

    def _stored(self, key: Key, content: bytes, links: tuple[Digest, ...] = ()) -> None:
        assert key[0] == Digest.of(content)
        self.contents[key] = content
        self.links[key] = links
        self.present.add(key)

    def _pick(self, chance: int, kind: Kind | None = None) -> Key | None:
        keys = sorted(key for key in self.present if kind in (None, key[1]))
        return random.Random(chance).choice(keys) if keys else None

    @rule(data=st.binary(max_size=200), repeat=st.sampled_from([1, 1, 50, 400]), who=st.integers(0, 1))
    def put_bytes(self, data: bytes, repeat: int, who: int) -> None:
        stored = self.handles[who].put_bytes(data * repeat)
        if (stored.digest, Kind.BLOB) in self.present:
            assert not stored.new
            assert stored.stored == 0
        self._stored((stored.digest, Kind.BLOB), data * repeat)

    @rule(seed=st.integers(0, 2), noise=st.sampled_from([0.0, 1e-3, 2e-3, 1.0]), who=st.integers(0, 1), chance=_CHANCE)
    def put_checkpoint(self, seed: int, noise: float, who: int, chance: int) -> None:
        path = self.scratch / "model.safetensors"
        path.write_bytes(content := checkpoint(seed, noise))
        archive = self.handles[who]
        key = self._pick(chance, Kind.BLOB)
        base = archive.base(key[0]) if key and archive.is_safetensors(key[0]) else None
        self._stored((archive.put_file(path, base=base).digest, Kind.BLOB), content)

    @rule(names=st.sets(st.sampled_from(["a", "b/c", "b/d", "e/f/g", "h.safetensors"])), who=st.integers(0, 1))
    def put_tree(self, names: set[str], who: int) -> None:
        source = self.scratch / "source"
        source.mkdir()
        for number, name in enumerate(sorted(names)):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            content = checkpoint(number, 0.5) if name.endswith(".safetensors") else name.encode() * 40
            (source / name).write_bytes(content)
            self.contents[Digest.of(content), Kind.BLOB] = content
        digest = self.handles[who].put_tree(source).digest
        blobs = []
        for name in sorted(names):
            content = (source / name).read_bytes()
            self._stored((Digest.of(content), Kind.BLOB), content)
            blobs.append(Digest.of(content))
        self._stored((digest, Kind.TREE), self.handles[who].get_bytes(digest, kind=Kind.TREE), tuple(blobs))
        self.outs += 1
        out = self.disk.root / f"out-{self.outs}"
        self.handles[1 - who].get_tree(digest, out)
        assert _files(out) == _files(source)
        shutil.rmtree(source)

    @rule(number=st.integers(0, 5), chance=_CHANCE, who=st.integers(0, 1))
    def put_document(self, number: int, chance: int, who: int) -> None:
        keys = sorted(self.present)
        links = tuple({key[0] for key in random.Random(chance).sample(keys, min(len(keys), 2))})
        content = b"document %d of %s" % (number, b" ".join(sorted(str(link).encode() for link in links)))
        digest = self.handles[who].put_bytes(content, kind=Kind.MANIFEST, links=links).digest
        self._stored((digest, Kind.MANIFEST), content, links)

    @precondition(lambda self: self.present)
    @rule(chance=_CHANCE, who=st.integers(0, 1))
    def put_again(self, chance: int, who: int) -> None:
        key = self._pick(chance)
        assert key
        stored = self.handles[who].put_bytes(self.contents[key], kind=key[1], links=self.links[key])
        assert (stored.digest, stored.new, stored.stored) == (key[0], False, 0)

    # -- keeping and letting go ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.present)
    @rule(chance=_CHANCE, name=st.sampled_from(["x", "y", None]), who=st.integers(0, 1))
    def pin(self, chance: int, name: str | None, who: int) -> None:
        key = self._pick(chance)
        assert key
        self.handles[who].pin(key[0], kind=key[1], name=name)
        self.pins.setdefault(key[0], set()).add((str(key[1]), name))

    @precondition(lambda self: self.pins)
    @rule(chance=_CHANCE, who=st.integers(0, 1))
    def remove(self, chance: int, who: int) -> None:
        digest = random.Random(chance).choice(sorted(self.pins))
        self.handles[who].unpin(digest)
        del self.pins[digest]

    @precondition(lambda self: self.present)
    @rule(chance=_CHANCE, who=st.integers(0, 1))
    def move_a_ref(self, chance: int, who: int) -> None:
        key = self._pick(chance)
        assert key
        with self.handles[who].keeping():
            self.handles[who].ledger.append("ref.set", ref="prod", **{"from": None, "to": str(key[0])})
        self.targets.add(key[0])

    @rule(threshold=st.sampled_from([0.0, 0.3]), who=st.integers(0, 1))
    def collect(self, threshold: float, who: int) -> None:
        self.handles[who].collect(grace=0, threshold=threshold, wait=0)
        self.present = self._reached()
        assert {info.digest for info in self.handles[who].objects()} >= {key[0] for key in self.present}

    def _reached(self) -> set[Key]:
        reached = set(self.pins) | self.targets
        waiting = list(reached)
        while waiting:
            digest = waiting.pop()
            for key, links in self.links.items():
                if key[0] == digest:
                    fresh = [link for link in links if link not in reached]
                    reached.update(fresh)
                    waiting += fresh
        return {key for key in self.present if key[0] in reached}

    # -- what happens to archives --------------------------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self._close()
        self._open()

    @rule(who=st.integers(0, 1))
    def die_and_return(self, who: int) -> None:
        """The other one does not notice."""
        self._die(who)
        self.processes[who] = self.disk.process()
        self.handles[who] = Archive.open(self.disk.archive, fs=self.processes[who], seal_at=self.seal_at)

    @rule(chance=_CHANCE, caches=st.sampled_from(["as they were", "gone", "cut"]))
    def the_power_fails(self, chance: int, caches: str) -> None:
        """What was not synced is lost, or kept, or torn; all that was acknowledged stays."""
        for number in range(2):
            self._die(number)
        history = History(self.disk)
        for moment in self.disk.journal:
            if moment.op is not None:
                history.take(moment.op)
        draw = random.Random(chance)
        state: State = draw.choice(list(history.states(draw, 4)))
        files = {} if caches == "gone" else self.disk.indexes[self.disk.moments()[-1].index]
        if caches == "cut":
            files = {name: data[: draw.randrange(len(data) + 1)] for name, data in files.items()}
        self.disk = self._new_disk()
        self.disk.adopt(state.files, files)
        self._open()

    @rule(how=st.sampled_from(["gone", "garbage", "empty"]), name=st.sampled_from(["index.sqlite", "ledger.sqlite"]))
    def a_cache_is_hurt(self, how: str, name: str) -> None:
        self._close()
        cache = self.disk.archive / name
        cache.unlink(missing_ok=True)
        if how != "gone":
            cache.write_bytes(b"" if how == "empty" else b"not a database" * 99)
        self._open()

    @rule(who=st.integers(0, 1))
    def the_index_vanishes_under_open_handles(self, who: int) -> None:
        for suffix in ("", "-wal", "-shm"):
            (self.disk.archive / f"index.sqlite{suffix}").unlink(missing_ok=True)
        self._stored((self.handles[who].put_bytes(b"without an index").digest, Kind.BLOB), b"without an index")

    @rule(length=st.integers(1, 300))
    def a_tail_is_torn(self, length: int) -> None:
        """What a process that died in the middle of a write leaves behind."""
        for number in range(2):
            self._die(number)
        for segment in (self.disk.archive / "segments").iterdir():
            if not segment.read_bytes()[-64:].startswith(b"\x89CSFEND\n"):
                fs = self.disk.process()
                fd = fs.open(segment, os.O_WRONLY | os.O_APPEND)
                fs.write(fd, [b"\x89CSR" + bytes(length)])
                fs.close(fd)
        self._open()

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def what_is_kept_is_there(self) -> None:
        draw = random.Random(len(self.disk.journal))
        pinned = {key for key in self.present if key[0] in self.pins}
        rest = sorted(self.present - pinned)
        for key in sorted(pinned) + draw.sample(rest, min(len(rest), 4)):
            assert draw.choice(self.handles).get_bytes(key[0], kind=key[1]) == self.contents[key], key
        for handle in self.handles:
            found = {(pin.digest, pin.kind, pin.name) for pin in handle.pins()}
            assert found == {(digest, *each) for digest, pins in self.pins.items() for each in pins}

    @invariant()
    def what_is_not_kept_is_right_or_gone(self) -> None:
        draw = random.Random(len(self.disk.journal) + 1)
        away = sorted(self.contents.keys() - self.present)
        for key in draw.sample(away, min(len(away), 2)):
            with contextlib.suppress(NotFoundError):
                assert self.handles[0].get_bytes(key[0], kind=key[1]) == self.contents[key]

    def teardown(self) -> None:
        if not hasattr(self, "disk"):
            return
        reports = [handle.verify(deep=True) for handle in self.handles]
        self._close()
        with Archive.open(self.disk.archive) as archive:
            for key in sorted(self.present):
                assert archive.get_bytes(key[0], kind=key[1]) == self.contents[key]
            reports.append(archive.verify(deep=True))
            archive.collect(grace=0, threshold=0)  # nobody else has a segment open now, so all of it goes
            kept = {key[0] for key in self._reached()}
            assert {info.digest for info in archive.objects()} == kept
            reports.append(archive.verify(deep=True))
        shutil.rmtree(self.scratch)
        assert [report.findings for report in reports] == [()] * 4


def _files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


TestArchiveThroughEverything = ArchiveThroughEverything.TestCase
TestArchiveThroughEverything.settings = settings(
    max_examples=400 if os.environ.get("CSF_FAULTS") == "all" else 30,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
