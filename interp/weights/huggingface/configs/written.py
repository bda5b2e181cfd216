"""From a `ModelConfig` to the options of a family's config.json: what its function in `families` reads, written back.

Each function writes the options under which its family comes nearest to a configuration; `describe` in `write` reads
them back and compares. transformers' names of its classes stand below.

Source: the configuration files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from interp.config import ModelConfig, RopeScaling


def _sizes(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "max_position_embeddings": cfg.n_ctx,
        "intermediate_size": cfg.d_mlp or 4 * cfg.d_model,
    }


def _grouped(cfg: ModelConfig) -> dict[str, Any]:
    return _sizes(cfg) | {"num_key_value_heads": cfg.n_kv_heads, "head_dim": cfg.d_head}


def _rope(cfg: ModelConfig, *, partial: bool = False) -> dict[str, Any]:
    """Rotary options in the form of transformers 5, and the base under the name that transformers 4 reads as well.

    With `partial` they say which share of each head rotates, for families in which it need not be all of it.
    """
    rope = _rope_set(cfg.rotary_base, cfg.rope_scaling)
    options = {"rope_parameters": rope, "rope_theta": cfg.rotary_base}
    if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "dynamic":
        options["max_position_embeddings"] = cfg.rope_scaling.original_n_ctx
    if partial:
        options["rope_parameters"] = rope | {"partial_rotary_factor": _rotated_share(cfg)}
    return options


def _rope_set(base: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The rotary options of layers that rotate in the same way."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if scaling is None:
        return rope
    rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        rope |= {"original_max_position_embeddings": scaling.original_n_ctx}
    if scaling.kind in ("yarn", "longrope"):
        rope |= {"attention_factor": scaling.attention_factor}
    if scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    elif scaling.kind == "yarn":
        rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    elif scaling.kind == "longrope":
        rope |= {"short_factor": list(scaling.short_factor or ()), "long_factor": list(scaling.long_factor or ())}
    return rope


def _rotated_share(cfg: ModelConfig) -> float:
    """The share of a head that rotates, such that the channels of a head times it are `rotary_dim` or a bit more."""
    share = (cfg.rotary_dim or 0) / max(cfg.d_head, 1)
    return share if int(cfg.d_head * share) == cfg.rotary_dim else math.nextafter(share, 1.0)


def _inverse(value: float) -> float:
    """A number whose reciprocal is the value, to the last bit if there is one."""
    near = 1.0 / value
    found = (one for one in (near, math.nextafter(near, math.inf), math.nextafter(near, 0.0)) if 1.0 / one == value)
    return next(found, near)


def _window(cfg: ModelConfig) -> dict[str, Any]:
    """The window of every layer."""
    return {"sliding_window": cfg.window_size}


def _windows(cfg: ModelConfig) -> dict[str, Any]:
    """The window of local layers, and which layers are local."""
    local = [cfg.attention_kind(layer).window is not None for layer in range(cfg.n_layers)]
    kinds = ["sliding_attention" if one else "full_attention" for one in local]
    return {"sliding_window": cfg.window_size or cfg.n_ctx, "layer_types": kinds, "use_sliding_window": any(local)}


def _gpt2(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "n_layer": cfg.n_layers,
        "n_embd": cfg.d_model,
        "n_positions": cfg.n_ctx,
        "n_head": cfg.n_heads,
        "n_inner": cfg.d_mlp,
        "activation_function": cfg.act_fn,
        "layer_norm_epsilon": cfg.eps,
        "scale_attn_weights": cfg.use_attn_scale,
    }


def _gpt_neox(cfg: ModelConfig) -> dict[str, Any]:
    rope = _rope(cfg, partial=True)
    del rope["rope_theta"]  # the family has a name of its own for it
    return (
        _sizes(cfg)
        | rope
        | {
            "hidden_act": cfg.act_fn,
            "layer_norm_eps": cfg.eps,
            "use_parallel_residual": cfg.parallel_attn_mlp,
            "attention_bias": cfg.attn_in_bias,
            "rotary_pct": _rotated_share(cfg),
            "rotary_emb_base": cfg.rotary_base,
        }
    )


def _gpt_neo(cfg: ModelConfig) -> dict[str, Any]:
    kinds = ["local" if cfg.attention_kind(layer).window else "global" for layer in range(cfg.n_layers)]
    return {
        "hidden_size": cfg.d_model,
        "num_layers": cfg.n_layers,
        "num_heads": cfg.n_heads,
        "max_position_embeddings": cfg.n_ctx,
        "intermediate_size": cfg.d_mlp,
        "window_size": cfg.window_size or cfg.n_ctx,
        "attention_types": [[kinds, 1]],
        "attention_layers": kinds,
        "activation_function": cfg.act_fn,
        "layer_norm_epsilon": cfg.eps,
    }


def _gptj(cfg: ModelConfig) -> dict[str, Any]:
    options = _gpt2(cfg)
    del options["scale_attn_weights"]  # they always are
    return options | {"rotary_dim": cfg.rotary_dim}


def _opt(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "max_position_embeddings": cfg.n_ctx,
        "ffn_dim": cfg.d_mlp,
        "word_embed_proj_dim": cfg.d_model,
        "activation_function": cfg.act_fn,
        "enable_bias": cfg.attn_in_bias,
        "layer_norm_elementwise_affine": cfg.has_norm_weights,
        "_remove_final_layer_norm": not cfg.final_norm,
        "init_std": float(cfg.initializer_range),
    }


def _bloom(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": cfg.d_model,
        "n_layer": cfg.n_layers,
        "n_head": cfg.n_heads,
        "seq_length": cfg.n_ctx,
        "layer_norm_epsilon": cfg.eps,
    }


def _falcon(cfg: ModelConfig) -> dict[str, Any]:
    two_norms = cfg.parallel_attn_mlp and not cfg.shared_norm
    grouped = two_norms or cfg.n_kv_heads not in (1, cfg.n_heads)
    options = {
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "max_position_embeddings": cfg.n_ctx,
        "ffn_hidden_size": cfg.d_mlp,
        "activation": cfg.act_fn,
        "layer_norm_epsilon": cfg.eps,
        "bias": cfg.attn_in_bias,
        "new_decoder_architecture": grouped,
        "multi_query": cfg.n_kv_heads == 1,
        "parallel_attn": grouped or cfg.parallel_attn_mlp,
        "alibi": cfg.positional_embedding_type == "alibi",
    }
    options |= {"num_kv_heads": cfg.n_kv_heads, "num_ln_in_parallel_attn": 2 if two_norms else 1} if grouped else {}
    return options if options["alibi"] else options | _rope(cfg)


def _phi(cfg: ModelConfig) -> dict[str, Any]:
    heads = {"num_key_value_heads": cfg.n_kv_heads, "qk_layernorm": cfg.qk_norm is not None}
    return _sizes(cfg) | _rope(cfg, partial=True) | heads | {"hidden_act": cfg.act_fn, "layer_norm_eps": cfg.eps}


def _llama_like(cfg: ModelConfig) -> dict[str, Any]:
    return _grouped(cfg) | _rope(cfg) | {"hidden_act": cfg.act_fn, "rms_norm_eps": cfg.eps}


def _with_bias(cfg: ModelConfig) -> dict[str, Any]:
    return _llama_like(cfg) | {"attention_bias": cfg.attn_out_bias}


def _llama(cfg: ModelConfig) -> dict[str, Any]:
    return _with_bias(cfg) | {"mlp_bias": cfg.mlp_bias}


def _mistral(cfg: ModelConfig) -> dict[str, Any]:
    return _llama_like(cfg) | _window(cfg)


def _qwen2(cfg: ModelConfig) -> dict[str, Any]:
    return _llama_like(cfg) | _windows(cfg)


def _qwen3(cfg: ModelConfig) -> dict[str, Any]:
    return _with_bias(cfg) | _windows(cfg)


def _gemma2(cfg: ModelConfig) -> dict[str, Any]:
    windows = _windows(cfg)
    del windows["use_sliding_window"]  # `layer_types` alone decides
    options = _with_bias(cfg) | windows
    options["hidden_activation"] = options.pop("hidden_act")
    return options | {
        "query_pre_attn_scalar": round((cfg.attn_scale or 0.0) ** 2),
        "attn_logit_softcapping": cfg.attn_scores_soft_cap,
        "final_logit_softcapping": cfg.output_logits_soft_cap,
    }


def _gemma3_text(cfg: ModelConfig) -> dict[str, Any]:
    options = _gemma2(cfg)
    del options["rope_theta"]  # each kind of layer has its own
    far = _rope_set(cfg.rotary_base, cfg.rope_scaling)
    near = far if cfg.rotary_base_local is None else _rope_set(cfg.rotary_base_local, cfg.rope_scaling_local)
    return options | {"rope_parameters": {"full_attention": far, "sliding_attention": near}}


def _phi3(cfg: ModelConfig) -> dict[str, Any]:
    trained = cfg.n_ctx if cfg.rope_scaling is None else cfg.rope_scaling.original_n_ctx
    options = _sizes(cfg) | _rope(cfg, partial=True) | _window(cfg) | {"original_max_position_embeddings": trained}
    return options | {"num_key_value_heads": cfg.n_kv_heads, "hidden_act": cfg.act_fn, "rms_norm_eps": cfg.eps}


def _olmo(cfg: ModelConfig) -> dict[str, Any]:
    options = _with_bias(cfg)
    del options["rms_norm_eps"]  # it is always the same
    return options | {"clip_qkv": cfg.clip_qkv}


def _stablelm(cfg: ModelConfig) -> dict[str, Any]:
    options = _sizes(cfg) | _rope(cfg, partial=True) | {"hidden_act": cfg.act_fn, "layer_norm_eps": cfg.eps}
    return options | {
        "num_key_value_heads": cfg.n_kv_heads,
        "use_qkv_bias": cfg.attn_in_bias,
        "use_parallel_residual": cfg.parallel_attn_mlp,
        "qk_layernorm": cfg.qk_norm is not None,
    }


def _starcoder2(cfg: ModelConfig) -> dict[str, Any]:
    options = _grouped(cfg) | _rope(cfg) | _window(cfg)
    return options | {"hidden_act": cfg.act_fn, "norm_epsilon": cfg.eps, "use_bias": cfg.attn_out_bias}


def _cohere(cfg: ModelConfig) -> dict[str, Any]:
    options = _grouped(cfg) | _rope(cfg) | {"hidden_act": cfg.act_fn, "layer_norm_eps": cfg.eps}
    return options | {
        "attention_bias": cfg.attn_out_bias,
        "use_qk_norm": cfg.qk_norm is not None,
        "logit_scale": float(cfg.logit_scale),
    }


def _granite(cfg: ModelConfig) -> dict[str, Any]:
    return _with_bias(cfg) | {
        "embedding_multiplier": float(cfg.embed_scale),
        "attention_multiplier": _inverse(cfg.attn_scale or 1.0),
        "residual_multiplier": float(cfg.residual_scale),
        "logits_scaling": _inverse(cfg.logit_scale),
    }


def _smollm3(cfg: ModelConfig) -> dict[str, Any]:
    rotates = [int(layer not in cfg.nope_layers) for layer in range(cfg.n_layers)]
    return _llama(cfg) | _windows(cfg) | {"no_rope_layers": rotates}


def _mamba2(cfg: ModelConfig) -> dict[str, Any]:
    options = {
        "num_hidden_layers": cfg.n_layers,
        "hidden_size": cfg.d_model,
        "state_size": cfg.d_state,
        "conv_kernel": cfg.d_conv,
        "expand": _expansion(cfg),
        "use_conv_bias": cfg.conv_bias,
        "use_bias": cfg.mamba_bias,
        "layer_norm_epsilon": cfg.eps,
        "hidden_act": "silu",
        "num_heads": cfg.n_ssm_heads,
        "head_dim": cfg.d_ssm_head,
        "n_groups": cfg.n_ssm_groups,
    }
    return options | ({} if cfg.dt_limit is None else {"time_step_limit": list(cfg.dt_limit)})


def _expansion(cfg: ModelConfig) -> float:
    """The mixer's width divided by that of the residual stream; transformers takes integers only."""
    times, rest = divmod(cfg.d_inner or 0, cfg.d_model)
    return times + rest / cfg.d_model if rest else times


def _mamba(cfg: ModelConfig) -> dict[str, Any]:
    others = ("num_heads", "head_dim", "n_groups", "time_step_limit")
    options = {name: value for name, value in _mamba2(cfg).items() if name not in others}
    return options | {"intermediate_size": cfg.d_inner, "time_step_rank": cfg.dt_rank}


def _falcon_mamba(cfg: ModelConfig) -> dict[str, Any]:
    return _mamba(cfg) | {"mixer_rms_eps": cfg.ssm_eps}


def _hybrid(cfg: ModelConfig) -> dict[str, Any]:
    return _grouped(cfg) | {
        "rms_norm_eps": cfg.eps,
        "hidden_act": cfg.act_fn,
        "mamba_d_state": cfg.d_state,
        "mamba_d_conv": cfg.d_conv,
        "mamba_expand": _expansion(cfg),
        "mamba_conv_bias": cfg.conv_bias,
        "mamba_proj_bias": cfg.mamba_bias,
    }


def _bamba(cfg: ModelConfig) -> dict[str, Any]:
    options = _hybrid(cfg) | {
        "attn_layer_indices": cfg.layers_with("attn"),
        "attention_bias": cfg.attn_in_bias,
        "mlp_bias": cfg.mlp_bias,
        "mamba_n_heads": cfg.n_ssm_heads,
        "mamba_d_head": cfg.d_ssm_head,
        "mamba_n_groups": cfg.n_ssm_groups,
    }
    if cfg.positional_embedding_type == "rotary":
        options |= {"rope_parameters": _rope(cfg, partial=True)["rope_parameters"]}
    return options | ({} if cfg.dt_limit is None else {"time_step_limit": list(cfg.dt_limit)})


def _jamba(cfg: ModelConfig) -> dict[str, Any]:
    attends = cfg.layers_with("attn") or [cfg.n_layers]
    period = attends[1] - attends[0] if len(attends) > 1 else max(cfg.n_layers, attends[0] + 1)
    return _hybrid(cfg) | {
        "attn_layer_offset": attends[0],
        "attn_layer_period": period,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "mamba_dt_rank": cfg.dt_rank,
        "use_mamba_kernels": False,
    }


def _nemotron_h(cfg: ModelConfig) -> dict[str, Any]:
    names = {"mamba2": "mamba", "attn": "attention", "mlp": "mlp"}
    return _grouped(cfg) | {
        "layers_block_type": [names.get(cfg.layer_type(at), cfg.layer_type(at)) for at in range(cfg.n_layers)],
        "layer_norm_epsilon": cfg.eps,
        "mlp_hidden_act": cfg.act_fn or "relu2",
        "mlp_bias": cfg.mlp_bias and cfg.has_mlp,
        "mamba_num_heads": cfg.n_ssm_heads,
        "mamba_head_dim": cfg.d_ssm_head,
        "n_groups": cfg.n_ssm_groups,
        "ssm_state_size": cfg.d_state,
        "conv_kernel": cfg.d_conv,
        "use_conv_bias": cfg.conv_bias,
        "use_bias": cfg.mamba_bias,
        "time_step_min": (cfg.dt_limit or (0.0,))[0],
    }


OPTIONS: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _with_bias,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "phi3": _phi3,
    "olmo": _olmo,
    "olmo2": _with_bias,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
    "cohere": _cohere,
    "granite": _granite,
    "smollm3": _smollm3,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "opt": _opt,
    "bloom": _bloom,
    "falcon": _falcon,
    "phi": _phi,
    "mamba": _mamba,
    "falcon_mamba": _falcon_mamba,
    "mamba2": _mamba2,
    "bamba": _bamba,
    "jamba": _jamba,
    "nemotron_h": _nemotron_h,
}
# transformers' classes with a language modelling head.
ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "cohere": "CohereForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gpt_neo": "GPTNeoForCausalLM",
    "gptj": "GPTJForCausalLM",
    "opt": "OPTForCausalLM",
    "bloom": "BloomForCausalLM",
    "falcon": "FalconForCausalLM",
    "phi": "PhiForCausalLM",
    "mamba": "MambaForCausalLM",
    "falcon_mamba": "FalconMambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "bamba": "BambaForCausalLM",
    "jamba": "JambaForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
}
