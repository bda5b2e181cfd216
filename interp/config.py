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
from typing import Any, NamedTuple

from interp.arguments import LARGEST_SEED, is_several, one_of_layers, real_number, shown, whole_number
from interp.errors import ConfigError, nearest

ACTIVATIONS = ("relu", "relu2", "gelu", "gelu_new", "quick_gelu", "silu", "solu")
NORMALIZATIONS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "sinusoidal", "rotary", "alibi", "relative", "none")
MAMBAS = ("mamba", "mamba2")
SSM_NORMALIZATIONS = ("RMS", "RMSPre", None)
LAYER_TYPES = (
    "attn+mlp", "attn", "mlp", "mamba", "mamba2", "mamba+mlp", "mamba2+mlp", "attn+moe", "moe", "mamba+moe",
    "mamba2+moe", "shared+mamba2",
)  # fmt: skip
ROUTERS = ("softmax", "sigmoid")
ROPE_SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")
NORM_PLACEMENTS = ("pre", "post", "both", "residual")
ATTENTION_TYPES = ("global", "local")
QK_NORMS = ("RMS", "RMS_all_heads", "LN", "LN_each_head", None)
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
MAX_SIZE = 2**48  # a larger size is a mistake: no machine holds such a tensor, and sums of several would overflow
OPTIONAL_SIZES = ("n_key_value_heads", "d_mlp", "rotary_dim", "d_inner", "d_state", "dt_rank", "window_size")
OPTIONAL_NUMBERS = ("attn_scale", "output_logits_soft_cap", "attn_scores_soft_cap", "clip_qkv", "rotary_base_local")
STATE_SPACE_SIZES = ("d_conv", "d_ssm_head", "n_ssm_groups")
FLAGS = (
    "gated_mlp", "final_norm", "rotary_adjacent_pairs", "attn_only", "parallel_attn_mlp", "use_attn_scale",
    "tie_word_embeddings", "attn_in_bias", "attn_out_bias", "mlp_bias", "unembed_bias", "conv_bias", "mamba_bias",
    "embed_norm", "embed_norm_of_sum", "first_norm", "mlm_bias", "norm_bias", "norm_unit_offset", "shared_norm",
    "attn_sinks", "alibi_bfloat16", "sinusoidal_halves", "cross_attention",
)  # fmt: skip


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context of `original_n_ctx` positions.

    | kind | what it does |
    |---|---|
    | `linear` | divides every frequency by `factor` (Chen et al. 2023, "Extending Context Window ...", section 2.3) |
    | `dynamic` | raises the base for prompts longer than the trained context ("NTK-aware"; Peng et al. 2023, "YaRN", \
      section 3.3 and appendix B.1) |
    | `llama3` | divides the low frequencies and blends between `low_freq_factor` and `high_freq_factor` turns \
      (Grattafiori et al. 2024, "The Llama 3 Herd of Models", section 3.2, and its released code) |
    | `yarn` | divides the low frequencies and blends between `beta_slow` and `beta_fast` turns, rounded outwards to \
      whole channels if `truncate`; scores grow by the square of `attention_factor` (Peng et al. 2023, section 3.4) |
    | `longrope` | divides each frequency by a number of its own, `short_factor` within the trained context and \
      `long_factor` beyond it; `attention_factor` as in `yarn` (Ding et al. 2024, "LongRoPE", section 3) |

    `attention_factor` multiplies rotated queries and keys; None takes what the paper recommends for `factor`.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_n_ctx: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in ROPE_SCALINGS:
            raise ConfigError(f"rope scaling {self.kind!r} is not supported; choose from {', '.join(ROPE_SCALINGS)}")
        where = " of the rope scaling"
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            _settle_number(self, name, where, above=0)
        whole_number("original_n_ctx of the rope scaling", self.original_n_ctx, least=1, most=MAX_SIZE)
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor={self.low_freq_factor} of the rope scaling must be below high_freq_factor="
                f"{self.high_freq_factor}"
            )
        if not isinstance(self.truncate, bool):
            raise ConfigError(f"truncate{where} must be True or False, not {shown(self.truncate)}")
        if self.attention_factor is not None:
            _settle_number(self, "attention_factor", where, above=0)
        for name in ("short_factor", "long_factor"):
            self._settle_factors(name)
        if self.attention_factor is None:
            object.__setattr__(self, "attention_factor", self._recommended())

    def _settle_factors(self, name: str) -> None:
        given = getattr(self, name)
        if (given is not None) != (self.kind == "longrope"):
            raise ConfigError(
                f"{name} belongs to a rope scaling of kind 'longrope', which needs it, not {shown(given)}"
            )
        if given is None:
            return
        if not is_several(given):
            raise ConfigError(f"{name} of the rope scaling must be a number for each frequency, not {shown(given)}")
        factors = tuple(real_number(f"each {name} of the rope scaling", one, above=0) for one in given)
        object.__setattr__(self, name, factors)

    def _recommended(self) -> float:
        """The factor of queries and keys that a paper recommends for its scaling."""
        if self.factor <= 1:
            return 1.0
        if self.kind == "yarn":
            return 0.1 * math.log(self.factor) + 1.0
        if self.kind == "longrope" and self.original_n_ctx > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_n_ctx))
        return 1.0


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of an MLP: a router sends each position to a few of many MLPs.

    The router's scores are x W_router [+ b_router]. The `experts_per_token` experts with the best scores are computed,
    and their outputs are added up, each times its weight. `router` says what the weights are:

    | router | what it does |
    |---|---|
    | `softmax` | weights are the probabilities of the chosen experts, out of all of them; with `normalize_weights` \
      out of the chosen ones, so that they sum to 1 (Shazeer et al. 2017, "Outrageously Large Neural Networks", \
      section 2; Jiang et al. 2024, "Mixtral of Experts", section 2) |
    | `sigmoid` | weights are the sigmoids of the scores; with `normalize_weights` divided by their sum. The choice \
      goes by sigmoids plus a learned bias; it is among the `groups_per_token` best of `n_groups` groups of \
      neighbouring experts, whose value is the sum of their two best (DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2) |

    Each expert is an MLP of `d_expert` neurons, gated and with the activation function as the model's MLPs are.
    `weight_factor` multiplies all weights; `router_bias` and `expert_bias` say which biases there are. With
    `swiglu_limit` experts clamp both branches, and compute (linear + 1) gate sigmoid(`swiglu_alpha` gate) (OpenAI 2025,
    "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2).

    A shared expert of `d_shared` neurons is computed at every position beside the chosen ones; with `shared_gate` it is
    multiplied by the sigmoid of a score of its own (Qwen Team 2024, "Qwen1.5-MoE"). With `d_latent` experts, though
    neither router nor shared expert, read and write that many channels, which two linear maps connect with the stream,
    with biases where the model's MLPs have them (NVIDIA 2025, "Nemotron 3", section 2).
    """

    n_experts: int
    experts_per_token: int
    d_expert: int
    router: str = "softmax"
    normalize_weights: bool = True
    weight_factor: float = 1.0
    router_bias: bool = False
    expert_bias: bool = False
    n_groups: int = 1
    groups_per_token: int = 1
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702
    d_shared: int | None = None
    shared_gate: bool = False
    d_latent: int | None = None

    def __post_init__(self) -> None:
        where = " of the experts"
        for name in ("n_experts", "experts_per_token", "d_expert", "n_groups", "groups_per_token"):
            number = whole_number(f"{name}{where}", getattr(self, name), least=1, most=MAX_SIZE)
            object.__setattr__(self, name, number)
        for name in ("d_shared", "d_latent"):
            if getattr(self, name) is not None:
                number = whole_number(f"{name}{where}", getattr(self, name), least=1, most=MAX_SIZE)
                object.__setattr__(self, name, number)
        for name in ("normalize_weights", "router_bias", "expert_bias", "shared_gate"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}{where} must be True or False, not {shown(getattr(self, name))}")
        for name in ("weight_factor", "swiglu_alpha", *(() if self.swiglu_limit is None else ("swiglu_limit",))):
            _settle_number(self, name, where, above=0)
        if not isinstance(self.router, str) or self.router not in ROUTERS:
            raise ConfigError(f"router={shown(self.router)}{where} is not supported; choose from {', '.join(ROUTERS)}")
        self._check_choice()

    def _check_choice(self) -> None:
        """Refuse numbers of experts and groups that no router can choose."""
        if self.n_experts % self.n_groups:
            raise ConfigError(f"n_experts={self.n_experts} must be a multiple of n_groups={self.n_groups}")
        if self.groups_per_token > self.n_groups:
            raise ConfigError(
                f"groups_per_token={self.groups_per_token} must be at most n_groups={self.n_groups} of the experts"
            )
        among = self.n_experts // self.n_groups * self.groups_per_token
        if self.experts_per_token > among:
            raise ConfigError(f"experts_per_token={self.experts_per_token} must be at most {among}, which there are")
        if self.n_groups > 1 and self.router != "sigmoid":
            raise ConfigError(f"n_groups={self.n_groups} of the experts needs router='sigmoid', not {self.router!r}")
        if self.shared_gate and self.d_shared is None:
            raise ConfigError("shared_gate=True of the experts needs d_shared, the width of the shared expert")


@dataclass(frozen=True)
class SharedBlocks:
    """Transformer blocks that several layers share, by turns: the first such layer calls the first block.

    In a `shared+mamba2` layer such a block reads the residual stream and the token embedding side by side, 2 `d_model`
    wide. Its attention has no residual connection, and neither has its MLP; a linear map of the layer's own takes the
    outcome to what is added to the input of the layer's Mamba-2 mixer, and not to the stream (Glorioso et al. 2024,
    "The Zamba2 Suite", section 2).

    Attributes:
        n_blocks: how many blocks there are.
        adapter_rank: each layer adds a map of its own, of this rank, to the MLP's input weights; None for none.
        attn_adapters: whether it adds such maps to the weights of queries, keys and values, too.
    """

    n_blocks: int = 1
    adapter_rank: int | None = None
    attn_adapters: bool = False

    def __post_init__(self) -> None:
        where = " of the shared blocks"
        for name in ("n_blocks", *(() if self.adapter_rank is None else ("adapter_rank",))):
            number = whole_number(f"{name}{where}", getattr(self, name), least=1, most=MAX_SIZE)
            object.__setattr__(self, name, number)
        if not isinstance(self.attn_adapters, bool):
            raise ConfigError(f"attn_adapters{where} must be True or False, not {shown(self.attn_adapters)}")
        if self.attn_adapters and self.adapter_rank is None:
            raise ConfigError(f"attn_adapters=True{where} needs adapter_rank")


class AttentionKind(NamedTuple):
    """What one attention layer does differently from another: layers of the same kind share masks and angles.

    Attributes:
        window: how many positions a query sees, its own included; None for all.
        rotary_base, rope_scaling: of its rotary embedding; a base of None rotates nothing.
    """

    window: int | None
    rotary_base: float | None
    rope_scaling: RopeScaling | None


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the computation of a model, apart from its weights.

    Sizes: `d_model` is the width of the residual stream; `n_heads` query heads of `d_head` channels read and write it;
    there are `n_key_value_heads` heads of keys and values (fewer than `n_heads` is grouped-query attention).
    `d_vocab_out` differs from `d_vocab` in models whose outputs are not their input tokens.

    Norms: `LN` and `RMS` have weights; `LNPre` and `RMSPre` only centre and scale (TransformerLens's folded form).
    `norm_bias=False` leaves layer norm without its bias, `norm_unit_offset` stores weights less 1 (Gemma).
    `norm_placement` says where a layer has norms: `pre` before attention and MLP, `post` after each, before what it
    made is added to the stream (OLMo 2), `both` (Gemma 2), `residual` on the stream itself, after what attention and
    MLP added to it (Vaswani et al. 2017, section 3.1; BERT). With `shared_norm` a parallel MLP reads the stream through
    the attention's norm (GPT-J). `embed_norm` is a norm after the token embedding (BLOOM), with `embed_norm_of_sum`
    after the sum of all embeddings (BERT). With `first_norm=False` the first layer's mixer has none of its own
    (ModernBERT).

    Masked tokens: `n_token_types` rows of a further embedding say which segment a token is of (Devlin et al. 2018,
    "BERT", section 3). With `mlm_act_fn` there is a head between the stream and the unembedding: a linear map, this
    activation function and a norm; `mlm_bias` is the bias of its linear map.

    Scales: `embed_scale` multiplies the token embedding, `residual_scale` what attention and MLP add, `logit_scale` the
    logits. `output_logits_soft_cap` and `attn_scores_soft_cap` are the c of c tanh(x / c), which logits and scores go
    through (Gemma Team 2024, "Gemma 2", section 2).

    Positions: `standard` is a learned table added to the embedding, `sinusoidal` the fixed one of Vaswani et al. 2017
    (section 3.5; with `sinusoidal_halves` all sines come before all cosines), `rotary` turns queries and keys (Su et
    al. 2021, section 3.4) in their first `rotary_dim` channels, `alibi` lowers scores with distance (Press et al. 2021,
    section 3), `relative` adds a learned number for each head and distance, of which there are `relative_buckets`;
    those beyond `relative_max_distance` share the last one (Raffel et al. 2020, "T5", section 2.1; in the stacks of an
    `interp.EncoderDecoder`), `none` leaves order to the causal mask or to the recurrence. `auto` is `standard` for a
    model with attention and `none` for one without. `alibi_bfloat16` rounds slope times position to bfloat16 and scales
    it like the scores (Falcon). Layers in `nope_layers` do not rotate.

    Attention: with `window_size` a query of a local layer sees that many positions, its own included, to the left, and
    where attention looks both ways as many to the right; `attn_types` says of each layer whether it is `global` or
    `local`, and None makes all of them local. Local layers may have a `rotary_base_local` of their own, with
    `rope_scaling_local` in place of `rope_scaling`. `qk_norm` is a norm of queries and keys before rotation: `RMS` or
    `LN` of each head, with the same weights for all, `LN_each_head` with weights for each and no bias, `RMS_all_heads`
    of all heads together. `clip_qkv` bounds values, and queries and keys after their norm; `attn_sinks` gives every
    head a score of looking nowhere (Xiao et al. 2023, "StreamingLLM"; gpt-oss). With `cross_attention` every layer also
    looks at the output of an encoder, between attention and MLP: see `EncoderDecoderConfig`.

    Layers: `layer_types` says for each layer what mixes positions, and whether an MLP or a mixture of experts follows:
    one of `attn+mlp`, `attn`, `mlp`, `mamba`, `mamba+mlp`, `mamba2`, `mamba2+mlp`, `attn+moe`, `moe`, `mamba+moe`,
    `mamba2+moe`, `shared+mamba2`; None makes all of them `attn+mlp`, `attn` with `attn_only`, or `attn+moe` with
    `experts`, which describes the mixtures. In a `shared+mamba2` layer the mixer's input comes in part from a
    transformer block that several layers share; `shared` describes these blocks.

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

    experts: Experts | None = None

    # Norms of the residual stream
    normalization_type: str | None = "LN"
    eps: float = 1e-5
    final_norm: bool = True
    norm_placement: str = "pre"
    norm_bias: bool = True
    norm_unit_offset: bool = False
    shared_norm: bool = False
    embed_norm: bool = False
    embed_norm_of_sum: bool = False
    first_norm: bool = True

    # Factors
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    output_logits_soft_cap: float | None = None

    # Positions
    positional_embedding_type: str = "auto"
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    rotary_adjacent_pairs: bool = False
    rope_scaling: RopeScaling | None = None
    rotary_base_local: float | None = None
    rope_scaling_local: RopeScaling | None = None
    nope_layers: tuple[int, ...] = ()
    alibi_bfloat16: bool = False
    sinusoidal_halves: bool = False
    relative_buckets: int = 32
    relative_max_distance: int = 128

    # Attention, and its place in the block
    attention_dir: str = "causal"
    attn_only: bool = False
    parallel_attn_mlp: bool = False
    use_attn_scale: bool = True
    attn_scale: float | None = None
    attn_types: tuple[str, ...] | None = None
    window_size: int | None = None
    attn_scores_soft_cap: float | None = None
    qk_norm: str | None = None
    clip_qkv: float | None = None
    attn_sinks: bool = False
    cross_attention: bool = False

    # Which weights there are
    tie_word_embeddings: bool = False
    attn_in_bias: bool = True
    attn_out_bias: bool = True
    mlp_bias: bool = True
    unembed_bias: bool = True

    # The masked-token head, and the embedding of segments
    n_token_types: int = 0
    mlm_act_fn: str | None = None
    mlm_bias: bool = True

    # What each layer is made of
    layer_types: tuple[str, ...] | None = None
    shared: SharedBlocks | None = None

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
            settle("act_fn", None)
        if not self.has_plain_mlp:
            settle("d_mlp", None)
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
        for name in ("rope_scaling", "rope_scaling_local"):
            if not isinstance(getattr(self, name), RopeScaling | None):
                raise ConfigError(f"{name} must be a RopeScaling or None, not {getattr(self, name)!r}")
        self._check_whole("d_model", 1)
        self._check_whole("n_ctx", 1)
        self._check_whole("n_token_types", 0)

    def _check_numbers(self) -> None:
        for name in ("eps", "ssm_eps", "initializer_range"):
            _settle_number(self, name, least=0)
        for name in ("rotary_base", "embed_scale", "residual_scale", "logit_scale"):
            _settle_number(self, name, above=0)
        for name in OPTIONAL_NUMBERS:
            if getattr(self, name) is not None:
                _settle_number(self, name, above=0)
        if self.seed is not None:
            object.__setattr__(self, "seed", whole_number("seed", self.seed, least=-(2**63), most=LARGEST_SEED))

    def _check_layers(self) -> None:
        """Refuse kinds of layers that do not exist, before anything is derived from them."""
        self._check_whole("n_layers", 0)
        if not isinstance(self.experts, Experts | None):
            raise ConfigError(f"experts must be an Experts or None, not {shown(self.experts)}")
        if self.layer_types is None:
            if self.experts is not None and self.attn_only:
                raise ConfigError("attn_only=True contradicts experts, which stand in place of an MLP")
            self._settle_shared()
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
        self._settle_shared()
        if self.attn_only:
            raise ConfigError("attn_only=True contradicts layer_types, which describes every layer")
        routed = next((kind for kind in self.layer_types if kind.endswith("moe")), None)
        if routed is None:
            object.__setattr__(self, "experts", None)
        elif self.experts is None:
            raise ConfigError(f"layer_types has {routed!r}, which needs experts, an Experts that describes them")

    def _settle_shared(self) -> None:
        """Without a layer that shares a block nothing describes one, and the other way round."""
        if not isinstance(self.shared, SharedBlocks | None):
            raise ConfigError(f"shared must be a SharedBlocks or None, not {shown(self.shared)}")
        if not self.has_shared:
            object.__setattr__(self, "shared", None)
        elif self.shared is None:
            object.__setattr__(self, "shared", SharedBlocks())

    def _check(self) -> None:
        names = ["d_vocab", "d_vocab_out"]
        names += ["d_head", "n_heads", "n_key_value_heads"] if self.has_attention else []
        names += ["d_inner", "d_state", "dt_rank", *STATE_SPACE_SIZES] if self.has_mamba else []
        names += ["d_mlp"] if self.has_plain_mlp else []
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
        self._check_choice("mlm_act_fn", (*ACTIVATIONS, None))
        self._check_norms()
        self._check_attention()
        self._check_choice("attention_dir", ("causal", "bidirectional"))
        kind = self.positional_embedding_type
        if kind in ("rotary", "alibi", "relative") and not self.has_attention:
            raise ConfigError(f"positional_embedding_type={kind!r} needs a layer with attention; this model has none")
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.d_head):
            raise ConfigError(f"rotary_dim must be even and at most d_head={self.d_head}, not {self.rotary_dim}")
        if self.tie_word_embeddings and self.d_vocab_out != self.d_vocab:
            raise ConfigError(f"tied embeddings need d_vocab_out={self.d_vocab_out} to equal d_vocab={self.d_vocab}")
        if self.cross_attention:
            self._check_cross_attention()
        if self.gated_mlp and not self.has_mlp:
            raise ConfigError("gated_mlp=True contradicts layers without an MLP (attn_only, or layer_types)")
        if self.experts is not None and self.experts.swiglu_limit is not None and not self.gated_mlp:
            raise ConfigError("swiglu_limit of the experts needs gated_mlp=True")

    def _check_shared(self, shared: SharedBlocks) -> None:
        """Refuse what a block beside the embedding does not compute."""
        unfit = {
            "normalization_type=None": self.normalization_type is None,
            f"positional_embedding_type={self.positional_embedding_type!r}": self.positional_embedding_type
            not in ("rotary", "none"),
            "embed_norm=True": self.embed_norm,
            f"residual_scale={self.residual_scale}": self.residual_scale != 1.0,
            "gated_mlp=False": not self.gated_mlp,
        }
        given = [name for name, there in unfit.items() if there]
        if given:
            raise ConfigError(f"{given[0]} is not supported together with 'shared+mamba2' layers")
        if shared.attn_adapters and self.n_kv_heads != self.n_heads:
            raise ConfigError(
                f"attn_adapters=True of the shared blocks needs as many key and value heads as n_heads={self.n_heads}, "
                f"not n_key_value_heads={self.n_kv_heads}"
            )

    def _check_norms(self) -> None:
        self._check_choice("normalization_type", NORMALIZATIONS)
        self._check_choice("norm_placement", NORM_PLACEMENTS)
        if self.norm_placement != "pre" and (self.normalization_type is None or self.has_mamba):
            why = "a model without norms" if self.normalization_type is None else "state-space layers"
            raise ConfigError(f"norm_placement={self.norm_placement!r} contradicts {why}")
        if self.norm_unit_offset and not self.has_norm_weights:
            raise ConfigError(f"norm_unit_offset=True needs norms with weights, not {self.normalization_type!r}")
        if self.shared_norm and not (self.parallel_attn_mlp and self.norm_placement == "pre"):
            raise ConfigError("shared_norm=True needs parallel_attn_mlp=True and norm_placement='pre'")
        if self.norms_on_stream and self.parallel_attn_mlp:
            raise ConfigError(
                "norm_placement='residual' contradicts parallel_attn_mlp=True: its MLP reads after a norm"
            )
        if self.embed_norm and self.normalization_type is None:
            raise ConfigError("embed_norm=True contradicts normalization_type=None")
        if self.mlm_act_fn is not None and self.causal:
            raise ConfigError(
                f"mlm_act_fn={self.mlm_act_fn!r} is of masked tokens, and needs attention_dir='bidirectional'"
            )
        if self.mlm_act_fn is not None and self.normalization_type is None:
            raise ConfigError(
                f"mlm_act_fn={self.mlm_act_fn!r} contradicts normalization_type=None: the head has a norm"
            )
        if not self.first_norm and not self.norms_before:
            raise ConfigError("first_norm=False needs norms before the parts, as norm_placement='pre' has them")
        if self.embed_norm_of_sum and not self.embed_norm:
            raise ConfigError("embed_norm_of_sum=True needs embed_norm=True")

    def _check_attention(self) -> None:
        """Refuse contradictions between what attention layers do differently from one another."""
        self._check_choice("qk_norm", QK_NORMS)
        own = ("qk_norm", "clip_qkv", "attn_scores_soft_cap", "window_size", "attn_types")
        given = [name for name in own if getattr(self, name) is not None] + ["attn_sinks"] * self.attn_sinks
        if given and not self.has_attention:
            raise ConfigError(f"{given[0]} needs a layer with attention; this model has none")
        if self.window_size is not None:
            self._check_whole("window_size", 1)
        if self.attn_types is not None:
            self._check_attn_types()
        rotary = self.positional_embedding_type == "rotary"
        if not rotary and (self.rotary_base_local is not None or self.nope_layers):
            name = "nope_layers" if self.nope_layers else "rotary_base_local"
            kind = self.positional_embedding_type
            raise ConfigError(f"{name} needs positional_embedding_type='rotary', not {kind!r}")
        if self.rope_scaling_local is not None and self.rotary_base_local is None:
            raise ConfigError("rope_scaling_local needs rotary_base_local, the base of local layers")
        if self.positional_embedding_type == "relative":
            self._check_whole("relative_buckets", 4)
            self._check_whole("relative_max_distance", self.relative_buckets)
        if self.sinusoidal_halves and self.positional_embedding_type != "sinusoidal":
            raise ConfigError("sinusoidal_halves=True needs positional_embedding_type='sinusoidal'")
        if self.alibi_bfloat16 and self.positional_embedding_type != "alibi":
            raise ConfigError("alibi_bfloat16=True needs positional_embedding_type='alibi'")
        if not is_several(self.nope_layers):
            raise ConfigError(f"nope_layers must be the numbers of layers, not {shown(self.nope_layers)}")
        layers = tuple(one_of_layers(layer, self.n_layers) for layer in self.nope_layers)
        object.__setattr__(self, "nope_layers", layers)
        for scaling in (self.rope_scaling, self.rope_scaling_local):
            self._check_factors(scaling)

    def _check_cross_attention(self) -> None:
        if self.mixers != {"attn"} or not self.causal or self.parallel_attn_mlp:
            raise ConfigError(
                "cross_attention=True is of a decoder: every layer needs causal attention, and no parallel_attn_mlp"
            )
        if self.qk_norm is not None or self.clip_qkv is not None or self.attn_sinks:
            raise ConfigError("cross_attention=True is not supported together with qk_norm, clip_qkv or attn_sinks")

    def _check_attn_types(self) -> None:
        if not is_several(self.attn_types):
            raise ConfigError(f"attn_types must be a list with the kind of each layer, not {shown(self.attn_types)}")
        object.__setattr__(self, "attn_types", tuple(self.attn_types or ()))
        assert self.attn_types is not None
        if len(self.attn_types) != self.n_layers:
            raise ConfigError(
                f"attn_types names {len(self.attn_types)} layers, expected one for each of n_layers={self.n_layers}"
            )
        for kind in self.attn_types:
            self._check_choice("attn_types", ATTENTION_TYPES, kind)
        if "local" in self.attn_types and self.window_size is None:
            raise ConfigError("attn_types with local layers needs window_size, the positions that a query sees there")

    def _check_factors(self, scaling: RopeScaling | None) -> None:
        """LongRoPE has a factor for every pair of rotated channels."""
        for name in ("short_factor", "long_factor"):
            factors = None if scaling is None else getattr(scaling, name)
            if factors is not None and 2 * len(factors) != self.rotary_dim:
                raise ConfigError(
                    f"{name} of the rope scaling has {len(factors)} numbers, expected one for each of the "
                    f"{(self.rotary_dim or 0) // 2} pairs of rotated channels"
                )

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
        if self.shared is not None:
            self._check_shared(self.shared)

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
        if self.layer_types is not None:
            return self.layer_types[layer]
        return "attn" if self.attn_only else "attn+mlp" if self.experts is None else "attn+moe"

    def mixer(self, layer: int) -> str | None:
        """What mixes positions in a layer: "attn", "mamba", "mamba2", or None in a layer that has only an MLP.

        Of a layer that shares a transformer block it is the mixer that writes to the residual stream.
        """
        first = self.layer_type(layer).removeprefix("shared+").partition("+")[0]
        return None if first in ("mlp", "moe") else first

    def mixers_in(self, layer: int) -> tuple[str, ...]:
        """Everything that mixes positions in a layer, in the order of computation: in most of them one, or none."""
        mixer = self.mixer(layer)
        return () if mixer is None else ("attn", mixer) if self.shares(layer) else (mixer,)

    def shares(self, layer: int) -> bool:
        """Whether a layer calls a transformer block that it shares with others."""
        return self.layer_type(layer).startswith("shared+")

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention heads, its own or those of a shared block."""
        return "attn" in self.mixers_in(layer)

    def first_call(self, layer: int) -> int:
        """The first layer that calls the shared block of a layer."""
        calls = self.layers_that_share
        assert self.shared is not None
        return calls[calls.index(layer) % self.shared.n_blocks]

    @functools.cached_property
    def layers_that_share(self) -> tuple[int, ...]:
        """The layers that call shared blocks."""
        return tuple(at for at in range(self.n_layers if self.layer_types is not None else 0) if self.shares(at))

    def attention_kind(self, layer: int) -> AttentionKind:
        """How far a layer's attention sees, and how it rotates."""
        local = self.window_size is not None and (self.attn_types is None or self.attn_types[layer] == "local")
        base, scaling = (
            (self.rotary_base, self.rope_scaling)
            if self.rotary_base_local is None or not local
            else (self.rotary_base_local, self.rope_scaling_local)
        )
        rotates = self.positional_embedding_type == "rotary" and layer not in self.nope_layers
        window = self.window_size if local else None
        return AttentionKind(window, base, scaling) if rotates else AttentionKind(window, None, None)

    @functools.cached_property
    def attention_kinds(self) -> frozenset[AttentionKind]:
        """Every kind of attention layer that the model has."""
        alike = self.attn_types is None and not self.nope_layers and self.layer_types is None
        different = range(min(self.n_layers, 1) if alike else self.n_layers)  # as in `mixers`
        return frozenset(self.attention_kind(layer) for layer in different if self.attends(layer))

    @property
    def turns_by_length(self) -> bool:
        """Whether rotary frequencies depend on how long the whole prompt is."""
        scalings = (kind.rope_scaling for kind in self.attention_kinds)
        return any(scaling is not None and scaling.kind in ("dynamic", "longrope") for scaling in scalings)

    def keys_stay(self, before: int, after: int) -> bool:
        """Whether keys of a prompt of `before` positions are still right once it has `after`."""
        for kind in self.attention_kinds:
            scaling = kind.rope_scaling
            if scaling is None or max(before, after) <= scaling.original_n_ctx:
                continue
            grows = scaling.kind == "dynamic" and before != after
            if grows or (scaling.kind == "longrope" and min(before, after) <= scaling.original_n_ctx):
                return False
        return True

    def layers_with(self, *mixers: str) -> list[int]:
        """The layers in which one of `mixers` mixes positions."""
        return [layer for layer in range(self.n_layers) if not set(mixers).isdisjoint(self.mixers_in(layer))]

    def mlp_in(self, layer: int) -> bool:
        """Whether a layer has an MLP, or a mixture of them, that writes to the residual stream."""
        return self.layer_type(layer).endswith(("mlp", "moe"))

    def experts_in(self, layer: int) -> Experts | None:
        """The experts among which a layer's router chooses; None in a layer without."""
        return self.experts if self.layer_type(layer).endswith("moe") else None

    def neurons_in(self, layer: int) -> int:
        """How many neurons of a layer's MLP a position takes: of a mixture those of the chosen and the shared experts.

        0 where the layer has none.
        """
        experts = self.experts_in(layer)
        if experts is not None:
            return experts.experts_per_token * experts.d_expert + (experts.d_shared or 0)
        return self.d_mlp or 0 if self.mlp_in(layer) or self.shares(layer) else 0

    @functools.cached_property
    def mixers(self) -> frozenset[str | None]:
        """Everything that mixes positions in some layer."""
        # Without layer_types all layers are alike, and a damaged file may claim billions: one stands for all.
        different = range(self.n_layers) if self.layer_types is not None else range(min(self.n_layers, 1))
        every = (mixer for layer in different for mixer in self.mixers_in(layer) or (None,))
        return frozenset(every) or frozenset({"attn"})

    @property
    def has_attention(self) -> bool:
        """Whether any layer has attention."""
        return "attn" in self.mixers

    @functools.cached_property
    def has_shared(self) -> bool:
        """Whether any layer calls a shared transformer block."""
        return any(kind.startswith("shared+") for kind in self.layer_types or ())

    @property
    def has_mamba(self) -> bool:
        """Whether any layer is a state-space layer."""
        return not self.mixers.isdisjoint(MAMBAS)

    @functools.cached_property
    def has_mlp(self) -> bool:
        """Whether any layer has an MLP, or a mixture of them."""
        if self.layer_types is None or not self.n_layers:
            return not self.attn_only
        return self.has_shared or any(self.mlp_in(layer) for layer in range(self.n_layers))

    @functools.cached_property
    def has_plain_mlp(self) -> bool:
        """Whether any layer has an MLP that is not a mixture."""
        if self.layer_types is None or not self.n_layers:
            return self.has_mlp and self.experts is None
        return self.has_shared or any(kind.endswith("mlp") for kind in self.layer_types)

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
    def has_norm_bias(self) -> bool:
        """Whether the norms add a bias."""
        return self.normalization_type == "LN" and self.norm_bias

    @property
    def norms_before(self) -> bool:
        """Whether attention and MLP read the stream through norms."""
        return self.normalization_type is not None and self.norm_placement in ("pre", "both")

    @property
    def norms_after(self) -> bool:
        """Whether what attention and MLP make passes through norms before it is added to the stream."""
        return self.norm_placement in ("post", "both")

    @property
    def linear_output(self) -> bool:
        """Whether the unembedding reads the stream through nothing but a norm, so that parts have shares of logits."""
        return self.mlm_act_fn is None

    @property
    def norms_on_stream(self) -> bool:
        """Whether the stream itself passes through norms, so that it is not the sum of what was written to it."""
        return self.norm_placement == "residual"

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
        parts = {"rope_scaling": RopeScaling, "rope_scaling_local": RopeScaling, "experts": Experts}
        parts |= {"shared": SharedBlocks}
        for name, kind in parts.items():
            part = values.get(name)
            if isinstance(part, Mapping):
                _check_fields(kind, part)
                values = {**values, name: kind(**part)}
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


STACKS = ("encoder", "decoder")
"""The stacks of an encoder-decoder, and how the names of their sites begin."""


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """Everything that determines the computation of an `interp.EncoderDecoder`, apart from its weights.

    The encoder reads a prompt in both directions. The decoder continues another one from left to right, and looks at
    the encoder's output in every layer (Vaswani et al. 2017, "Attention Is All You Need", section 3.1).

    Attributes:
        encoder: of the first stack, with `attention_dir="bidirectional"`.
        decoder: of the second stack, with `cross_attention=True`. The unembedding is as its fields say; tied, it reads
            the decoder's token embedding.
        shared_embeddings: whether both stacks have one table of token embeddings.
        decoder_start_token_id: what the decoder's prompt begins with; None where a model does not say.

    Raises:
        ConfigError: stacks that do not fit together.
    """

    encoder: ModelConfig
    decoder: ModelConfig
    shared_embeddings: bool = True
    decoder_start_token_id: int | None = None

    def __post_init__(self) -> None:
        for stack in STACKS:
            check_config(getattr(self, stack))
            own: ModelConfig = getattr(self, stack)
            if not own.n_layers or own.layer_types is not None or own.attn_only:
                raise ConfigError(f"the {stack} needs at least one layer, and all of attention and an MLP")
            if own.norm_placement not in ("pre", "residual"):
                raise ConfigError(
                    f"norm_placement of the {stack} must be 'pre' or 'residual', not {own.norm_placement!r}"
                )
        if self.encoder.causal:
            raise ConfigError("the encoder needs attention_dir='bidirectional'")
        if not self.decoder.cross_attention or self.encoder.cross_attention:
            raise ConfigError("cross_attention must be True in the decoder's configuration, and False in the encoder's")
        alike = ("d_model", "d_vocab") if self.shared_embeddings else ("d_model",)
        for name in alike:
            if getattr(self.encoder, name) != getattr(self.decoder, name):
                raise ConfigError(
                    f"{name} must be the same in both stacks, not {getattr(self.encoder, name)} in the encoder and "
                    f"{getattr(self.decoder, name)} in the decoder"
                )
        if self.decoder_start_token_id is not None:
            most = self.decoder.d_vocab - 1
            start = whole_number("decoder_start_token_id", self.decoder_start_token_id, least=0, most=most)
            object.__setattr__(self, "decoder_start_token_id", start)

    @classmethod
    def original_transformer(
        cls,
        *,
        d_vocab: int,
        n_ctx: int,
        n_layers: int = 6,
        d_model: int = 512,
        n_heads: int = 8,
        d_mlp: int = 2048,
        decoder_start_token_id: int | None = None,
        **fields: Any,
    ) -> EncoderDecoderConfig:
        """The Transformer of Vaswani et al. 2017, "Attention Is All You Need"; by default its base model (table 3).

        Norms are on the residual stream, after each sub-layer (section 3.1); attention has no biases (3.2.2), the MLP
        has ReLU and biases (3.3); source, target and output have one embedding, times the square root of `d_model` at
        both inputs (3.4); positions are sinusoidal (3.5). `fields` are further ones of both stacks, such as `seed`.
        """
        both: dict[str, Any] = {
            "d_vocab": d_vocab,
            "n_ctx": n_ctx,
            "n_layers": n_layers,
            "d_model": d_model,
            "n_heads": n_heads,
            "d_mlp": d_mlp,
            "act_fn": "relu",
            "norm_placement": "residual",
            "final_norm": False,
            "embed_scale": math.sqrt(d_model),
            "positional_embedding_type": "sinusoidal",
            "attn_in_bias": False,
            "attn_out_bias": False,
            "unembed_bias": False,
            **fields,
        }
        encoder = ModelConfig(**both, attention_dir="bidirectional")
        decoder = ModelConfig(**both, cross_attention=True, tie_word_embeddings=True)
        return cls(encoder, decoder, decoder_start_token_id=decoder_start_token_id)

    @property
    def d_model(self) -> int:
        """The width of both residual streams."""
        return self.decoder.d_model

    @property
    def d_vocab(self) -> int:
        """How many tokens the encoder reads."""
        return self.encoder.d_vocab

    @property
    def d_vocab_out(self) -> int:
        """How many tokens the decoder may answer."""
        return self.decoder.d_vocab_out

    @property
    def n_ctx(self) -> int:
        """The longest prompt that the encoder reads."""
        return self.encoder.n_ctx

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self.decoder.model_name

    @property
    def has_mamba(self) -> bool:
        """Whether any layer is a state-space layer: none is."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest or a JSON file; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderDecoderConfig:
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: not a mapping, an unknown field, or a missing field that is needed.
        """
        _check_fields(cls, values)
        stacks = {stack: ModelConfig.from_dict(values[stack]) for stack in STACKS}
        return cls(**{**values, **stacks})

    def __getattr__(self, name: str) -> Any:
        if name in ModelConfig.__dict__ or name in ModelConfig.__annotations__:
            raise ConfigError(
                f"an encoder-decoder has no {name!r} of its own, but one in each stack: cfg.encoder.{name} and "
                f"cfg.decoder.{name}. What asks for it is made for one stack: interp.sweep and gradients take sites of "
                "both, such as 'decoder.blocks.0.attn.hook_z'; the logit lens, head attribution and ablation read the "
                "decoder; the `encoder` and `decoder` of a cache take their streams apart"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
