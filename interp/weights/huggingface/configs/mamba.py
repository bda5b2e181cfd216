"""From the config.json of a Mamba, Mamba-2 or Falcon Mamba checkpoint to a `ModelConfig`.

These files give no maximum length, so `N_CTX` is used. In half precision transformers keeps Mamba's residual stream in
float32 (`residual_in_fp32`); here it has the type of the weights, as in every family, so that logits differ from theirs
by the rounding of that type. In float32 there is no difference.

Sources: the configuration and modelling files of `transformers` 4 and 5 for each `model_type`; Gu and Dao 2023
("Mamba"); Dao and Gu 2024 ("Transformers are SSMs"); Zuo et al. 2024 ("Falcon Mamba").
"""

from __future__ import annotations

from typing import Any

from interp.config import ModelConfig
from interp.weights.huggingface.configs.checks import agree, expanded, head_size, limit, refuse_others, silu_only
from interp.weights.huggingface.configs.shared import general
from interp.weights.options import Options, flag, number, whole

N_CTX = 2**20

READ_ALL = {
    "vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand", "intermediate_size",
    "layer_norm_epsilon", "hidden_act", "use_bias", "use_conv_bias", "tie_word_embeddings", "initializer_range",
    "d_model", "n_layer", "d_inner",
}  # fmt: skip
READ = {
    "mamba": READ_ALL | {"time_step_rank"},
    "falcon_mamba": READ_ALL | {"time_step_rank", "mixer_rms_eps"},
    "mamba2": READ_ALL | {"num_heads", "head_dim", "n_groups", "time_step_limit"},
}
# Options without effect on the numbers: how untrained weights are drawn, which kernels run, how far the vocabulary was
# padded. Published files of Mamba-2 say `norm_before_gate: true`; transformers ignores it and applies the gate first.
SILENT_ALL = {
    "time_step_scale", "time_step_min", "time_step_max", "time_step_floor", "time_step_init_scheme",
    "rescale_prenorm_residual", "residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple",
}  # fmt: skip
KERNELS = {"use_mambapy", "use_associative_scan"}
SILENT = {
    "mamba": SILENT_ALL | KERNELS,
    "falcon_mamba": SILENT_ALL | KERNELS | {"use_falcon_mambapy"},
    "mamba2": SILENT_ALL | {"time_step_rank", "norm_before_gate", "chunk_size"},
}


def mamba(options: Options) -> ModelConfig:
    """Mamba (Gu and Dao 2023)."""
    return ModelConfig(**_first_generation(options, "mamba"))


def falcon_mamba(options: Options) -> ModelConfig:
    """Falcon Mamba: Mamba in which norms without weights precede the step size, B and C (Zuo et al. 2024)."""
    fields = _first_generation(options, "falcon_mamba")
    eps = float(number(options, "mixer_rms_eps", 1e-6))
    return ModelConfig(**fields, ssm_normalization_type="RMSPre", ssm_eps=eps)


def mamba2(options: Options) -> ModelConfig:
    """Mamba-2 (Dao and Gu 2024)."""
    fields = _both(options, "mamba2")
    for name in ("intermediate_size", "d_inner"):
        agree(options, name, fields["d_inner"], "expand times hidden_size")
    return ModelConfig(
        **fields,
        d_ssm_head=head_size(options, ("num_heads", "head_dim"), 128, 64, fields["d_inner"]),
        n_ssm_groups=whole(options, "n_groups", 8),
        dt_limit=limit("time_step_limit", options.get("time_step_limit")),
    )


def _first_generation(options: Options, kind: str) -> dict[str, Any]:
    fields = _both(options, kind)
    if options.get("time_step_rank", "auto") != "auto":
        fields["dt_rank"] = whole(options, "time_step_rank")
    # transformers takes intermediate_size where it is given, whatever expand says.
    fields["d_inner"] = whole(options, "intermediate_size", fields["d_inner"])
    agree(options, "d_inner", fields["d_inner"], "intermediate_size, or expand times hidden_size")
    return fields


def _both(options: Options, kind: str) -> dict[str, Any]:
    """The fields that Mamba-1 and Mamba-2 share, with `d_inner` from `expand`."""
    refuse_others(options, kind, READ[kind], SILENT[kind])
    silu_only(options, "hidden_act", kind)
    n_layers, d_model = whole(options, "num_hidden_layers"), whole(options, "hidden_size")
    agree(options, "n_layer", n_layers, "num_hidden_layers")
    agree(options, "d_model", d_model, "hidden_size")
    first = kind != "mamba2"
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_ctx": N_CTX,
        "d_vocab": whole(options, "vocab_size"),
        "layer_types": ("mamba" if first else "mamba2",) * n_layers,
        "d_inner": expanded(options, "expand", d_model),
        "d_state": whole(options, "state_size", 16 if first else 128),
        "d_conv": whole(options, "conv_kernel", 4),
        "conv_bias": flag(options, "use_conv_bias", True),
        "mamba_bias": flag(options, "use_bias", False),
        "normalization_type": "RMS",
        "eps": float(number(options, "layer_norm_epsilon", 1e-5)),
        "tie_word_embeddings": flag(options, "tie_word_embeddings", first),
        "unembed_bias": False,
        **general(options),
    }
