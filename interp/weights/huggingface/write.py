"""From a model to a Hugging Face family: the options of its config.json, and tensors under the family's names.

1. The configuration is written as each family in turn would write it, and read back with the reader of `families`. A
   family is used only if the same configuration comes back, so that no option is lost.
2. The family's table is applied in reverse: each row's pattern is reversed, and weights that the family keeps in one
   tensor are joined.

Mistral is left out: it is Llama with other defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from interp.config import ModelConfig
from interp.errors import ConfigError, UnknownName
from interp.models.gpt import GPT
from interp.weights.build import weights
from interp.weights.checkpoint import Row
from interp.weights.huggingface.families import Family, configure

IGNORED = {"model_name", "initializer_range", "seed", "use_attn_scale", "attn_only", "layer_types"}
# Fields that matter only in models with the part that they describe.
OF_ATTENTION = {
    "d_head", "n_heads", "n_key_value_heads", "attn_scale", "attn_in_bias", "attn_out_bias", "attention_dir",
}  # fmt: skip
OF_ROTARY = {"rotary_dim", "rotary_base", "rotary_adjacent_pairs", "rope_scaling"}
OF_MLP = {"d_mlp", "act_fn", "gated_mlp", "mlp_bias"}
OF_STATES = {"d_inner", "d_state", "d_conv", "conv_bias", "mamba_bias"}
OF_MAMBA1 = {"dt_rank", "ssm_normalization_type"}
OF_MAMBA2 = {"d_ssm_head", "n_ssm_groups", "dt_limit"}


def describe(cfg: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family that computes what a configuration says, and the options of its config.json.

    Raises:
        ConfigError: no family does; the message says how the nearest one differs.
    """
    wanted = computed(cfg)
    tried: dict[str, dict[str, str]] = {}
    for name, options_of in OPTIONS.items():
        options = {"model_type": name, **options_of(cfg), "tie_word_embeddings": cfg.tie_word_embeddings}
        options |= {"vocab_size": cfg.d_vocab, "initializer_range": float(cfg.initializer_range)}
        try:
            family, read_back = configure(options)
        except (ConfigError, UnknownName) as error:
            tried[name] = {"": str(error)}
            continue
        assert isinstance(read_back, ModelConfig)  # none of `OPTIONS` has two stacks
        described = computed(read_back)
        if described == wanted:
            if not all(isinstance(options.get(expand, 1), int) for expand in ("expand", "mamba_expand")):
                raise ConfigError(
                    f"d_inner={cfg.d_inner} is not a multiple of d_model={cfg.d_model}, as transformers requires. Save "
                    "the model in interp's own format: interp.save(model, folder)"
                )
            return family, options
        # A field that only one of the two has depends on another field, which differs as well and is listed.
        tried[name] = {
            field: f"{field}={described[field]!r} where this model has {value!r}"
            for field, value in wanted.items()
            if field in described and described[field] != value
        }
    name = min(tried, key=lambda name: len(tried[name]) + 100 * ("" in tried[name]))
    raise ConfigError(
        f"no Hugging Face family computes what this model does; the nearest, {name}, differs: "
        f"{'; '.join(tried[name].values())}. Save the model in interp's own format: interp.save(model, folder)"
    )


def computed(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration that affect what the model computes, and the kind of each layer."""
    silent = set(IGNORED)
    rotary = cfg.positional_embedding_type == "rotary"
    for there, fields in (
        (cfg.has_attention, OF_ATTENTION),
        (rotary, OF_ROTARY),
        (cfg.has_mlp, OF_MLP),
        (cfg.has_attention and cfg.has_mlp, {"parallel_attn_mlp"}),
        (cfg.has_mamba, OF_STATES),
        ("mamba" in cfg.mixers, OF_MAMBA1),
        ("mamba2" in cfg.mixers, OF_MAMBA2),
        (cfg.ssm_normalization_type is not None, {"ssm_eps"}),
        # Mamba's files give no maximum length, and without position embeddings it does not affect the numbers.
        (cfg.positional_embedding_type != "none", {"n_ctx"}),
        (cfg.normalization_type is not None, {"final_norm"}),
        (cfg.normalization_type is not None or "mamba2" in cfg.mixers, {"eps"}),
    ):
        silent |= set() if there else fields
    relevant = {name: value for name, value in cfg.to_dict().items() if name not in silent}
    return relevant | {"layers": tuple(cfg.layer_type(layer) for layer in range(cfg.n_layers))}


def tensors(model: GPT, family: Family) -> dict[str, Tensor]:
    """A model's weights under a family's names and in its shapes, on the CPU."""
    parts: dict[str, dict[int | str, Tensor]] = {}  # their name -> the part -> our weight
    rows: dict[str, Row] = {}
    for name, weight in weights(model).items():
        row = family.row(name)
        rows[row.theirs] = row
        part = 0 if row.part is None else row.part
        assert not isinstance(part, slice)  # of no family of `OPTIONS`
        parts.setdefault(row.theirs, {})[part] = weight.cpu()
    found: dict[str, Tensor] = {}
    for name, of_tensor in parts.items():
        tensor = _theirs(rows[name], of_tensor)
        pieces = enumerate(tensor.unbind()) if "{i}" in name else [(0, tensor)]
        # The head is not inside the module that the prefix names.
        full = name if name.startswith("lm_head.") else family.prefixes[0] + name
        found |= {full.replace("{i}", str(at)): piece.contiguous() for at, piece in pieces}
    return found


def _theirs(row: Row, parts: dict[int | str, Tensor]) -> Tensor:
    if row.part is None:
        tensor = parts[0]
    elif isinstance(row.part, str):
        tensor = torch.cat([parts[at] for at in "qkv"])
    else:
        tensor = torch.stack([parts[at] for at in range(len(parts))])
    if row.pattern is not None:
        theirs, _, ours = row.pattern.partition(" -> ")
        tensor = rearrange(tensor, f"{ours} -> {theirs}")
    return tensor.contiguous()


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


def _rope(cfg: ModelConfig) -> dict[str, Any]:
    """Rotary options in the form of transformers 5, and the base under the name that transformers 4 reads as well."""
    scaling = cfg.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": cfg.rotary_base}
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_n_ctx,
        }
    return {"rope_parameters": rope, "rope_theta": cfg.rotary_base}


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
    fraction = (cfg.rotary_dim or 0) / max(cfg.d_head, 1)
    rope = _rope(cfg)["rope_parameters"] | {"partial_rotary_factor": fraction}
    return _sizes(cfg) | {
        "hidden_act": cfg.act_fn,
        "layer_norm_eps": cfg.eps,
        "use_parallel_residual": cfg.parallel_attn_mlp,
        "attention_bias": cfg.attn_in_bias,
        "rope_parameters": rope,
        "rotary_pct": fraction,
        "rotary_emb_base": cfg.rotary_base,
    }


def _llama(cfg: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": cfg.attn_in_bias, "mlp_bias": cfg.mlp_bias}
    return _grouped(cfg) | _rope(cfg) | biases | {"hidden_act": cfg.act_fn, "rms_norm_eps": cfg.eps}


def _qwen2(cfg: ModelConfig) -> dict[str, Any]:
    return _grouped(cfg) | _rope(cfg) | {"hidden_act": cfg.act_fn, "rms_norm_eps": cfg.eps, "use_sliding_window": False}


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
    rope = _rope(cfg)["rope_parameters"] | {"partial_rotary_factor": (cfg.rotary_dim or 0) / max(cfg.d_head, 1)}
    options = _hybrid(cfg) | {
        "attn_layer_indices": cfg.layers_with("attn"),
        "attention_bias": cfg.attn_in_bias,
        "mlp_bias": cfg.mlp_bias,
        "mamba_n_heads": cfg.n_ssm_heads,
        "mamba_d_head": cfg.d_ssm_head,
        "mamba_n_groups": cfg.n_ssm_groups,
    }
    options |= {"rope_parameters": rope} if cfg.positional_embedding_type == "rotary" else {}
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
    "qwen2": _qwen2,
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
    "qwen2": "Qwen2ForCausalLM",
    "mamba": "MambaForCausalLM",
    "falcon_mamba": "FalconMambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "bamba": "BambaForCausalLM",
    "jamba": "JambaForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
}
