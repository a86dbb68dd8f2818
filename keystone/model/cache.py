"""The state of a batch of sequences between two forward calls, and what padding means for it.

`KeystoneCache` holds exactly what `plt.md` names: the loop-0 keys and values of every layer (global, growing), the
last `W - 1` keys and values of every layer for each later loop (windows), and one saved hidden row per loop but the
last. `TokenLayout` answers, for one call, which slots hold real tokens, where each token stands in its own sequence,
and which row precedes it. Slots and positions differ as soon as a batch is padded: a slot is a column of the batch,
a position counts only a sequence's own real tokens. Windows, shifts and rotary angles follow positions, so padding on
either side, or in the middle after a chunked prefill of unequal prompts, never leaks into a result.

Shapes: B sequences, T tokens of this call, S slots in all, K key/value heads, D head size, H hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from keystone.errors import InvalidInputError
from keystone.model.configuration import KeystoneConfig


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of one forward call stand.

    Attributes:
        start: slots already in the cache.
        tokens: T.
        positions_BT: each token's position among its sequence's real tokens; a pad repeats its predecessor's.
        real_BS: which slots hold real tokens, the earlier ones included; None when no slot was ever padded.
    """

    start: int
    tokens: int
    positions_BT: Tensor
    real_BS: Tensor | None

    @classmethod
    def of(cls, attention_mask: Tensor | None, cache: "KeystoneCache | None", embeds_BTH: Tensor) -> "TokenLayout":
        """Lay out one call from its attention mask and what the cache already holds.

        Args:
            attention_mask: `[B, S]` over all slots, or `[B, T]` over the new ones; non-zero marks a real token.
                None means every new token is real.
            cache: the sequences' state, or None for a call that stands alone.
            embeds_BTH: the call's embeddings, for its shape and device.

        Raises:
            InvalidInputError: the mask has neither width.
        """
        batch, tokens = embeds_BTH.shape[:2]
        device = embeds_BTH.device
        start = cache.seen if cache is not None else 0
        past_real = cache.real_BS if cache is not None else None
        counted = cache.counts_B if cache is not None and cache.counts_B is not None else None
        widths = (tokens, start + tokens)
        if attention_mask is not None and (attention_mask.dim() != 2 or attention_mask.shape[1] not in widths):
            raise InvalidInputError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; expected [{batch}, {start + tokens}] "
                f"({start} cached slots and {tokens} new ones)"
            )
        new_real = None if attention_mask is None else attention_mask[:, -tokens:].to(device=device, dtype=torch.bool)
        if past_real is None and (new_real is None or bool(new_real.all())):
            positions = torch.arange(start, start + tokens, device=device)[None].expand(batch, -1)
            return cls(start, tokens, positions, None)
        if new_real is None:
            new_real = torch.ones(batch, tokens, dtype=torch.bool, device=device)
        if past_real is None:
            past_real = torch.ones(batch, start, dtype=torch.bool, device=device)
        before = past_real.sum(1) if counted is None else counted
        positions = (before[:, None] + new_real.cumsum(1) - 1).clamp_min(0)
        return cls(start, tokens, positions, torch.cat([past_real, new_real], dim=1))

    @property
    def new_real_BT(self) -> Tensor | None:
        """Which of the new slots hold real tokens; None when all do."""
        return None if self.real_BS is None else self.real_BS[:, self.start :]

    def last_real_BT(self) -> Tensor:
        """For each new slot, the index within this call of the last real token up to it; -1 where there is none."""
        real_BT = self.new_real_BT
        slots_T = torch.arange(self.tokens, device=self.positions_BT.device)
        if real_BT is None:
            return slots_T[None].expand_as(self.positions_BT)
        return torch.where(real_BT, slots_T, -1).cummax(dim=1).values

    def shift(self, rows_BTH: Tensor, saved_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        """Move each row to the next real token of its sequence.

        Args:
            rows_BTH: a loop's output.
            saved_BH: the row of each sequence's last real token before this call; None means there was none (zeros).

        Returns:
            The shifted rows, `[B, T, H]`, and the row to save for the next call, `[B, H]`.
        """
        first_BH = rows_BTH.new_zeros(rows_BTH.shape[0], rows_BTH.shape[2]) if saved_BH is None else saved_BH
        rows_BtH = torch.cat([first_BH[:, None], rows_BTH], dim=1)
        if self.real_BS is None:
            return rows_BtH[:, :-1], rows_BtH[:, -1]
        last_BT = self.last_real_BT() + 1
        before_BT = torch.cat([torch.zeros_like(last_BT[:, :1]), last_BT[:, :-1]], dim=1)
        picked = torch.cat([before_BT, last_BT[:, -1:]], dim=1)[..., None].expand(-1, -1, rows_BTH.shape[2])
        rows = rows_BtH.gather(1, picked)
        return rows[:, :-1], rows[:, -1]

    def carry(self, rows_BTH: Tensor) -> Tensor:
        """Let each padded slot show its sequence's last real row, so that the last column speaks for every sequence."""
        if self.real_BS is None:
            return rows_BTH
        last_BT = self.last_real_BT()
        slots_T = torch.arange(self.tokens, device=last_BT.device)
        index = torch.where(last_BT < 0, slots_T, last_BT)[..., None].expand_as(rows_BTH)
        return rows_BTH.gather(1, index)

    def global_mask(self) -> Tensor | None:
        """`[B or 1, 1, T, S]`, true where a query may look; None where plain causal attention says the same."""
        if self.real_BS is None and (self.start == 0 or self.tokens == 1):
            return None
        device = self.positions_BT.device
        queries_T = torch.arange(self.start, self.start + self.tokens, device=device)
        keys_S = torch.arange(self.start + self.tokens, device=device)
        causal_TS = keys_S[None] <= queries_T[:, None]
        if self.real_BS is None:
            return causal_TS[None, None]
        # A query always sees itself: a padded one would otherwise see nothing, and NaN would spread from it.
        itself_TS = keys_S[None] == queries_T[:, None]
        return (causal_TS & self.real_BS[:, None, None, :]) | itself_TS

    def window_mask(self, cached_positions_BP: Tensor | None, window: int) -> Tensor | None:
        """The same for a local branch over `P` cached window keys followed by the T new ones: `[B or 1, 1, T, P + T]`.

        Args:
            cached_positions_BP: positions of the cached window keys, -1 for an empty place.
            window: `W`, the token itself included.
        """
        cached = 0 if cached_positions_BP is None else cached_positions_BP.shape[1]
        if self.real_BS is None and cached + self.tokens <= window and (cached == 0 or self.tokens == 1):
            return None
        keys_BP = self.key_positions(cached_positions_BP)
        queries_BT = self.positions_BT
        if self.real_BS is None:
            keys_BP, queries_BT = keys_BP[:1], queries_BT[:1]
        distance = queries_BT[:, :, None] - keys_BP[:, None, :]
        mask_BTP = (distance >= 0) & (distance < window) & (keys_BP >= 0)[:, None, :]
        if self.real_BS is not None:
            slots_T = torch.arange(self.tokens, device=mask_BTP.device)
            mask_BTP[:, slots_T, cached + slots_T] = True
        return mask_BTP[:, None]

    def key_positions(self, cached_positions_BP: Tensor | None) -> Tensor:
        """Positions of the window keys of this call, cached ones first; -1 marks a pad or an empty place."""
        real_BT = self.new_real_BT
        new_BT = self.positions_BT if real_BT is None else torch.where(real_BT, self.positions_BT, -1)
        return new_BT if cached_positions_BP is None else torch.cat([cached_positions_BP, new_BT], dim=1)


class KeystoneCache(Cache):
    """Loop-0 keys and values, windows of the later loops, and the saved rows, for a batch of sequences.

    Virtual layer `loop * L + layer` is the index under which a loop's layer keeps its keys and values.
    """

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__(layers=[])
        self.loops = config.plt_num_loops
        self.physical_layers = config.num_hidden_layers
        self.window = config.window_keys
        self._clear()

    def _clear(self) -> None:
        self.seen = 0
        self.real_BS: Tensor | None = None
        self.counts_B: Tensor | None = None
        self.window_positions_BP: Tensor | None = None
        self.saved_BH: list[Tensor | None] = [None] * (self.loops - 1)
        self.keys_values: list[tuple[Tensor, Tensor] | None] = [None] * (self.loops * self.physical_layers)
        self._kept_BP: Tensor | None = None

    def extend(self, key_BKTD: Tensor, value_BKTD: Tensor, virtual_layer: int) -> tuple[Tensor, Tensor]:
        """Add this call's keys and values to a virtual layer.

        Returns:
            The keys and values to attend to: all of them in loop 0, the window's and the new ones in later loops.
        """
        held = self.keys_values[virtual_layer]
        if held is not None:
            key_BKTD = torch.cat([held[0], key_BKTD], dim=2)
            value_BKTD = torch.cat([held[1], value_BKTD], dim=2)
        if virtual_layer < self.physical_layers:
            self.keys_values[virtual_layer] = (key_BKTD, value_BKTD)
        else:
            self.keys_values[virtual_layer] = (self._keep_window(key_BKTD), self._keep_window(value_BKTD))
        return key_BKTD, value_BKTD

    def begin(self, layout: TokenLayout) -> None:
        """Decide, once for all layers, which window keys outlive this call."""
        positions_BP = layout.key_positions(self.window_positions_BP)
        kept = min(self.window - 1, positions_BP.shape[1])
        if layout.real_BS is None:
            self._kept_BP = None
            self.window_positions_BP = positions_BP[:, positions_BP.shape[1] - kept :]
        else:
            # A stable sort brings pads to the front and leaves real keys in order; the last ones are the window.
            order_BP = (positions_BP >= 0).to(torch.uint8).argsort(dim=1, stable=True)
            self._kept_BP = order_BP[:, positions_BP.shape[1] - kept :]
            self.window_positions_BP = positions_BP.gather(1, self._kept_BP)
        self.seen = layout.start + layout.tokens
        self.real_BS = layout.real_BS
        self.counts_B = None if layout.real_BS is None else layout.real_BS.sum(1)

    def _keep_window(self, states_BKPD: Tensor) -> Tensor:
        if self._kept_BP is None:
            kept = min(self.window - 1, states_BKPD.shape[2])
            view_BKPD = states_BKPD[:, :, states_BKPD.shape[2] - kept :]
            # A view would keep a whole prompt's keys alive behind a window of a few.
            return view_BKPD.clone() if states_BKPD.shape[2] > 2 * self.window else view_BKPD
        index = self._kept_BP[:, None, :, None].expand(-1, states_BKPD.shape[1], -1, states_BKPD.shape[3])
        return states_BKPD.gather(2, index)

    def nbytes(self) -> int:
        """Bytes that the sequences' state holds: keys, values and saved rows."""
        tensors = [tensor for pair in self.keys_values if pair is not None for tensor in pair]
        tensors += [row for row in self.saved_BH if row is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    # What `generate` asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - every layer has seen the same slots
        """Slots seen so far, padding included."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002 - as above
        """No limit of its own: -1, as transformers' growing caches say."""
        return -1

    @property
    def is_initialized(self) -> bool:
        """Whether any token was seen."""
        return self.seen > 0

    @property
    def is_compileable(self) -> bool:
        """False: the shapes grow with the sequences."""
        return False

    def reset(self) -> None:
        """Forget everything."""
        self._clear()

    def crop(self, *_: Any, **__: Any) -> None:
        """Refuse: windows and saved rows of an earlier moment are gone and would have to be computed again.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError("a loop cache cannot be cropped: run the shortened sequence through a new cache")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence `i` continue from sequence `beam_idx[i]` (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the named sequences, in the given order."""

        def select(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(0, indices.to(tensor.device))

        self._map(select)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence, so that several continuations share its beginning."""

        def repeat(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat_interleave(repeats, dim=0)

        self._map(repeat)

    def _map(self, change: Any) -> None:
        self.real_BS = change(self.real_BS)
        self.counts_B = change(self.counts_B)
        self.window_positions_BP = change(self.window_positions_BP)
        self.saved_BH = [change(row) for row in self.saved_BH]
        self.keys_values = [None if pair is None else (change(pair[0]), change(pair[1])) for pair in self.keys_values]
