"""From the config.json of a mixture of experts to a `ModelConfig`: one function for each family.

| family | weights of the chosen experts | what else |
|---|---|---|
| `mixtral` | sum to 1 | |
| `qwen2_moe` | as `norm_topk_prob` says | a shared expert with a gate; some layers may have a plain MLP |
| `qwen3_moe` | as `norm_topk_prob` says | a norm of queries and keys; some layers may have a plain MLP |
| `olmoe` | as `norm_topk_prob` says | a norm of all queries and keys together |
| `gpt_oss` | sum to 1 | biases, clamped experts, attention sinks, every other layer local |

All of them are built like Llama around their experts.

Sources: the configuration and modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

from typing import Any

from interp.arguments import is_several, shown
from interp.config import Experts, ModelConfig
from interp.errors import ConfigError
from interp.weights.huggingface.configs.checks import defaults
from interp.weights.huggingface.configs.shared import layer_kinds, llama_like, window
from interp.weights.options import Options, flag, number, whole

# What gpt_oss has where its config.json says nothing of rotary scaling.
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def mixtral(options: Options) -> ModelConfig:
    """Mixtral (Jiang et al. 2024, "Mixtral of Experts")."""
    options = defaults(options, num_key_value_heads=8)
    return llama_like(
        options,
        rope_theta=1_000_000.0,
        eps=number(options, "rms_norm_eps", 1e-5),
        experts=Experts(
            whole(options, "num_experts" if "num_experts" in options else "num_local_experts", 8),
            whole(options, "num_experts_per_tok", 2),
            whole(options, "intermediate_size"),
        ),
        **window(options),
    )


def qwen2_moe(options: Options) -> ModelConfig:
    """Qwen 1.5 MoE and Qwen 2 MoE (Yang et al. 2024, "Qwen2 Technical Report", section 2.2.2)."""
    options = defaults(options, num_key_value_heads=16)
    windowed = {}
    if flag(options, "use_sliding_window", False):
        n_layers, last = whole(options, "num_hidden_layers", least=0), whole(options, "max_window_layers", 28, least=0)
        kinds = layer_kinds(options, ["global" if at % 2 or at >= last else "local" for at in range(n_layers)])
        windowed = window(options, default=4096, layers=kinds)
    elif "local" in (layer_kinds(options) or ()):
        raise ConfigError("layer_types names local layers, and use_sliding_window=False leaves them without a window")
    return llama_like(
        options,
        attn_in_bias=flag(options, "qkv_bias", True),
        **_sparse(
            options,
            Experts(
                whole(options, "num_experts", 60),
                whole(options, "num_experts_per_tok", 4),
                whole(options, "moe_intermediate_size", 1408),
                normalize_weights=flag(options, "norm_topk_prob", False),
                d_shared=whole(options, "shared_expert_intermediate_size", 5632),
                shared_gate=True,
            ),
        ),
        **windowed,
    )


def qwen3_moe(options: Options) -> ModelConfig:
    """Qwen 3 MoE (Yang et al. 2025, "Qwen3 Technical Report", section 2)."""
    options = defaults(options, num_key_value_heads=4)
    windowed = flag(options, "use_sliding_window", False)
    return llama_like(
        options,
        bias=flag(options, "attention_bias", False),
        qk_norm="RMS",
        **_sparse(
            options,
            Experts(
                whole(options, "num_local_experts" if "num_local_experts" in options else "num_experts", 128),
                whole(options, "num_experts_per_tok", 8),
                whole(options, "moe_intermediate_size", 768),
                normalize_weights=flag(options, "norm_topk_prob", False),
            ),
        ),
        **(window(options, default=4096) if windowed else {}),
    )


def olmoe(options: Options) -> ModelConfig:
    """OLMoE (Muennighoff et al. 2024, "OLMoE: Open Mixture-of-Experts Language Models")."""
    return llama_like(
        options,
        bias=flag(options, "attention_bias", False),
        eps=number(options, "rms_norm_eps", 1e-5),
        qk_norm="RMS_all_heads",
        clip_qkv=None if options.get("clip_qkv") is None else float(number(options, "clip_qkv")),
        experts=Experts(
            whole(options, "num_local_experts" if "num_local_experts" in options else "num_experts", 64),
            whole(options, "num_experts_per_tok", 8),
            whole(options, "intermediate_size"),
            normalize_weights=flag(options, "norm_topk_prob", False),
        ),
    )


def gpt_oss(options: Options) -> ModelConfig:
    """gpt-oss (OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", section 2)."""
    if not options.get("rope_scaling") and not options.get("rope_parameters"):
        options = defaults(options, rope_parameters=GPT_OSS_ROPE)
    options = defaults(options, num_key_value_heads=8, head_dim=64)
    n_layers = whole(options, "num_hidden_layers", least=0)
    kinds = layer_kinds(options, ["global" if at % 2 else "local" for at in range(n_layers)])
    return llama_like(
        options,
        rope_theta=150_000.0,
        bias=flag(options, "attention_bias", True),
        eps=number(options, "rms_norm_eps", 1e-5),
        act_fn="silu",
        attn_sinks=True,
        experts=Experts(
            whole(options, "num_local_experts" if "num_local_experts" in options else "num_experts", 128),
            whole(options, "num_experts_per_tok", 4),
            whole(options, "intermediate_size"),
            router_bias=True,
            expert_bias=True,
            swiglu_limit=float(number(options, "swiglu_limit", 7.0)),
            swiglu_alpha=float(number(options, "swiglu_alpha", 1.702)),
        ),
        **window(options, default=128, layers=kinds),
    )


def _sparse(options: Options, experts: Experts) -> dict[str, Any]:
    """The kind of each layer, where every so many have experts and the others a plain MLP."""
    n_layers, every = whole(options, "num_hidden_layers", least=0), whole(options, "decoder_sparse_step", 1)
    plain = options.get("mlp_only_layers") or []
    if not is_several(plain) or any(type(at) is not int for at in plain):
        raise ConfigError(f"mlp_only_layers must be a list of layers, not {shown(plain)}")
    routed = [at not in plain and (at + 1) % every == 0 for at in range(n_layers)]
    return {
        "layer_types": tuple("attn+moe" if one else "attn+mlp" for one in routed),
        "experts": experts if any(routed) else None,
    }
