"""The state of a batch of sequences between two forward calls.

`KeystoneCache` holds exactly what the Parallel Loop Transformer needs to go on: the loop-0 keys and values of every
layer (global, growing), a ring of the last `W` keys and values of every layer for each later loop, and one saved
hidden row for each loop but the last. Sequences of unequal length share a batch: each keeps its keys by its own
positions, and padding takes no room. They may join (`merge`), leave (`remove`) and branch (`fork`) between two calls.

Rings and saved rows of an earlier moment are gone, so a cache cannot be cut back to any length. It can be cut back to
a `snapshot`, which keeps a copy of them; the global keys need none, they only grow.

Shapes: B sequences, T tokens of this call, K key/value heads, D head size, H hidden size, r = R - 1 loops after the
first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from keystone.errors import InvalidInputError
from keystone.model.configuration import KeystoneConfig
from keystone.model.layout import TokenLayout
from keystone.model.state import KeysValues, LayerState, with_room


def cache_bytes(config: KeystoneConfig, tokens: int, dtype: torch.dtype = torch.bfloat16, *, sequences: int = 1) -> int:
    """Bytes of state that sequences of so many tokens need: a part for each token, and a constant one.

    Args:
        config: the model's.
        tokens: of each sequence.
        dtype: of the cached numbers.
        sequences: how many.
    """
    key_value = 2 * (config.num_key_value_heads or 0) * (config.head_dim or 0)
    later = config.plt_num_loops - 1
    numbers = config.num_hidden_layers * key_value * (tokens + later * config.window_keys) + later * config.hidden_size
    return sequences * numbers * dtype.itemsize


@dataclass(frozen=True)
class Snapshot:
    """What of a moment cannot be had back otherwise: rings, saved rows and lengths."""

    lengths: tuple[int, ...]
    rings: tuple[KeysValues | None, ...]
    saved_BrH: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor], lengths: tuple[int, ...]) -> "Snapshot":
        """The same with every tensor changed."""
        rings = tuple(None if pair is None else (change(pair[0]), change(pair[1])) for pair in self.rings)
        return Snapshot(lengths, rings, None if self.saved_BrH is None else change(self.saved_BrH))


class KeystoneCache(Cache):
    """Loop-0 keys and values, rings of the later loops, and the saved rows, for a batch of sequences.

    Args:
        config: the model's.
        reserve: tokens to make room for at once; the cache grows beyond them when it must.
        block: keep a snapshot whenever the sequences' length reaches a multiple of so many tokens. Only a batch of
            sequences of one length has such moments; start each sequence alone and `merge` them afterwards.
    """

    def __init__(self, config: KeystoneConfig, *, reserve: int = 0, block: int | None = None) -> None:
        super().__init__(layers=[])
        if block is not None and block < 1:
            raise InvalidInputError(f"block is {block}; a snapshot every so many tokens needs at least 1")
        self.config = config
        self.reserve = reserve
        self.block = block
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.seen = 0
        self.lengths: tuple[int, ...] = ()
        self.lengths_B: Tensor | None = None
        self.saved_BrH: Tensor | None = None
        self.states: list[LayerState | None] = [None] * self.config.num_hidden_layers
        self._snapshots: dict[int, Snapshot] = {}

    # Within a forward call.

    def begin(self) -> None:
        """Make ready for a call: what was made in inference mode cannot be written to outside of it."""
        first = self.states[0]
        if first is not None and first.kept[0].is_inference() and not torch.is_inference_mode_enabled():
            self._change(torch.clone)

    def layer(self, index: int, like_BKTD: Tensor) -> LayerState:
        """A physical layer's keys and values; made on first sight, for keys like these."""
        state = self.states[index]
        if state is None:
            room = max(like_BKTD.shape[2], self.reserve)
            state = LayerState.empty(like_BKTD, room, self.config.window_keys, self.config.plt_num_loops - 1)
            self.states[index] = state
        return state

    def end(self, layout: TokenLayout, saved_BrH: Tensor | None) -> None:
        """Count a call's tokens, once all layers hold them."""
        self.seen += layout.columns
        self.saved_BrH = saved_BrH
        self._set_lengths(tuple(past + count for past, count in zip(layout.past, layout.counts, strict=True)), layout)
        if self.block is not None and self.lengths_B is None and self.lengths[0] % self.block == 0:
            self.snapshot()

    def _set_lengths(self, lengths: tuple[int, ...], layout: TokenLayout | None = None) -> None:
        self.lengths = lengths
        if not lengths or lengths.count(lengths[0]) == len(lengths):
            self.lengths_B = None
        elif layout is not None and layout.past_B is not None and layout.order_BT is None:
            self.lengths_B = layout.past_B + layout.tokens  # on the device already: nothing is sent there
        else:
            self.lengths_B = torch.tensor(lengths, device=self._device())

    def _device(self) -> torch.device | None:
        first = self.states[0]
        return None if first is None else first.kept[0].device

    # Going back.

    @property
    def snapshots(self) -> tuple[int, ...]:
        """The columns seen at each snapshot, ascending: where `crop` can go."""
        return tuple(sorted(self._snapshots))

    def snapshot(self) -> int:
        """Keep what it takes to come back to this moment; returns the columns seen so far, its name for `crop`.

        Costs the constant part of `cache_bytes` for each snapshot.
        """
        rings = tuple(
            None if state is None or state.rings is None else (state.rings[0].clone(), state.rings[1].clone())
            for state in self.states
        )
        self._snapshots[self.seen] = Snapshot(self.lengths, rings, self.saved_BrH)
        return self.seen

    def crop(self, length: int) -> None:
        """Go back to an earlier moment: to a snapshot, or to the empty beginning.

        Args:
            length: the columns to keep; a negative number says how many to drop, and 0 drops none, as transformers'
                caches understand it (`reset` forgets everything).

        Raises:
            InvalidInputError: there is no snapshot of that length; the message names the nearest one before it.
        """
        target = self.seen + length if length <= 0 else length
        if target == self.seen:
            return
        if target == 0:
            self.reset()
            return
        if target not in self._snapshots:
            raise InvalidInputError(
                f"a loop cache of {self.seen} columns cannot be cropped to {target}: its windows and saved rows are "
                f"gone. The nearest snapshot before it is at {self.nearest(target)} (0 is the empty beginning): crop "
                "there and run the rest again, or let the model do both with `rewind`"
            )
        held = self._snapshots[target]
        for state, rings in zip(self.states, held.rings, strict=True):
            if state is not None and rings is not None:
                state.rings = (rings[0].clone(), rings[1].clone())
        self.saved_BrH = held.saved_BrH
        self.seen = target
        self._set_lengths(held.lengths)
        self._snapshots = {seen: snapshot for seen, snapshot in self._snapshots.items() if seen <= target}

    def nearest(self, length: int) -> int:
        """The last snapshot that is not beyond `length`; 0, the empty beginning, if there is none."""
        return max((seen for seen in self._snapshots if seen <= length), default=0)

    # Which sequences.

    @classmethod
    def merge(cls, caches: Sequence["KeystoneCache"]) -> Self:
        """One batch of all sequences of several caches, in order. Snapshots stay behind, and so do the caches.

        Raises:
            InvalidInputError: none given, one that holds nothing, or models, types or devices that differ.
        """
        if not caches or any(cache.states[0] is None for cache in caches):
            raise InvalidInputError("only caches that hold sequences can be merged")
        config = caches[0].config
        if len({_form(cache) for cache in caches}) != 1:
            raise InvalidInputError("the caches are of different models, types or devices")
        made = cls(config, reserve=max(cache.reserve for cache in caches), block=caches[0].block)
        made.seen = max(cache.seen for cache in caches)
        longest = max(made.reserve, *(max(cache.lengths) for cache in caches))
        for layer in range(config.num_hidden_layers):
            states = [state for cache in caches if (state := cache.states[layer]) is not None]
            kept = tuple(torch.cat([with_room(state.kept[side], longest) for state in states]) for side in (0, 1))
            rings = [state.rings for state in states if state.rings is not None]
            joined = (torch.cat([pair[0] for pair in rings]), torch.cat([pair[1] for pair in rings])) if rings else None
            made.states[layer] = LayerState(config.window_keys, (kept[0], kept[1]), joined)
        saved = [cache.saved_BrH for cache in caches if cache.saved_BrH is not None]
        made.saved_BrH = torch.cat(saved) if saved else None
        made._set_lengths(tuple(length for cache in caches for length in cache.lengths))
        return made

    def select(self, indices: Sequence[int]) -> None:
        """Keep the named sequences, in the given order; one may be named twice.

        Raises:
            InvalidInputError: an index names no sequence.
        """
        wrong = [index for index in indices if not 0 <= index < len(self.lengths)]
        if wrong or not indices:
            raise InvalidInputError(f"cannot select {list(indices)} of {len(self.lengths)} sequences")
        self.batch_select_indices(torch.tensor(indices))

    def remove(self, index: int) -> None:
        """Drop one sequence of several."""
        self.select([kept for kept in range(len(self.lengths)) if kept != index])

    def fork(self, length: int | None = None) -> Self:
        """An independent copy, cut back to a snapshot if a length is given: many answers to one shared prefix.

        Raises:
            InvalidInputError: as `crop`.
        """
        made = type(self)(self.config, reserve=self.reserve, block=self.block)
        made.seen, made.saved_BrH, made._snapshots = self.seen, self.saved_BrH, dict(self._snapshots)
        made.states = [None if state is None else state.map(torch.clone) for state in self.states]
        made._set_lengths(self.lengths)
        if length is not None:
            made.crop(length if length else -made.seen)
        return made

    def nbytes(self) -> int:
        """Bytes that are allocated for the sequences' state, room to grow and snapshots included."""
        tensors: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        for state in self.states:
            if state is not None:
                state.map(note)
        for snapshot in self._snapshots.values():
            snapshot.map(note, snapshot.lengths)
        if self.saved_BrH is not None:
            tensors.append(self.saved_BrH)
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    # What `generate` asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - every layer has seen the same columns
        """Columns seen so far, padding included."""
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

    @property
    def is_croppable(self) -> bool:
        """False: only to its snapshots, which is not what `generate` would need."""
        return False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence `i` continue from sequence `beam_idx[i]` (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences that a tensor of indices names, in its order."""
        even = self.lengths_B is None and not self._snapshots  # then the indices need not be brought to the host
        wanted = range(1) if even else indices.tolist()

        def lengths_of(lengths: tuple[int, ...]) -> tuple[int, ...]:
            return lengths[:1] * len(indices) if even else tuple(lengths[index] for index in wanted)

        self._change(lambda tensor: tensor.index_select(0, indices.to(tensor.device)), lengths_of)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence, so that several continuations share its beginning."""
        self._change(
            lambda tensor: tensor.repeat_interleave(repeats, dim=0),
            lambda lengths: tuple(length for length in lengths for _ in range(repeats)),
        )

    def _change(
        self,
        change: Callable[[Tensor], Tensor],
        lengths_of: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda lengths: lengths,
    ) -> None:
        self.states = [None if state is None else state.map(change) for state in self.states]
        self._snapshots = {
            seen: snapshot.map(change, lengths_of(snapshot.lengths)) for seen, snapshot in self._snapshots.items()
        }
        self.saved_BrH = None if self.saved_BrH is None else change(self.saved_BrH)
        self._set_lengths(lengths_of(self.lengths))


def _form(cache: KeystoneCache) -> tuple[object, ...]:
    """What two caches must share to become one batch."""
    state = cache.states[0]
    if state is None:
        return ()
    kept_BKCD = state.kept[0]
    rings = None if state.rings is None else state.rings[0].shape[1:]
    return len(cache.states), kept_BKCD.shape[1::2], rings, kept_BKCD.dtype, kept_BKCD.device
