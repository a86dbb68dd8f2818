"""The Parallel Loop Transformer in one file: `R` loops over the same `L` layers, kept apart by a shift of one token.

Loop 0 is a plain pre-norm Llama stack. Loop `r >= 1` starts from `a * E[t] + b * h_(r-1)[t-1]`: the token's own
embedding and the previous loop's output for the token *before* it. A later loop's attention mixes two branches through
a gate, one scalar a head: a global one over the loop-0 keys of the same layer, and a local one over a window of the
loop's own keys. Sources: arXiv 2510.24824, arXiv 2606.18023; the golden fixtures under `tests/parity` judge every line.

The shift is what makes decoding parallel: before token `t` is computed, the row that every loop starts from is known.
So `_one_loop` runs a prompt through the loops in order, and `_all_loops` runs one token through all of them at once:
the loops become rows of one batch, and the weights, which is what decoding waits for, are read once.

Shape letters: B batch, T tokens of this call, S slots seen, H hidden size, N query heads, K key/value heads,
D head size, V vocabulary, R loops, L layers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from keystone.errors import CheckpointError, InvalidInputError
from keystone.model.attention import Kernel, KeysValues, Reach, kernel_named, step_masks
from keystone.model.cache import KeystoneCache
from keystone.model.configuration import KeystoneConfig
from keystone.model.layout import TokenLayout

# The gate's tensors go by three names in the wild; ours comes last in each rule.
GATE_SPELLINGS = {
    r"model\.layers\.(\d+)\.self_attn\.loop_gate_proj\.": r"model.layers.\1.self_attn.plt_gate.",
    r"model\.gate_projections\.(\d+)\.": r"model.layers.\1.self_attn.plt_gate.",
}

LOADING_FAULTS = {"missing_keys": "missing", "unexpected_keys": "surplus", "mismatched_keys": "misshapen"}

Rope = tuple[Tensor, Tensor]
DecodeMode = Literal["parallel", "sequential"]


@dataclass(frozen=True)
class LoopView:
    """What every layer sees alike while one loop runs over the tokens of a call.

    Attributes:
        loop: `r`.
        rope: what `RotaryEmbedding` gave.
        layout: where the tokens stand.
        cache: the sequences' state, or None.
        far: which loop-0 keys the queries may see.
        near: which of the loop's own keys they may see; unused in loop 0.
    """

    loop: int
    rope: Rope
    layout: TokenLayout
    cache: KeystoneCache | None
    far: Reach
    near: Reach


@dataclass(frozen=True)
class StepView:
    """What every layer sees alike while one token runs through all loops at once.

    Attributes:
        rope: what `RotaryEmbedding` gave; the same for all loops.
        layout: where the token stands.
        cache: the sequences' state.
        far_mask: `[B, 1, 1, S]`, the loop-0 keys that are there; None where all are.
        near_mask: `[B * r, 1, 1, W]`, the same for the rings.
    """

    rope: Rope
    layout: TokenLayout
    cache: KeystoneCache
    far_mask: Tensor | None
    near_mask: Tensor | None


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in fp32 and scaled by a learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., size]`."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding with transformers' scaling variants; angles are computed in fp32."""

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        parameters: Mapping[str, Any] = config.rope_parameters or {}
        self.rope_type = parameters.get("rope_type", "default")
        scaled = self.rope_type != "default"
        self.rope_init_fn = ROPE_INIT_FUNCTIONS[self.rope_type] if scaled else self.compute_default_rope_parameters
        inv_freq, self.attention_scaling = self.rope_init_fn(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to another device or dtype, but keep the frequencies in fp32 and never empty.

        In bf16 they would be off by up to 0.4 %, which a few hundred positions turn into a visible angle.
        """
        super()._apply(fn, recurse)
        if self.inv_freq.device.type != "meta":
            inv_freq, _ = self.rope_init_fn(self.config)
            self.inv_freq = inv_freq.to(self.inv_freq.device)
            self.original_inv_freq = self.inv_freq.clone()
        return self

    @staticmethod
    def compute_default_rope_parameters(config: KeystoneConfig, *_: Any, **__: Any) -> tuple[Tensor, float]:
        """Inverse frequencies `[D/2]` of unscaled RoPE, and the factor 1.0 for its cosines and sines."""
        parameters: Mapping[str, Any] = config.rope_parameters or {}
        head_dim = config.head_dim or 0
        steps = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / (parameters["rope_theta"] ** steps), 1.0

    @torch.no_grad()
    @dynamic_rope_update  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, position_ids: Tensor) -> Rope:
        """Cosines and sines, `[B, T, 1, D]` each, for positions `[B, T]`, in the dtype of `x`.

        The first half of the sines is negated already, as `rotate` wants it.
        """
        angles = position_ids[:, :, None, None].float() * self.inv_freq.float().to(x.device)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return torch.cat([cos, cos], dim=-1).to(x.dtype), torch.cat([-sin, sin], dim=-1).to(x.dtype)


def rotate(x_BTND: Tensor, rope: Rope) -> Tensor:
    """Apply rotary embedding: halves `(first, second)` become `(first, second) * cos + (-second, first) * sin`."""
    cos_BT1D, sin_BT1D = rope
    return x_BTND * cos_BT1D + x_BTND.roll(x_BTND.shape[-1] // 2, dims=-1) * sin_BT1D


class HiddenStateGate(nn.Module):
    """`g = sigmoid(W @ RMSNorm(x) + bias)` on the layer's input before its norm: one scalar a head."""

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.gate_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, layer_input_BTH: Tensor, query_BTND: Tensor) -> Tensor:  # noqa: ARG002 - the other gate reads it
        """Gate values `[B, T, N]`."""
        return functional.linear(self.gate_norm(layer_input_BTH), self.weight, self.bias).sigmoid()


class QueryGate(nn.Module):
    """`g_h = sigmoid(q_h . w_h + bias_h)` on the query after RoPE, unscaled: one scalar a head."""

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, config.head_dim or 0))
        self.bias = nn.Parameter(torch.zeros(config.num_attention_heads))

    def forward(self, layer_input_BTH: Tensor, query_BTND: Tensor) -> Tensor:  # noqa: ARG002 - the other gate reads it
        """Gate values `[B, T, N]`."""
        return (torch.einsum("btnd,nd->btn", query_BTND, self.weight) + self.bias).sigmoid()


class Attention(nn.Module):
    """One layer's attention, the same weights in every loop."""

    def __init__(self, config: KeystoneConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim or 0
        key_value_heads = config.num_key_value_heads or 0
        self.num_key_value_groups = config.num_attention_heads // key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, hidden, bias=config.output_bias)
        # A one-loop model has no second branch to mix, and stays a plain Llama tensor for tensor.
        if config.plt_num_loops > 1:
            self.plt_gate = (HiddenStateGate if config.plt_gate_use_hidden_states else QueryGate)(config)

    def forward(
        self,
        normed_BTH: Tensor,
        layer_input_BTH: Tensor,
        global_kv: KeysValues | None,
        view: LoopView | StepView,
    ) -> tuple[Tensor, KeysValues | None]:
        """Attend.

        Args:
            normed_BTH: the layer's input after `input_layernorm`; in a step, the loops' rows stand where tokens would.
            layer_input_BTH: the same before it, which the hidden-state gate reads.
            global_kv: this layer's loop-0 keys and values so far, `[B, K, S, D]`; None in loop 0 and in a step.
            view: rotary angles, reach and state.

        Returns:
            The output `[B, T, H]`, and the keys and values that loop 0 leaves for the later loops.
        """
        heads = (*normed_BTH.shape[:2], -1, self.head_dim)
        query_BTND = rotate(self.q_proj(normed_BTH).view(heads), view.rope)
        key_BKTD = rotate(self.k_proj(normed_BTH).view(heads), view.rope).transpose(1, 2)
        value_BKTD = self.v_proj(normed_BTH).view(heads).transpose(1, 2)
        if isinstance(view, StepView):
            mixed_BTND = self._all_loops(query_BTND, (key_BKTD, value_BKTD), layer_input_BTH, view)
        else:
            mixed_BTND, global_kv = self._one_loop(query_BTND, (key_BKTD, value_BKTD), layer_input_BTH, global_kv, view)
        return self.o_proj(mixed_BTND.flatten(2)), global_kv

    def _one_loop(
        self,
        query_BTND: Tensor,
        keys: KeysValues,
        layer_input_BTH: Tensor,
        global_kv: KeysValues | None,
        view: LoopView,
    ) -> tuple[Tensor, KeysValues]:
        """All tokens of a call, in one loop."""
        state = None if view.cache is None else view.cache.layer(self.layer_idx, keys[0])
        query_BNTD = query_BTND.transpose(1, 2)
        if global_kv is None:
            global_kv = keys if state is None else state.remember(keys, view.layout)
            return view.far.attend(self._kernel, self, query_BNTD, global_kv, **self._options), global_kv
        if state is not None:
            earlier = state.recall(view.loop, view.layout)
            state.roll(view.loop, keys, view.layout)
            if earlier is not None:
                keys = (torch.cat([earlier[0], keys[0]], dim=2), torch.cat([earlier[1], keys[1]], dim=2))
        far_BTND = view.far.attend(self._kernel, self, query_BNTD, global_kv, **self._options)
        near_BTND = view.near.attend(self._kernel, self, query_BNTD, keys, **self._options)
        return self._mix(far_BTND, near_BTND, self.plt_gate(layer_input_BTH, query_BTND)), global_kv

    def _all_loops(self, query_BRND: Tensor, keys: KeysValues, layer_input_BRH: Tensor, view: StepView) -> Tensor:
        """One token, in all loops: row `r` is loop `r`'s."""
        far_keys, near_keys = view.cache.layer(self.layer_idx, keys[0][:, :, :1]).step(keys, view.layout)
        query_BNRD = query_BRND.transpose(1, 2)
        far_BRND = self._kernel(self, query_BNRD, *far_keys, view.far_mask, **self._options)[0]
        if near_keys is None:
            return far_BRND
        # Each later loop has a ring of its own, so here the loops count as sequences.
        query_bN1D = query_BRND[:, 1:].flatten(0, 1)[:, :, None]
        near_b1ND = self._kernel(self, query_bN1D, *near_keys, view.near_mask, **self._options)[0]
        far_BrND = far_BRND[:, 1:]
        gate_BrN = self.plt_gate(layer_input_BRH[:, 1:], query_BRND[:, 1:])
        return torch.cat([far_BRND[:, :1], self._mix(far_BrND, near_b1ND.reshape(far_BrND.shape), gate_BrN)], dim=1)

    @staticmethod
    def _mix(far_BTND: Tensor, near_BTND: Tensor, gate_BTN: Tensor) -> Tensor:
        """`g * far + (1 - g) * near`."""
        return torch.lerp(near_BTND, far_BTND, gate_BTN[..., None].to(far_BTND.dtype))

    @property
    def _kernel(self) -> Kernel:
        return kernel_named(self.config._attn_implementation)

    @property
    def _options(self) -> dict[str, float]:
        return {"scaling": self.scaling, "dropout": float(self.config.attention_dropout or 0) if self.training else 0.0}


class LoopCarry(nn.Module):
    """`b * h`: how much of the previous loop a later one starts from; the configuration's number, or a trainable one.

    It has a weight only with `plt_train_hidden_scale`: PEFT trains modules, and a number in a file is none.
    """

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__()
        self.scale = config.hidden_scale
        trainable = config.plt_train_hidden_scale and config.plt_num_loops > 1
        self.weight = nn.Parameter(torch.full((1,), self.scale)) if trainable else None

    def forward(self, carried: Tensor) -> Tensor:
        """Scale hidden rows of any shape."""
        return (self.scale if self.weight is None else self.weight) * carried


class MLP(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Map `[B, T, H]` to `[B, T, H]`."""
        return self.down_proj(functional.silu(self.gate_proj(x_BTH)) * self.up_proj(x_BTH))  # type: ignore[no-any-return]


class DecoderLayer(GradientCheckpointingLayer):
    """One pre-norm layer, applied once in every loop."""

    def __init__(self, config: KeystoneConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_BTH: Tensor, global_kv: KeysValues | None, view: LoopView | StepView
    ) -> tuple[Tensor, KeysValues | None]:
        """Apply the layer; returns its output and the loop-0 keys and values (see `Attention.forward`)."""
        attended_BTH, global_kv = self.self_attn(self.input_layernorm(x_BTH), x_BTH, global_kv, view)
        x_BTH = x_BTH + attended_BTH
        return x_BTH + self.mlp(self.post_attention_layernorm(x_BTH)), global_kv


class KeystonePreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the model to create, load and move it."""

    config: KeystoneConfig
    config_class = KeystoneConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Yes; transformers would look for its own way of writing it down in this file."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HiddenStateGate | QueryGate):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a checkpoint, safetensors only, and refuse it unless every tensor found its place.

        Takes what `transformers.PreTrainedModel.from_pretrained` takes. The gate may go by any of its three names.

        Raises:
            CheckpointError: tensors are missing, surplus or misshapen; each is named.
            ConfigurationError: `config.json` cannot be honoured.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)
        kwargs.setdefault("key_mapping", dict(GATE_SPELLINGS))
        kwargs.setdefault("ignore_mismatched_sizes", True)  # so that they come back as a list, for the refusal below
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        faults = [
            f"{fault}: {', '.join(map(str, sorted(info[key])))}"
            for key, fault in (
                ("missing_keys", "missing"),
                ("unexpected_keys", "surplus"),
                ("mismatched_keys", "misshapen"),
            )
            if info.get(key)
        ]
        if faults:
            raise CheckpointError(f"{pretrained_model_name_or_path}: {'; '.join(faults)}")
        return (model, info) if wants_info else model  # type: ignore[return-value]


class KeystoneModel(KeystonePreTrainedModel):
    """The stack of layers and the loops over it, without the output head.

    Attributes:
        decode: how a single token is computed: "parallel" runs all loops in one pass over the weights, "sequential"
            one after the other. Both give the same logits; the second is the plain reference.
    """

    decode: DecodeMode = "parallel"

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__(config)
        config.check()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([DecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.loop_carry = LoopCarry(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeystoneCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Run all loops over the given tokens.

        Args:
            input_ids: `[B, T]`, or give `inputs_embeds` `[B, T, H]`.
            attention_mask: `[B, S]`, non-zero for real tokens; padding may stand on either side or between chunks.
            position_ids: rotary positions `[B, T]`; by default each sequence's own count of real tokens.
            past_key_values: the cache of an earlier call, to continue from.
            use_cache: whether to return a cache; default `config.use_cache`, and never while training.

        Returns:
            `last_hidden_state` `[B, T, H]` of the last loop, normed; a padded slot shows its last real row.

        Raises:
            InvalidInputError: both or neither of ids and embeddings, a foreign cache, or a mask that does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InvalidInputError("give either input_ids or inputs_embeds")
        if past_key_values is not None and not isinstance(past_key_values, KeystoneCache):
            raise InvalidInputError(
                f"past_key_values is a {type(past_key_values).__name__}; pass None or a keystone.KeystoneCache, "
                "which also holds windows and saved rows"
            )
        embeds_BTH: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        wants_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        cache = past_key_values
        if self.gradient_checkpointing and self.training:
            cache = None
        elif cache is None and wants_cache:
            cache = KeystoneCache(self.config)
        if cache is None or cache.block is None:
            rows_BTH = self._call(embeds_BTH, attention_mask, position_ids, cache)
        else:
            rows_BTH = self._block_by_block(embeds_BTH, attention_mask, position_ids, cache)
        return BaseModelOutputWithPast(last_hidden_state=rows_BTH, past_key_values=cache)

    def rewind(self, cache: KeystoneCache, input_ids: Tensor, length: int) -> None:
        """Cut a cache back to any length: to the nearest snapshot before it, and from there by computing again.

        Args:
            cache: of sequences without padding.
            input_ids: the tokens it was filled with, `[B, length]` or more.
            length: tokens to keep.

        Raises:
            InvalidInputError: more tokens than the cache or `input_ids` hold.
        """
        if not 0 <= length <= min(cache.seen, input_ids.shape[1]):
            raise InvalidInputError(f"cannot rewind {cache.seen} tokens to {length} with {input_ids.shape[1]} ids")
        if length == cache.seen or length in cache.snapshots:
            cache.crop(length)
            return
        start = cache.nearest(length)
        if start:
            cache.crop(start)
        else:
            cache.reset()
        if length > start:
            self(input_ids[:, start:length], past_key_values=cache, use_cache=True)

    def _block_by_block(
        self, embeds_BTH: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: KeystoneCache
    ) -> Tensor:
        """Run a call in pieces that end at the block boundaries, so that the cache can keep a snapshot there."""
        layout = TokenLayout.of(embeds_BTH, attention_mask, cache)
        if layout.order_BT is not None or layout.past_B is not None:
            return self._call(embeds_BTH, attention_mask, position_ids, cache)
        size = cache.block or layout.tokens
        first = size - layout.longest_past % size
        cuts = [0, *range(first, layout.tokens, size), layout.tokens]
        rows = []
        for start, end in pairwise(cuts):
            positions = None if position_ids is None else position_ids[:, start:end]
            rows.append(self._call(embeds_BTH[:, start:end], None, positions, cache))
        return torch.cat(rows, dim=1)

    def _call(
        self,
        embeds_BTH: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: KeystoneCache | None,
    ) -> Tensor:
        """One pass: pack, run, unpack."""
        layout = TokenLayout.of(embeds_BTH, attention_mask, cache)
        embeds_BTH = layout.pack(embeds_BTH)
        rope = self.rotary_emb(embeds_BTH, layout.positions_BT if position_ids is None else layout.pack(position_ids))
        if cache is not None:
            cache.begin()
        if cache is not None and layout.tokens == 1 and self.decode == "parallel":
            rows_BTH = self._step(embeds_BTH, layout, rope, cache)
        else:
            rows_BTH = self._loops(embeds_BTH, layout, rope, cache)
        return layout.unpack(rows_BTH)

    def _loops(self, embeds_BTH: Tensor, layout: TokenLayout, rope: Rope, cache: KeystoneCache | None) -> Tensor:
        """The loops, one after the other."""
        config = self.config
        far, near = Reach.of(layout), Reach.of(layout, config.window_keys)
        global_kv: list[KeysValues | None] = [None] * config.num_hidden_layers
        saved: list[Tensor] = []
        x_BTH = embeds_BTH
        for loop in range(config.plt_num_loops):
            view = LoopView(loop, rope, layout, cache, far, near)
            for index, layer in enumerate(self.layers):
                x_BTH, global_kv[index] = layer(x_BTH, global_kv[index], view)
            last = loop == config.plt_num_loops - 1
            if last or config.plt_normalize_per_loop:
                x_BTH = self.norm(x_BTH)
            if not last:
                held_BrH = None if cache is None else cache.saved_BrH
                before_BTH, saved_BH = layout.shift(x_BTH, None if held_BrH is None else held_BrH[:, loop])
                saved.append(saved_BH)
                x_BTH = config.embedding_scale * embeds_BTH + self.loop_carry(before_BTH)
        if cache is not None:
            cache.end(layout, torch.stack(saved, dim=1) if saved else None)
        return x_BTH

    def _step(self, embeds_B1H: Tensor, layout: TokenLayout, rope: Rope, cache: KeystoneCache) -> Tensor:
        """One token of each sequence, all loops at once: every row that a loop starts from is known beforehand."""
        config = self.config
        x_BRH = embeds_B1H
        later = config.plt_num_loops - 1
        held_BrH = cache.saved_BrH
        if later:
            later_BrH = (config.embedding_scale * embeds_B1H).expand(-1, later, -1)
            if held_BrH is not None:
                later_BrH = later_BrH + self.loop_carry(held_BrH)
            x_BRH = torch.cat([embeds_B1H, later_BrH], dim=1)
        view = StepView(rope, layout, cache, *step_masks(layout, config.window_keys, later))
        for layer in self.layers:
            x_BRH = layer(x_BRH, None, view)[0]
        normed_BRH: Tensor = self.norm(x_BRH)
        saved_BrH = None
        if later:
            saved_BrH = (normed_BRH if config.plt_normalize_per_loop else x_BRH)[:, :-1]
            if layout.order_BT is not None:
                # A sequence that brought only a pad stays where it was.
                earlier_BrH = torch.zeros_like(saved_BrH) if held_BrH is None else held_BrH
                saved_BrH = torch.where(layout.counts_B[:, None, None] > 0, saved_BrH, earlier_BrH)
        cache.end(layout, saved_BrH)
        return normed_BRH[:, -1:]


@contextmanager
def decoding(model: nn.Module, mode: DecodeMode) -> Iterator[None]:
    """Let a model, wrapped or not, compute single tokens in the given way for a while.

    Raises:
        InvalidInputError: there is no `KeystoneModel` in it.
    """
    found = [module for module in model.modules() if isinstance(module, KeystoneModel)]
    if not found:
        raise InvalidInputError(f"a {type(model).__name__} holds no KeystoneModel, so it has no decode mode")
    earlier = [module.decode for module in found]
    try:
        for module in found:
            module.decode = mode
        yield
    finally:
        for module, held in zip(found, earlier, strict=True):
            module.decode = held


class KeystoneForCausalLM(KeystonePreTrainedModel, GenerationMixin):
    """The Parallel Loop Transformer with its output head, ready for `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__(config)
        self.model = KeystoneModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Keep `generate` from making a cache of its own: the first forward call makes the right one."""
        return False

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers does, but leave positions to the mask: counting on from a padded last column is wrong."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        inputs.pop("position_ids", None)
        held = inputs.get("past_key_values")
        adding = kwargs.get("next_sequence_length") == 1 and not kwargs.get("is_first_iteration", False)
        if adding and isinstance(held, KeystoneCache) and held.seen:
            # Every token that `generate` adds counts as real, and looking for pads would wait for the device.
            inputs.pop("attention_mask", None)
        return inputs

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeystoneCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and a loss when labels are given.

        Args:
            labels: `[B, T]`, -100 where nothing is to be predicted; shifted inside, as transformers does.
            logits_to_keep: compute only the last so many columns (0: all), or those a tensor of indices names.

        The other arguments are those of `KeystoneModel.forward`.

        Returns:
            `logits` `[B, T, V]`; in a padded slot those of the sequence's last real token, so that `logits[:, -1]`
            speaks for every sequence, whichever side was padded.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        rows_BTH = outputs.last_hidden_state
        if isinstance(logits_to_keep, Tensor) or logits_to_keep:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            rows_BTH = rows_BTH[:, kept]
        # As one matrix: where rows lie apart, as the last of several loops or tokens do, oneDNN rearranges the whole
        # weight before it multiplies in bf16, which takes a copy of it and tens of times as long.
        logits_BTV = self.lm_head(rows_BTH.flatten(0, 1)).unflatten(0, rows_BTH.shape[:2])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=outputs.past_key_values)


AutoConfig.register(KeystoneConfig.model_type, KeystoneConfig, exist_ok=True)
AutoModelForCausalLM.register(KeystoneConfig, KeystoneForCausalLM, exist_ok=True)
