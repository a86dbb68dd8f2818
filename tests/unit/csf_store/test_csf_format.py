"""FORMAT.md is the specification: its tables and vectors against the code, parsed here without the code's help."""

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest

import csf_store
from csf_store import Archive, Digest, Kind, TreeEntry
from csf_store.codecs import codec, codecs
from csf_store.framing import (
    FOOTER_ENTRY_SIZE,
    RECORD_HEADER_SIZE,
    RECORD_MAGIC,
    SEGMENT_HEADER_SIZE,
    SEGMENT_MAGIC,
    TRAILER_MAGIC,
    TRAILER_SIZE,
    FooterEntry,
    RecordHeader,
    RecordType,
    Trailer,
    pack_footer_entry,
    pack_record_header,
    pack_segment_header,
    pack_trailer,
)
from csf_store.ledger.line import parse_line
from csf_store.ledger.merkle import Frontier, leaf_hash, verify_consistency, verify_inclusion
from csf_store.objects import ChunkRef, Form, Layout, ObjectBody, pack_object
from csf_store.segment import stored_hash
from csf_store.trees import encode_tree
from csf_store.upkeep.parity_file import HEADER_SIZE as PARITY_HEADER_SIZE

TEXT = (Path(csf_store.__file__).parent / "FORMAT.md").read_text()
VECTORS = json.loads(TEXT.split("```json\n")[1].split("```")[0])
ARCHIVE = bytes.fromhex(VECTORS["archive_id"])
SEGMENT = bytes.fromhex(VECTORS["segment_id"])


def _tables() -> list[list[tuple[str, str]]]:
    """(offset, size) of every row of every byte table."""
    tables: list[list[tuple[str, str]]] = []
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == ["offset", "size"]:
            tables.append([])
        elif line.startswith("|") and re.fullmatch(r"\d+|\.", cells[0]) and tables and len(cells) == 4:
            tables[-1].append((cells[0], cells[1]))
    return tables


def test_tables_have_no_holes_and_the_sizes_of_the_code() -> None:
    tables = _tables()
    assert len(tables) == 11
    ends = []
    for table in tables:
        at = 0
        for offset, size in table:
            if offset == ".":
                break
            assert int(offset) == at, table
            at += int(size) if size.isdigit() else 0
        ends.append(at)
    older = struct.calcsize(">4sBBHI")
    sizes = [SEGMENT_HEADER_SIZE, RECORD_HEADER_SIZE, FOOTER_ENTRY_SIZE, TRAILER_SIZE, 24, 8, 12, 4, 8]
    assert ends == [*sizes, PARITY_HEADER_SIZE, older]


def test_magics_and_codecs_are_those_of_the_text() -> None:
    for magic in (SEGMENT_MAGIC, RECORD_MAGIC, TRAILER_MAGIC):
        assert f"`{magic.hex(' ').upper()}`" in TEXT
    section = TEXT.split("## Codecs")[1].split("**A plane")[0]
    rows = dict(re.findall(r"^\| (\d) \| (\w+) \| ", section, re.MULTILINE))
    assert rows == {str(number): each.name for number, each in codecs().items()}


def test_digests() -> None:
    for content, digest in VECTORS["blobs"].items():
        assert str(Digest.of(content.encode())) == digest


def test_tree() -> None:
    entries = [TreeEntry(path, Digest.parse(blob), *rest) for path, blob, *rest in VECTORS["tree"]["entries"]]
    content = encode_tree(entries)
    assert content == VECTORS["tree"]["content"].encode()
    assert str(Digest.of(content)) == VECTORS["tree"]["digest"]


def test_merkle() -> None:
    tree = Frontier()
    roots = [tree.root().hex()]
    for leaf in VECTORS["merkle"]["leaves"]:
        tree.add(leaf_hash(leaf.encode()))
        roots.append(tree.root().hex())
    assert roots == VECTORS["merkle"]["roots"]


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def test_proofs_by_the_words_of_the_text() -> None:
    """The two procedures of the section on proofs, followed here step by step, and the code's own."""
    given = VECTORS["proofs"]
    leaves = [leaf_hash(leaf.encode()) for leaf in given["leaves"]]
    root = bytes.fromhex(given["root"])
    inclusion, consistency = given["inclusion"], given["consistency"]
    path = [bytes.fromhex(each) for each in inclusion["path"]]
    i, last, found = inclusion["index"], inclusion["size"] - 1, leaves[inclusion["index"]]
    for p in path:
        assert last
        if i % 2 or i == last:
            found = _node(p, found)
            while i and i % 2 == 0:
                i, last = i // 2, last // 2
        else:
            found = _node(found, p)
        i, last = i // 2, last // 2
    assert (last, found) == (0, root)
    assert verify_inclusion(leaves[4], 4, 7, root, path)

    path = [bytes.fromhex(each) for each in consistency["path"]]
    old_root = bytes.fromhex(consistency["old_root"])
    i, last = consistency["old_size"] - 1, consistency["size"] - 1
    while i % 2:
        i, last = i // 2, last // 2
    old = new = path[0]
    for p in path[1:]:
        assert last
        if i % 2 or i == last:
            old, new = _node(p, old), _node(p, new)
            while i and i % 2 == 0:
                i, last = i // 2, last // 2
        else:
            new = _node(new, p)
        i, last = i // 2, last // 2
    assert (last, old, new) == (0, old_root, root)
    assert old_root.hex() == VECTORS["merkle"]["roots"][3]
    assert verify_consistency(3, old_root, 7, root, path)


def test_ledger_line() -> None:
    entry = parse_line(VECTORS["ledger"]["line"].encode(), 0, bytes(32), "")
    assert entry.leaf.hex() == VECTORS["ledger"]["leaf"]
    assert entry.fields == {"archive": VECTORS["archive_id"], "format": 1}


@pytest.mark.parametrize(("name", "number"), [("planes", 2), ("delta", 3)])
def test_codecs_decode(name: str, number: int) -> None:
    vector = {key: bytes.fromhex(text) for key, text in VECTORS[name].items()}
    out = bytearray(len(vector["raw"]))
    codec(number).decode_into(vector["stored"], memoryview(out), vector.get("base"))
    assert out == vector["raw"]


def _sealed_segment() -> bytes:
    raw = b"keystone\n"
    digest = bytes(Digest.of(raw))
    links = (Digest.of(b""),)
    body = pack_object(ObjectBody(Form.CHUNKED, Layout.PLAIN, 0, links, (ChunkRef(digest, len(raw)),), b""))
    chunk = RecordHeader(RecordType.CHUNK, 0, 0, len(raw), len(raw), digest, stored_hash(raw))
    whole = RecordHeader(RecordType.OBJECT, 0, Kind.RECORD.number, len(raw), len(body), digest, stored_hash(body))
    second = SEGMENT_HEADER_SIZE + RECORD_HEADER_SIZE + len(raw)
    table = pack_footer_entry(FooterEntry(SEGMENT_HEADER_SIZE, len(raw), len(raw), RecordType.CHUNK, 0, 0, digest))
    table += pack_footer_entry(FooterEntry(second, len(body), len(raw), RecordType.OBJECT, 4, 0, digest))
    footer = RecordHeader(RecordType.FOOTER, 0, 0, len(table), len(table), stored_hash(table), stored_hash(table))
    front = pack_segment_header(ARCHIVE, SEGMENT) + pack_record_header(SEGMENT, chunk) + raw
    front += pack_record_header(SEGMENT, whole) + body
    back = pack_record_header(SEGMENT, footer) + table
    size = len(front) + len(back) + TRAILER_SIZE
    return front + back + pack_trailer(SEGMENT, Trailer(len(front), 2, size))


def test_sealed_segment_is_written_as_the_vector_says() -> None:
    assert _sealed_segment().hex() == VECTORS["sealed_segment"]["hex"]


@pytest.mark.parametrize("with_footer", [True, False])
def test_an_archive_made_by_hand_from_the_vector_opens(tmp_path: Path, with_footer: bool) -> None:
    (tmp_path / "segments").mkdir()
    content = bytes.fromhex(VECTORS["sealed_segment"]["hex"])
    end = len(content) if with_footer else len(content) - TRAILER_SIZE - RECORD_HEADER_SIZE - 2 * FOOTER_ENTRY_SIZE
    (tmp_path / "segments" / f"{SEGMENT.hex()}.csfs").write_bytes(content[:end])
    (tmp_path / "csf.json").write_text(json.dumps({"format": "csf", "version": 1, "archive": ARCHIVE.hex()}))
    if not with_footer:  # the link leads nowhere, and no footer vouches that it ever led somewhere
        with Archive.open(tmp_path) as archive:
            assert list(archive.objects()) == []
            assert "links" in archive.verify().notes[0]
            archive.put_bytes(b"")
        (tmp_path / "index.sqlite").unlink()
    with Archive.open(tmp_path) as archive:
        digest = archive.resolve("e7cdf9971b")
        assert archive.get_bytes(digest, kind=Kind.RECORD) == b"keystone\n"
        assert archive.links(digest) == (Digest.of(b""),)
        assert [found.digest for found in archive.verify().findings] == [Digest.of(b"")] * with_footer
