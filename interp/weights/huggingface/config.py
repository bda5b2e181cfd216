"""From the config.json of GPT-2, GPT-NeoX and models like Llama to a `ModelConfig`: one function for each family.

A config.json of transformers 4 or 5 can be read. An option that changes the computation and is not supported is refused
by name.

Sources: the configuration and modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.arguments import shown
from interp.config import ModelConfig, RopeScaling
from interp.errors import ConfigError, nearest
from interp.weights.checkpoint import ACTIVATION_NAMES
from interp.weights.huggingface.options import agree, refuse_unless
from interp.weights.options import Options, flag, number, whole


def gpt2(options: Options) -> ModelConfig:
    """GPT-2 (Radford et al. 2019)."""
    refuse_unless(
        options, scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False, add_cross_attention=False
    )
    d_model = whole(options, "n_embd")
    return ModelConfig(
        n_layers=whole(options, "n_layer", least=0),
        d_model=d_model,
        n_ctx=whole(options, "n_positions"),
        n_heads=whole(options, "n_head"),
        d_head=_share(options, "n_embd", "n_head"),
        d_vocab=whole(options, "vocab_size"),
        d_mlp=4 * d_model if options.get("n_inner") is None else whole(options, "n_inner"),
        act_fn=activation(options, "activation_function", "gelu_new"),
        eps=number(options, "layer_norm_epsilon", 1e-5),
        use_attn_scale=flag(options, "scale_attn_weights", True),
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        unembed_bias=False,
        **general(options),
    )


def gpt_neox(options: Options) -> ModelConfig:
    """GPT-NeoX and Pythia (Black et al. 2022, Biderman et al. 2023)."""
    bias = flag(options, "attention_bias", True)
    if options.get("head_dim") is not None:
        agree(options, "head_dim", _share(options, "hidden_size", "num_attention_heads"), "hidden_size over the heads")
    base, fraction = number(options, "rotary_emb_base", 10000.0), number(options, "rotary_pct", 0.25)
    # transformers reads these two names only inside rope_parameters.
    for name, value, read in (
        ("rope_theta", base, "rotary_emb_base"),
        ("partial_rotary_factor", fraction, "rotary_pct"),
    ):
        if not options.get("rope_parameters"):
            agree(options, name, value, f"{read}, which transformers reads in its place")
    return ModelConfig(
        **sizes(options),
        **rotary(options, base=base, fraction=fraction),
        act_fn=activation(options, "hidden_act", "gelu"),
        eps=number(options, "layer_norm_eps", 1e-5),
        parallel_attn_mlp=flag(options, "use_parallel_residual", True),
        tie_word_embeddings=flag(options, "tie_word_embeddings", False),
        attn_in_bias=bias,
        attn_out_bias=bias,
        unembed_bias=False,
        **general(options),
    )


def llama(options: Options) -> ModelConfig:
    """Llama and models built like it, such as SmolLM2 (Touvron et al. 2023)."""
    bias = flag(options, "attention_bias", False)
    return _llama_like(options, attn_in_bias=bias, attn_out_bias=bias, mlp_bias=flag(options, "mlp_bias", False))


def mistral(options: Options) -> ModelConfig:
    """Mistral, with attention to the whole context (Jiang et al. 2023)."""
    _refuse_window(options)
    return _llama_like(options, attn_in_bias=False, attn_out_bias=False, mlp_bias=False)


def qwen2(options: Options) -> ModelConfig:
    """Qwen 2 and 2.5, with attention to the whole context (Yang et al. 2024)."""
    kinds = options.get("layer_types")
    if not (kinds is None or isinstance(kinds, (list, tuple))):
        raise ConfigError(f"layer_types must be a list with the kind of each layer, not {shown(kinds)}")
    windowed = whole(options, "num_hidden_layers") > whole(options, "max_window_layers", 28, least=0)
    if flag(options, "use_sliding_window", False) and ("sliding_attention" in kinds if kinds else windowed):
        _refuse_window(options)
    return _llama_like(options, attn_in_bias=True, attn_out_bias=False, mlp_bias=False)


def _llama_like(options: Options, *, attn_in_bias: bool, attn_out_bias: bool, mlp_bias: bool) -> ModelConfig:
    return ModelConfig(
        **sizes(options),
        **rotary(options, base=10000.0, fraction=1.0),
        n_key_value_heads=kv_heads(options, None),
        act_fn=activation(options, "hidden_act", "silu"),
        gated_mlp=True,
        normalization_type="RMS",
        eps=number(options, "rms_norm_eps", 1e-6),
        tie_word_embeddings=flag(options, "tie_word_embeddings", False),
        attn_in_bias=attn_in_bias,
        attn_out_bias=attn_out_bias,
        mlp_bias=mlp_bias,
        unembed_bias=False,
        **general(options),
    )


def sizes(options: Options) -> dict[str, Any]:
    """The sizes of a model with attention, from the options that most families have."""
    d_model, n_heads = whole(options, "hidden_size"), whole(options, "num_attention_heads")
    given = options.get("head_dim") is not None
    d_head = whole(options, "head_dim") if given else _share(options, "hidden_size", "num_attention_heads")
    return {
        "n_layers": whole(options, "num_hidden_layers", least=0),
        "d_model": d_model,
        "n_ctx": whole(options, "max_position_embeddings"),
        "n_heads": n_heads,
        "d_head": d_head,
        "d_vocab": whole(options, "vocab_size"),
        "d_mlp": whole(options, "intermediate_size"),
    }


def kv_heads(options: Options, default: int | None) -> int | None:
    """The number of key and value heads; None, given or by default, means one for each query head."""
    n_heads = options.get("num_key_value_heads", default)
    return None if n_heads is None else whole({"num_key_value_heads": n_heads}, "num_key_value_heads")


def general(options: Options) -> dict[str, Any]:
    """What every family's configuration has: the standard deviation of untrained weights, and the model's name."""
    name = options.get("_name_or_path") or options["model_type"]
    return {"initializer_range": options.get("initializer_range", 0.02), "model_name": str(name)}


def _share(options: Options, width: str, heads: str) -> int:
    """The channels of a head where every head has an equal share of the width."""
    d_model, n_heads = whole(options, width), whole(options, heads)
    if d_model % n_heads:
        raise ConfigError(f"{width}={d_model} is not a multiple of {heads}={n_heads}: give head_dim")
    return d_model // n_heads


def activation(options: Options, option: str, default: str) -> str:
    """Our name for an option's activation function."""
    name = options.get(option, default)
    if not isinstance(name, str) or name not in ACTIVATION_NAMES:
        close = nearest(shown(name), ACTIVATION_NAMES)
        hint = f"; the nearest is {close[0]!r}" if close else ""
        raise ConfigError(f"{option}={shown(name)} is not supported; choose from {', '.join(ACTIVATION_NAMES)}{hint}")
    return ACTIVATION_NAMES[name]


def rotary(options: Options, *, base: float, fraction: float) -> dict[str, Any]:
    """Rotary fields from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4)."""
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(options.get(name) or {}, Mapping):
            raise ConfigError(f"{name} must be an object, not {shown(options[name])}")
    rope: Options = options.get("rope_scaling") or options.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ConfigError(f"rope_parameters for {', '.join(rope)} are not supported; give one set for all layers")
    fraction = number(rope, "partial_rotary_factor", number(options, "partial_rotary_factor", fraction))
    if fraction > 1:
        raise ConfigError(f"the rotated share of a head must be at most 1, not {fraction}")
    if options["model_type"] not in ("gpt_neox", "bamba") and fraction != 1.0:
        raise ConfigError(
            f"partial_rotary_factor={fraction} is not supported in a {options['model_type']} model, only 1.0"
        )
    own_sizes = sizes(options)
    return {
        "positional_embedding_type": "rotary",
        "rotary_dim": int(own_sizes["d_head"] * fraction),
        "rotary_base": float(number(rope, "rope_theta", number(options, "rope_theta", base))),
        "rope_scaling": _rope_scaling(rope, own_sizes["n_ctx"]),
    }


def _rope_scaling(rope: Options, n_ctx: int) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=float(number(rope, "factor")))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=float(number(rope, "factor")),
            low_freq_factor=float(number(rope, "low_freq_factor")),
            high_freq_factor=float(number(rope, "high_freq_factor")),
            original_n_ctx=whole(rope, "original_max_position_embeddings", n_ctx),
        )
    raise ConfigError(f"rope_type={shown(kind)} is not supported; choose from 'default', 'linear', 'llama3'")


def _refuse_window(options: Options) -> None:
    n_ctx = whole(options, "max_position_embeddings")
    window = None if options.get("sliding_window", 0) is None else whole(options, "sliding_window", 4096)
    if window is not None and window < n_ctx:
        raise ConfigError(
            f"sliding_window={window} is not supported: it is shorter than the context (max_position_embeddings="
            f"{n_ctx}); it must be null or at least the context"
        )
