"""`ModelConfig`: the one description of every model in this package.

A published model, a toy model from a paper and a hand-made circuit differ only in the values of these fields. The
fields have TransformerLens's names where it has them, and the names of the authors' code for state-space layers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.arguments import LARGEST_SEED, is_several, one_of_layers, real_number, shown, whole_number
from interp.errors import ConfigError, nearest

ACTIVATIONS = ("relu", "relu2", "gelu", "gelu_new", "silu", "solu")
NORMALIZATIONS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "sinusoidal", "rotary", "alibi", "none")
MAMBAS = ("mamba", "mamba2")
SSM_NORMALIZATIONS = ("RMS", "RMSPre", None)
LAYER_TYPES = ("attn+mlp", "attn", "mlp", "mamba", "mamba2", "mamba+mlp", "mamba2+mlp")
ROPE_SCALINGS = ("linear", "llama3")
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
MAX_SIZE = 2**48  # a larger size is a mistake: no machine holds such a tensor, and sums of several would overflow
OPTIONAL_SIZES = ("n_key_value_heads", "d_mlp", "rotary_dim", "d_inner", "d_state", "dt_rank")
STATE_SPACE_SIZES = ("d_conv", "d_ssm_head", "n_ssm_groups")
FLAGS = (
    "gated_mlp", "final_norm", "rotary_adjacent_pairs", "attn_only", "parallel_attn_mlp", "use_attn_scale",
    "tie_word_embeddings", "attn_in_bias", "attn_out_bias", "mlp_bias", "unembed_bias", "conv_bias", "mamba_bias",
)  # fmt: skip


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
        if not isinstance(self.kind, str) or self.kind not in ROPE_SCALINGS:
            raise ConfigError(f"rope scaling {self.kind!r} is not supported; choose from {', '.join(ROPE_SCALINGS)}")
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            _settle_number(self, name, " of the rope scaling", above=0)
        whole_number("original_n_ctx of the rope scaling", self.original_n_ctx, least=1, most=MAX_SIZE)
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor={self.low_freq_factor} of the rope scaling must be below high_freq_factor="
                f"{self.high_freq_factor}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the computation of a model, apart from its weights.

    Sizes: `d_model` is the width of the residual stream; `n_heads` query heads of `d_head` channels read and write it;
    there are `n_key_value_heads` heads of keys and values (fewer than `n_heads` is grouped-query attention).
    `d_vocab_out` differs from `d_vocab` in models whose outputs are not their input tokens.

    Norms: `LN` and `RMS` have weights; `LNPre` and `RMSPre` only centre and scale (TransformerLens's folded form).

    Positions: `standard` is a learned table added to the embedding, `sinusoidal` the fixed one of Vaswani et al. 2017
    (section 3.5), `rotary` turns queries and keys (Su et al. 2021, section 3.4) in their first `rotary_dim` channels,
    `alibi` lowers scores with distance (Press et al. 2021, section 3), `none` leaves order to the causal mask or to the
    recurrence. `auto` is `standard` for a model with attention and `none` for one without.

    Layers: `layer_types` says for each layer what mixes positions, and whether an MLP follows: one of `attn+mlp`,
    `attn`, `mlp`, `mamba`, `mamba+mlp`, `mamba2`, `mamba2+mlp`; None makes all of them `attn+mlp`, or `attn` with
    `attn_only`.

    State-space layers (Gu and Dao 2023, "Mamba"; Dao and Gu 2024, "Transformers are SSMs"): `d_inner` channels, each
    with a state of `d_state` numbers, after a convolution over `d_conv` positions. Mamba-2 has heads of `d_ssm_head`
    channels, in `n_ssm_groups` groups that each share one B and one C. `dt_rank` is the rank of Mamba-1's projection
    to the step size; `dt_limit` bounds Mamba-2's step size. Only `n_ctx` limits the length of a prompt.
    `ssm_normalization_type` is the norm over Mamba-1's B, C and low-rank step size: `RMS` (Lieber et al. 2024,
    "Jamba", section 6.4), `RMSPre` without weights (Zuo et al. 2024, "Falcon Mamba"), or None; `ssm_eps` is what it
    adds to the mean square.

    Raises:
        ConfigError: a value that is unknown or contradicts another one.
    """

    # Sizes; -1 means "not given" and is replaced by what the other sizes imply
    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int = -1
    d_vocab: int = -1
    n_heads: int = -1
    n_key_value_heads: int | None = None
    d_mlp: int | None = None
    d_vocab_out: int = -1

    # MLP
    act_fn: str | None = "gelu_new"
    gated_mlp: bool = False

    # Norms of the residual stream
    normalization_type: str | None = "LN"
    eps: float = 1e-5
    final_norm: bool = True

    # Positions
    positional_embedding_type: str = "auto"
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    rotary_adjacent_pairs: bool = False
    rope_scaling: RopeScaling | None = None

    # Attention, and its place in the block
    attention_dir: str = "causal"
    attn_only: bool = False
    parallel_attn_mlp: bool = False
    use_attn_scale: bool = True
    attn_scale: float | None = None

    # Which weights there are
    tie_word_embeddings: bool = False
    attn_in_bias: bool = True
    attn_out_bias: bool = True
    mlp_bias: bool = True
    unembed_bias: bool = True

    # What each layer is made of
    layer_types: tuple[str, ...] | None = None

    # State-space layers
    d_inner: int | None = None
    d_state: int | None = None
    d_conv: int = 4
    dt_rank: int | None = None
    d_ssm_head: int = 64
    n_ssm_groups: int = 1
    dt_limit: tuple[float, float] | None = None
    conv_bias: bool = True
    mamba_bias: bool = False
    ssm_normalization_type: str | None = None
    ssm_eps: float = 1e-6

    # Untrained weights, and the model's name
    initializer_range: float = 0.02
    seed: int | None = None
    model_name: str = "custom"

    def __post_init__(self) -> None:
        def settle(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        self._check_kinds()
        self._check_layers()
        if self.has_attention:
            self._settle_heads(settle)
        else:
            for name in ("n_heads", "n_key_value_heads", "d_head"):
                settle(name, 0)
        if self.positional_embedding_type == "auto":
            settle("positional_embedding_type", "standard" if self.has_attention else "none")
        if self.d_vocab_out == -1:
            settle("d_vocab_out", self.d_vocab)
        if not self.has_mlp:
            settle("d_mlp", None)
            settle("act_fn", None)
        elif self.d_mlp is None:
            settle("d_mlp", 4 * self.d_model)
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            settle("rotary_dim", self.d_head)
        if self.attn_scale is None and self.has_attention:
            settle("attn_scale", self.d_head**0.5 if self.use_attn_scale else 1.0)
        if self.has_mamba:
            settle("d_inner", 2 * self.d_model if self.d_inner is None else self.d_inner)
            settle("d_state", self.d_state or (16 if "mamba" in self.mixers else 128))
            settle("dt_rank", self.dt_rank or math.ceil(self.d_model / 16))
        self._check()

    def _settle_heads(self, settle: Callable[[str, object], None]) -> None:
        if self.d_head == -1 and self.n_heads > 0 and self.d_model % self.n_heads == 0:
            settle("d_head", self.d_model // self.n_heads)
        if self.n_heads == -1:
            if self.d_head < 1:
                raise ConfigError("a model with attention needs d_head or n_heads")
            if self.d_model % self.d_head:
                raise ConfigError(f"d_model={self.d_model} is not a multiple of d_head={self.d_head}: give n_heads")
            settle("n_heads", self.d_model // self.d_head)
        if self.n_key_value_heads is None:
            settle("n_key_value_heads", self.n_heads)

    def _check_kinds(self) -> None:
        """Refuse values of the wrong type, before anything is derived from them."""
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("n_heads", "d_head", "d_vocab", "d_vocab_out"):
            if not _is_open(getattr(self, name)):
                self._check_whole(name, 0)
        for name in (*OPTIONAL_SIZES, *STATE_SPACE_SIZES):
            if getattr(self, name) is not None:
                self._check_whole(name, 0)
        self._check_choice("positional_embedding_type", ("auto", *POSITIONS))
        if isinstance(self.dt_limit, list):
            object.__setattr__(self, "dt_limit", tuple(self.dt_limit))
        self._check_limits()
        self._check_numbers()
        if not isinstance(self.model_name, str):
            raise ConfigError(f"model_name must be text, not {self.model_name!r}")
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise ConfigError(f"rope_scaling must be a RopeScaling or None, not {self.rope_scaling!r}")
        self._check_whole("d_model", 1)
        self._check_whole("n_ctx", 1)

    def _check_numbers(self) -> None:
        for name in ("eps", "ssm_eps", "initializer_range"):
            _settle_number(self, name, least=0)
        _settle_number(self, "rotary_base", above=0)
        if self.attn_scale is not None:
            _settle_number(self, "attn_scale", above=0)
        if self.seed is not None:
            object.__setattr__(self, "seed", whole_number("seed", self.seed, least=-(2**63), most=LARGEST_SEED))

    def _check_layers(self) -> None:
        """Refuse kinds of layers that do not exist, before anything is derived from them."""
        self._check_whole("n_layers", 0)
        if self.layer_types is None:
            return
        if not is_several(self.layer_types):
            raise ConfigError(f"layer_types must be a list with the kind of each layer, not {shown(self.layer_types)}")
        object.__setattr__(self, "layer_types", tuple(self.layer_types))
        if len(self.layer_types) != self.n_layers:
            raise ConfigError(
                f"layer_types names {len(self.layer_types)} layers, expected one for each of n_layers={self.n_layers}"
            )
        for kind in self.layer_types:
            self._check_choice("layer_types", LAYER_TYPES, kind)
        if self.attn_only:
            raise ConfigError("attn_only=True contradicts layer_types, which describes every layer")

    def _check(self) -> None:
        names = ["d_vocab", "d_vocab_out"]
        names += ["d_head", "n_heads", "n_key_value_heads"] if self.has_attention else []
        names += ["d_inner", "d_state", "dt_rank", *STATE_SPACE_SIZES] if self.has_mamba else []
        names += ["d_mlp"] if self.has_mlp else []
        for name in names:
            self._check_whole(name, 1)
        if self.has_attention and self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} must be a multiple of n_key_value_heads={self.n_kv_heads}, "
                "so that every key and value head serves a group of query heads"
            )
        if "mamba2" in self.mixers:
            self._check_mamba2()
        self._check_choice("ssm_normalization_type", SSM_NORMALIZATIONS)
        if self.ssm_normalization_type is not None and "mamba" not in self.mixers:
            raise ConfigError(
                f"ssm_normalization_type={self.ssm_normalization_type!r} needs a Mamba-1 layer; this model has none"
            )
        if self.has_mamba and not self.causal:
            raise ConfigError("attention_dir='bidirectional' contradicts state-space layers, which only look back")
        self._check_choice("act_fn", ACTIVATIONS if self.has_mlp else (None,))
        self._check_choice("normalization_type", NORMALIZATIONS)
        self._check_choice("attention_dir", ("causal", "bidirectional"))
        kind = self.positional_embedding_type
        if kind in ("rotary", "alibi") and not self.has_attention:
            raise ConfigError(f"positional_embedding_type={kind!r} needs a layer with attention; this model has none")
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.d_head):
            raise ConfigError(f"rotary_dim must be even and at most d_head={self.d_head}, not {self.rotary_dim}")
        if self.tie_word_embeddings and self.d_vocab_out != self.d_vocab:
            raise ConfigError(f"tied embeddings need d_vocab_out={self.d_vocab_out} to equal d_vocab={self.d_vocab}")
        if self.gated_mlp and not self.has_mlp:
            raise ConfigError("gated_mlp=True contradicts layers without an MLP (attn_only, or layer_types)")

    def _check_whole(self, name: str, least: int) -> None:
        number = whole_number(name, getattr(self, name), least=least, most=MAX_SIZE)
        object.__setattr__(self, name, number)

    def _check_mamba2(self) -> None:
        assert self.d_inner is not None
        if self.d_inner % self.d_ssm_head:
            raise ConfigError(f"d_inner={self.d_inner} must be a multiple of d_ssm_head={self.d_ssm_head}")
        if self.n_ssm_heads % self.n_ssm_groups:
            raise ConfigError(
                f"n_ssm_groups={self.n_ssm_groups} must divide the {self.n_ssm_heads} heads of d_ssm_head="
                f"{self.d_ssm_head} channels"
            )

    def _check_limits(self) -> None:
        limits = self.dt_limit
        if limits is None:
            return
        pair = isinstance(limits, tuple) and len(limits) == 2 and all(type(end) in (int, float) for end in limits)
        if not (pair and 0 <= limits[0] < limits[1] and (limits[1] <= LARGEST_FLOAT32 or limits[1] == math.inf)):
            raise ConfigError(
                "dt_limit must be (least, most) with 0 <= least < most, where most is infinite or a float32 number, "
                f"not {shown(self.dt_limit)}"
            )

    def _check_choice(self, field: str, choices: tuple[str | None, ...], given: str | None = None) -> None:
        value = getattr(self, field) if given is None else given
        if isinstance(value, str | None) and value in choices:
            return
        close = nearest(str(value), [c for c in choices if c])
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{field}={shown(value)} is not one of {', '.join(map(repr, choices))}{hint}")

    @property
    def n_kv_heads(self) -> int:
        """The number of key and value heads: `n_key_value_heads`, or `n_heads` where that is None."""
        return self.n_heads if self.n_key_value_heads is None else self.n_key_value_heads

    def layer_type(self, layer: int) -> str:
        """What a layer is made of: one of `LAYER_TYPES`.

        Raises:
            UnknownName: no whole number, or not one of the model's layers.
        """
        if type(layer) is not int or not 0 <= layer < self.n_layers:  # in a forward it is one, and costs no call
            layer = one_of_layers(layer, self.n_layers)
        return ("attn" if self.attn_only else "attn+mlp") if self.layer_types is None else self.layer_types[layer]

    def mixer(self, layer: int) -> str | None:
        """What mixes positions in a layer: "attn", "mamba", "mamba2", or None in a layer that has only an MLP."""
        first = self.layer_type(layer).partition("+")[0]
        return None if first == "mlp" else first

    def layers_with(self, *mixers: str) -> list[int]:
        """The layers in which one of `mixers` mixes positions."""
        return [layer for layer in range(self.n_layers) if self.mixer(layer) in mixers]

    def mlp_in(self, layer: int) -> bool:
        """Whether a layer has an MLP."""
        return self.layer_type(layer).endswith("mlp")

    @functools.cached_property
    def mixers(self) -> frozenset[str | None]:
        """Everything that mixes positions in some layer."""
        # Without layer_types all layers are alike, and a damaged file may claim billions: one stands for all.
        different = range(self.n_layers) if self.layer_types is not None else range(min(self.n_layers, 1))
        return frozenset(self.mixer(layer) for layer in different) or frozenset({"attn"})

    @property
    def has_attention(self) -> bool:
        """Whether any layer has attention."""
        return "attn" in self.mixers

    @property
    def has_mamba(self) -> bool:
        """Whether any layer is a state-space layer."""
        return not self.mixers.isdisjoint(MAMBAS)

    @functools.cached_property
    def has_mlp(self) -> bool:
        """Whether any layer has an MLP."""
        if self.layer_types is None or not self.n_layers:
            return not self.attn_only
        return any(self.mlp_in(layer) for layer in range(self.n_layers))

    @property
    def n_ssm_heads(self) -> int:
        """Heads of a Mamba-2 layer."""
        return (self.d_inner or 0) // self.d_ssm_head

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
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: not a mapping, an unknown field, or a missing field that is needed.
        """
        _check_fields(cls, values)
        scaling = values.get("rope_scaling")
        if isinstance(scaling, Mapping):
            _check_fields(RopeScaling, scaling)
            values = {**values, "rope_scaling": RopeScaling(**scaling)}
        return cls(**values)


def _check_fields(cls: type, values: Mapping[str, Any]) -> None:
    """Refuse fields that a class does not have, and missing fields that it needs."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} is made from a mapping of its fields, not from {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            close = nearest(str(name), fields)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{cls.__name__} has no field {shown(name)}{hint}")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise ConfigError(
            f"{cls.__name__} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not given"
        )


def check_config(cfg: Any) -> None:
    """Refuse what is not a configuration.

    Raises:
        ConfigError: something else.
    """
    if not isinstance(cfg, ModelConfig):
        raise ConfigError(f"cfg must be a ModelConfig, not {shown(cfg)}")


def _is_open(value: Any) -> bool:
    """Whether a field has TransformerLens's -1, which means "not given"."""
    return type(value) is int and value == -1


def _settle_number(
    owner: object, name: str, where: str = "", *, least: float | None = None, above: float | None = None
) -> None:
    """Refuse a field that is not a finite number within bounds; NumPy's and torch's numbers become Python's own."""
    given = getattr(owner, name)
    number = real_number(f"{name}{where}", given, least=least, above=above)
    if not isinstance(given, int | float):  # an int stays an int, so that files and fingerprints keep their bytes
        object.__setattr__(owner, name, number)
