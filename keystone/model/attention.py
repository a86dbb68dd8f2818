"""Attention kernels, and how long prompts are attended to without a mask of prompt times prompt.

A kernel maps queries, keys and values to `[B, T, N, D]`: `eager_attention` spells the formula out and is the
reference; `sdpa_attention` hands it to torch; any other name is looked up among those that transformers knows.

`Reach` says which keys a query may see, by position: no later one, and within a window if there is one. A prompt that
starts a sequence needs no mask in the global branch. Everything else is cut into blocks of queries, each with the
keys it can reach: a window of `W` keys costs `T * (block + W)`, a chunk behind a long past never more than one block
of rows of mask at a time.

Shapes: B sequences, T queries, S keys, N query heads, K key/value heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from keystone.model.layout import TokenLayout

KeysValues = tuple[Tensor, Tensor]
Kernel = Callable[..., tuple[Tensor, Any]]

QUERY_BLOCK = 256


def eager_attention(
    module: nn.Module,
    query_BNTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out, the reference for every faster kernel; returns `[B, T, N, D]` and the weights."""
    groups = query_BNTD.shape[1] // key_BKSD.shape[1]
    key = key_BKSD.repeat_interleave(groups, dim=1)
    value = value_BKSD.repeat_interleave(groups, dim=1)
    scores = query_BNTD @ key.transpose(2, 3) * scaling
    if is_causal:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query_BNTD.dtype)
    weights = functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def sdpa_attention(
    module: nn.Module,  # noqa: ARG001 - a kernel's signature
    query_BNTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """The fused attention that torch has; the same result as `eager_attention`, without the weights."""
    batch, heads, tokens, size = query_BNTD.shape
    groups = heads // key_BKSD.shape[1]
    if groups > 1 and not is_causal and (attention_mask is None or attention_mask.shape[2] == 1):
        # Every row sees the same keys, so the heads that share keys are just more rows: nothing is repeated.
        query_BNTD = query_BNTD.reshape(batch, -1, groups * tokens, size)
    elif groups > 1 and attention_mask is not None and query_BNTD.is_cuda:
        # A card's fused kernels take a mask or shared heads, not both; the keys of one block are soon repeated.
        key_BKSD, value_BKSD = key_BKSD.repeat_interleave(groups, dim=1), value_BKSD.repeat_interleave(groups, dim=1)
    attended_BNTD = functional.scaled_dot_product_attention(
        query_BNTD,
        key_BKSD,
        value_BKSD,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query_BNTD.shape[1] != key_BKSD.shape[1],
    )
    return attended_BNTD.reshape(batch, heads, tokens, size).transpose(1, 2), None


def kernel_named(name: str | None) -> Kernel:
    """The kernel for a model's `attn_implementation`."""
    if name == "sdpa":
        return sdpa_attention
    if name in (None, "eager"):
        return eager_attention
    kernel: Kernel = ALL_ATTENTION_FUNCTIONS[name]
    return kernel


@dataclass(frozen=True)
class Reach:
    """Which of `S` keys each of `T` queries may see.

    Query `t` stands `ahead + t - s` positions behind key `s`. It sees the key if that is at least 0 and less than
    `window`, and if the key is there at all.

    Attributes:
        tokens: T.
        ahead: how far the first query stands behind the first key; the most, where sequences differ.
        ahead_B: the same for each sequence, where they differ.
        window: `W`, the token itself included; None for no window.
        first_B: the first key that is there, where sequences differ.
    """

    tokens: int
    ahead: int
    ahead_B: Tensor | None = None
    window: int | None = None
    first_B: Tensor | None = None
    _bands: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, layout: TokenLayout, window: int | None = None) -> "Reach":
        """The reach of a call's queries, among all keys of their sequence or those that a window leaves."""
        past, past_B = layout.longest_past, layout.past_B
        if window is None:
            return cls(layout.tokens, past, past_B)
        behind = min(window - 1, past)
        return cls(layout.tokens, behind, None, window, None if past_B is None else behind - past_B)

    def attend(self, kernel: Kernel, module: nn.Module, query_BNTD: Tensor, keys: KeysValues, **options: Any) -> Tensor:
        """Attention of all queries, `[B, T, N, D]`, block by block where one call would need a large mask."""
        key_BKSD, value_BKSD = keys
        if self.ahead == 0 and (self.window is None or self.tokens <= self.window):
            causal = self.tokens > 1
            return kernel(module, query_BNTD, key_BKSD, value_BKSD, None, is_causal=causal, **options)[0]
        blocks = []
        for start in range(0, self.tokens, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, self.tokens)
            low = 0 if self.window is None else max(0, self.ahead + start - self.window + 1)
            high = self.ahead + end
            mask = self._mask(start, end, low, high, query_BNTD.device)
            query, key, value = query_BNTD[:, :, start:end], key_BKSD[:, :, low:high], value_BKSD[:, :, low:high]
            blocks.append(kernel(module, query, key, value, mask, is_causal=False, **options)[0])
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)

    def _mask(self, start: int, end: int, low: int, high: int, device: torch.device) -> Tensor:
        """`[B or 1, 1, end - start, high - low]`, true where a query may look."""
        if self.ahead_B is not None or self.first_B is not None:
            ahead_B11 = self.ahead if self.ahead_B is None else self.ahead_B[:, None, None]
            keys_S = torch.arange(low, high, device=device)
            distance_BTS = ahead_B11 + torch.arange(start, end, device=device)[:, None] - keys_S
            mask_BTS = self._within(distance_BTS)
            if self.first_B is not None:
                mask_BTS = mask_BTS & (keys_S >= self.first_B[:, None])[:, None]
            return mask_BTS[:, None] if mask_BTS.dim() == 3 else mask_BTS[None, None]
        # Blocks inside a long prompt see their windows alike, and every layer sees what the first one saw.
        band = (end - start, high - low, self.ahead + start - low)
        if band not in self._bands:
            rows_T1 = torch.arange(band[0], device=device)[:, None]
            mask_TS = self._within(band[2] + rows_T1 - torch.arange(band[1], device=device))
            if self.window is None:
                return mask_TS[None, None]
            self._bands[band] = mask_TS[None, None]
        return self._bands[band]

    def _within(self, distance: Tensor) -> Tensor:
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)


def step_masks(layout: TokenLayout, window: int, later_loops: int) -> tuple[Tensor | None, Tensor | None]:
    """Which keys are there for a single token, in the global branch and in the rings.

    Returns:
        `[B, 1, 1, S]` and `[B * later_loops, 1, 1, ring]`; None where every sequence can see all that is there, which
        is so while all have the same length, and for the rings as soon as all are full.
    """
    if layout.past_B is None:
        return None, None
    longest, places_B1 = layout.longest_past + 1, layout.past_B[:, None]
    far_BS = torch.arange(longest, device=places_B1.device) <= places_B1
    if not later_loops or min(layout.past) >= window - 1:
        return far_BS[:, None, None], None
    near_BW = far_BS[:, : min(window, longest)].repeat_interleave(later_loops, dim=0)
    return far_BS[:, None, None], near_BW[:, None, None]
