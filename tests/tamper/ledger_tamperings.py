"""Lines of the ledger: altered, removed, reordered, forged with all hashes after them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import rfc8785
from scene import Scene, flip, mutation

from csf_store import Archive


@mutation
def a_byte_of_a_ledger_line(scene: Scene) -> None:
    flip(scene.ledger, scene.rng)
    if scene.rng.random() < 0.5:
        scene.forget_caches()


def edit_lines(scene: Scene, change: Callable[[list[bytes]], None]) -> None:
    lines = scene.ledger.read_bytes().splitlines(keepends=True)
    change(lines)
    scene.ledger.write_bytes(b"".join(lines))
    if scene.rng.random() < 0.5:
        scene.forget_caches()


@mutation
def a_ledger_line_removed(scene: Scene) -> None:
    edit_lines(scene, lambda lines: lines.pop(scene.rng.randrange(len(lines))) and None)


@mutation
def a_ledger_line_inserted(scene: Scene) -> None:
    def change(lines: list[bytes]) -> None:
        lines.insert(scene.rng.randrange(len(lines) + 1), scene.rng.choice(lines))

    edit_lines(scene, change)


@mutation
def ledger_lines_reordered(scene: Scene) -> None:
    def change(lines: list[bytes]) -> None:
        at, to = scene.rng.sample(range(len(lines)), 2)
        lines[at], lines[to] = lines[to], lines[at]

    edit_lines(scene, change)


def rehashed(events: list[dict[str, object]]) -> bytes:
    """Lines as the program writes them: numbered, in order of time, each naming the one before."""
    lines, leaf, time = [], "0" * 64, ""
    for seq, event in enumerate(events):
        time = max(time, str(event["time"]))
        line = rfc8785.dumps({**event, "seq": seq, "prev": leaf, "time": time})  # type: ignore[dict-item]
        leaf = hashlib.sha256(b"\0" + line).hexdigest()
        lines.append(line + b"\n")
    return b"".join(lines)


def forge(scene: Scene, change: Callable[[list[dict[str, object]]], None]) -> None:
    """A ledger that is perfectly good in itself, with nothing left that remembers the true one."""
    events = [json.loads(line) for line in scene.ledger.read_bytes().splitlines()]
    change(events)
    scene.ledger.write_bytes(rehashed(events))
    for path in scene.path.glob("ledger.sqlite*"):
        path.unlink()


@mutation
def the_tail_of_the_ledger_cut_off(scene: Scene) -> None:
    def change(events: list[dict[str, object]]) -> None:
        del events[scene.rng.randrange(5, len(events)) :]

    forge(scene, change)


@mutation
def the_tail_of_the_ledger_forged(scene: Scene) -> None:
    """All of it from some line on, longer than it was, every hash right."""

    def change(events: list[dict[str, object]]) -> None:
        cut = scene.rng.randrange(5, len(events))
        tail = events[cut:]
        del events[cut:]
        lost = scene.rng.randrange(len(tail))
        events += [event for number, event in enumerate(tail) if number != lost and scene.rng.random() < 0.7]
        events += [{"event": "note", "time": tail[-1]["time"], "text": "all is well"} for _ in range(len(tail) + 3)]

    forge(scene, change)


@mutation
def one_ledger_line_rewritten_and_all_hashes_after_it(scene: Scene) -> None:
    def change(events: list[dict[str, object]]) -> None:
        event = scene.rng.choice(events[1:])
        event["reason"] = f"as it always was {scene.rng.random()}"

    forge(scene, change)


@mutation
def a_ref_moved_without_an_event(scene: Scene) -> None:
    """In the cache that everybody reads refs from, with every checksum of the cache right."""
    with Archive.open(scene.path) as archive:
        archive.ledger.refs()
        cache = archive.ledger._view._slot.cache
        assert cache is not None
        _, mtime = cache.head()
        target = scene.rng.choice([scene.victim.bare, scene.victim.first])
        cache.begin()
        head, totals = cache._change()
        db = cache._db
        seq, ref, time, was, fields, old = db.execute(
            "SELECT seq, ref, time, target, fields, checksum FROM moves WHERE ref='main' ORDER BY seq DESC"
        ).fetchone()
        assert was != bytes(target)
        told = json.dumps({**json.loads(fields), "to": str(target)})
        row = (seq, ref, time, bytes(target), told)
        new = cache._checksum("move", *row)
        db.execute("UPDATE moves SET target=?, fields=?, checksum=? WHERE seq=?", (row[3], told, new, seq))
        name, count, total, before = db.execute(
            "SELECT ref, moves, moves_sum, checksum FROM refs WHERE ref='main'"
        ).fetchone()
        tip = (name, count, total ^ old ^ new)
        after = cache._checksum("ref", *tip)
        db.execute("UPDATE refs SET moves_sum=?, checksum=? WHERE ref='main'", (tip[2], after))
        cache._working = head, totals._replace(refs_sum=totals.refs_sum ^ before ^ after)
        cache.commit(mtime)
    with Archive.open(scene.path) as archive:
        assert archive.ledger.ref("main")[-1].target == target  # the lie is believed


@mutation
def a_ref_moved_from_where_it_was_not(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        target = scene.rng.choice([scene.victim.bare, scene.victim.first])
        archive.ledger.append("ref.set", **{"ref": "main", "from": str(scene.victim.bare), "to": str(target)})
