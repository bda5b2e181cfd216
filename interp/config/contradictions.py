"""Refuse a `ModelConfig` whose fields are of wrong kinds, unknown, or contradict one another.

`check_kinds` and `check_layers` come before what is not given follows from the rest, `check` afterwards.
"""

from __future__ import annotations

import math

from interp.arguments import LARGEST_SEED, is_several, one_of_layers, shown, whole_number
from interp.config.checks import check_choice, check_flag, is_open, settle_number, settle_whole
from interp.config.experts import Experts
from interp.config.fields import (
    ACTIVATIONS,
    ATTENTION_TYPES,
    FLAGS,
    LARGEST_FLOAT32,
    LAYER_TYPES,
    NORM_PLACEMENTS,
    NORMALIZATIONS,
    OPTIONAL_NUMBERS,
    OPTIONAL_SIZES,
    POSITIONS,
    QK_NORMS,
    SSM_NORMALIZATIONS,
    STATE_SPACE_SIZES,
)
from interp.config.questions import ConfigQuestions
from interp.config.rope_scaling import RopeScaling
from interp.config.shared_blocks import SharedBlocks
from interp.errors import ConfigError


def check_kinds(cfg: ConfigQuestions) -> None:
    """Refuse values of the wrong type, before anything is derived from them."""
    for name in FLAGS:
        check_flag(cfg, name)
    for name in ("n_heads", "d_head", "d_vocab", "d_vocab_out"):
        if not is_open(getattr(cfg, name)):
            settle_whole(cfg, name, 0)
    for name in (*OPTIONAL_SIZES, *STATE_SPACE_SIZES):
        if getattr(cfg, name) is not None:
            settle_whole(cfg, name, 0)
    check_choice("positional_embedding_type", cfg.positional_embedding_type, ("auto", *POSITIONS))
    if isinstance(cfg.dt_limit, list):
        object.__setattr__(cfg, "dt_limit", tuple(cfg.dt_limit))
    _check_limits(cfg)
    _check_numbers(cfg)
    if not isinstance(cfg.model_name, str):
        raise ConfigError(f"model_name must be text, not {cfg.model_name!r}")
    for name in ("rope_scaling", "rope_scaling_local"):
        if not isinstance(getattr(cfg, name), RopeScaling | None):
            raise ConfigError(f"{name} must be a RopeScaling or None, not {getattr(cfg, name)!r}")
    settle_whole(cfg, "d_model", 1)
    settle_whole(cfg, "n_ctx", 1)
    settle_whole(cfg, "n_token_types", 0)


def _check_numbers(cfg: ConfigQuestions) -> None:
    for name in ("eps", "ssm_eps", "initializer_range"):
        settle_number(cfg, name, least=0)
    for name in ("rotary_base", "embed_scale", "residual_scale", "logit_scale"):
        settle_number(cfg, name, above=0)
    for name in OPTIONAL_NUMBERS:
        if getattr(cfg, name) is not None:
            settle_number(cfg, name, above=0)
    if cfg.seed is not None:
        object.__setattr__(cfg, "seed", whole_number("seed", cfg.seed, least=-(2**63), most=LARGEST_SEED))


def check_layers(cfg: ConfigQuestions) -> None:
    """Refuse kinds of layers that do not exist, before anything is derived from them."""
    settle_whole(cfg, "n_layers", 0)
    if not isinstance(cfg.experts, Experts | None):
        raise ConfigError(f"experts must be an Experts or None, not {shown(cfg.experts)}")
    if cfg.layer_types is None:
        if cfg.experts is not None and cfg.attn_only:
            raise ConfigError("attn_only=True contradicts experts, which stand in place of an MLP")
        _settle_shared(cfg)
        return
    if not is_several(cfg.layer_types):
        raise ConfigError(f"layer_types must be a list with the kind of each layer, not {shown(cfg.layer_types)}")
    object.__setattr__(cfg, "layer_types", tuple(cfg.layer_types))
    if len(cfg.layer_types) != cfg.n_layers:
        raise ConfigError(
            f"layer_types names {len(cfg.layer_types)} layers, expected one for each of n_layers={cfg.n_layers}"
        )
    for kind in cfg.layer_types:
        check_choice("layer_types", kind, LAYER_TYPES)
    _settle_shared(cfg)
    if cfg.attn_only:
        raise ConfigError("attn_only=True contradicts layer_types, which describes every layer")
    routed = next((kind for kind in cfg.layer_types if kind.endswith("moe")), None)
    if routed is None:
        object.__setattr__(cfg, "experts", None)
    elif cfg.experts is None:
        raise ConfigError(f"layer_types has {routed!r}, which needs experts, an Experts that describes them")


def _settle_shared(cfg: ConfigQuestions) -> None:
    """Without a layer that shares a block nothing describes one, and the other way round."""
    if not isinstance(cfg.shared, SharedBlocks | None):
        raise ConfigError(f"shared must be a SharedBlocks or None, not {shown(cfg.shared)}")
    if not cfg.has_shared:
        object.__setattr__(cfg, "shared", None)
    elif cfg.shared is None:
        object.__setattr__(cfg, "shared", SharedBlocks())


def check(cfg: ConfigQuestions) -> None:
    """Refuse what contradicts something else, once everything is given."""
    names = ["d_vocab", "d_vocab_out"]
    names += ["d_head", "n_heads", "n_key_value_heads"] if cfg.has_attention else []
    names += ["d_inner", "d_state", "dt_rank", *STATE_SPACE_SIZES] if cfg.has_mamba else []
    names += ["d_mlp"] if cfg.has_plain_mlp else []
    for name in names:
        settle_whole(cfg, name, 1)
    if cfg.has_attention and cfg.n_heads % cfg.n_kv_heads:
        raise ConfigError(
            f"n_heads={cfg.n_heads} must be a multiple of n_key_value_heads={cfg.n_kv_heads}, "
            "so that every key and value head serves a group of query heads"
        )
    if "mamba2" in cfg.mixers:
        _check_mamba2(cfg)
    check_choice("ssm_normalization_type", cfg.ssm_normalization_type, SSM_NORMALIZATIONS)
    if cfg.ssm_normalization_type is not None and "mamba" not in cfg.mixers:
        raise ConfigError(
            f"ssm_normalization_type={cfg.ssm_normalization_type!r} needs a Mamba-1 layer; this model has none"
        )
    if cfg.has_mamba and not cfg.causal:
        raise ConfigError("attention_dir='bidirectional' contradicts state-space layers, which only look back")
    check_choice("act_fn", cfg.act_fn, ACTIVATIONS if cfg.has_mlp else (None,))
    check_choice("mlm_act_fn", cfg.mlm_act_fn, (*ACTIVATIONS, None))
    _check_norms(cfg)
    _check_attention(cfg)
    check_choice("attention_dir", cfg.attention_dir, ("causal", "bidirectional"))
    kind = cfg.positional_embedding_type
    if kind in ("rotary", "alibi", "relative") and not cfg.has_attention:
        raise ConfigError(f"positional_embedding_type={kind!r} needs a layer with attention; this model has none")
    if cfg.rotary_dim is not None and (cfg.rotary_dim % 2 or not 0 < cfg.rotary_dim <= cfg.d_head):
        raise ConfigError(f"rotary_dim must be even and at most d_head={cfg.d_head}, not {cfg.rotary_dim}")
    if cfg.tie_word_embeddings and cfg.d_vocab_out != cfg.d_vocab:
        raise ConfigError(f"tied embeddings need d_vocab_out={cfg.d_vocab_out} to equal d_vocab={cfg.d_vocab}")
    if cfg.cross_attention:
        _check_cross_attention(cfg)
    if cfg.gated_mlp and not cfg.has_mlp:
        raise ConfigError("gated_mlp=True contradicts layers without an MLP (attn_only, or layer_types)")
    if cfg.experts is not None and cfg.experts.swiglu_limit is not None and not cfg.gated_mlp:
        raise ConfigError("swiglu_limit of the experts needs gated_mlp=True")


def _check_shared(cfg: ConfigQuestions, shared: SharedBlocks) -> None:
    """Refuse what a block beside the embedding does not compute."""
    unfit = {
        "normalization_type=None": cfg.normalization_type is None,
        f"positional_embedding_type={cfg.positional_embedding_type!r}": cfg.positional_embedding_type
        not in ("rotary", "none"),
        "embed_norm=True": cfg.embed_norm,
        f"residual_scale={cfg.residual_scale}": cfg.residual_scale != 1.0,
        "gated_mlp=False": not cfg.gated_mlp,
    }
    given = [name for name, there in unfit.items() if there]
    if given:
        raise ConfigError(f"{given[0]} is not supported together with 'shared+mamba2' layers")
    if shared.attn_adapters and cfg.n_kv_heads != cfg.n_heads:
        raise ConfigError(
            f"attn_adapters=True of the shared blocks needs as many key and value heads as n_heads={cfg.n_heads}, "
            f"not n_key_value_heads={cfg.n_kv_heads}"
        )


def _check_norms(cfg: ConfigQuestions) -> None:
    check_choice("normalization_type", cfg.normalization_type, NORMALIZATIONS)
    check_choice("norm_placement", cfg.norm_placement, NORM_PLACEMENTS)
    if cfg.norm_placement != "pre" and (cfg.normalization_type is None or cfg.has_mamba):
        why = "a model without norms" if cfg.normalization_type is None else "state-space layers"
        raise ConfigError(f"norm_placement={cfg.norm_placement!r} contradicts {why}")
    if cfg.norm_unit_offset and not cfg.has_norm_weights:
        raise ConfigError(f"norm_unit_offset=True needs norms with weights, not {cfg.normalization_type!r}")
    if cfg.shared_norm and not (cfg.parallel_attn_mlp and cfg.norm_placement == "pre"):
        raise ConfigError("shared_norm=True needs parallel_attn_mlp=True and norm_placement='pre'")
    if cfg.norms_on_stream and cfg.parallel_attn_mlp:
        raise ConfigError("norm_placement='residual' contradicts parallel_attn_mlp=True: its MLP reads after a norm")
    if cfg.embed_norm and cfg.normalization_type is None:
        raise ConfigError("embed_norm=True contradicts normalization_type=None")
    if cfg.mlm_act_fn is not None and cfg.causal:
        raise ConfigError(f"mlm_act_fn={cfg.mlm_act_fn!r} is of masked tokens, and needs attention_dir='bidirectional'")
    if cfg.mlm_act_fn is not None and cfg.normalization_type is None:
        raise ConfigError(f"mlm_act_fn={cfg.mlm_act_fn!r} contradicts normalization_type=None: the head has a norm")
    if not cfg.first_norm and not cfg.norms_before:
        raise ConfigError("first_norm=False needs norms before the parts, as norm_placement='pre' has them")
    if cfg.embed_norm_of_sum and not cfg.embed_norm:
        raise ConfigError("embed_norm_of_sum=True needs embed_norm=True")


def _check_attention(cfg: ConfigQuestions) -> None:
    """Refuse contradictions between what attention layers do differently from one another."""
    check_choice("qk_norm", cfg.qk_norm, QK_NORMS)
    own = ("qk_norm", "clip_qkv", "attn_scores_soft_cap", "window_size", "attn_types")
    given = [name for name in own if getattr(cfg, name) is not None] + ["attn_sinks"] * cfg.attn_sinks
    if given and not cfg.has_attention:
        raise ConfigError(f"{given[0]} needs a layer with attention; this model has none")
    if cfg.window_size is not None:
        settle_whole(cfg, "window_size", 1)
    if cfg.attn_types is not None:
        _check_attn_types(cfg)
    rotary = cfg.positional_embedding_type == "rotary"
    if not rotary and (cfg.rotary_base_local is not None or cfg.nope_layers):
        name = "nope_layers" if cfg.nope_layers else "rotary_base_local"
        kind = cfg.positional_embedding_type
        raise ConfigError(f"{name} needs positional_embedding_type='rotary', not {kind!r}")
    if cfg.rope_scaling_local is not None and cfg.rotary_base_local is None:
        raise ConfigError("rope_scaling_local needs rotary_base_local, the base of local layers")
    if cfg.positional_embedding_type == "relative":
        settle_whole(cfg, "relative_buckets", 4)
        settle_whole(cfg, "relative_max_distance", cfg.relative_buckets)
    if cfg.sinusoidal_halves and cfg.positional_embedding_type != "sinusoidal":
        raise ConfigError("sinusoidal_halves=True needs positional_embedding_type='sinusoidal'")
    if cfg.alibi_bfloat16 and cfg.positional_embedding_type != "alibi":
        raise ConfigError("alibi_bfloat16=True needs positional_embedding_type='alibi'")
    if not is_several(cfg.nope_layers):
        raise ConfigError(f"nope_layers must be the numbers of layers, not {shown(cfg.nope_layers)}")
    layers = tuple(one_of_layers(layer, cfg.n_layers) for layer in cfg.nope_layers)
    object.__setattr__(cfg, "nope_layers", layers)
    for scaling in (cfg.rope_scaling, cfg.rope_scaling_local):
        _check_factors(cfg, scaling)


def _check_cross_attention(cfg: ConfigQuestions) -> None:
    if cfg.mixers != {"attn"} or not cfg.causal or cfg.parallel_attn_mlp:
        raise ConfigError(
            "cross_attention=True is of a decoder: every layer needs causal attention, and no parallel_attn_mlp"
        )
    if cfg.qk_norm is not None or cfg.clip_qkv is not None or cfg.attn_sinks:
        raise ConfigError("cross_attention=True is not supported together with qk_norm, clip_qkv or attn_sinks")


def _check_attn_types(cfg: ConfigQuestions) -> None:
    if not is_several(cfg.attn_types):
        raise ConfigError(f"attn_types must be a list with the kind of each layer, not {shown(cfg.attn_types)}")
    object.__setattr__(cfg, "attn_types", tuple(cfg.attn_types or ()))
    assert cfg.attn_types is not None
    if len(cfg.attn_types) != cfg.n_layers:
        raise ConfigError(
            f"attn_types names {len(cfg.attn_types)} layers, expected one for each of n_layers={cfg.n_layers}"
        )
    for kind in cfg.attn_types:
        check_choice("attn_types", kind, ATTENTION_TYPES)
    if "local" in cfg.attn_types and cfg.window_size is None:
        raise ConfigError("attn_types with local layers needs window_size, the positions that a query sees there")


def _check_factors(cfg: ConfigQuestions, scaling: RopeScaling | None) -> None:
    """LongRoPE has a factor for every pair of rotated channels."""
    for name in ("short_factor", "long_factor"):
        factors = None if scaling is None else getattr(scaling, name)
        if factors is not None and 2 * len(factors) != cfg.rotary_dim:
            raise ConfigError(
                f"{name} of the rope scaling has {len(factors)} numbers, expected one for each of the "
                f"{(cfg.rotary_dim or 0) // 2} pairs of rotated channels"
            )


def _check_mamba2(cfg: ConfigQuestions) -> None:
    assert cfg.d_inner is not None
    if cfg.d_inner % cfg.d_ssm_head:
        raise ConfigError(f"d_inner={cfg.d_inner} must be a multiple of d_ssm_head={cfg.d_ssm_head}")
    if cfg.n_ssm_heads % cfg.n_ssm_groups:
        raise ConfigError(
            f"n_ssm_groups={cfg.n_ssm_groups} must divide the {cfg.n_ssm_heads} heads of d_ssm_head="
            f"{cfg.d_ssm_head} channels"
        )
    if cfg.shared is not None:
        _check_shared(cfg, cfg.shared)


def _check_limits(cfg: ConfigQuestions) -> None:
    limits = cfg.dt_limit
    if limits is None:
        return
    pair = isinstance(limits, tuple) and len(limits) == 2 and all(type(end) in (int, float) for end in limits)
    if not (pair and 0 <= limits[0] < limits[1] and (limits[1] <= LARGEST_FLOAT32 or limits[1] == math.inf)):
        raise ConfigError(
            "dt_limit must be (least, most) with 0 <= least < most, where most is infinite or a float32 number, "
            f"not {shown(cfg.dt_limit)}"
        )
