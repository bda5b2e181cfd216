"""From the config.json of Llama and models built like it to a `ModelConfig`: one function for each family.

They have RMS norms before attention and MLP, rotary positions and a gated MLP, and no biases; each function says what
its family does in another way.

Sources: the configuration and modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.arguments import is_several, shown
from interp.config import ModelConfig
from interp.errors import ConfigError
from interp.weights.huggingface.configs.checks import Watched, defaults, instead, refuse_unread
from interp.weights.huggingface.configs.shared import activation, causal_only, layer_kinds, llama_like, rope_of, window
from interp.weights.options import Options, flag, number, whole


def llama(options: Options) -> ModelConfig:
    """Llama and models built like it, such as SmolLM2 (Touvron et al. 2023)."""
    return llama_like(options, bias=flag(options, "attention_bias", False), mlp_bias=flag(options, "mlp_bias", False))


def mistral(options: Options) -> ModelConfig:
    """Mistral: every query sees the same number of positions (Jiang et al. 2023)."""
    return llama_like(options, **window(options, default=4096))


def qwen2(options: Options) -> ModelConfig:
    """Qwen 2 and 2.5: biases of queries, keys and values (Yang et al. 2024)."""
    return llama_like(options, attn_in_bias=True, **_qwen_window(options))


def qwen3(options: Options) -> ModelConfig:
    """Qwen 3: a norm of queries and keys in place of their biases (Yang et al. 2025)."""
    bias = flag(options, "attention_bias", False)
    return llama_like(defaults(options, head_dim=128), bias=bias, qk_norm="RMS", **_qwen_window(options))


def _qwen_window(options: Options) -> dict[str, Any]:
    """Later layers are local where `use_sliding_window` says so."""
    n_layers, first = whole(options, "num_hidden_layers", least=0), whole(options, "max_window_layers", 28, least=0)
    kinds = layer_kinds(options, ["global" if at < first else "local" for at in range(n_layers)])
    return window(options, default=4096, layers=kinds) if flag(options, "use_sliding_window", False) else {}


def smollm3(options: Options) -> ModelConfig:
    """SmolLM3: every fourth layer does not rotate (Bakouch et al. 2025; Yang et al. 2025, "RoPE to NoPE and Back")."""
    n_layers = whole(options, "num_hidden_layers", least=0)
    every = whole(options, "no_rope_layer_interval", 4)
    rotates = options.get("no_rope_layers")  # 1 where a layer rotates, whatever the name says
    if rotates is None:
        rotates = [int((at + 1) % every != 0) for at in range(n_layers)]
    if not is_several(rotates) or len(rotates) != n_layers or any(one not in (0, 1) for one in rotates):
        raise ConfigError(f"no_rope_layers must have a 0 or a 1 for each of {n_layers} layers, not {shown(rotates)}")
    still = tuple(at for at, one in enumerate(rotates) if not one)
    windowed = flag(options, "use_sliding_window", False) and options.get("sliding_window") is not None
    kinds = layer_kinds(options, ["local" if windowed and at in still else "global" for at in range(n_layers)])
    return llama_like(
        defaults(options, num_key_value_heads=4),
        rope_theta=2_000_000.0,
        bias=flag(options, "attention_bias", False),
        mlp_bias=flag(options, "mlp_bias", False),
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        nope_layers=still,
        **window(options, layers=kinds),
    )


def granite(options: Options) -> ModelConfig:
    """Granite: factors for embedding, attention, residual stream and logits (IBM 2024, "Granite 3.0")."""
    return llama_like(
        options,
        bias=flag(options, "attention_bias", False),
        mlp_bias=flag(options, "mlp_bias", False),
        embed_scale=float(number(options, "embedding_multiplier", 1.0)),
        attn_scale=1.0 / number(options, "attention_multiplier", 1.0),
        residual_scale=float(number(options, "residual_multiplier", 1.0)),
        logit_scale=1.0 / number(options, "logits_scaling", 1.0),
    )


def olmo(options: Options) -> ModelConfig:
    """OLMo: layer norms without weights (Groeneveld et al. 2024)."""
    return llama_like(
        options,
        bias=flag(options, "attention_bias", False),
        normalization_type="LNPre",
        eps=1e-5,
        clip_qkv=None if options.get("clip_qkv") is None else float(number(options, "clip_qkv")),
    )


def olmo2(options: Options) -> ModelConfig:
    """OLMo 2: norms after attention and MLP and none before, and one of all queries and keys (OLMo Team 2024)."""
    return llama_like(
        options,
        bias=flag(options, "attention_bias", False),
        eps=number(options, "rms_norm_eps", 1e-5),
        norm_placement="post",
        qk_norm="RMS_all_heads",
    )


def phi3(options: Options) -> ModelConfig:
    """Phi-3 and Phi-4-mini: fused projections, LongRoPE (Abdin et al. 2024)."""
    trained = whole(options, "original_max_position_embeddings", 4096)
    rope = options.get("rope_scaling") or options.get("rope_parameters")
    if isinstance(rope, Mapping):
        kind = rope.get("rope_type", rope.get("type"))
        # transformers reads every scaling of this family as LongRoPE, whose older name here was "yarn".
        renamed = {**rope, "rope_type": "longrope"} if kind in ("su", "yarn") else rope
        options = instead(options, rope_scaling=None, rope_parameters=renamed)
    cfg = llama_like(
        instead(options, original_max_position_embeddings=trained),
        rotated=1.0,
        eps=number(options, "rms_norm_eps", 1e-5),
        **window(options),
    )
    if cfg.rope_scaling is not None and cfg.rope_scaling.kind != "longrope":
        raise ConfigError(f"rope_type={cfg.rope_scaling.kind!r} is not supported in a phi3 model, only 'longrope'")
    return cfg


def stablelm(options: Options) -> ModelConfig:
    """StableLM: layer norms, a rotated quarter of each head (Bellagente et al. 2024)."""
    parallel = flag(options, "use_parallel_residual", False)
    return llama_like(
        defaults(options, num_key_value_heads=32),
        rotated=0.25,
        normalization_type="LN",
        eps=number(options, "layer_norm_eps", 1e-5),
        attn_in_bias=flag(options, "use_qkv_bias", False),
        parallel_attn_mlp=parallel,
        shared_norm=parallel,
        qk_norm="LN_each_head" if flag(options, "qk_layernorm", False) else None,
    )


def starcoder2(options: Options) -> ModelConfig:
    """StarCoder2: layer norms, a plain MLP, biases everywhere, a window (Lozhkov et al. 2024)."""
    bias = flag(options, "use_bias", True)
    return llama_like(
        defaults(options, num_key_value_heads=2),
        bias=bias,
        mlp_bias=bias,
        gated_mlp=False,
        act_fn=activation(options, "hidden_act", "gelu_pytorch_tanh"),
        normalization_type="LN",
        eps=number(options, "norm_epsilon", 1e-5),
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        **window(options),
    )


def cohere(options: Options) -> ModelConfig:
    """Command R: parallel parts that read one layer norm without bias; logits have a factor (Cohere 2024)."""
    return llama_like(
        options,
        rope_theta=500_000.0,
        bias=flag(options, "attention_bias", False),
        normalization_type="LN",
        norm_bias=False,
        eps=number(options, "layer_norm_eps", 1e-5),
        rotary_adjacent_pairs=True,
        parallel_attn_mlp=True,
        shared_norm=True,
        qk_norm="LN_each_head" if options.get("use_qk_norm") else None,
        logit_scale=float(number(options, "logit_scale", 0.0625)),
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
    )


def gemma(options: Options) -> ModelConfig:
    """Gemma (Gemma Team 2024, "Gemma: Open Models Based on Gemini Research and Technology")."""
    causal_only(options)
    name = options.get("hidden_activation") or options.get("hidden_act", "gelu_pytorch_tanh")
    # Files of the first weeks say "gelu" and mean the approximation by tanh, which transformers puts in its place.
    act = activation({"hidden_act": "gelu_pytorch_tanh" if name == "gelu" else name}, "hidden_act", "gelu_pytorch_tanh")
    return llama_like(defaults(options, head_dim=256), **(_gemma(options) | {"act_fn": act}))


def gemma2(options: Options) -> ModelConfig:
    """Gemma 2: norms on both sides, soft caps, every other layer local (Gemma Team 2024, "Gemma 2", section 2)."""
    causal_only(options)
    n_layers = whole(options, "num_hidden_layers", least=0)
    kinds = layer_kinds(options, ["global" if at % 2 else "local" for at in range(n_layers)])
    return llama_like(
        defaults(options, head_dim=256, num_key_value_heads=4),
        **_gemma(options),
        **_gemma_sides(options),
        attn_scores_soft_cap=_cap(options, "attn_logit_softcapping", 50.0),
        output_logits_soft_cap=_cap(options, "final_logit_softcapping", 30.0),
        **window(options, default=4096, layers=kinds),
    )


def gemma3_text(options: Options) -> ModelConfig:
    """Gemma 3: norms of queries and keys; local layers have a rotary base of their own (Gemma Team 2025, section 2)."""
    causal_only(options)
    options.get("attn_logit_softcapping")  # transformers has the option, and caps no scores
    n_layers = whole(options, "num_hidden_layers", least=0)
    every = whole(options, "sliding_window_pattern", whole(options, "_sliding_window_pattern", 6))
    kinds = layer_kinds(options, ["local" if (at + 1) % every else "global" for at in range(n_layers)])
    windowed = window(options, default=4096, layers=kinds)
    near, far = _gemma3_rope(options, "sliding_attention"), _gemma3_rope(options, "full_attention")
    # A local layer rotates in its own way, even if its window is as long as the context.
    n_ctx = whole(options, "max_position_embeddings")
    windowed = windowed or ({"window_size": n_ctx, "attn_types": kinds} if kinds and "local" in kinds else {})
    return llama_like(
        defaults(options, head_dim=256, num_key_value_heads=4),
        positional_embedding_type="rotary",
        rotary_base=far[0],
        rope_scaling=far[1],
        **({"rotary_base_local": near[0], "rope_scaling_local": near[1]} if windowed else {}),
        qk_norm="RMS",
        **_gemma(options),
        **_gemma_sides(options),
        output_logits_soft_cap=_cap(options, "final_logit_softcapping", None),
        **windowed,
    )


def gemma3(options: Options) -> ModelConfig:
    """The text model of a multimodal Gemma 3."""
    text = options.get("text_config")
    if not isinstance(text, Mapping):
        raise ConfigError(f"text_config must be an object with the options of the text model, not {shown(text)}")
    tied = flag(options, "tie_word_embeddings", True)
    named = {"model_type": "gemma3_text", "tie_word_embeddings": tied, "_name_or_path": options.get("_name_or_path")}
    watched = Watched({**named, **text})
    cfg = gemma3_text(watched)
    refuse_unread(watched, "gemma3_text")
    return cfg.replace(output_logits_soft_cap=None)  # which transformers applies in the model of text alone


def _gemma(options: Options) -> dict[str, Any]:
    """What all Gemmas have: scaled embeddings, norms that store their weights less 1, tied embeddings."""
    bias = flag(options, "attention_bias", False)
    fields = {} if "hidden_activation" not in options else {"act_fn": activation(options, "hidden_activation", "")}
    return {
        "act_fn": "gelu_new",
        **fields,
        "attn_in_bias": bias,
        "attn_out_bias": bias,
        "embed_scale": whole(options, "hidden_size") ** 0.5,
        "norm_unit_offset": True,
        "tie_word_embeddings": flag(options, "tie_word_embeddings", True),
    }


def _gemma_sides(options: Options) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common: norms on both sides, and a scale of scores of its own."""
    return {"norm_placement": "both", "attn_scale": number(options, "query_pre_attn_scalar", 256) ** 0.5}


def _cap(options: Options, name: str, default: float | None) -> float | None:
    cap = options.get(name, default)
    return None if cap is None else float(number({name: cap}, name))


def _gemma3_rope(options: Options, kind: str) -> tuple[float, Any]:
    """Base and scaling of the local or of the global layers, in the form of transformers 4 or 5."""
    base = 1_000_000.0 if kind == "full_attention" else float(number(options, "rope_local_base_freq", 10_000.0))
    both = options.get("rope_parameters") or {}
    if not isinstance(both, Mapping) or not all(isinstance(one or {}, Mapping) for one in both.values()):
        raise ConfigError(f"rope_parameters must have a set for each kind of layer, not {shown(both)}")
    own = dict(both.get(kind) or {})
    if kind == "full_attention":
        own |= options.get("rope_scaling") or {}
        return rope_of(options, own, base)
    return rope_of({"max_position_embeddings": options["max_position_embeddings"]}, own, base)
