"""What a Parallel Loop Transformer is, as numbers: `KeystoneConfig`.

The configuration reads its own `config.json` and the one released with LoopCoder-V2 (`model_type`
`iquestpltcoder`) alike. Both spell the loop parameters `plt_*`. A checkpoint that leaves one of them out is
refused: a scale or a window guessed wrong gives a model that runs and is silently another one.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from keystone.errors import ConfigurationError

VENDOR_MODEL_TYPE = "iquestpltcoder"
REQUIRED_FIELDS = (
    "plt_num_loops",
    "plt_emb_scale",
    "plt_hidden_scale",
    "plt_window_size",
    "plt_normalize_per_loop",
    "plt_gate_use_hidden_states",
)


@strict
class KeystoneConfig(PreTrainedConfig):
    """Configuration of a Parallel Loop Transformer (arXiv 2510.24824 and 2606.18023).

    Attributes:
        plt_num_loops: `R`, how often the same layers are applied. 1 is a plain Llama.
        plt_emb_scale: `a` in `x_r[t] = a * E[t] + b * h_(r-1)[t-1]`; None means 1.0.
        plt_hidden_scale: `b` of the same line; None means 1.0.
        plt_window_size: `[n, 0]`: the local branch sees `n` earlier keys and the token itself.
        plt_normalize_per_loop: whether `model.norm` is applied to the output of every loop but the last, too.
        plt_gate_use_hidden_states: whether the branch gate reads the layer's input (True) or the query (False).
        plt_train_hidden_scale: whether `b` is a tensor of the checkpoint (`model.loop_carry.weight`), so that adapters
            can train it; `plt_hidden_scale` is then only where it began. Upcycled bases use it.
        attention_bias: whether q, k and v carry biases.
        attention_output_bias: whether `o_proj` does; None means the same as `attention_bias`. Qwen2 has the first
            and not the second.

    The other attributes are those of Llama.
    """

    model_type = "keystone_plt"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - the name and form transformers looks for

    vocab_size: int = 76800
    hidden_size: int = 5120
    intermediate_size: int = 27648
    num_hidden_layers: int = 14
    num_attention_heads: int = 40
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    attention_dropout: int | float | None = 0.0
    mlp_bias: bool = False
    plt_num_loops: int = 2
    plt_emb_scale: int | float | None = None
    plt_hidden_scale: int | float | None = None
    plt_window_size: list[int] | tuple[int, ...] = (64, 0)
    plt_normalize_per_loop: bool = True
    plt_gate_use_hidden_states: bool = True
    plt_train_hidden_scale: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what Llama derives from other fields, then let transformers standardise RoPE."""
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the file; the released model's type is an accepted spelling of ours, not a mistake to warn about."""
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if fields.get("model_type") == VENDOR_MODEL_TYPE:
            fields = {**fields, "model_type": cls.model_type}
        return fields, kwargs

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Self:
        """Read a `config.json` of ours or of the released model.

        Raises:
            ConfigurationError: another model type, a missing `plt_*` field, or a value that cannot be honoured.
        """
        fields = dict(config_dict)
        model_type = fields.pop("model_type", cls.model_type)
        if model_type not in (cls.model_type, VENDOR_MODEL_TYPE):
            raise ConfigurationError(
                f"config.json says model_type {model_type!r}; "
                f"this code reads {cls.model_type!r} and {VENDOR_MODEL_TYPE!r}"
            )
        missing = [name for name in REQUIRED_FIELDS if name not in fields and name not in kwargs]
        if missing:
            raise ConfigurationError(f"config.json lacks {', '.join(missing)}; none of them has a safe default")
        config: Any = super().from_dict(fields, **kwargs)
        made = config[0] if isinstance(config, tuple) else config
        made.check()
        return config  # type: ignore[no-any-return]

    def check(self) -> None:
        """Refuse values that no forward pass could honour.

        Raises:
            ConfigurationError: naming the field and its value.
        """
        window = tuple(self.plt_window_size)
        if len(window) != 2 or window[0] < 0 or window[1] != 0:
            raise ConfigurationError(f"plt_window_size is {list(window)}; it must be [n, 0] with n >= 0")
        if self.plt_num_loops < 1:
            raise ConfigurationError(f"plt_num_loops is {self.plt_num_loops}; it must be at least 1")
        if not self.num_key_value_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ConfigurationError(
                f"{self.num_attention_heads} attention heads cannot share {self.num_key_value_heads} key/value heads"
            )
        if self.hidden_act != "silu":
            raise ConfigurationError(f"hidden_act is {self.hidden_act!r}; the model is defined with 'silu'")

    @property
    def window_keys(self) -> int:
        """`W`: how many keys the local branch sees, the token itself included."""
        return int(self.plt_window_size[0]) + 1

    @property
    def output_bias(self) -> bool:
        """Whether `o_proj` carries a bias, with None read as `attention_bias`."""
        return self.attention_bias if self.attention_output_bias is None else self.attention_output_bias

    @property
    def embedding_scale(self) -> float:
        """`a`, with None read as 1.0."""
        return 1.0 if self.plt_emb_scale is None else float(self.plt_emb_scale)

    @property
    def hidden_scale(self) -> float:
        """`b`, with None read as 1.0."""
        return 1.0 if self.plt_hidden_scale is None else float(self.plt_hidden_scale)
