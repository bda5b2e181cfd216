"""Options of a config.json that many families have: sizes, activation functions, positions, windows.

A config.json of transformers 4 or 5 can be read. An option that changes the computation and is not supported is refused
by name.

Sources: the configuration and modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interp.arguments import is_several, real_number, shown
from interp.config import ModelConfig, RopeScaling
from interp.errors import ConfigError, nearest, unknown
from interp.weights.checkpoint import ACTIVATION_NAMES
from interp.weights.huggingface.configs.checks import refuse_unless
from interp.weights.options import Options, flag, number, whole

LAYER_KINDS = {"full_attention": "global", "sliding_attention": "local"}
# Other names of rotary scalings in older files.
ROPE_TYPES = {"su": "longrope", "ntk": "dynamic"}
ROPE_OPTIONS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor",
    "mscale", "mscale_all_dim", "truncate", "short_mscale", "long_mscale", "finetuned",
}  # fmt: skip


def sizes(options: Options) -> dict[str, Any]:
    """The sizes of a model with attention, from the options that most families have."""
    d_model, n_heads = whole(options, "hidden_size"), whole(options, "num_attention_heads")
    given = options.get("head_dim") is not None
    d_head = whole(options, "head_dim") if given else head_share(options, "hidden_size", "num_attention_heads")
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


def suppressed(options: Options) -> tuple[int, ...]:
    """The tokens that generation never writes: of `suppress_tokens`, and of `bad_words_ids` those of one token."""
    words = options.get("bad_words_ids") or []
    if not is_several(words) or not all(is_several(word) for word in words):
        raise ConfigError(f"bad_words_ids must be a list of lists of token ids, not {shown(words)}")
    tokens = options.get("suppress_tokens") or []
    if not is_several(tokens):
        raise ConfigError(f"suppress_tokens must be a list of token ids, not {shown(tokens)}")
    return (*tokens, *(word[0] for word in words if len(word) == 1))


def head_share(options: Options, width: str, heads: str) -> int:
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


def llama_like(
    options: Options, *, bias: bool = False, rope_theta: float = 10000.0, rotated: float | None = None, **own: Any
) -> ModelConfig:
    """A decoder with RMS norms, rotary positions and a gated MLP; `own` is what a family does in another way.

    `rope_theta` and `rotated` are the base and the rotated share of a head, if the options give none (see `rotary`).
    """
    fields = {
        **sizes(options),
        **(rotary(options, base=rope_theta, fraction=rotated) if "positional_embedding_type" not in own else {}),
        "n_key_value_heads": kv_heads(options, None),
        "gated_mlp": True,
        "normalization_type": "RMS",
        "attn_in_bias": bias,
        "attn_out_bias": bias,
        "mlp_bias": False,
        "unembed_bias": False,
        **general(options),
        **own,
    }
    fields.setdefault("act_fn", activation(options, "hidden_act", "silu"))
    fields.setdefault("eps", number(options, "rms_norm_eps", 1e-6))
    fields.setdefault("tie_word_embeddings", flag(options, "tie_word_embeddings", False))
    return ModelConfig(**fields)


def rotary(options: Options, *, base: float, fraction: float | None = None) -> dict[str, Any]:
    """Rotary fields from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).

    `fraction` is the rotated share of a head by default; None for a family that always rotates all of it.
    """
    rope = _rope(options)
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ConfigError(f"rope_parameters for {', '.join(rope)} are not supported; give one set for all layers")
    share = number(rope, "partial_rotary_factor", number(options, "partial_rotary_factor", fraction or 1.0))
    if share > 1:
        raise ConfigError(f"the rotated share of a head must be at most 1, not {share}")
    if fraction is None and share != 1.0:
        kind = options["model_type"]
        raise ConfigError(f"partial_rotary_factor={share} is not supported in a {kind} model, only 1.0")
    own_sizes = sizes(options)
    theta, scaling = rope_of(options, rope, base)
    fields = {
        "positional_embedding_type": "rotary",
        "rotary_dim": int(own_sizes["d_head"] * share),
        "rotary_base": theta,
        "rope_scaling": scaling,
    }
    if scaling is not None and scaling.kind == "dynamic":  # the option is the trained context, which it stretches
        fields["n_ctx"] = int(own_sizes["n_ctx"] * scaling.factor)
    return fields


def _rope(options: Options) -> Options:
    """The rotary options of all layers."""
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(options.get(name) or {}, Mapping):
            raise ConfigError(f"{name} must be an object, not {shown(options[name])}")
    return options.get("rope_scaling") or options.get("rope_parameters") or {}


def rope_of(options: Options, rope: Options, base: float) -> tuple[float, RopeScaling | None]:
    """The base and the scaling that one set of rotary options describes."""
    strange = [name for name in rope if name not in ROPE_OPTIONS and rope[name] is not None]
    if strange:
        raise unknown("option of rope_parameters", strange[0], ROPE_OPTIONS)
    theta = float(number(rope, "rope_theta", number(options, "rope_theta", base)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = ROPE_TYPES.get(kind, kind) if isinstance(kind, str) else kind
    if kind == "default":
        return theta, None
    readers = {"linear": _plain, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
    if not isinstance(kind, str) or kind not in readers:
        raise ConfigError(f"rope_type={shown(kind)} is not supported; choose from 'default', {str([*readers])[1:-1]}")
    return theta, RopeScaling(kind, **readers[kind](options, rope))


def _plain(options: Options, rope: Options) -> dict[str, Any]:
    return {"factor": float(number(rope, "factor"))}


def _dynamic(options: Options, rope: Options) -> dict[str, Any]:
    return _plain(options, rope) | {"original_n_ctx": whole(options, "max_position_embeddings")}


def _llama3(options: Options, rope: Options) -> dict[str, Any]:
    factors = {name: float(number(rope, name)) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    return factors | {"original_n_ctx": _trained_context(options, rope)}


def _yarn(options: Options, rope: Options) -> dict[str, Any]:
    factor, trained = _factor(options, rope), _trained_context(options, rope)
    # As transformers: a null or a zero of beta_fast and beta_slow is the default, and so is one of the two mscales.
    share = {"factor": factor, "original_n_ctx": trained, "attention_factor": _given(rope, "attention_factor")}
    if share["attention_factor"] is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        one, all_dims = (_mscale(factor, float(number(rope, name))) for name in ("mscale", "mscale_all_dim"))
        share["attention_factor"] = one / all_dims
    for name in ("beta_fast", "beta_slow"):
        if rope.get(name):
            share[name] = float(number(rope, name))
    return share | {"truncate": flag(rope, "truncate", True)}


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(options: Options, rope: Options) -> dict[str, Any]:
    factors = {}
    for name in ("short_factor", "long_factor"):
        if not is_several(rope[name]):
            raise ConfigError(f"{name} must be a list with a number for each frequency, not {shown(rope[name])}")
        factors[name] = tuple(real_number(f"each {name}", one, above=0) for one in rope[name])
    return factors | {
        "factor": _factor(options, rope),
        "original_n_ctx": _trained_context(options, rope),
        "attention_factor": _given(rope, "attention_factor"),
    }


def _given(rope: Options, name: str) -> float | None:
    return None if rope.get(name) is None else float(number(rope, name))


def _factor(options: Options, rope: Options) -> float:
    """How much longer the context is than the trained one, given or from the two lengths."""
    if rope.get("factor") is not None:
        return float(number(rope, "factor"))
    return whole(options, "max_position_embeddings") / _trained_context(options, rope)


def _trained_context(options: Options, rope: Options) -> int:
    n_ctx = whole(options, "max_position_embeddings")
    if options.get("original_max_position_embeddings") is not None:
        return whole(options, "original_max_position_embeddings")
    return whole(rope, "original_max_position_embeddings", n_ctx)


def window(options: Options, *, default: int | None = None, layers: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The window of local layers: of all of them, or of those that `layers` calls local.

    A window that is as long as the context is none.
    """
    given = options.get("sliding_window", default)
    size = None if given is None else whole({"sliding_window": given}, "sliding_window")
    none_local = layers is not None and "local" not in layers
    if size is None or none_local or size >= whole(options, "max_position_embeddings"):
        return {}
    return {"window_size": size, "attn_types": layers}


def layer_kinds(options: Options, default: list[str] | None = None) -> tuple[str, ...] | None:
    """Which layers are local and which global, from `layer_types`; `default` if the option is absent."""
    given = options.get("layer_types")
    if given is None:
        return None if default is None else tuple(default)
    if not is_several(given):
        raise ConfigError(f"layer_types must be a list with the kind of each layer, not {shown(given)}")
    n_layers = whole(options, "num_hidden_layers", least=0)
    if len(given) != n_layers:
        raise ConfigError(
            f"layer_types names {len(given)} layers, expected one for each of num_hidden_layers={n_layers}"
        )
    for kind in given:
        if not isinstance(kind, str) or kind not in LAYER_KINDS:
            raise unknown("kind of layer in layer_types", kind, LAYER_KINDS)
    return tuple(LAYER_KINDS[kind] for kind in given)


def causal_only(options: Options) -> None:
    """Refuse a model whose attention looks both ways."""
    if options.get("use_bidirectional_attention"):
        refuse_unless(options, use_bidirectional_attention=False)
