"""The fields of `ModelConfig`, with their defaults and what they may be."""

from __future__ import annotations

from dataclasses import dataclass

from interp.config.experts import Experts
from interp.config.rope_scaling import RopeScaling
from interp.config.shared_blocks import SharedBlocks

ACTIVATIONS = ("relu", "relu2", "gelu", "gelu_new", "quick_gelu", "silu", "solu")
NORMALIZATIONS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "sinusoidal", "rotary", "alibi", "relative", "none")
MAMBAS = ("mamba", "mamba2")
SSM_NORMALIZATIONS = ("RMS", "RMSPre", None)
LAYER_TYPES = (
    "attn+mlp", "attn", "mlp", "mamba", "mamba2", "mamba+mlp", "mamba2+mlp", "attn+moe", "moe", "mamba+moe",
    "mamba2+moe", "shared+mamba2",
)  # fmt: skip
NORM_PLACEMENTS = ("pre", "post", "both", "residual")
ATTENTION_TYPES = ("global", "local")
QK_NORMS = ("RMS", "RMS_all_heads", "LN", "LN_each_head", None)
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
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
class ConfigFields:
    """The fields of a `ModelConfig`, which says what they mean."""

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
