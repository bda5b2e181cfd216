"""From the config.json of a hybrid of attention and Mamba to a `ModelConfig`: one function for each family.

| family | state-space layers | attention | MLP |
|---|---|---|---|
| `bamba` | Mamba-2 | rotary, in the layers that are listed | gated, in every layer |
| `jamba` | Mamba-1, normalised inside | no positions, at regular intervals | gated, in every layer; some are mixtures |
| `nemotron_h` | Mamba-2 | no positions, as a layer of its own | squared ReLU or a mixture, as a layer of its own |

Sources: the configuration and modelling files of `transformers` 4 and 5 for each `model_type`; Lieber et al. 2024
("Jamba"); Blakeman et al. 2025 ("Nemotron-H").
"""

from __future__ import annotations

import math
from typing import Any

from interp.arguments import shown
from interp.config import Experts, ModelConfig
from interp.errors import ConfigError, unknown
from interp.weights.huggingface.configs.checks import agree, expanded, head_size, limit, refuse_others, silu_only
from interp.weights.huggingface.configs.shared import activation, general, kv_heads, rotary, sizes
from interp.weights.options import Options, flag, number, whole

READ_ALL = {
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "head_dim", "tie_word_embeddings", "initializer_range",
}  # fmt: skip
READ = {
    "bamba": READ_ALL | {
        "attn_layer_indices", "attn_rotary_emb", "rope_parameters", "rope_theta", "rope_scaling",
        "partial_rotary_factor", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias", "mamba_n_heads",
        "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv", "mamba_expand", "mamba_conv_bias",
        "mamba_proj_bias", "time_step_limit",
    },
    "jamba": READ_ALL | {
        "attn_layer_period", "attn_layer_offset", "expert_layer_period", "expert_layer_offset", "num_experts",
        "num_local_experts", "num_experts_per_tok", "rms_norm_eps", "hidden_act", "mamba_d_state", "mamba_d_conv",
        "mamba_expand", "mamba_dt_rank", "mamba_conv_bias", "mamba_proj_bias",
    },
    "nemotron_h": READ_ALL | {
        "layers_block_type", "layer_types", "hybrid_override_pattern", "layer_norm_epsilon", "attention_head_dim",
        "mlp_hidden_act", "mamba_hidden_act", "mlp_bias", "mamba_num_heads", "mamba_head_dim", "n_groups",
        "ssm_state_size", "conv_kernel", "expand", "use_bias", "use_conv_bias", "time_step_min", "n_routed_experts",
        "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size",
        "moe_latent_size", "routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob",
    },
}  # fmt: skip
# Options without effect on the numbers: dropout and losses in training, kernels, what transformers does not read.
SILENT_ALL = {"attention_dropout", "num_logits_to_keep", "use_mamba_kernels", "output_router_logits"}
SILENT = {
    "bamba": SILENT_ALL | {"mamba_chunk_size", "z_loss_coefficient"},
    "jamba": SILENT_ALL | {
        "router_aux_loss_coef", "use_mambapy", "use_associative_scan", "calc_logits_for_entire_prompt",
    },
    # transformers fixes the largest step size, and `use_bias` decides about the biases of Mamba-2's projections.
    "nemotron_h": SILENT_ALL | {
        "hidden_dropout", "chunk_size", "mamba_proj_bias", "mamba_ssm_cache_dtype", "n_shared_experts",
        "moe_shared_expert_overlap", "mtp_layers_block_type", "mtp_hybrid_override_pattern", "residual_in_fp32",
        "rescale_prenorm_residual", "time_step_max", "time_step_limit", "time_step_floor", "rms_norm_eps",
    },
}  # fmt: skip
NEMOTRON_LAYERS = {
    **{"M": "mamba2", "mamba": "mamba2", "linear_attention": "mamba2"},
    **{"*": "attn", "attention": "attn", "full_attention": "attn"},
    **{"-": "mlp", "mlp": "mlp"},
    **{"E": "moe", "moe": "moe"},
}


def bamba(options: Options) -> ModelConfig:
    """Bamba: Mamba-2 in most layers and attention in some, an MLP after each (IBM, Princeton, CMU and UIUC 2024)."""
    refuse_others(options, "bamba", READ["bamba"], SILENT["bamba"])
    silu_only(options, "hidden_act", "bamba")
    agree(options, "partial_rotary_factor", 0.5, "the value that transformers fixes outside rope_parameters")
    n_layers, d_model = whole(options, "num_hidden_layers"), whole(options, "hidden_size")
    attends = options.get("attn_layer_indices") or []
    if not isinstance(attends, (list, tuple)):
        raise ConfigError(f"attn_layer_indices must be a list of layers, not {shown(attends)}")
    strange = [at for at in attends if type(at) is not int or at not in range(n_layers)]
    if strange:
        raise ConfigError(f"attn_layer_indices has {shown(strange[0])}, expected layers below {n_layers}")
    positions = rotary(options, base=10000.0, fraction=0.5) if attends else {}
    if attends:
        agree(options, "attn_rotary_emb", positions["rotary_dim"], "the rotary part of a head")
    d_inner = expanded(options, "mamba_expand", d_model)
    bias = flag(options, "attention_bias", False)
    if options.get("mamba_d_head") == "auto":
        options = {name: value for name, value in options.items() if name != "mamba_d_head"}
    n_heads = whole(options, "mamba_n_heads", 128)
    return ModelConfig(
        **(_stack(options, eps=("rms_norm_eps", 1e-5)) | positions),
        layer_types=tuple("attn+mlp" if at in attends else "mamba2+mlp" for at in range(n_layers)),
        d_inner=d_inner,
        d_state=whole(options, "mamba_d_state", 256),
        d_conv=whole(options, "mamba_d_conv", 4),
        d_ssm_head=head_size(options, ("mamba_n_heads", "mamba_d_head"), 128, d_inner // n_heads, d_inner),
        n_ssm_groups=whole(options, "mamba_n_groups", 1),
        dt_limit=limit("time_step_limit", options.get("time_step_limit")),
        conv_bias=flag(options, "mamba_conv_bias", True),
        mamba_bias=flag(options, "mamba_proj_bias", False),
        act_fn="silu",
        gated_mlp=True,
        mlp_bias=flag(options, "mlp_bias", False),
        attn_in_bias=bias,
        attn_out_bias=bias,
    )


def jamba(options: Options) -> ModelConfig:
    """Jamba: Mamba in most layers, attention in one of `attn_layer_period`, an MLP after each (Lieber et al. 2024)."""
    refuse_others(options, "jamba", READ["jamba"], SILENT["jamba"], mamba_inner_layernorms=True)
    silu_only(options, "hidden_act", "jamba")
    n_layers = whole(options, "num_hidden_layers")
    attends = _every(options, "attn", 8, 4, n_layers)
    n_experts = whole(options, "num_experts" if "num_experts" in options else "num_local_experts", 16)
    routed = _every(options, "expert", 2, 1, n_layers) if n_experts != 1 else []
    fields = _stack(options, eps=("rms_norm_eps", 1e-6))
    rank = None if options.get("mamba_dt_rank", "auto") == "auto" else whole(options, "mamba_dt_rank")
    return ModelConfig(
        **fields,
        layer_types=tuple(
            ("attn" if at in attends else "mamba") + ("+moe" if at in routed else "+mlp") for at in range(n_layers)
        ),
        experts=Experts(
            n_experts,
            whole(options, "num_experts_per_tok", 2),
            whole(options, "intermediate_size"),
            normalize_weights=False,
        )
        if routed
        else None,
        positional_embedding_type="none",
        d_inner=expanded(options, "mamba_expand", whole(options, "hidden_size")),
        d_state=whole(options, "mamba_d_state", 16),
        dt_rank=rank,
        d_conv=whole(options, "mamba_d_conv", 4),
        conv_bias=flag(options, "mamba_conv_bias", True),
        mamba_bias=flag(options, "mamba_proj_bias", False),
        ssm_normalization_type="RMS" if len(attends) < n_layers else None,
        ssm_eps=fields["eps"],
        act_fn="silu",
        gated_mlp=True,
        mlp_bias=False,
        attn_in_bias=False,
        attn_out_bias=False,
    )


def nemotron_h(options: Options) -> ModelConfig:
    """Nemotron-H: every layer is one of Mamba-2, attention and an MLP (Blakeman et al. 2025).

    As in transformers, step sizes are at least `time_step_min`.
    """
    refuse_others(
        options, "nemotron_h", READ["nemotron_h"], SILENT["nemotron_h"],
        attention_bias=False, num_nextn_predict_layers=0,
    )  # fmt: skip
    silu_only(options, "mamba_hidden_act", "nemotron_h")
    layers = _nemotron_layers(options)
    agree(options, "num_hidden_layers", len(layers), "the number of layers that are named")
    d_head = whole(options, "head_dim", 128)
    agree(options, "attention_head_dim", d_head, "head_dim")
    options = {**options, "num_hidden_layers": len(layers), "head_dim": d_head}
    n_heads, d_ssm_head = whole(options, "mamba_num_heads", 128), whole(options, "mamba_head_dim", 64)
    has_mlp = "mlp" in layers or "moe" in layers
    return ModelConfig(
        **_stack(options, eps=("layer_norm_epsilon", 1e-5)),
        layer_types=layers,
        experts=_nemotron_experts(options) if "moe" in layers else None,
        positional_embedding_type="none",
        d_inner=n_heads * d_ssm_head,
        d_state=whole(options, "ssm_state_size", 128),
        d_conv=whole(options, "conv_kernel", 4),
        d_ssm_head=d_ssm_head,
        n_ssm_groups=whole(options, "n_groups", 8),
        dt_limit=limit("time_step_min", (options.get("time_step_min", 0.001), math.inf)),
        conv_bias=flag(options, "use_conv_bias", True),
        mamba_bias=flag(options, "use_bias", False),
        act_fn=activation(options, "mlp_hidden_act", "relu2") if has_mlp else None,
        mlp_bias=flag(options, "mlp_bias", False),
        attn_in_bias=False,
        attn_out_bias=False,
    )


def _nemotron_experts(options: Options) -> Experts:
    return Experts(
        whole(options, "n_routed_experts" if "n_routed_experts" in options else "num_local_experts", 8),
        whole(options, "num_experts_per_tok", 2),
        whole(options, "moe_intermediate_size", 7688),
        router="sigmoid",
        normalize_weights=flag(options, "norm_topk_prob", True),
        weight_factor=float(number(options, "routed_scaling_factor", 1.0)),
        n_groups=whole(options, "n_group", 1),
        groups_per_token=whole(options, "topk_group", 1),
        d_shared=whole(options, "moe_shared_expert_intermediate_size", 7688),
        d_latent=None if options.get("moe_latent_size") is None else whole(options, "moe_latent_size"),
    )


def _stack(options: Options, *, eps: tuple[str, float]) -> dict[str, Any]:
    """The fields that all hybrids read from the same options."""
    return {
        **sizes(options),
        "n_key_value_heads": kv_heads(options, 8),
        "normalization_type": "RMS",
        "eps": float(number(options, *eps)),
        "tie_word_embeddings": flag(options, "tie_word_embeddings", False),
        "unembed_bias": False,
        **general(options),
    }


def _every(options: Options, part: str, period: int, offset: int, n_layers: int) -> list[int]:
    """The layers with a part that recurs every `period` layers, from layer `offset` on."""
    period = whole(options, f"{part}_layer_period", period)
    offset = whole(options, f"{part}_layer_offset", offset, least=0)
    if offset >= period:
        raise ConfigError(f"{part}_layer_offset={offset} must be below {part}_layer_period={period}")
    return list(range(offset, n_layers, period))


def _nemotron_layers(options: Options) -> tuple[str, ...]:
    """The kind of each layer, from the list of transformers 5 or the letters of the published files."""
    named = options.get("layers_block_type") or options.get("layer_types") or options.get("hybrid_override_pattern")
    if not named:
        raise KeyError("layers_block_type")
    if not isinstance(named, (str, list, tuple)):
        raise ConfigError(f"layers_block_type must be a list with the kind of each layer, not {shown(named)}")
    for kind in named:
        if not isinstance(kind, str) or kind not in NEMOTRON_LAYERS:
            raise unknown("kind of layer", kind, [name for name in NEMOTRON_LAYERS if len(name) > 1])
    return tuple(NEMOTRON_LAYERS[kind] for kind in named)
