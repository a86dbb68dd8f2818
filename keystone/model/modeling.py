"""The Parallel Loop Transformer in one file: `R` loops over the same `L` layers, kept apart by a shift of one token.

Loop 0 is a plain pre-norm Llama stack. Loop `r >= 1` starts from `a * E[t] + b * h_(r-1)[t-1]`: the token's own
embedding and the previous loop's output for the token *before* it. That shift is what lets a decode step compute all
loops at once. A later loop's attention mixes two branches through a gate, one scalar a head: a global one over the
loop-0 keys of the same layer, and a local one over a window of the loop's own keys. Sources: arXiv 2510.24824,
arXiv 2606.18023; the golden fixtures under `tests/parity` judge every line.

Shape letters: B batch, T tokens of this call, S slots seen, H hidden size, N query heads, K key/value heads,
D head size, V vocabulary, R loops, L layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from keystone.errors import CheckpointError, InvalidInputError
from keystone.model.cache import KeystoneCache, TokenLayout
from keystone.model.configuration import KeystoneConfig

# The gate's tensors go by three names in the wild; ours comes last in each rule.
GATE_SPELLINGS = {
    r"model\.layers\.(\d+)\.self_attn\.loop_gate_proj\.": r"model.layers.\1.self_attn.plt_gate.",
    r"model\.gate_projections\.(\d+)\.": r"model.layers.\1.self_attn.plt_gate.",
}

LOADING_FAULTS = {"missing_keys": "missing", "unexpected_keys": "surplus", "mismatched_keys": "misshapen"}

Rope = tuple[Tensor, Tensor]
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LoopView:
    """What every layer of one loop sees alike.

    Attributes:
        loop: `r`.
        rope: cosines and sines, `[B, T, D]` each.
        global_mask: where the queries may look among all slots, or None for plain causal attention.
        window_mask: the same for the local branch; unused in loop 0.
        cache: the sequences' state, or None.
    """

    loop: int
    rope: Rope
    global_mask: Tensor | None
    window_mask: Tensor | None
    cache: KeystoneCache | None


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
        """Cosines and sines `[B, T, D]` for positions `[B, T]`, in the dtype of `x`."""
        angles = position_ids[..., None].float() * self.inv_freq.float().to(x.device)
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)


def rotate(x_BNTD: Tensor, rope: Rope) -> Tensor:
    """Apply rotary embedding to queries or keys."""
    cos_BTD, sin_BTD = rope
    first, second = x_BNTD.chunk(2, dim=-1)
    return x_BNTD * cos_BTD[:, None] + torch.cat([-second, first], dim=-1) * sin_BTD[:, None]


def eager_attention(
    module: nn.Module,
    query_BNTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out, the reference for every faster kernel; returns `[B, T, N, D]` and the weights."""
    groups = query_BNTD.shape[1] // key_BKSD.shape[1]
    key = key_BKSD.repeat_interleave(groups, dim=1)
    value = value_BKSD.repeat_interleave(groups, dim=1)
    scores = query_BNTD @ key.transpose(2, 3) * scaling
    if attention_mask is None and query_BNTD.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query_BNTD.dtype)
    weights = functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class HiddenStateGate(nn.Module):
    """`g = sigmoid(W @ RMSNorm(x) + bias)` on the layer's input before its norm: one scalar a head."""

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.gate_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, layer_input_BTH: Tensor, query_BNTD: Tensor) -> Tensor:  # noqa: ARG002 - the other gate reads it
        """Gate values `[B, T, N]`."""
        return functional.linear(self.gate_norm(layer_input_BTH), self.weight, self.bias).sigmoid()


class QueryGate(nn.Module):
    """`g_h = sigmoid(q_h . w_h + bias_h)` on the query after RoPE, unscaled: one scalar a head."""

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, config.head_dim or 0))
        self.bias = nn.Parameter(torch.zeros(config.num_attention_heads))

    def forward(self, layer_input_BTH: Tensor, query_BNTD: Tensor) -> Tensor:  # noqa: ARG002 - the other gate reads it
        """Gate values `[B, T, N]`."""
        return (torch.einsum("bntd,nd->btn", query_BNTD, self.weight) + self.bias).sigmoid()


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
        self, normed_BTH: Tensor, layer_input_BTH: Tensor, global_kv: KeysValues | None, view: LoopView
    ) -> tuple[Tensor, KeysValues]:
        """Attend.

        Args:
            normed_BTH: the layer's input after `input_layernorm`.
            layer_input_BTH: the same before it, which the hidden-state gate reads.
            global_kv: this layer's loop-0 keys and values over all slots, `[B, K, S, D]`; None in loop 0.
            view: masks, rotary angles and state of this loop.

        Returns:
            The output `[B, T, H]`, and the keys and values that loop 0 leaves for the later loops.
        """
        heads = (*normed_BTH.shape[:2], -1, self.head_dim)
        query_BNTD = rotate(self.q_proj(normed_BTH).view(heads).transpose(1, 2), view.rope)
        key_BKTD = rotate(self.k_proj(normed_BTH).view(heads).transpose(1, 2), view.rope)
        value_BKTD = self.v_proj(normed_BTH).view(heads).transpose(1, 2)
        if view.cache is not None:
            virtual_layer = view.loop * self.config.num_hidden_layers + self.layer_idx
            key_BKTD, value_BKTD = view.cache.extend(key_BKTD, value_BKTD, virtual_layer)
        if global_kv is None:
            global_kv = (key_BKTD, value_BKTD)
            mixed_BTND = self._attend(query_BNTD, global_kv, view.global_mask)
        else:
            far_BTND = self._attend(query_BNTD, global_kv, view.global_mask)
            near_BTND = self._attend(query_BNTD, (key_BKTD, value_BKTD), view.window_mask)
            gate_BTN1 = self.plt_gate(layer_input_BTH, query_BNTD)[..., None]
            mixed_BTND = gate_BTN1 * far_BTND + (1 - gate_BTN1) * near_BTND
        return self.o_proj(mixed_BTND.flatten(2)), global_kv

    def _attend(self, query_BNTD: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        attention: Callable[..., tuple[Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = float(self.config.attention_dropout or 0.0) if self.training else 0.0
        return attention(self, query_BNTD, *keys_values, mask, scaling=self.scaling, dropout=dropout)[0]


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

    def forward(self, x_BTH: Tensor, global_kv: KeysValues | None, view: LoopView) -> tuple[Tensor, KeysValues]:
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
    """The stack of layers and the loops over it, without the output head."""

    def __init__(self, config: KeystoneConfig) -> None:
        super().__init__(config)
        config.check()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([DecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
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
        layout = TokenLayout.of(attention_mask, cache, embeds_BTH)
        rope = self.rotary_emb(embeds_BTH, layout.positions_BT if position_ids is None else position_ids)
        rows_BTH = self._loops(embeds_BTH, layout, rope, cache)
        return BaseModelOutputWithPast(last_hidden_state=layout.carry(rows_BTH), past_key_values=cache)

    def _loops(self, embeds_BTH: Tensor, layout: TokenLayout, rope: Rope, cache: KeystoneCache | None) -> Tensor:
        """The loops, one after the other."""
        config = self.config
        loops = config.plt_num_loops
        window_mask = None
        if loops > 1:
            window_mask = layout.window_mask(None if cache is None else cache.window_positions_BP, config.window_keys)
        global_mask = layout.global_mask()
        if cache is not None:
            cache.begin(layout)
        global_kv: list[KeysValues | None] = [None] * config.num_hidden_layers
        x_BTH = embeds_BTH
        for loop in range(loops):
            view = LoopView(loop, rope, global_mask, window_mask, cache)
            for index, layer in enumerate(self.layers):
                x_BTH, global_kv[index] = layer(x_BTH, global_kv[index], view)
            last = loop == loops - 1
            if last or config.plt_normalize_per_loop:
                x_BTH = self.norm(x_BTH)
            if not last:
                before_BTH, saved_BH = layout.shift(x_BTH, None if cache is None else cache.saved_BH[loop])
                if cache is not None:
                    cache.saved_BH[loop] = saved_BH
                x_BTH = config.embedding_scale * embeds_BTH + config.hidden_scale * before_BTH
        return x_BTH


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
        logits_BTV = self.lm_head(rows_BTH)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=outputs.past_key_values)


AutoConfig.register(KeystoneConfig.model_type, KeystoneConfig, exist_ok=True)
AutoModelForCausalLM.register(KeystoneConfig, KeystoneForCausalLM, exist_ok=True)
