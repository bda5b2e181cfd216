"""What a Hugging Face config.json says, as a `ModelConfig`: one function a family.

config.json of either transformers' generation (4 or 5) is read. An option that changes the computation and is not
supported is refused by its name.

Sources: the configuration and modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.config import ModelConfig, RopeScaling
from interp.errors import ConfigError, nearest

Options = Mapping[str, Any]

# gelu_fast and gelu_pytorch_tanh are gelu_new's formula, written with other constants or by another kernel.
ACTIVATIONS = {
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "silu": "silu",
    "swish": "silu",
}


def gpt2(options: Options) -> ModelConfig:
    """GPT-2 (Radford et al. 2019)."""
    refuse_unless(
        options, scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False, add_cross_attention=False
    )
    return ModelConfig(
        n_layers=options["n_layer"],
        d_model=options["n_embd"],
        n_ctx=options["n_positions"],
        n_heads=options["n_head"],
        d_head=_head_size(options, options["n_embd"], options["n_head"]),
        d_vocab=options["vocab_size"],
        d_mlp=options.get("n_inner") or 4 * options["n_embd"],
        act_fn=activation(options, "activation_function", "gelu_new"),
        eps=options.get("layer_norm_epsilon", 1e-5),
        use_attn_scale=options.get("scale_attn_weights", True),
        tie_word_embeddings=options.get("tie_word_embeddings", True),
        unembed_bias=False,
        **general(options),
    )


def gpt_neox(options: Options) -> ModelConfig:
    """GPT-NeoX and Pythia (Black et al. 2022, Biderman et al. 2023)."""
    bias = options.get("attention_bias", True)
    return ModelConfig(
        **sizes(options),
        **rotary(options, base=options.get("rotary_emb_base", 10000.0), fraction=options.get("rotary_pct", 0.25)),
        act_fn=activation(options, "hidden_act", "gelu"),
        eps=options.get("layer_norm_eps", 1e-5),
        parallel_attn_mlp=options.get("use_parallel_residual", True),
        tie_word_embeddings=options.get("tie_word_embeddings", False),
        attn_in_bias=bias,
        attn_out_bias=bias,
        unembed_bias=False,
        **general(options),
    )


def llama(options: Options) -> ModelConfig:
    """Llama and what is built like it, SmolLM2 among others (Touvron et al. 2023)."""
    bias = options.get("attention_bias", False)
    return _llama_like(options, attn_in_bias=bias, attn_out_bias=bias, mlp_bias=options.get("mlp_bias", False))


def mistral(options: Options) -> ModelConfig:
    """Mistral, with attention to the whole context (Jiang et al. 2023)."""
    _refuse_window(options, options.get("sliding_window", 4096))
    return _llama_like(options, attn_in_bias=False, attn_out_bias=False, mlp_bias=False)


def qwen2(options: Options) -> ModelConfig:
    """Qwen 2 and 2.5, with attention to the whole context (Yang et al. 2024)."""
    n_layers = options["num_hidden_layers"]
    windowed = ["sliding_attention"] * (n_layers - options.get("max_window_layers", 28))
    if options.get("use_sliding_window", False) and "sliding_attention" in (options.get("layer_types") or windowed):
        _refuse_window(options, options.get("sliding_window", 4096))
    return _llama_like(options, attn_in_bias=True, attn_out_bias=False, mlp_bias=False)


def _llama_like(options: Options, *, attn_in_bias: bool, attn_out_bias: bool, mlp_bias: bool) -> ModelConfig:
    return ModelConfig(
        **sizes(options),
        **rotary(options, base=10000.0, fraction=1.0),
        n_key_value_heads=options.get("num_key_value_heads"),
        act_fn=activation(options, "hidden_act", "silu"),
        gated_mlp=True,
        normalization_type="RMS",
        eps=options.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=options.get("tie_word_embeddings", False),
        attn_in_bias=attn_in_bias,
        attn_out_bias=attn_out_bias,
        mlp_bias=mlp_bias,
        unembed_bias=False,
        **general(options),
    )


def sizes(options: Options) -> dict[str, Any]:
    """The sizes of a model with attention, in the names that most families have for them."""
    return {
        "n_layers": options["num_hidden_layers"],
        "d_model": options["hidden_size"],
        "n_ctx": options["max_position_embeddings"],
        "n_heads": options["num_attention_heads"],
        "d_head": _head_size(options, options["hidden_size"], options["num_attention_heads"]),
        "d_vocab": options["vocab_size"],
        "d_mlp": options["intermediate_size"],
    }


def general(options: Options) -> dict[str, Any]:
    """What every family's configuration has: the spread of untrained weights, and the model's name."""
    name = options.get("_name_or_path") or options["model_type"]
    return {"initializer_range": options.get("initializer_range", 0.02), "model_name": name}


def _head_size(options: Options, d_model: int, n_heads: int) -> int:
    given = options.get("head_dim")
    if given is None and d_model % n_heads:
        raise ConfigError(f"{n_heads} heads do not divide a width of {d_model}, and head_dim is not given")
    return int(given) if given is not None else d_model // n_heads


def activation(options: Options, option: str, default: str) -> str:
    """Our name of the nonlinearity that an option names."""
    name = options.get(option, default)
    if name not in ACTIVATIONS:
        close = nearest(str(name), ACTIVATIONS)
        hint = f"; the nearest is {close[0]!r}" if close else ""
        raise ConfigError(f"{option}={name!r} is not supported; choose from {', '.join(ACTIVATIONS)}{hint}")
    return ACTIVATIONS[name]


def rotary(options: Options, *, base: float, fraction: float) -> dict[str, Any]:
    """Rotary fields from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4)."""
    rope: Options = options.get("rope_scaling") or options.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise ConfigError(f"rope_parameters for {', '.join(rope)} are not supported; only one set for all layers is")
    fraction = float(rope.get("partial_rotary_factor", options.get("partial_rotary_factor", fraction)))
    if options["model_type"] not in ("gpt_neox", "bamba") and fraction != 1.0:
        raise ConfigError(
            f"partial_rotary_factor={fraction} is not supported in a {options['model_type']} model, only 1.0"
        )
    found = sizes(options)
    return {
        "positional_embedding_type": "rotary",
        "rotary_dim": int(found["d_head"] * fraction),
        "rotary_base": float(rope.get("rope_theta", options.get("rope_theta", base))),
        "rope_scaling": _rope_scaling(rope, found["n_ctx"]),
    }


def _rope_scaling(rope: Options, n_ctx: int) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_n_ctx=int(rope.get("original_max_position_embeddings", n_ctx)),
        )
    raise ConfigError(f"rope_type={kind!r} is not supported; choose from 'default', 'linear', 'llama3'")


def refuse_unless(options: Options, **supported: bool) -> None:
    """Refuse options that have another value than the supported one; one that is absent has it by default."""
    for name, value in supported.items():
        if options.get(name, value) != value:
            raise ConfigError(f"{name}={options[name]!r} is not supported; only {value!r} is")


def _refuse_window(options: Options, window: int | None) -> None:
    n_ctx = options["max_position_embeddings"]
    if window is not None and window < n_ctx:
        raise ConfigError(
            f"sliding_window={window} is not supported, as it is shorter than the context (max_position_embeddings="
            f"{n_ctx}); only null or at least the context is"
        )
