"""Makes CSF-Pack containers, right and wrong, from the table in FORMAT.md and without the code that reads them."""

import hashlib
import json
import struct
from pathlib import Path

GOLDEN = Path(__file__).parents[2] / "golden" / "csf-pack"
SAMPLES = ("mixed.csf", "stored.csf", "dictionary.csf", "no-codec-field.csf")
JsonObject = dict[str, object]


def entry(path: str, content: bytes, **changes: object) -> JsonObject:
    """A file at the start of the region, stored as it is."""
    fields: JsonObject = {"path": path, "size": len(content), "csize": len(content), "offset": 0, "codec": "store"}
    return {**fields, "sha256": hashlib.sha256(content).hexdigest(), **changes}


def seal(body: bytes) -> bytes:
    """Adds the trailer that makes any bytes whole."""
    return body + hashlib.sha256(body).digest() + struct.pack(">Q", len(body) + 40)


def pack(manifest: object, region: bytes = b"", *, flags: int = 0, version: bytes = b"\0\x08") -> bytes:
    """A container with a true trailer around a manifest (bytes are taken as they are) and a region."""
    raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return seal(b"CSF\0" + version + struct.pack(">HI", flags, len(raw)) + raw + region)


def unpack(data: bytes) -> tuple[JsonObject, bytes]:
    """The manifest and the region of a sound container."""
    length = int.from_bytes(data[8:12], "big")
    return json.loads(data[12 : 12 + length]), data[12 + length : -40]
