"""What the config.json of a Mamba, Mamba-2 or Bamba checkpoint says, as a `ModelConfig`.

1. An option is read, or it must have the one value that is supported, or it says nothing about the numbers. Any other
   is refused by its name, unless it is empty.
2. Sizes that are written twice must agree.

Mamba's files know no limit of length: `N_CTX` stands for it. In half precision transformers keeps Mamba's residual
stream in float32 (`residual_in_fp32`); here it has the type of the weights, as in every family, so that logits differ
from theirs by the rounding of that type. In float32 there is no difference.

Sources: the configuration and modelling files of `transformers` 4 and 5 for each `model_type`; Gu and Dao 2023
("Mamba"); Dao and Gu 2024 ("Transformers are SSMs").
"""

from __future__ import annotations

import math
from typing import Any

from interp.config import ModelConfig
from interp.errors import ConfigError, nearest
from interp.weights.hf_config import Options, general, refuse_unless, rotary, sizes

N_CTX = 2**20

READ_BOTH = {
    "vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand", "intermediate_size",
    "layer_norm_epsilon", "hidden_act", "use_bias", "use_conv_bias", "tie_word_embeddings", "initializer_range",
    "d_model", "n_layer", "d_inner",
}  # fmt: skip
READ = {
    "mamba": READ_BOTH | {"time_step_rank"},
    "mamba2": READ_BOTH | {"num_heads", "head_dim", "n_groups", "time_step_limit"},
    "bamba": {
        "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "head_dim",
        "num_key_value_heads", "max_position_embeddings", "attn_layer_indices", "attn_rotary_emb", "rope_parameters",
        "rope_theta", "rope_scaling", "partial_rotary_factor", "rms_norm_eps", "hidden_act", "attention_bias",
        "mlp_bias", "tie_word_embeddings", "initializer_range", "mamba_n_heads", "mamba_d_head", "mamba_n_groups",
        "mamba_d_state", "mamba_d_conv", "mamba_expand", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit",
    },
}  # fmt: skip
FIXED = {"rms_norm": True, "is_causal": True, "add_cross_attention": False, "is_encoder_decoder": False}
# How fresh weights are drawn, which kernels run, how far the vocabulary was padded. Published files of Mamba-2 say
# `norm_before_gate: true`; transformers reads it nowhere and normalises behind the gate.
SILENT_BOTH = {
    "time_step_scale", "time_step_min", "time_step_max", "time_step_floor", "time_step_init_scheme",
    "rescale_prenorm_residual", "residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple",
}  # fmt: skip
SILENT = {
    "mamba": SILENT_BOTH | {"use_mambapy", "use_associative_scan"},
    "mamba2": SILENT_BOTH | {"time_step_rank", "norm_before_gate", "chunk_size"},
    "bamba": {"attention_dropout", "num_logits_to_keep", "mamba_chunk_size", "z_loss_coefficient", "use_mamba_kernels"},
}
# What every configuration of transformers has: labels, tokens, what calls return, how text is drawn.
GENERAL = {
    "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "is_decoder", "label2id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
    "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache", "model_type",
}  # fmt: skip


def mamba(options: Options) -> ModelConfig:
    """Mamba (Gu and Dao 2023)."""
    fields = _both(options, "mamba")
    if options.get("time_step_rank", "auto") != "auto":
        fields["dt_rank"] = _whole(options, "time_step_rank")
    # transformers takes intermediate_size where it is given, whatever expand says.
    fields["d_inner"] = _whole(options, "intermediate_size", fields["d_inner"])
    _agree(options, "d_inner", fields["d_inner"], "intermediate_size, or expand times hidden_size")
    return ModelConfig(**fields)


def mamba2(options: Options) -> ModelConfig:
    """Mamba-2 (Dao and Gu 2024)."""
    fields = _both(options, "mamba2")
    for name in ("intermediate_size", "d_inner"):
        _agree(options, name, fields["d_inner"], "expand times hidden_size")
    return ModelConfig(
        **fields,
        d_ssm_head=_head_size(options, ("num_heads", "head_dim"), 128, 64, fields["d_inner"]),
        n_ssm_groups=_whole(options, "n_groups", 8),
        dt_limit=_limit(options),
    )


def bamba(options: Options) -> ModelConfig:
    """Bamba: Mamba-2 in most layers and attention in some, an MLP behind each (IBM, Princeton, CMU and UIUC 2024)."""
    _refuse(options, "bamba")
    _agree(options, "partial_rotary_factor", 0.5, "what transformers fixes it at, but for rope_parameters")
    n_layers, d_model = _whole(options, "num_hidden_layers"), _whole(options, "hidden_size")
    fields, attends = sizes(options), options.get("attn_layer_indices") or []
    strange = [at for at in attends if at not in range(n_layers)]
    if strange:
        raise ConfigError(f"attn_layer_indices has {strange[0]!r}, expected layers below {n_layers}")
    if attends:
        fields |= rotary(options, base=10000.0, fraction=0.5)
        _agree(options, "attn_rotary_emb", fields["rotary_dim"], "the rotary part of a head")
    d_inner = int(_number(options, "mamba_expand", 2) * d_model)
    bias = _flag(options, "attention_bias", False)
    if options.get("mamba_d_head") == "auto":
        options = {name: value for name, value in options.items() if name != "mamba_d_head"}
    n_heads = _whole(options, "mamba_n_heads", 128)
    return ModelConfig(
        **fields,
        layer_types=tuple("attn+mlp" if at in attends else "mamba2+mlp" for at in range(n_layers)),
        n_key_value_heads=options.get("num_key_value_heads", 8),
        d_inner=d_inner,
        d_state=_whole(options, "mamba_d_state", 256),
        d_conv=_whole(options, "mamba_d_conv", 4),
        d_ssm_head=_head_size(options, ("mamba_n_heads", "mamba_d_head"), 128, d_inner // n_heads, d_inner),
        n_ssm_groups=_whole(options, "mamba_n_groups", 1),
        dt_limit=_limit(options),
        conv_bias=_flag(options, "mamba_conv_bias", True),
        mamba_bias=_flag(options, "mamba_proj_bias", False),
        act_fn="silu",
        gated_mlp=True,
        mlp_bias=_flag(options, "mlp_bias", False),
        attn_in_bias=bias,
        attn_out_bias=bias,
        normalization_type="RMS",
        eps=float(_number(options, "rms_norm_eps", 1e-5)),
        tie_word_embeddings=_flag(options, "tie_word_embeddings", False),
        unembed_bias=False,
        **general(options),
    )


def _both(options: Options, kind: str) -> dict[str, Any]:
    """The fields that both generations have, with `d_inner` from `expand`."""
    _refuse(options, kind)
    n_layers, d_model = _whole(options, "num_hidden_layers"), _whole(options, "hidden_size")
    _agree(options, "n_layer", n_layers, "num_hidden_layers")
    _agree(options, "d_model", d_model, "hidden_size")
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_ctx": N_CTX,
        "d_vocab": _whole(options, "vocab_size"),
        "layer_types": (kind,) * n_layers,
        "d_inner": int(_number(options, "expand", 2) * d_model),
        "d_state": _whole(options, "state_size", {"mamba": 16, "mamba2": 128}[kind]),
        "d_conv": _whole(options, "conv_kernel", 4),
        "conv_bias": _flag(options, "use_conv_bias", True),
        "mamba_bias": _flag(options, "use_bias", False),
        "normalization_type": "RMS",
        "eps": float(_number(options, "layer_norm_epsilon", 1e-5)),
        "tie_word_embeddings": _flag(options, "tie_word_embeddings", kind == "mamba"),
        "unembed_bias": False,
        **general(options),
    }


def _refuse(options: Options, kind: str) -> None:
    """Refuse options that are unknown, or whose value is not supported."""
    read = READ[kind] | FIXED.keys()
    for name, value in options.items():
        empty = value is None or value == {} or value == []
        if empty or name.startswith("_") or name in read | SILENT[kind] | GENERAL:
            continue
        close = nearest(name, read, most=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{name}={value!r} is no known option of a {kind} model, and may change its numbers{hint}")
    refuse_unless(options, **FIXED)
    if options.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"hidden_act={options['hidden_act']!r} is not supported in a {kind} model, only 'silu' is")


def _head_size(options: Options, names: tuple[str, str], heads: int, size: int, d_inner: int) -> int:
    """Channels of a head, where that times the number of heads is all of them."""
    n_heads, d_head = _whole(options, names[0], heads), _whole(options, names[1], size)
    if n_heads * d_head != d_inner:
        raise ConfigError(
            f"{names[0]}={n_heads} heads of {names[1]}={d_head} channels contradict expand times hidden_size, {d_inner}"
        )
    return d_head


def _limit(options: Options) -> tuple[float, float] | None:
    """The least and the largest step size, None where neither is bounded."""
    given = options.get("time_step_limit")
    if given is None:
        return None
    # JSON has no infinity: transformers 5 writes an object in its place.
    ends = (
        [math.inf if end == {"__float__": "Infinity"} else end for end in given]
        if isinstance(given, (list, tuple))
        else []
    )
    if len(ends) != 2 or not all(isinstance(end, (int, float)) for end in ends):
        raise ConfigError(f"time_step_limit must be the least and the largest step size, not {given!r}")
    return None if ends[0] <= 0 and ends[1] == math.inf else (float(ends[0]), float(ends[1]))


def _agree(options: Options, name: str, expected: float, other: str) -> None:
    if options.get(name, expected) != expected:
        raise ConfigError(f"{name}={options[name]!r} contradicts {other}, {expected}")


def _number(options: Options, name: str, default: float) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a number above 0, not {value!r}")
    return value


def _whole(options: Options, name: str, default: int | None = None) -> int:
    value = options[name] if default is None else options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number from 1 on, not {value!r}")
    return value


def _flag(options: Options, name: str, default: bool) -> bool:
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")
    return value
