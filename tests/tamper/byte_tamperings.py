"""Bytes of segments and objects, changed in place."""

from __future__ import annotations

from scene import Scene, flip, mutation

from csf_store import Archive


@mutation
def a_byte_of_a_segment(scene: Scene) -> None:
    flip(scene.rng.choice(sorted((scene.path / "segments").iterdir())), scene.rng)


@mutation
def a_byte_of_a_segment_and_no_caches(scene: Scene) -> None:
    scene.forget_caches()
    a_byte_of_a_segment(scene)


@mutation
def a_byte_of_a_stored_object(scene: Scene) -> None:
    """Inside the payload of a manifest, a report, a record, an envelope or a weight, wherever it is stored plainly."""
    with Archive.open(scene.path) as archive:
        digests = [info.digest for info in archive.objects()]
        contents = [archive.get_bytes(digest) for digest in digests]
    (segment,) = (scene.path / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    plain = [content for content in contents if content and data.find(content) >= 0]
    content = scene.rng.choice(plain)
    data[data.find(content) + scene.rng.randrange(len(content))] ^= 1 << scene.rng.randrange(8)
    segment.write_bytes(data)


@mutation
def the_end_of_a_segment_cut_off(scene: Scene) -> None:
    (segment,) = (scene.path / "segments").iterdir()
    data = segment.read_bytes()
    segment.write_bytes(data[: scene.rng.randrange(len(data) // 4, len(data) - 40)])
    if scene.rng.random() < 0.5:
        scene.forget_caches()
