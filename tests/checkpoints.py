"""Tiny random checkpoints as transformers makes them, one for each family, and the tokenizers that lie beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers
from torch import Tensor

from interp.weights.huggingface.families import FAMILIES

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT2_SIZES = {
    "vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MAMBA_SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 6, "eos_token_id": 0}
DISTILBERT_SIZES = {
    "vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 44, "max_position_embeddings": 48,
}  # fmt: skip
MODERNBERT_SIZES = {**SIZES, "num_hidden_layers": 4, "local_attention": 7, "pad_token_id": 0}
MODERNBERT_BIASES = {
    **MODERNBERT_SIZES, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
    "decoder_bias": False, "classifier_activation": "silu", "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}  # fmt: skip
# Families whose heads predict masked tokens.
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
MAMBA2_SIZES = {**MAMBA_SIZES, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16}
BAMBA_SIZES = {
    **SIZES, "num_hidden_layers": 4, "attn_layer_indices": [1, 2], "num_key_value_heads": 2, "mamba_n_heads": 8,
    "mamba_n_groups": 2, "mamba_d_state": 6, "mamba_chunk_size": 16,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0}
GEMMA3 = {
    **GROUPED, "head_dim": 12, "sliding_window": 7, "query_pre_attn_scalar": 20, "num_hidden_layers": 4,
    "sliding_window_pattern": 2, "final_logit_softcapping": 5.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 900.0, "short_factor": [1.0, 1.2, 1.4, 2.0],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0}
NEO = {
    "vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 48,
    "attention_types": [[["global", "local"], 1]], "window_size": 5, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
GPTJ = {**GPT2_SIZES, "rotary_dim": 4}
BLOOM = {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
FALCON = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
OPT = {**FALCON, "ffn_dim": 44, "pad_token_id": 0}
PHI = {**SIZES, "pad_token_id": 0}
GROUPED_FALCON = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2_SIZES),
    "gpt2-untied": ("gpt2", {**GPT2_SIZES, "tie_word_embeddings": False, "n_inner": 40, "activation_function": "relu"}),
    "gpt2-unscaled": ("gpt2", {**GPT2_SIZES, "scale_attn_weights": False, "activation_function": "gelu_pytorch_tanh"}),
    "gpt_neox": ("gpt_neox", SIZES),
    "gpt_neox-sequential": ("gpt_neox", {**SIZES, "use_parallel_residual": False, "attention_bias": False}),
    "gpt_neox-half-rotary": (
        "gpt_neox",
        {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    "llama": ("llama", SIZES),
    "llama-gqa-tied": ("llama", {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-biases-wide-heads": (
        "llama",
        {**SIZES, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 10},
    ),
    "llama-llama3": ("llama", {**SIZES, "rope_parameters": LLAMA3}),
    "llama-linear": (
        "llama",
        {**SIZES, "rope_parameters": LINEAR},
    ),
    "mistral": ("mistral", {**SIZES, "num_key_value_heads": 2, "sliding_window": None, "hidden_act": "gelu"}),
    "mistral-window-of-the-context": ("mistral", {**SIZES, "num_key_value_heads": 2, "sliding_window": 48}),
    "qwen2": ("qwen2", {**SIZES, "num_key_value_heads": 2}),
    "qwen2-tied": ("qwen2", {**SIZES, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "mistral-window": ("mistral", {**GROUPED, "sliding_window": 5}),
    "qwen2-window": ("qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 12}),
    "qwen3-biases": ("qwen3", {**GROUPED, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 12}),
    "gemma2": ("gemma2", {**GROUPED, "head_dim": 12, "sliding_window": 7, "query_pre_attn_scalar": 20}),
    "gemma2-uncapped": (
        "gemma2",
        {**GROUPED, "head_dim": 12, "final_logit_softcapping": None, "attn_logit_softcapping": None},
    ),
    "gemma3_text": ("gemma3_text", GEMMA3),
    "gemma3": ("gemma3", {"text_config": GEMMA3, "vision_config": VISION}),
    "phi3": ("phi3", GROUPED),
    "phi3-longrope": ("phi3", {**GROUPED, "original_max_position_embeddings": 12, "rope_parameters": LONGROPE}),
    "olmo": ("olmo", {**GROUPED, "clip_qkv": 1.5}),
    "olmo2": ("olmo2", GROUPED),
    "stablelm": ("stablelm", {**GROUPED, "hidden_size": 64}),
    "stablelm-parallel": (
        "stablelm",
        {**GROUPED, "hidden_size": 64, "qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True},
    ),
    "starcoder2": ("starcoder2", {**GROUPED, "sliding_window": 5}),
    "starcoder2-no-biases": ("starcoder2", {**GROUPED, "use_bias": False, "tie_word_embeddings": False}),
    "cohere": ("cohere", {**GROUPED, "use_qk_norm": True}),
    "cohere-biases": ("cohere", {**GROUPED, "attention_bias": True, "tie_word_embeddings": False}),
    "granite": (
        "granite",
        {
            **GROUPED,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("smollm3", {**GROUPED, "num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "smollm3-window": (
        "smollm3",
        {**GROUPED, "no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 4},
    ),
    "llama-dynamic": (
        "llama",
        {
            **SIZES,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 900.0},
        },
    ),
    "llama-yarn": (
        "llama",
        {
            **SIZES,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 900.0,
                "original_max_position_embeddings": 12,
            },
        },
    ),
    "llama-longrope": (
        "llama",
        {**SIZES, "rope_parameters": {**LONGROPE, "factor": 4.0, "original_max_position_embeddings": 12}},
    ),
    "gpt_neo": ("gpt_neo", NEO),
    "gpt_neo-local-and-untied": (
        "gpt_neo",
        {
            **NEO,
            "num_layers": 3,
            "attention_types": [[["local"], 2], [["global"], 1]],
            "window_size": 3,
            "intermediate_size": 40,
            "activation_function": "quick_gelu",
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": False,
        },
    ),
    "gpt_neo-global": ("gpt_neo", {**NEO, "attention_types": [[["global"], 2]]}),
    "gptj": ("gptj", GPTJ),
    "gptj-tied": (
        "gptj",
        {
            **GPTJ,
            "rotary_dim": 8,
            "n_inner": 40,
            "activation_function": "gelu_fast",
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": True,
        },
    ),
    "opt": ("opt", OPT),
    "opt-no-biases": (
        "opt",
        {**OPT, "enable_bias": False, "_remove_final_layer_norm": True, "activation_function": "gelu"},
    ),
    "opt-plain-norms": ("opt", {**OPT, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False}),
    "bloom": ("bloom", BLOOM),
    "bloom-six-heads": (
        "bloom",
        {**BLOOM, "hidden_size": 36, "n_head": 6, "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False},
    ),
    "falcon": ("falcon", FALCON),
    "falcon-groups": ("falcon", GROUPED_FALCON),
    "falcon-groups-one-norm": (
        "falcon",
        {
            **GROUPED_FALCON,
            "num_ln_in_parallel_attn": 1,
            "bias": True,
            "ffn_hidden_size": 40,
            "activation": "relu",
            "layer_norm_epsilon": 1e-3,
            "rope_parameters": LINEAR,
        },
    ),
    "falcon-plain": (
        "falcon",
        {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "tie_word_embeddings": False},
    ),
    "falcon-plain-parallel": ("falcon", {**FALCON, "multi_query": False}),
    "falcon-sequential": ("falcon", {**FALCON, "parallel_attn": False}),
    "falcon-alibi": ("falcon", {**FALCON, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}),
    "falcon-groups-alibi": ("falcon", {**GROUPED_FALCON, "alibi": True, "num_attention_heads": 8}),
    "phi": ("phi", PHI),
    "phi-query-and-key-norms": (
        "phi",
        {
            **PHI,
            "num_key_value_heads": 2,
            "qk_layernorm": True,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-3,
            "tie_word_embeddings": True,
            "rope_parameters": {**LINEAR, "partial_rotary_factor": 1.0},
        },
    ),
    "phi-dynamic": (
        "phi",
        {**PHI, "max_position_embeddings": 16, "rope_parameters": {**LINEAR, "rope_type": "dynamic"}},
    ),
    "bert": ("bert", SIZES),
    "bert-untied": ("bert", {**SIZES, "type_vocab_size": 3, "hidden_act": "relu", "tie_word_embeddings": False}),
    "roberta": ("roberta", {**SIZES, "pad_token_id": 1, "max_position_embeddings": 50, "type_vocab_size": 1}),
    "distilbert": ("distilbert", DISTILBERT_SIZES),
    "distilbert-relu": ("distilbert", {**DISTILBERT_SIZES, "activation": "relu", "tie_word_embeddings": False}),
    "modernbert": ("modernbert", MODERNBERT_SIZES),
    "modernbert-biases": ("modernbert", MODERNBERT_BIASES),
    "mamba": ("mamba", MAMBA_SIZES),
    "mamba-biases": ("mamba", {**MAMBA_SIZES, "use_bias": True, "conv_kernel": 3, "tie_word_embeddings": False}),
    "mamba2": ("mamba2", MAMBA2_SIZES),
    "bamba": ("bamba", BAMBA_SIZES),
    "bamba-biases": (
        "bamba",
        {**BAMBA_SIZES, "attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True, "mamba_conv_bias": False},
    ),
    "bamba-limited-steps": ("bamba", {**BAMBA_SIZES, "attn_layer_indices": [0], "time_step_limit": (0.3, 0.9)}),
    "mamba2-biases": ("mamba2", {**MAMBA2_SIZES, "use_bias": True, "n_groups": 1, "tie_word_embeddings": True}),
}

T5_SIZES = {
    "vocab_size": 61, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}  # fmt: skip
BART_SIZES = {
    "vocab_size": 61, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 3, "encoder_ffn_dim": 40, "decoder_ffn_dim": 36, "max_position_embeddings": 30,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
MARIAN_SIZES = {**BART_SIZES, "activation_function": "swish", "scale_embedding": True}
# Models with an encoder and a decoder.
SEQ2SEQ: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", T5_SIZES),
    "t5-v1.1": ("t5", {**T5_SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5-deep-narrow-heads": (
        "t5",
        {**T5_SIZES, "num_decoder_layers": 3, "num_heads": 5, "d_kv": 3, "feed_forward_proj": "gated-silu"},
    ),
    "bart": ("bart", BART_SIZES),
    "bart-scaled-untied": (
        "bart",
        {**BART_SIZES, "scale_embedding": True, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    "marian": ("marian", MARIAN_SIZES),
    "marian-two-vocabularies": (
        "marian",
        {**MARIAN_SIZES, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 67, "d_model": 12},
    ),
}

# Smaller ones of every family with state-space layers.
SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 5, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
MAMBA2_HEADS: dict[str, Any] = {"num_heads": 6, "head_dim": 8, "n_groups": 2, "chunk_size": 8}
HYBRID: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 4, "attn_layer_indices": [1, 3], "intermediate_size": 20,
    "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 64, "mamba_n_heads": 6,
    "mamba_d_state": 5, "mamba_chunk_size": 8, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
JAMBA: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1,
    "num_experts": 1, "intermediate_size": 20, "num_attention_heads": 3, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "mamba_d_state": 5, **ENDS,
}  # fmt: skip
NEMOTRON: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"], "head_dim": 8,
    "max_position_embeddings": 64, "mamba_num_heads": 6, "mamba_head_dim": 8, "ssm_state_size": 5, "n_groups": 2,
    "time_step_min": 0.6, **ENDS,
}  # fmt: skip
ZAMBA2: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 20, "num_attention_heads": 4,
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "adapter_rank": 3, "n_mamba_heads": 6, "mamba_d_state": 5, "mamba_ngroups": 2, "chunk_size": 8,
    "max_position_embeddings": 64, **ENDS,
}  # fmt: skip
CASES |= {
    "zamba2": ("zamba2", {**ZAMBA2, "use_mem_rope": True, "use_shared_attention_adapter": True}),
    "zamba2-no-positions": ("zamba2", {**ZAMBA2, "add_bias_linear": True}),
    "zamba2-two-blocks": (
        "zamba2",
        {
            **ZAMBA2,
            "num_hidden_layers": 4,
            "layers_block_type": ["hybrid", "linear_attention", "hybrid", "hybrid"],
            "num_mem_blocks": 2,
            "use_shared_attention_adapter": True,
        },
    ),
    "zamba2-grouped": (
        "zamba2",
        {
            **ZAMBA2,
            "use_mem_rope": True,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "time_step_min": 0.6,
        },
    ),
}
# Mixtures of experts, with and without an expert that all positions share.
SPARSE: dict[str, Any] = {**GROUPED, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SHARED = {**SPARSE, "shared_expert_intermediate_size": 20}
GPT_OSS = {
    **GROUPED, "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 6,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 900.0, "factor": 4.0, "truncate": False,
        "original_max_position_embeddings": 12,
    },
}  # fmt: skip
NEMOTRON_MOE = {
    **NEMOTRON, "layers_block_type": ["moe", "linear_attention", "full_attention", "moe", "mlp"],
    "n_routed_experts": 6, "moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 10,
    "num_experts_per_tok": 2,
}  # fmt: skip
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4}),
    "mixtral-window": (
        "mixtral",
        {**GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5, "tie_word_embeddings": True},
    ),
    "qwen2_moe": ("qwen2_moe", SHARED),
    "qwen2_moe-some-layers": (
        "qwen2_moe",
        {**SHARED, "num_hidden_layers": 4, "norm_topk_prob": True, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    "qwen2_moe-window": (
        "qwen2_moe",
        {
            **SHARED,
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "qwen3_moe": ("qwen3_moe", SPARSE),
    "qwen3_moe-window": (
        "qwen3_moe",
        {
            **SPARSE,
            "norm_topk_prob": True,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "mlp_only_layers": [0],
        },
    ),
    "olmoe": ("olmoe", {**GROUPED, "num_experts": 6, "num_experts_per_tok": 3}),
    "olmoe-clipped": (
        "olmoe",
        {**GROUPED, "num_experts": 4, "clip_qkv": 0.8, "norm_topk_prob": True, "num_experts_per_tok": 2},
    ),
    "gpt_oss": ("gpt_oss", GPT_OSS),
    "gpt_oss-clamped": ("gpt_oss", {**GPT_OSS, "swiglu_limit": 0.4, "swiglu_alpha": 1.1, "attention_bias": False}),
    "jamba-experts": ("jamba", {**JAMBA, "num_experts": 4, "expert_layer_period": 3, "expert_layer_offset": 0}),
    "nemotron_h-experts": ("nemotron_h", NEMOTRON_MOE),
    "nemotron_h-latent": ("nemotron_h", {**NEMOTRON_MOE, "moe_latent_size": 8, "mlp_bias": True}),
    "nemotron_h-groups": (
        "nemotron_h",
        {
            **NEMOTRON_MOE,
            "n_group": 3,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": False,
            "mlp_bias": True,
        },
    ),
}
CASES |= MIXTURES
STATE_SPACE = {
    **{"mamba": SMALL, "falcon_mamba": SMALL, "mamba2": {**SMALL, **MAMBA2_HEADS}},
    **{"bamba": HYBRID, "jamba": JAMBA, "nemotron_h": NEMOTRON},
}

# Those that transformer_lens has a bridge for, with keys of two heads.
PADDED: dict[str, Any] = {**SIZES, "pad_token_id": 0}
GQA: dict[str, Any] = {**PADDED, "num_key_value_heads": 2, "head_dim": 8}
NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2_SIZES),
    "gpt_neox": ("gpt_neox", PADDED),
    "gpt_neox-sequential": ("gpt_neox", {**PADDED, "use_parallel_residual": False}),
    "llama-gqa": ("llama", GQA),
}


def attention_of(options: dict[str, Any]) -> str:
    """The implementation of attention to compare with: Falcon's eager one adds its position bias twice."""
    return "sdpa" if options.get("alibi") else "eager"


def tiny(model_type: str, options: dict[str, Any], seed: int = 0) -> Any:
    """A random transformers model in which every weight, biases and norms too, matters to the logits."""
    config = transformers.AutoConfig.for_model(model_type, **options)
    torch.manual_seed(seed)
    attention = attention_of(options)
    head = FAMILIES[model_type].head if model_type in FAMILIES else "CausalLM"
    kind = getattr(transformers, f"AutoModelFor{head}")
    model = kind.from_config(config, attn_implementation=attention, experts_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # a fixed table is no weight
                parameter.normal_(0.0 if parameter.ndim > 1 else 0.5, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "final_logits_bias")):  # learned, though no parameter
                buffer.normal_(0.0, 0.3)
        if model_type == "bart" or (model_type == "marian" and config.share_encoder_decoder_embeddings):
            for stack in (model.model.encoder, model.model.decoder):  # one table, whether the unembedding is it or not
                stack.embed_tokens.weight.copy_(model.model.shared.weight)
    return model


def transformers_model(model_type: str, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    """A tiny random model, with weights large enough for every part of it to matter."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


def bridge_of(model: Any) -> Any:
    """A bridge around a model in memory, which it changes: give it a copy of one that is still wanted."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def gpt2(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_SIZES)).eval()


def word_tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))


def change_weights(folder: Path, **changes: Tensor | None) -> None:
    """Replace tensors of a directory (`__` stands for a dot), or drop those that are None."""
    file = folder / "model.safetensors"
    state: dict[str, Tensor | None] = dict(safetensors.torch.load_file(file))
    state |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    safetensors.torch.save_file({k: v for k, v in state.items() if v is not None}, file, metadata={"format": "pt"})


def tokens_for(model: Any, shape: tuple[int, int] = (3, 48)) -> Tensor:
    config = model.config.get_text_config()
    tokens = torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    # RoBERTa does not count positions where the padding token stands.
    return tokens.masked_fill(tokens == config.pad_token_id, 2) if config.model_type == "roberta" else tokens


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())
