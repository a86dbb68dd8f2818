"""One layer's keys and values: a buffer that grows, and rings that do not.

Loop 0's are kept for good, each at its position in its own sequence. A later loop's are kept as long as its window
reaches: the key at position `p` stands in place `p mod W` of the loop's ring, and is overwritten when no query can see
it any more. A decode step writes one place in each and copies nothing.

Shapes: B sequences, T tokens of this call, K key/value heads, D head size, C capacity, W window keys, R loops,
r = R - 1 loops after the first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from keystone.model.layout import TokenLayout

KeysValues = tuple[Tensor, Tensor]

# A full buffer grows by a quarter and at least so many tokens: few copies, and little room left empty.
GROWTH = 0.25
LEAST_GROWTH = 32


@dataclass
class LayerState:
    """What one physical layer remembers of a batch of sequences.

    Attributes:
        window: `W`, the token itself included.
        kept: loop 0's keys and values, `[B, K, C, D]` each.
        rings: the later loops', `[B, r, K, W, D]` each; None in a one-loop model.
    """

    window: int
    kept: KeysValues
    rings: KeysValues | None

    @classmethod
    def empty(cls, like_BKTD: Tensor, room: int, window: int, later_loops: int) -> Self:
        """Buffers for keys like these, with room for so many tokens.

        Zeros, not whatever memory held: a masked key still meets a weight of 0, and 0 times NaN is NaN.
        """
        batch, heads, _, size = like_BKTD.shape
        kept, ring = (batch, heads, room, size), (batch, later_loops, heads, window, size)
        rings = (like_BKTD.new_zeros(ring), like_BKTD.new_zeros(ring)) if later_loops else None
        return cls(window, (like_BKTD.new_zeros(kept), like_BKTD.new_zeros(kept)), rings)

    def map(self, change: Callable[[Tensor], Tensor]) -> "LayerState":
        """The same with every tensor changed."""
        rings = None if self.rings is None else (change(self.rings[0]), change(self.rings[1]))
        return LayerState(self.window, (change(self.kept[0]), change(self.kept[1])), rings)

    def make_room(self, tokens: int) -> None:
        """Grow, if so many tokens do not fit."""
        if self.kept[0].shape[2] < tokens:
            room = tokens + max(LEAST_GROWTH, int(tokens * GROWTH))
            self.kept = (with_room(self.kept[0], room), with_room(self.kept[1], room))

    def remember(self, keys: KeysValues, layout: TokenLayout) -> KeysValues:
        """Add this call's loop-0 keys and values; returns all of them, `[B, K, longest past + T, D]` each."""
        needed = layout.longest_past + layout.tokens
        self.make_room(needed)
        for kept_BKCD, new_BKTD in zip(self.kept, keys, strict=True):
            if layout.past_B is None:
                kept_BKCD[:, :, layout.longest_past : needed] = new_BKTD
            else:
                rows_B1 = torch.arange(len(layout.past), device=kept_BKCD.device)[:, None]
                kept_BKCD[rows_B1, :, layout.places_BT] = new_BKTD.transpose(1, 2)
        return self.kept[0][:, :, :needed], self.kept[1][:, :, :needed]

    def recall(self, loop: int, layout: TokenLayout) -> KeysValues | None:
        """What a call's first queries can still see of a loop, oldest first, `[B, K, up to W - 1, D]` each.

        Shorter sequences have fewer; what stands in their place is for a mask to hide. None if there is nothing.
        """
        behind = min(self.window - 1, layout.longest_past)
        if behind == 0 or self.rings is None:
            return None
        steps_P = torch.arange(-behind, 0, device=self.rings[0].device)
        if layout.past_B is None:
            place_P = (layout.longest_past + steps_P) % self.window
            key_BKWD, value_BKWD = self.rings[0][:, loop - 1], self.rings[1][:, loop - 1]
            return key_BKWD.index_select(2, place_P), value_BKWD.index_select(2, place_P)
        place_BP = (layout.past_B[:, None] + steps_P) % self.window
        return _pick(self.rings[0][:, loop - 1], place_BP), _pick(self.rings[1][:, loop - 1], place_BP)

    def roll(self, loop: int, keys: KeysValues, layout: TokenLayout) -> None:
        """Let this call's keys and values of a later loop replace the oldest of its ring."""
        for ring_BrKWD, new_BKTD in zip(self.rings or (), keys, strict=True):
            ring_BKWD = ring_BrKWD[:, loop - 1]
            if layout.past_B is None and layout.order_BT is None:
                staying = min(self.window, layout.tokens)
                place_T = layout.places_BT[0, -staying:] % self.window
                ring_BKWD[:, :, place_T] = new_BKTD[:, :, -staying:]
            else:
                source_BW = self._sources(layout)
                ring_BKWD.copy_(_pick(torch.cat([ring_BKWD, new_BKTD], dim=2), source_BW))

    def _sources(self, layout: TokenLayout) -> Tensor:
        """`[B, W]`: where each place of a ring finds its key among the ring's own followed by the new ones.

        The newest position that belongs in a place comes from this call, or else it has been there before.
        """
        place_W = torch.arange(self.window, device=layout.places_BT.device)
        past_B1 = layout.longest_past if layout.past_B is None else layout.past_B[:, None]
        last_B1 = past_B1 + layout.counts_B[:, None] - 1
        new_BW = last_B1 - (last_B1 - place_W) % self.window - past_B1
        return torch.where(new_BW >= 0, self.window + new_BW, place_W)

    def step(self, keys: KeysValues, layout: TokenLayout) -> tuple[KeysValues, KeysValues | None]:
        """Add the keys and values of one token in all loops, `[B, K, R, D]` each.

        Returns:
            Those of loop 0 so far, as `remember` gives them, and the rings of the later loops, `[B * r, K, W, D]`
            each, cut to what is filled while all sequences are shorter than the window; None in a one-loop model.
        """
        kept = self.remember((keys[0][:, :, :1], keys[1][:, :, :1]), layout)
        if self.rings is None:
            return kept, None
        for ring_BrKWD, new_BKRD in zip(self.rings, keys, strict=True):
            later_BrKD = new_BKRD[:, :, 1:].transpose(1, 2)
            if layout.past_B is None:
                ring_BrKWD[:, :, :, layout.longest_past % self.window] = later_BrKD
            else:
                rows_B = torch.arange(len(layout.past), device=ring_BrKWD.device)
                ring_BrKWD[rows_B, :, :, layout.past_B % self.window] = later_BrKD
        filled = min(self.window, layout.longest_past + 1)
        return kept, (self.rings[0].flatten(0, 1)[:, :, :filled], self.rings[1].flatten(0, 1)[:, :, :filled])


def with_room(kept_BKCD: Tensor, room: int) -> Tensor:
    """The first `room` places; empty ones are added where there are fewer."""
    if kept_BKCD.shape[2] >= room:
        return kept_BKCD[:, :, :room]
    grown = kept_BKCD.new_zeros(*kept_BKCD.shape[:2], room, kept_BKCD.shape[3])
    grown[:, :, : kept_BKCD.shape[2]] = kept_BKCD
    return grown


def _pick(states_BKSD: Tensor, index_BU: Tensor) -> Tensor:
    """`[B, K, U, D]`: for each sequence the places that `index_BU` names."""
    index = index_BU[:, None, :, None]
    return states_BKSD.gather(2, index.expand(-1, states_BKSD.shape[1], -1, states_BKSD.shape[3]))
