"""Small checkpoints in the making: safetensors bytes, realistic weights, and fine-tunes of them."""

import json
from collections.abc import Mapping

import numpy as np


def make_safetensors(
    tensors: Mapping[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None
) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def weights(rows: int, columns: int, seed: int) -> bytes:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype("<f4") * np.float32(0.02)
    return (values.view("<u4") >> 16).astype("<u2").tobytes()


def fine_tuned(raw: bytes, seed: int, noise: float = 1e-3) -> bytes:
    """bf16 weights after a little noise on every value, in units of their standard deviation."""
    values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    shift = np.random.default_rng([seed, 1]).standard_normal(len(values)).astype("<f4") * np.float32(
        values.std() * noise
    )
    return ((values + shift).view("<u4") >> 16).astype("<u2").tobytes()
