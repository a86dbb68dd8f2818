"""Search against brute force over the archive's public methods, and the catalogue against all that may befall it."""

import fnmatch
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from checkpoint_maker import make_safetensors, weights
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from csf_store import (
    AmbiguousPrefixError,
    Archive,
    CorruptError,
    Digest,
    InvalidInputError,
    Kind,
    NotFoundError,
    Stored,
    TreeEntry,
)
from csf_store.cli import main
from csf_store.durable import OsFileSystem
from csf_store.framing import CHUNK_SIZE
from csf_store.objects import ChunkRef, Form, Layout, ObjectBody, pack_object
from csf_store.retrieve import OpenObject
from csf_store.safetensors_layout import DTYPE_BITS
from csf_store.search import catalogue
from csf_store.search.answering import find, find_tensor, resolve_name
from csf_store.search.catalogue import CATALOGUE, LOCK
from csf_store.search.patterns import NamePattern, ShapePattern, SizeRange
from csf_store.search.query import MetadataPattern, Order, Query, TensorAddress
from csf_store.segment import chunk_header, object_header

NAMES = [
    "a",
    "b.weight",
    "b.bias",
    "layers.0.q",
    "layers.1.q",
    "layers.10.q",
    "emb[0]",
    "half \ud800 pair",
    "nul\0",
    "é",
]
SHAPES = [[], [0], [4], [2, 2], [8], [2, 4], [4, 0, 2], [1, 1, 8], [3, 8]]
PATHS = ["model.safetensors", "sub/model.safetensors", "config.json", "sub/deep/tokenizer.json"]
TAGS = ["run-1", "run-2", "run-10", "prod"]
METADATA = [{}, {"format": "pt"}, {"format": "pt", "step": "7"}, {"step": "7\ud800"}]


def tensor(draw: random.Random) -> tuple[str, list[int], bytes]:
    while True:
        dtype, shape = draw.choice(list(DTYPE_BITS)), draw.choice(SHAPES)
        bits = DTYPE_BITS[dtype]
        for dimension in shape:
            bits *= dimension
        if bits % 8 == 0:
            # Few contents, so that equal ones meet.
            return dtype, shape, bytes([draw.randrange(3)]) * (bits // 8)


def populate(archive: Archive, seed: int) -> None:
    draw = random.Random(seed)
    blobs, trees, manifests = [], [], []
    for _ in range(25):
        names = draw.sample(NAMES, draw.randrange(5))
        blobs.append(archive.put_bytes(make_safetensors({n: tensor(draw) for n in names}, draw.choice(METADATA))))
    blobs += [archive.put_bytes(draw.randbytes(draw.choice([0, 5, 70_000]))) for _ in range(5)]
    for _ in range(8):
        paths = draw.sample(PATHS, draw.randrange(4))
        chosen = [draw.choice(blobs) for _ in paths]
        entries = [TreeEntry(path, blob.digest, blob.size) for path, blob in zip(paths, chosen, strict=True)]
        trees.append(archive.put_tree_entries(entries))
    for number in range(4):
        links = {draw.choice([*trees, *manifests, *blobs]).digest for _ in range(2)}
        manifests.append(archive.put_bytes(b"m%d" % number, kind=Kind.MANIFEST, links=links))
    archive.put_bytes(archive.get_bytes(trees[0].digest))  # the same bytes as a tree and as a blob
    for stored in draw.sample([*blobs, *trees, *manifests], 12):
        archive.pin(stored.digest, kind=stored.kind, name=draw.choice([*TAGS, None]))
    archive.ledger.append("ref.set", **{"ref": "main", "from": None, "to": str(manifests[0].digest)})
    archive.ledger.append("ref.set", **{"ref": "main", "from": None, "to": str(manifests[1].digest)})


@pytest.fixture(scope="module", params=[1, 2, 3])
def populated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with Archive.open(tmp_path_factory.mktemp("search") / "archive", create=True) as archive:
        populate(archive, request.param)
        yield archive


# -- the reference: every object looked at, every byte read ----------------------------------------------------------


class Plain:
    """What an archive holds, read through its public methods alone."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.objects = [(info.digest, kind) for info in archive.objects() for kind in info.kinds]
        self.entries = {d: archive.tree(d).entries for d, kind in self.objects if kind == Kind.TREE}
        self.needs: dict[Digest, set[Digest]] = {d: set(archive.links(d)) for d, _ in self.objects}
        self.tensors = {
            d: [(info, bytes(archive.read_tensor(d, info.name))) for info in archive.tensors(d).values()]
            for d, kind in self.objects
            if kind == Kind.BLOB and archive.is_safetensors(d)
        }

    def below(self, roots: set[Digest]) -> set[Digest]:
        seen, waiting = set(roots), list(roots)
        while waiting:
            fresh = self.needs[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        return seen

    def fitting(self, digest: Digest, query: Query) -> list[str]:
        wanted = None
        if query.same_as:
            wanted = bytes(self.archive.read_tensor(*query.same_as))
        shared = None
        if query.shares:
            among = {e.blob for e in self.entries.get(query.shares, ())} or {query.shares}
            shared = {data for d in among for _, data in self.tensors.get(d, ()) if data}
            if digest in among:
                return []
        return [
            info.name
            for info, data in self.tensors.get(digest, ())
            if (query.tensor is None or query.tensor.fits(info.name))
            and (not query.dtypes or any(pattern.fits(info.dtype) for pattern in query.dtypes))
            and (query.shape is None or query.shape.fits(info.shape))
            and (query.tensor_size is None or query.tensor_size.fits(info.nbytes))
            and (wanted is None or data == wanted)
            and (shared is None or data in shared)
        ]

    def scope(self, query: Query) -> set[Digest] | None:
        scope = None
        if query.tag:
            scope = self.below({p.digest for p in self.archive.pins() if p.name and query.tag.fits(p.name)})
        if query.ref:
            moves = self.archive.ledger.refs().items()
            heads = {m[-1].target for name, m in moves if query.ref.fits(name) and m[-1].target}
            scope = self.below(heads) if scope is None else scope & self.below(heads)
        return scope

    def is_base(self, digest: Digest, kind: Kind, query: Query) -> bool:
        """Whether an object by itself meets what is asked of blobs and chunks."""
        if query.chunk is not None:
            chunks = [chunk.digest for chunk in self.archive.record(digest, kind).body.chunks]
            if bytes(query.chunk) not in chunks:
                return False
        if not query.of_blobs:
            return True
        if kind != Kind.BLOB or digest not in self.tensors or (query.of_tensors and not self.fitting(digest, query)):
            return False
        metadata = self.archive.metadata(digest)
        return all(key in metadata and (value is None or value.fits(metadata[key])) for key, value in query.metadata)

    def find(self, query: Query) -> set[tuple[Digest, Kind]]:
        scope = self.scope(query)
        base = {(d, kind) for d, kind in self.objects if self.is_base(d, kind, query)}
        holders: set[Digest] | None = None
        if query.path is not None:
            places = {
                (tree, e.blob)
                for tree, entries in self.entries.items()
                for e in entries
                if query.path.fits(e.path) and (e.blob, Kind.BLOB) in base and (scope is None or tree in scope)
            }
            base = {(blob, Kind.BLOB) for _, blob in places}
            holders = {tree for tree, _ in places}
        found = set()
        for digest, kind in self.objects:
            if kind not in query.wanted or (scope is not None and digest not in scope):
                continue
            if query.contains is not None and query.contains not in self.below({digest}) - {digest}:
                continue
            if query.size is not None and not query.size.fits(self.size(digest, kind)):
                continue
            if query.digest is not None and not digest.hex.startswith(query.digest.removeprefix("b3:")):
                continue
            if (digest, kind) in base or (query.kinds and kind != Kind.BLOB and self.stands_on(digest, base, holders)):
                found.add((digest, kind))
        return found

    def stands_on(self, digest: Digest, base: set[tuple[Digest, Kind]], holders: set[Digest] | None) -> bool:
        if holders is not None:
            return bool(self.below({digest}) & holders)
        return any((below, kind) in base for below in self.below({digest}) - {digest} for kind in Kind)

    def size(self, digest: Digest, kind: Kind) -> int:
        return self.archive.tree(digest).size if kind == Kind.TREE else self.archive.record(digest, kind).size


def queries(plain: Plain) -> st.SearchStrategy[Query]:
    blobs = sorted(plain.tensors)
    addresses = [TensorAddress(d, info.name) for d in blobs for info, _ in plain.tensors[d]]
    digests = sorted({d for d, _ in plain.objects})
    chunks = sorted({Digest(c.digest) for d, k in plain.objects for c in plain.archive.record(d, k).body.chunks})
    globs = ["*", "b.*", "layers.?.q", "layers.1*", "[a-b]", "nothing", "*\ud800*"]
    patterns = st.sampled_from(globs).map(NamePattern) | st.sampled_from(["q$", "^a", r"\d\d", "."]).map(
        lambda text: NamePattern(text, regex=True)
    )

    def maybe(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
        return st.sampled_from([None] * 7 + [0]).flatmap(lambda chosen: st.none() if chosen is None else values)

    return st.builds(
        Query,
        tensor=maybe(patterns),
        dtypes=st.sampled_from([(), (), (), (), (NamePattern("F8*"),), (NamePattern("BF16"), NamePattern("I*"))]),
        shape=maybe(st.sampled_from(["scalar", "*", "2x*", "...x8", "*x*", "0", "4x..."]).map(ShapePattern)),
        tensor_size=maybe(st.sampled_from(["0", ">4", "..8"]).map(SizeRange.parse)),
        same_as=maybe(st.sampled_from(addresses)),
        shares=maybe(st.sampled_from([*blobs, *sorted(plain.entries)])),
        chunk=maybe(st.sampled_from(chunks)),
        metadata=st.sampled_from(
            [
                (),
                (),
                (MetadataPattern("format"),),
                (MetadataPattern("step", NamePattern("7*")), MetadataPattern("step")),
            ]
        ),
        path=maybe(st.sampled_from(["*.json", "model*", "sub/*", "*"]).map(NamePattern)),
        tag=maybe(st.sampled_from(["run-*", "run-1", "prod", "none"]).map(NamePattern)),
        ref=maybe(st.sampled_from(["main", "x"]).map(NamePattern)),
        size=maybe(st.sampled_from([">100B", "0", "..1KiB"]).map(SizeRange.parse)),
        digest=maybe(st.sampled_from(digests).map(lambda digest: str(digest)[: 3 + 1 + digest.hex.__len__() % 3])),
        contains=maybe(st.sampled_from(digests)),
        kinds=st.sampled_from(
            [frozenset(), frozenset([Kind.TREE]), frozenset([Kind.BLOB, Kind.MANIFEST]), frozenset(Kind)]
        ),
        list_tensors=st.booleans(),
    )


def test_every_query_finds_what_brute_force_finds(populated: Archive) -> None:
    plain = Plain(populated)
    found_any = 0

    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(queries(plain), st.sampled_from(Order), st.none() | st.integers(1, 5))
    def agrees(query: Query, order: Order, limit: int | None) -> None:
        nonlocal found_any
        findings = find(populated, query, order=order, limit=limit)
        expected = plain.find(query)
        assert findings.total == len(expected)
        assert findings.unreadable == ()
        hits = [(hit.digest, hit.kind) for hit in findings.hits]
        assert len(hits) == len(set(hits)) == min(len(expected), limit or len(expected))
        assert set(hits) <= expected
        for hit in findings.hits:
            assert hit.size == plain.size(hit.digest, hit.kind)
            fitting = plain.fitting(hit.digest, query) if hit.kind == Kind.BLOB and query.of_tensors else []
            assert hit.tensor_count == len(fitting)
            assert [each.name for each in hit.tensors] == (fitting if query.list_tensors else [])
        found_any += bool(expected)
        if order == Order.SIZE:
            assert [hit.size for hit in findings.hits] == sorted((hit.size for hit in findings.hits), reverse=True)
        if order == Order.NAME:
            assert [hit.name for hit in findings.hits if hit.name] == sorted(h.name for h in findings.hits if h.name)

    agrees()
    assert found_any > 30  # the test would say little of queries that find nothing


def test_places_and_labels_are_those_of_trees_and_ledger(populated: Archive) -> None:
    plain = Plain(populated)
    pins = populated.pins()
    for hit in find(populated, Query()).hits:
        places = [(tree, e.path) for tree, entries in plain.entries.items() for e in entries if e.blob == hit.digest]
        assert hit.place_count == (len(places) if hit.kind == Kind.BLOB else 0)
        for place in hit.places:
            assert (place.tree, place.path) in places
            assert set(place.labels) >= {pin.name for pin in pins if pin.digest == place.tree and pin.name}
        assert set(hit.labels) >= {pin.name for pin in pins if pin.digest == hit.digest and pin.name}


# -- equal bytes, however they are stored ----------------------------------------------------------------------------


def store_by_hand(archive: Archive, content: bytes, header_length: int, cuts: list[int] | None) -> Digest:
    """Stores a safetensors blob as no writer of ours does: in its record, or cut at other places."""
    store, digest, chunks, inline = archive._store, Digest.of(content), [], content
    if cuts is not None:
        inline = b""
        for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
            piece = content[start:end]
            chunks.append(ChunkRef(blake3(piece).digest(), len(piece)))
            if not store.find_chunk(chunks[-1].digest):
                store.append(chunk_header(chunks[-1].digest, 0, len(piece), piece), piece)
    form = Form.INLINE if cuts is None else Form.CHUNKED
    payload = pack_object(ObjectBody(form, Layout.SAFETENSORS, header_length, (), tuple(chunks), inline))
    store.append(object_header(digest, Kind.BLOB, 0, len(content), payload), payload)
    store.commit()
    return digest


def holders(archive: Archive, blob: Digest, name: str) -> set[Digest]:
    return {hit.digest for hit in find(archive, Query(same_as=TensorAddress(blob, name))).hits}


def test_a_tensor_is_found_again_in_inline_and_oddly_cut_blobs(tmp_path: Path) -> None:
    small, large = bytes(range(64)), random.Random(5).randbytes(CHUNK_SIZE + 999)
    with Archive.open(tmp_path / "a", create=True) as archive:
        usual = archive.put_bytes(make_safetensors({"s": ("U8", [64], small), "l": ("U8", [len(large)], large)})).digest
        inline = make_safetensors({"t": ("I16", [32], small)})
        length = len(inline) - 64
        in_record = store_by_hand(archive, inline, length, None)
        odd = make_safetensors({"x": ("U8", [len(large)], large), "y": ("U8", [64], small)})
        head = len(odd) - 64 - len(large)
        cut = store_by_hand(archive, odd, head, [head, head + 1000, head + 1000 + (2 << 20), len(odd) - 30])
        straddling = make_safetensors({"z": ("U8", [len(large)], large)}, {"more": "x"})
        across = store_by_hand(archive, straddling, len(straddling) - len(large), [CHUNK_SIZE, CHUNK_SIZE + 7])
        assert holders(archive, usual, "s") == holders(archive, in_record, "t") == {usual, in_record, cut}
        assert holders(archive, usual, "l") == holders(archive, cut, "x") == {usual, cut, across}
        chunk = Query(chunk=Digest(blake3(small).digest()))  # the same bytes, but a chunk only in one of the three
        assert {hit.digest for hit in find(archive, chunk).hits} == {usual}


def test_chunks_are_found_in_tensors_headers_and_plain_objects(tmp_path: Path) -> None:
    large = random.Random(6).randbytes(2 * CHUNK_SIZE + 5)
    with Archive.open(tmp_path / "a", create=True) as archive:
        blob = archive.put_bytes(make_safetensors({"l": ("U8", [len(large)], large), "s": ("U8", [3], b"abc")})).digest
        plain = archive.put_bytes(large).digest
        tree = archive.put_tree_entries([TreeEntry("f", blob, archive.stat(blob).size)]).digest
        for chunk in archive.record(blob).body.chunks:
            expected = {blob, plain} if chunk.length > 2000 or chunk.length == 5 else {blob}
            found = find(archive, Query(chunk=Digest(chunk.digest)))
            assert {hit.digest for hit in found.hits} == expected
            above = find(archive, Query(chunk=Digest(chunk.digest), kinds=frozenset([Kind.TREE])))
            assert {hit.digest for hit in above.hits} == {tree}
        assert find(archive, Query(chunk=Digest.of(b"no"))).total == 0


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with Archive.open(tmp_path / "a", create=True) as archive:
        blob = archive.put_bytes(make_safetensors({"t": ("U8", [1], b"x")})).digest
        with pytest.raises(NotFoundError, match="no tensor 'u'"):
            find(archive, Query(same_as=TensorAddress(blob, "u")))
        with pytest.raises(NotFoundError):
            find(archive, Query(shares=Digest.of(b"not here")))
        with pytest.raises(InvalidInputError):
            find(archive, Query(digest="xyz"))


# -- the catalogue is a cache ----------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.open(tmp_path / "archive", create=True, seal_at=4000) as opened:
        populate(opened, 7)
        yield opened


QUESTIONS = (
    Query(),
    Query(tensor=NamePattern("*.q")),
    Query(shape=ShapePattern("...x8"), list_tensors=True),
    Query(path=NamePattern("*.json"), kinds=frozenset([Kind.TREE])),
    Query(tag=NamePattern("run-*")),
    Query(metadata=(MetadataPattern("format", NamePattern("pt")),)),
)


def answers(archive: Archive) -> list[tuple[object, ...]]:
    found = [find(archive, query) for query in QUESTIONS]
    return [(findings.total, findings.hits) for findings in found]


def test_it_learns_what_is_new_and_forgets_what_is_gone(archive: Archive, tmp_path: Path) -> None:
    before = find(archive, Query()).total
    new = archive.put_bytes(make_safetensors({"new.q": ("BF16", [1], b"zz")})).digest
    assert find(archive, Query()).total == before + 1
    assert [hit.digest for hit in find(archive, Query(tensor=NamePattern("new.q"))).hits] == [new]
    archive.pin(new, kind=Kind.BLOB, name="fresh")
    assert [hit.digest for hit in find(archive, Query(tag=NamePattern("fresh"))).hits] == [new]
    archive.unpin(new)
    assert find(archive, Query(tag=NamePattern("fresh"))).total == 0
    where = archive._store.find_object(bytes(new), Kind.BLOB)
    assert where is not None
    segment = archive.path / "segments" / archive._store.segment_name(where.segment)
    archive.close()
    segment.unlink()  # what a collection does, roughly
    for file in archive.path.glob("index.sqlite*"):
        file.unlink()
    with Archive.open(archive.path) as reopened:
        left = {(info.digest, kind) for info in reopened.objects() for kind in info.kinds}
        assert (new, Kind.BLOB) not in left
        assert left
        found = find(reopened, Query())
        assert {(hit.digest, hit.kind) for hit in found.hits} | {
            (d, k) for d, k in left if d in found.unreadable
        } == left


def test_a_tree_that_is_gone_neither_needs_nor_names_a_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_discard", None)  # the catalogue that knew the tree is the one that is asked
    with Archive.open(tmp_path / "a", create=True, seal_at=100) as archive:  # every record in a segment of its own
        blob = archive.put_bytes(make_safetensors({"w": ("U8", [400], bytes(400))})).digest
        tree = archive.put_tree_entries([TreeEntry("m.safetensors", blob, archive.stat(blob).size)]).digest
        manifest = archive.put_bytes(b"m" * 400, kind=Kind.MANIFEST, links=[tree]).digest
        archive.pin(manifest, kind=Kind.MANIFEST, name="top")
        every = Query(tensor=NamePattern("w"), kinds=frozenset(Kind))
        assert {hit.digest for hit in find(archive, every).hits} == {blob, tree, manifest}
        assert find(archive, Query(tag=NamePattern("top"))).total == 3
        where = archive._store.find_object(bytes(tree), Kind.TREE)
        assert where is not None
        segment = archive.path / "segments" / archive._store.segment_name(where.segment)
    segment.unlink()
    for file in archive.path.glob("index.sqlite*"):
        file.unlink()
    with Archive.open(archive.path) as archive:
        (hit,) = find(archive, every).hits
        assert (hit.digest, hit.places, hit.place_count) == (blob, (), 0)
        assert find(archive, Query(contains=blob)).total == 0
        assert find(archive, Query(path=NamePattern("*"))).total == 0
        assert [hit.digest for hit in find(archive, Query(tag=NamePattern("top"))).hits] == [manifest]


def test_what_vanishes_or_breaks_between_listing_and_reading_is_passed_over(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = sorted(info.digest for info in archive.objects(Kind.BLOB) if archive.is_safetensors(info.digest))
    gone, broken, record = blobs[0], blobs[1], archive.record

    def failing(digest: Digest, kind: Kind | None = None) -> OpenObject:
        if digest == gone:
            raise NotFoundError("gone")
        if digest == broken:
            raise CorruptError("broken")
        return record(digest, kind)

    monkeypatch.setattr(archive, "record", failing)
    found = find(archive, Query())
    assert found.unreadable == (broken,)
    assert {hit.digest for hit in found.hits}.isdisjoint({gone, broken})
    assert find(archive, Query()).unreadable == (broken,)  # said every time
    monkeypatch.undo()
    healed = find(archive, Query())  # and looked at again
    assert healed.unreadable == ()
    assert {gone, broken} <= {hit.digest for hit in healed.hits}


def test_a_second_question_reads_no_object_again(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(archive)
    monkeypatch.setattr(archive, "record", None)
    monkeypatch.setattr(archive, "tree", None)
    assert answers(archive) == expected


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 500, b"SQLite format 3\0" + bytes(4080)])
def test_it_is_built_again_when_it_is_gone_or_garbage(archive: Archive, content: bytes | None) -> None:
    expected = answers(archive)
    for file in archive.path.glob("catalogue.sqlite*"):
        file.unlink()
    if content is not None:
        (archive.path / CATALOGUE).write_bytes(content)
    assert answers(archive) == expected


def test_it_is_built_again_when_it_is_another_archives_or_versions(archive: Archive, tmp_path: Path) -> None:
    expected = answers(archive)
    with Archive.open(tmp_path / "other", create=True) as other:
        populate(other, 8)
        answers(other)
        foreign = (other.path / CATALOGUE).read_bytes()
    (archive.path / CATALOGUE).write_bytes(foreign)
    assert answers(archive) == expected
    with sqlite3.connect(archive.path / CATALOGUE) as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    assert answers(archive) == expected
    with sqlite3.connect(archive.path / CATALOGUE) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
    database.close()


def test_no_flipped_byte_makes_it_say_what_is_not_so(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = [
        {(hit.digest, hit.kind, hit.size, hit.labels, hit.tensors) for hit in find(archive, q).hits} for q in QUESTIONS
    ]
    content = (archive.path / CATALOGUE).read_bytes()
    draw = random.Random(11)
    thrown_away = []
    discard = catalogue._discard
    monkeypatch.setattr(catalogue, "_discard", lambda *args: (thrown_away.append(args), discard(*args)))
    for _ in range(80):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 1, 30])):
            damaged[draw.randrange(100, len(damaged))] ^= 1 << draw.randrange(8)
        for suffix in ("-wal", "-shm"):
            (archive.path / f"{CATALOGUE}{suffix}").unlink(missing_ok=True)
        (archive.path / CATALOGUE).write_bytes(damaged)
        for query, true in zip(QUESTIONS, truth, strict=True):
            for hit in find(archive, query).hits:
                if (hit.digest, hit.kind, hit.size, hit.labels, hit.tensors) not in true:
                    # A label may have been overlooked; nothing may have been made up.
                    (known,) = [each for each in true if each[:3] == (hit.digest, hit.kind, hit.size)]
                    assert set(hit.labels) <= set(known[3])
                    assert set(hit.tensors) <= set(known[4])
    assert len(thrown_away) > 10  # damage is not just survived but noticed


def test_every_row_is_checked(archive: Archive) -> None:
    """A value changed behind its CRC is noticed, in every table whose rows a question rests on."""
    expected = answers(archive)
    changes = {
        "names": "UPDATE names SET name=name||'x'",
        "specs": "UPDATE specs SET nbytes=nbytes+1",
        "layouts": "UPDATE layouts SET pairs=pairs||x'0100000001000000'",
        "metadata": "UPDATE metadata SET value=CAST('pt' AS BLOB)||''",
        "objects": "UPDATE objects SET size=size+1",
        "paths": "UPDATE paths SET path=path||'.json'",
        "links": "UPDATE OR IGNORE links SET object=object+1",
        "labels": "UPDATE labels SET digest=digest+1",
    }
    for table, change in changes.items():
        database = sqlite3.connect(archive.path / CATALOGUE)
        with database:
            assert database.execute(change).rowcount > 0, table
        database.close()
        assert answers(archive) == expected, table
    blob = next(
        info.digest
        for info in archive.objects(Kind.BLOB)
        if archive.is_safetensors(info.digest) and archive.tensors(info.digest)
    )
    name = next(iter(archive.tensors(blob)))
    before = holders(archive, blob, name)
    database = sqlite3.connect(archive.path / CATALOGUE)
    with database:
        database.execute("UPDATE OR IGNORE keys SET object=object+1")
    database.close()
    assert holders(archive, blob, name) == before


@pytest.mark.parametrize(
    "table",
    ["names", "specs", "layouts", "headers", "metadata", "digests", "keys", "chunks", "paths", "links", "labels"],
)
def test_what_is_missing_is_at_worst_overlooked(archive: Archive, table: str) -> None:
    expected = answers(archive)
    database = sqlite3.connect(archive.path / CATALOGUE)
    with database:
        assert database.execute(f"DELETE FROM {table}").rowcount > 0
    database.close()
    for (total, hits), (true_total, true_hits) in zip(answers(archive), expected, strict=True):
        assert total <= true_total
        assert {(hit.digest, hit.kind) for hit in hits} <= {(hit.digest, hit.kind) for hit in true_hits}


class NoLock(OsFileSystem):
    """A disk that takes no new file."""

    def open(self, path: Path, flags: int) -> int:
        if path.name == LOCK:
            raise OSError(30, "Read-only file system")
        return super().open(path, flags)


def test_it_does_without_a_file_where_none_can_be_written(archive: Archive) -> None:
    expected = answers(archive)
    archive.close()
    for file in archive.path.glob("catalogue.*"):
        file.unlink()
    with Archive.open(archive.path, fs=NoLock()) as unwritable:
        assert answers(unwritable) == expected
    assert not list(archive.path.glob("catalogue.*"))


def test_many_threads_and_processes_fill_it_at_once(archive: Archive) -> None:
    total = len({(info.digest, kind) for info in archive.objects() for kind in info.kinds})
    command = [sys.executable, "-m", "csf_store.cli", "--archive", str(archive.path), "find", "--json"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    totals: list[int] = []
    threads = [threading.Thread(target=lambda: totals.append(find(archive, Query()).total)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs = [process.communicate() for process in processes]
    assert totals == [total] * 4
    for output, trouble in outputs:
        assert (len(output.splitlines()), trouble) == (total, b"")


def test_one_fills_it_while_the_others_wait(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    record, looked_at, guard = archive.record, [], threading.Lock()

    def counted(digest: Digest, kind: Kind | None = None) -> OpenObject:
        with guard:
            looked_at.append((digest, kind))
        return record(digest, kind)

    monkeypatch.setattr(archive, "record", counted)
    threads = [threading.Thread(target=find, args=(archive, Query())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looked_at) == len(set(looked_at)) == len(archive.listing())


# -- patterns --------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("ab.*?[]!-", max_size=8), st.text("ab.*-", max_size=8))
def test_globs_are_those_of_the_standard_library(pattern: str, name: str) -> None:
    assert NamePattern(pattern).fits(name) == fnmatch.fnmatchcase(name, pattern)


@given(st.lists(st.sampled_from(["1", "2", "*", "..."]), max_size=4), st.lists(st.sampled_from([1, 2, 3]), max_size=4))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_shapes_against_regular_expressions(parts: list[str], shape: list[int]) -> None:
    if parts.count("...") > 1:
        with pytest.raises(InvalidInputError):
            ShapePattern("x".join(parts))
        return
    tokens = {"*": r"\d+,", "...": r"(\d+,)*"}
    expression = "".join(tokens.get(part, f"{part},") for part in parts)
    expected = re.fullmatch(expression, "".join(f"{dimension}," for dimension in shape)) is not None
    for text in ("x".join(parts) or "scalar", f"[{', '.join(parts)}]"):
        assert ShapePattern(text).fits(tuple(shape)) == expected


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10", 10, 10), ("=10", 10, 10), ("1KiB", 1024, 1024), ("1.5 GiB", 3 << 29, 3 << 29), (">1MB", 1_000_001, None),
        (">= 1mb", 1_000_000, None), ("<1TiB", 0, (1 << 40) - 1), ("<=0", 0, 0), ("10MB..2GiB", 10_000_000, 2 << 30),
        ("..5", 0, 5), ("5B..", 5, None), (">9223372036854775807", 1 << 63, None),
    ],
)  # fmt: skip
def test_sizes(text: str, first: int, last: int | None) -> None:
    assert SizeRange.parse(text) == (first, last)


@pytest.mark.parametrize("text", ["", "GiB", "1XB", "-1", "5..3", "..", "<0", "1..2..3", "1e3", ">", "\u0661", "1_000"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInputError):
        SizeRange.parse(text)


def test_sizes_beyond_any_file_are_no_trouble(archive: Archive) -> None:
    assert find(archive, Query(size=SizeRange(1 << 63, None))).total == 0
    assert find(archive, Query(size=SizeRange(0, 1 << 70))).total == find(archive, Query()).total


# -- the command -----------------------------------------------------------------------------------------------------


def csf(archive: Archive, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["--archive", str(archive.path), *map(str, arguments)])


def test_the_command_finds_and_says_when_there_is_nothing(archive: Archive) -> None:
    found = csf(archive, "find", "layers.*", "--tensors", "--json")
    assert found.exit_code == 0
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert lines
    for line in lines:
        assert {"digest", "kind", "size", "tags", "places", "place_count", "tensor_count"} <= line.keys()
        names = [each["tensor"] for each in line["tensors"]]
        assert len(names) == line["tensor_count"] > 0
        assert all(name.startswith("layers.") for name in names)
    assert len(csf(archive, "find", "layers.*").stdout.splitlines()) == len(lines)
    nothing = csf(archive, "find", "no.such.tensor")
    assert (nothing.exit_code, nothing.stdout) == (5, "")
    assert len(nothing.stderr.splitlines()) == 1
    assert json.loads(csf(archive, "find", "--json", "no.such.tensor").stderr)["exit_code"] == 5
    limited = csf(archive, "find", "-n", "2")
    assert len(limited.stdout.splitlines()) == 2
    assert "more are not shown" in limited.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ("-s", "4y"),
        ("--size", "big"),
        ("-E", "("),
        ("--holds-chunk", "b3:12"),
        ("-k", "file"),
        ("-n", "0"),
        ("--digest", "x"),
    ],
)
def test_a_pattern_that_is_none_is_wrong_usage(archive: Archive, wrong: tuple[str, str]) -> None:
    result = csf(archive, "find", *wrong)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""


def test_objects_go_by_the_names_of_their_pins(archive: Archive) -> None:
    blob = archive.put_bytes(make_safetensors({"w": ("BF16", [8, 8], weights(8, 8, 1))})).digest
    tree = archive.put_tree_entries([TreeEntry("model.safetensors", blob, archive.stat(blob).size)]).digest
    archive.pin(tree, kind=Kind.TREE, name="my base")
    assert resolve_name(archive, "my base") == tree
    assert resolve_name(archive, "main") == archive.ledger.refs()["main"][-1].target
    assert resolve_name(archive, blob.hex[:10]) == blob
    (line,) = [
        json.loads(line) for line in csf(archive, "find", "-t", "my base", "-k", "blob", "--json").stdout.splitlines()
    ]
    assert line["places"] == [{"tree": str(tree), "tags": ["my base"], "path": "model.safetensors"}]
    assert "my base/model.safetensors" in csf(archive, "find", "--same-as", blob, "w").stdout
    assert (
        csf(archive, "find", "--same-as", "my base", "w").stdout == csf(archive, "find", "--same-as", blob, "w").stdout
    )
    with pytest.raises(NotFoundError, match="neither a digest nor the name"):
        resolve_name(archive, "nobody")
    assert csf(archive, "find", "--contains", "nobody").exit_code == 5


def test_a_tensor_of_a_tree_is_the_one_its_files_hold(archive: Archive) -> None:
    one, two = (archive.put_bytes(make_safetensors({"w": ("U8", [1], byte)})) for byte in (b"1", b"2"))
    copy = archive.put_bytes(make_safetensors({"w": ("U8", [1], b"1"), "v": ("U8", [1], b"2")}))

    def tree(*blobs: Stored) -> Digest:
        entries = [TreeEntry(f"{number}.safetensors", blob.digest, blob.size) for number, blob in enumerate(blobs)]
        return archive.put_tree_entries(entries).digest

    assert find_tensor(archive, tree(one, copy), "w").blob in {one.digest, copy.digest}
    assert find_tensor(archive, tree(one, copy), "v") == TensorAddress(copy.digest, "v")
    assert find_tensor(archive, two.digest, "w") == TensorAddress(two.digest, "w")
    with pytest.raises(AmbiguousPrefixError, match=r"0\.safetensors, 1\.safetensors"):
        find_tensor(archive, tree(one, two), "w")
    with pytest.raises(NotFoundError, match="no tensor 'x'"):
        find_tensor(archive, tree(one, two), "x")


def test_help_does_not_pay_for_search() -> None:
    code = "import sys\nfrom csf_store.cli import main\n"
    code += "import contextlib\nwith contextlib.suppress(SystemExit): main(['find', '--help'])\n"
    code += "assert not {'sqlite3', 'numpy', 'csf_store.search.answering'} & set(sys.modules), 'heavy'"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert outcome.returncode == 0, outcome.stderr
