"""The archive against a plain dict: whatever is done in whatever order, it holds exactly what was put."""

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from csf_store import Archive, Digest, InvalidInputError, Kind, NotFoundError
from csf_store.safetensors_layout import parse_header, tensor_cuts


class ArchiveAgainstDict(RuleBasedStateMachine):
    @initialize(seal_at=st.sampled_from([300, 2000, 1 << 28]))
    def begin(self, seal_at: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="csf-property-"))
        self.seal_at = seal_at
        self.archive = Archive.open(self.directory / "a", create=True, seal_at=seal_at)
        self.objects: dict[tuple[Digest, Kind], bytes] = {}
        self.pins: set[Digest] = set()

    @rule(
        data=st.binary(max_size=300), repeat=st.sampled_from([1, 1, 1, 400]), kind=st.sampled_from(["blob", "record"])
    )
    def put(self, data: bytes, repeat: int, kind: str) -> None:
        content = data * repeat
        stored = self.archive.put_bytes(content, kind=Kind(kind))
        assert stored.digest == Digest.of(content)
        assert stored.new == ((stored.digest, Kind(kind)) not in self.objects)
        assert stored.new or stored.stored == 0
        self.objects[stored.digest, Kind(kind)] = content

    @rule(choice=st.randoms(use_true_random=False))
    def pin(self, choice: random.Random) -> None:
        if self.objects:
            digest, kind = choice.choice(sorted(self.objects))
            self.archive.pin(digest, kind=kind, name="x")
            self.pins.add(digest)

    @rule(choice=st.randoms(use_true_random=False))
    def unpin(self, choice: random.Random) -> None:
        if self.pins:
            digest = choice.choice(sorted(self.pins))
            self.archive.unpin(digest)
            self.pins.remove(digest)

    @rule()
    def reopen(self) -> None:
        self.archive.close()
        self.archive = Archive.open(self.directory / "a", seal_at=self.seal_at)

    @rule(how=st.sampled_from(["gone", "garbage", "empty"]))
    def lose_the_index(self, how: str) -> None:
        self.archive.close()
        index = self.directory / "a" / "index.sqlite"
        index.unlink() if how == "gone" else index.write_bytes(b"" if how == "empty" else b"not a database" * 99)
        self.archive = Archive.open(self.directory / "a", seal_at=self.seal_at)

    @rule(length=st.integers(1, 200))
    def tear_the_tail(self, length: int) -> None:
        """What a crash in the middle of a write leaves behind."""
        self.archive.close()
        for segment in (self.directory / "a" / "segments").iterdir():
            if not segment.read_bytes()[-64:].startswith(b"\x89CSFEND\n"):
                with segment.open("ab") as file:
                    file.write(b"\x89CSR" + bytes(length))
        self.archive = Archive.open(self.directory / "a", seal_at=self.seal_at)

    @invariant()
    def holds_exactly_what_was_put(self) -> None:
        for (digest, kind), content in self.objects.items():
            assert self.archive.get_bytes(digest, kind=kind) == content
        known = {(info.digest, kind) for info in self.archive.objects() for kind in info.kinds}
        assert known == set(self.objects)
        assert {pin.digest for pin in self.archive.pins()} == self.pins

    def teardown(self) -> None:
        if hasattr(self, "archive"):
            report = self.archive.verify(deep=True)
            self.archive.close()
            shutil.rmtree(self.directory)
            assert report.findings == ()


TestArchiveAgainstDict = ArchiveAgainstDict.TestCase
TestArchiveAgainstDict.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=120), st.integers(0, 1 << 63))
def test_any_header_is_parsed_or_refused(text: bytes, size: int) -> None:
    try:
        header = parse_header(len(text).to_bytes(8, "little") + text, size)
    except InvalidInputError:
        return
    assert sum(cut.length for cut in tensor_cuts(header)) == size


def test_any_text_resolves_or_is_refused() -> None:
    with tempfile.TemporaryDirectory() as directory, Archive.open(directory, create=True) as archive:

        @settings(max_examples=100, deadline=None, derandomize=True)
        @given(st.text(max_size=80))
        def refused(text: str) -> None:
            with pytest.raises((NotFoundError, InvalidInputError)):
                archive.resolve(text)

        refused()
