"""Which tokens of a call are real, and where each stands in its own sequence: what padding means.

A batch holds sequences of unequal length, so its rows are padded: before a prompt, behind it, or between two chunks.
A `TokenLayout` packs every row once, at the door: real tokens first, pads last. Behind the door nobody needs to know
of padding. Causal attention never looks ahead, so pads at the end reach no real token; the shift by one token is a
shift by one column; and keys are stored by their position in their own sequence, where the next real token overwrites
what a pad left. At the way out `unpack` puts the rows back where the caller's columns are.

Shapes: B sequences, T tokens of this call after packing, H hidden size.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from keystone.errors import InvalidInputError


class Remembered(Protocol):
    """What a layout asks of the state of earlier calls."""

    @property
    def seen(self) -> int:
        """Columns of all earlier calls, padding included."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of each sequence; empty before the first call."""

    @property
    def lengths_B(self) -> Tensor | None:
        """The same on the device, where the sequences' lengths differ; else None."""


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of one forward call stand.

    Attributes:
        columns: tokens of each row as the caller gave them, padding included.
        tokens: T, the most real tokens that any row brings, at least 1.
        past: real tokens that each sequence had before.
        counts: real tokens that each sequence brings.
        past_B: `past` on the device, where the sequences' differ; None where all have `past[0]`.
        places_BT: where each packed token is kept, `[1, T]` where all sequences agree.
        positions_BT: the same, but a pad repeats the position of the last real token.
        order_BT: for each packed token the column it came from; None when no token of this call is a pad.
        shown_BT: for each of the caller's columns the packed token it shows; None likewise.
    """

    columns: int
    tokens: int
    past: tuple[int, ...]
    counts: tuple[int, ...]
    past_B: Tensor | None
    places_BT: Tensor
    positions_BT: Tensor
    order_BT: Tensor | None
    shown_BT: Tensor | None

    @classmethod
    def of(cls, embeds_BTH: Tensor, attention_mask: Tensor | None, cache: Remembered | None) -> Self:
        """Lay out one call from its attention mask and what came before.

        Args:
            embeds_BTH: the call's embeddings, for their shape and device.
            attention_mask: `[B, S]` over all columns since the first call, or `[B, T]` over the new ones; non-zero
                marks a real token. None means every new token is real.
            cache: the sequences' state, or None for a call that stands alone.

        Raises:
            InvalidInputError: the mask has neither width, or the batch is not the cache's.
        """
        batch, columns = embeds_BTH.shape[:2]
        device = embeds_BTH.device
        seen = 0 if cache is None else cache.seen
        past = (0,) * batch if cache is None or not cache.lengths else cache.lengths
        if len(past) != batch:
            raise InvalidInputError(f"the cache holds {len(past)} sequences and this call brings {batch}")
        past_B = None if cache is None else cache.lengths_B
        real_BT = None
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[1] not in (columns, seen + columns):
                raise InvalidInputError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}; expected [{batch}, {seen + columns}] "
                    f"({seen} cached columns and {columns} new ones)"
                )
            real_BT = attention_mask[:, -columns:].to(device=device, dtype=torch.bool)
            if bool(real_BT.all()):
                real_BT = None
        if real_BT is None:
            steps_T = torch.arange(columns, device=device)[None]
            places_BT = steps_T + (past[0] if past_B is None else past_B[:, None])
            return cls(columns, columns, past, (columns,) * batch, past_B, places_BT, places_BT, None, None)
        return cls._packed(real_BT, past, past_B)

    @classmethod
    def _packed(cls, real_BT: Tensor, past: tuple[int, ...], past_B: Tensor | None) -> Self:
        counts_B = real_BT.sum(1)
        counts = tuple(counts_B.tolist())
        tokens = max(1, *counts)
        steps_T = torch.arange(tokens, device=real_BT.device)[None]
        places_BT = steps_T + (past[0] if past_B is None else past_B[:, None])
        last_B1 = (counts_B if past_B is None else counts_B + past_B)[:, None] + (past[0] if past_B is None else 0) - 1
        # A stable sort brings the real tokens to the front and leaves them in order.
        order_BT = (~real_BT).to(torch.uint8).argsort(dim=1, stable=True)[:, :tokens]
        shown_BT = (real_BT.cumsum(1) - 1).clamp_min(0)
        positions_BT = places_BT.minimum(last_B1).clamp_min(0)
        return cls(real_BT.shape[1], tokens, past, counts, past_B, places_BT, positions_BT, order_BT, shown_BT)

    @property
    def longest_past(self) -> int:
        """The most real tokens that any sequence had before."""
        return self.past[0] if self.past_B is None else max(self.past)

    @property
    def counts_B(self) -> Tensor:
        """`counts` on the device."""
        return torch.tensor(self.counts, device=self.places_BT.device)

    def pack(self, columns_BT: Tensor) -> Tensor:
        """Bring a call's `[B, columns, ...]` into packed order, `[B, T, ...]`."""
        if self.order_BT is None:
            return columns_BT
        return _take(columns_BT.expand(len(self.past), *columns_BT.shape[1:]), self.order_BT)

    def unpack(self, rows_BTH: Tensor) -> Tensor:
        """Put rows back into the caller's columns; a pad shows its sequence's last real row before it.

        So the last column speaks for every sequence, whichever side was padded.
        """
        return rows_BTH if self.shown_BT is None else _take(rows_BTH, self.shown_BT)

    def shift(self, rows_BTH: Tensor, saved_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        """Move each row to the next token of its sequence.

        Args:
            rows_BTH: a loop's output.
            saved_BH: the row of each sequence's last token before this call; None means there was none (zeros).

        Returns:
            The shifted rows, `[B, T, H]`, and the row to save for the next call, `[B, H]`.
        """
        first_BH = rows_BTH.new_zeros(rows_BTH.shape[0], rows_BTH.shape[2]) if saved_BH is None else saved_BH
        rows_BtH = torch.cat([first_BH[:, None], rows_BTH], dim=1)
        last_BH = rows_BtH[:, -1] if self.order_BT is None else _take(rows_BtH, self.counts_B[:, None])[:, 0]
        return rows_BtH[:, :-1], last_BH


def _take(rows_BTX: Tensor, index_BU: Tensor) -> Tensor:
    """`[B, U, ...]`: for each sequence the rows that `index_BU` names."""
    index = index_BU.reshape(*index_BU.shape, *(1,) * (rows_BTX.dim() - 2))
    return rows_BTX.gather(1, index.expand(*index_BU.shape, *rows_BTX.shape[2:]))
