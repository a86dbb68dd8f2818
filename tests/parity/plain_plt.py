"""The Parallel Loop Transformer once more, as plainly as it can be said: the reference that every fast path must equal.

One sequence, one pass, no cache, no batch: the loops in order, every mask written out, in double precision. Nothing
is shared with `keystone.model` but the names of the tensors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plain:
    """What the forward pass needs to know besides the weights."""

    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    loops: int
    window_keys: int
    embedding_scale: float
    hidden_scale: float
    normalize_per_loop: bool
    gate_reads_hidden_states: bool
    eps: float
    theta: float


def plain_logits(weights: dict[str, Tensor], plain: Plain, ids_T: Tensor) -> Tensor:
    """Logits `[T, V]` of one sequence."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    embeds = weights["model.embed_tokens.weight"][ids_T]
    tokens = len(ids_T)
    places = torch.arange(tokens)
    distance = places[:, None] - places[None, :]
    causal = distance >= 0
    local = causal & (distance < plain.window_keys)
    rows = embeds
    loop0: list[tuple[Tensor, Tensor]] = []
    for loop in range(plain.loops):
        for layer in range(plain.layers):
            prefix = f"model.layers.{layer}."
            normed = rms_norm(rows, weights[prefix + "input_layernorm.weight"], plain.eps)
            query, key, value = project(weights, prefix + "self_attn.", plain, normed)
            if loop == 0:
                loop0.append((key, value))
                mixed = attend(query, key, value, causal)
            else:
                gate = branch_gate(weights, prefix + "self_attn.plt_gate.", plain, rows, query)
                far = attend(query, *loop0[layer], causal)
                near = attend(query, key, value, local)
                mixed = gate[:, :, None] * far + (1 - gate[:, :, None]) * near
            rows = rows + linear(weights, prefix + "self_attn.o_proj", mixed.reshape(tokens, -1))
            normed = rms_norm(rows, weights[prefix + "post_attention_layernorm.weight"], plain.eps)
            opened = linear(weights, prefix + "mlp.gate_proj", normed)
            opened = opened * opened.sigmoid() * linear(weights, prefix + "mlp.up_proj", normed)
            rows = rows + linear(weights, prefix + "mlp.down_proj", opened)
        last = loop == plain.loops - 1
        if last or plain.normalize_per_loop:
            rows = rms_norm(rows, weights["model.norm.weight"], plain.eps)
        if not last:
            before = torch.cat([torch.zeros_like(rows[:1]), rows[:-1]])
            rows = plain.embedding_scale * embeds + plain.hidden_scale * before
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return rows @ head.T


def linear(weights: dict[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return rows @ weights[name + ".weight"].T + weights.get(name + ".bias", torch.zeros(1).double())


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rows / (rows.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def project(weights: dict[str, Tensor], prefix: str, plain: Plain, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shapes = {"q": plain.heads, "k": plain.key_value_heads, "v": plain.key_value_heads}
    query, key, value = (
        linear(weights, f"{prefix}{name}_proj", normed).reshape(len(normed), heads, plain.head_dim)
        for name, heads in shapes.items()
    )
    return turned(query, plain.theta), turned(key, plain.theta), value


def turned(states: Tensor, theta: float) -> Tensor:
    """Turn the pair `(i, i + D/2)` of every head by the position times `theta ** (-2i / D)`, as complex numbers."""
    tokens, _, size = states.shape
    half = size // 2
    angles = torch.arange(tokens)[:, None] * theta ** (-torch.arange(half).double() / half)
    spun = torch.complex(states[..., :half], states[..., half:]) * torch.polar(torch.ones(()).double(), angles)[:, None]
    return torch.cat([spun.real, spun.imag], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """`[T, heads, D]`: each query head looks at the keys of the group it belongs to."""
    shared = query.shape[1] // key.shape[1]
    results = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // shared].T / query.shape[2] ** 0.5
        scores = torch.where(mask, scores, torch.tensor(float("-inf")).double())
        results.append(scores.softmax(-1) @ value[:, head // shared])
    return torch.stack(results, dim=1)


def branch_gate(weights: dict[str, Tensor], prefix: str, plain: Plain, rows: Tensor, query: Tensor) -> Tensor:
    """`[T, heads]`."""
    weight, bias = weights[prefix + "weight"], weights[prefix + "bias"]
    if plain.gate_reads_hidden_states:
        return (rms_norm(rows, weights[prefix + "gate_norm.weight"], plain.eps) @ weight.T + bias).sigmoid()
    return ((query * weight).sum(-1) + bias).sigmoid()
