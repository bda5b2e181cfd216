"""`ModelConfig`: the one description of every model in this package.

A published model, a toy of a paper and a hand-made circuit differ only in the values of these fields, which carry
TransformerLens's names where it has one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from interp.errors import ConfigError, nearest

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu", "solu")
NORMALIZATIONS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "sinusoidal", "rotary", "alibi", "none")
ROPE_SCALINGS = ("linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    `linear` divides every frequency by `factor`; `llama3` divides the low ones and blends between
    (Grattafiori et al. 2024, "The Llama 3 Herd of Models", section 3.2, and its released code).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_n_ctx: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ROPE_SCALINGS:
            raise ConfigError(f"rope scaling {self.kind!r} is not supported; choose from {', '.join(ROPE_SCALINGS)}")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the computation of a model, apart from its weights.

    Sizes: `d_model` is the width of the residual stream; `n_heads` query heads of `d_head` read and write it;
    `n_key_value_heads` of them own keys and values (fewer than `n_heads` is grouped-query attention). `d_vocab_out`
    differs from `d_vocab` in models that answer from another alphabet.

    Norms: `LN` and `RMS` have weights; `LNPre` and `RMSPre` only centre and scale (TransformerLens's folded form).

    Positions: `standard` is a learned table added to the embedding, `sinusoidal` the fixed one of Vaswani et al. 2017
    (section 3.5), `rotary` turns queries and keys (Su et al. 2021, section 3.4) in their first `rotary_dim` channels,
    `alibi` lowers scores with distance (Press et al. 2021, section 3), `none` leaves order to the causal mask.

    Raises:
        ConfigError: a value that is unknown or contradicts another one.
    """

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    d_vocab: int
    n_heads: int = -1
    n_key_value_heads: int | None = None
    d_mlp: int | None = None
    d_vocab_out: int = -1
    act_fn: str | None = "gelu_new"
    gated_mlp: bool = False
    normalization_type: str | None = "LN"
    eps: float = 1e-5
    final_norm: bool = True
    positional_embedding_type: str = "standard"
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    rotary_adjacent_pairs: bool = False
    rope_scaling: RopeScaling | None = None
    attention_dir: str = "causal"
    attn_only: bool = False
    parallel_attn_mlp: bool = False
    use_attn_scale: bool = True
    attn_scale: float | None = None
    tie_word_embeddings: bool = False
    attn_in_bias: bool = True
    attn_out_bias: bool = True
    mlp_bias: bool = True
    unembed_bias: bool = True
    initializer_range: float = 0.02
    seed: int | None = None
    model_name: str = "custom"

    def __post_init__(self) -> None:
        def settle(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if self.n_heads == -1:
            if self.d_model % self.d_head:
                raise ConfigError(
                    f"n_heads is not given and d_model={self.d_model} is no multiple of d_head={self.d_head}"
                )
            settle("n_heads", self.d_model // self.d_head)
        if self.n_key_value_heads is None:
            settle("n_key_value_heads", self.n_heads)
        if self.d_vocab_out == -1:
            settle("d_vocab_out", self.d_vocab)
        if self.attn_only:
            settle("d_mlp", None)
            settle("act_fn", None)
        elif self.d_mlp is None:
            settle("d_mlp", 4 * self.d_model)
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            settle("rotary_dim", self.d_head)
        if self.attn_scale is None:
            settle("attn_scale", self.d_head**0.5 if self.use_attn_scale else 1.0)
        self._check()

    def _check(self) -> None:
        for name in (
            "n_layers",
            "d_model",
            "n_ctx",
            "d_head",
            "d_vocab",
            "n_heads",
            "n_key_value_heads",
            "d_vocab_out",
        ):
            value = getattr(self, name)
            least = 0 if name == "n_layers" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number from {least} on, not {value!r}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} must be a multiple of n_key_value_heads={self.n_key_value_heads}, "
                "so that every group of query heads shares one key and value head"
            )
        self._check_choice("act_fn", (None,) if self.attn_only else ACTIVATIONS)
        self._check_choice("normalization_type", NORMALIZATIONS)
        self._check_choice("positional_embedding_type", POSITIONS)
        self._check_choice("attention_dir", ("causal", "bidirectional"))
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.d_head):
            raise ConfigError(f"rotary_dim must be even and at most d_head={self.d_head}, not {self.rotary_dim}")
        if self.tie_word_embeddings and self.d_vocab_out != self.d_vocab:
            raise ConfigError(f"tied embeddings need d_vocab_out={self.d_vocab_out} to equal d_vocab={self.d_vocab}")
        if self.gated_mlp and self.attn_only:
            raise ConfigError("gated_mlp=True contradicts attn_only=True")

    def _check_choice(self, field: str, choices: tuple[str | None, ...]) -> None:
        value = getattr(self, field)
        if value in choices:
            return
        close = nearest(str(value), [c for c in choices if c])
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{field}={value!r} is not one of {', '.join(map(repr, choices))}{hint}")

    @property
    def n_kv_heads(self) -> int:
        """The number of key and value heads, always a number."""
        return self.n_heads if self.n_key_value_heads is None else self.n_key_value_heads

    @property
    def causal(self) -> bool:
        """Whether a position sees only itself and earlier ones."""
        return self.attention_dir == "causal"

    @property
    def has_norm_weights(self) -> bool:
        """Whether the norms multiply by weights."""
        return self.normalization_type in ("LN", "RMS")

    @property
    def centers(self) -> bool:
        """Whether the norms subtract the mean (layer norm) or not (RMS norm, or none)."""
        return self.normalization_type in ("LN", "LNPre")

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest or a JSON file; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration that `to_dict` wrote; a name that is no field is refused."""
        fields = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                close = nearest(name, fields)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"ModelConfig has no field {name!r}{hint}")
        scaling = values.get("rope_scaling")
        if isinstance(scaling, dict):
            values = {**values, "rope_scaling": RopeScaling(**scaling)}
        return cls(**values)
