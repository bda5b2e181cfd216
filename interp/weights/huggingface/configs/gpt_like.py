"""From the config.json of GPT-2 and models descended from it to a `ModelConfig`: one function for each family.

Sources: the configuration and modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

from interp.arguments import is_several, is_whole, shown
from interp.config import ATTENTION_TYPES, ModelConfig
from interp.errors import ConfigError, unknown
from interp.weights.huggingface.configs.checks import agree, defaults, instead, refuse_unless
from interp.weights.huggingface.configs.shared import activation, general, head_share, kv_heads, rotary, sizes, window
from interp.weights.options import Options, flag, number, whole

# How Megatron, which trained BLOOM, was run.
BLOOM_SILENT = frozenset(
    {
        "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "skip_bias_add",
        "skip_bias_add_qkv", "slow_but_exact", "unk_token_id",
    }
)  # fmt: skip


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
        d_head=head_share(options, "n_embd", "n_head"),
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
    _equal_heads(options)
    base, fraction = number(options, "rotary_emb_base", 10000.0), number(options, "rotary_pct", 0.25)
    # transformers reads these two names only inside rope_parameters.
    for name, value, read in (
        ("rope_theta", base, "rotary_emb_base"),
        ("partial_rotary_factor", fraction, "rotary_pct"),
    ):
        if not options.get("rope_parameters"):
            agree(options, name, value, f"{read}, which transformers reads in its place")
    return ModelConfig(
        **(sizes(options) | rotary(options, base=base, fraction=fraction)),
        act_fn=activation(options, "hidden_act", "gelu"),
        eps=number(options, "layer_norm_eps", 1e-5),
        parallel_attn_mlp=flag(options, "use_parallel_residual", True),
        tie_word_embeddings=flag(options, "tie_word_embeddings", False),
        attn_in_bias=bias,
        attn_out_bias=bias,
        unembed_bias=False,
        **general(options),
    )


def gpt_neo(options: Options) -> ModelConfig:
    """GPT-Neo and TinyStories: every other layer is local, and scores are not scaled (Black et al. 2021)."""
    options = _plain_names(options, num_heads="num_attention_heads", num_layers="num_hidden_layers")
    local = instead(options, sliding_window=whole(options, "window_size", 256))
    _equal_heads(options)
    return ModelConfig(
        **sizes(options),
        **window(local, layers=_neo_layers(options)),
        act_fn=activation(options, "activation_function", "gelu_new"),
        eps=number(options, "layer_norm_epsilon", 1e-5),
        use_attn_scale=False,
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        attn_in_bias=False,
        unembed_bias=False,
        **general(options),
    )


def _neo_layers(options: Options) -> tuple[str, ...]:
    """Which layers are local: `attention_layers`, or `attention_types` with pairs of a pattern and its repetitions."""
    n_layers, given = whole(options, "num_hidden_layers", least=0), options.get("attention_layers")
    types = options.get("attention_types", [[list(ATTENTION_TYPES), 12]])
    if given is None:
        if not is_several(types) or not all(_repeats(pair) for pair in types):
            raise ConfigError(f"attention_types must be pairs of a list and its repetitions, not {shown(types)}")
        if sum(len(kinds) * times for kinds, times in types) == n_layers:  # before a damaged file can fill the memory
            given = [kind for kinds, times in types for kind in list(kinds) * times]
    if given is None or not is_several(given) or len(given) != n_layers:
        raise ConfigError(
            f"attention_types={shown(types)} and attention_layers={shown(given)} must name a kind for each of "
            f"num_layers={n_layers}"
        )
    for kind in given:
        if not isinstance(kind, str) or kind not in ATTENTION_TYPES:
            raise unknown("kind of attention layer", kind, ATTENTION_TYPES)
    return tuple(given)


def _repeats(pair: object) -> bool:
    return (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and isinstance(pair[0], list | tuple)
        and is_whole(pair[1])
        and pair[1] >= 0
    )


def gptj(options: Options) -> ModelConfig:
    """GPT-J: attention and MLP read one norm, and pairs of neighbours rotate (Wang and Komatsuzaki 2021)."""
    refuse_unless(options, rotary=True, scale_attn_weights=True)
    options = _plain_names(
        options,
        n_embd="hidden_size",
        n_head="num_attention_heads",
        n_layer="num_hidden_layers",
        n_positions="max_position_embeddings",
        n_inner="intermediate_size",
    )
    _equal_heads(options)
    return ModelConfig(
        **sizes(options),
        positional_embedding_type="rotary",
        rotary_dim=whole(options, "rotary_dim", 64),
        rotary_adjacent_pairs=True,
        act_fn=activation(options, "activation_function", "gelu_new"),
        eps=number(options, "layer_norm_epsilon", 1e-5),
        parallel_attn_mlp=True,
        shared_norm=True,
        tie_word_embeddings=flag(options, "tie_word_embeddings", False),
        attn_in_bias=False,
        attn_out_bias=False,
        **general(options),
    )


def opt(options: Options) -> ModelConfig:
    """OPT (Zhang et al. 2022)."""
    # In a layer without a norm before it, as of OPT 350M, the stream itself is normalised after each part.
    refuse_unless(options, do_layer_norm_before=True, learned_embeddings=True, scale_embeddings=False)
    d_model, bias = whole(options, "hidden_size"), flag(options, "enable_bias", True)
    if options.get("word_embed_proj_dim") is not None:
        agree(options, "word_embed_proj_dim", d_model, "hidden_size")
    _equal_heads(options)
    return ModelConfig(
        **sizes(instead(options, intermediate_size=whole(options, "ffn_dim"))),
        act_fn=activation(options, "activation_function", "relu"),
        normalization_type="LN" if flag(options, "layer_norm_elementwise_affine", True) else "LNPre",
        final_norm=not flag(options, "_remove_final_layer_norm", False),
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        attn_in_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        unembed_bias=False,
        **general(instead(options, initializer_range=number(options, "init_std", 0.02))),
    )


def bloom(options: Options) -> ModelConfig:
    """BLOOM: a norm after the embedding, and ALiBi (Scao et al. 2022)."""
    refuse_unless(options, apply_residual_connection_post_layernorm=False)
    if flag(options, "slow_but_exact", False) and whole(options, "pretraining_tp", 1) > 1:
        # transformers then multiplies in slices, and leaves out the biases of what heads and MLPs add.
        raise ConfigError("slow_but_exact=True with pretraining_tp above 1 is another computation: set one of them off")
    options = _plain_names(options, n_embed="hidden_size", n_head="num_attention_heads", n_layer="num_hidden_layers")
    n_ctx = whole(options, "seq_length", 2048)  # the longest prompt of its training; transformers knows no longest
    _equal_heads(options)
    return ModelConfig(
        **sizes(instead(options, max_position_embeddings=n_ctx)),
        positional_embedding_type="alibi",
        embed_norm=True,
        eps=number(options, "layer_norm_epsilon", 1e-5),
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        unembed_bias=False,
        **general(options),
    )


def falcon(options: Options) -> ModelConfig:
    """Falcon: keys and values shared by all heads or by groups, parallel parts, ALiBi or rotary (Almazrouei 2023)."""
    refuse_unless(options, apply_residual_connection_post_layernorm=False)
    options = _plain_names(
        defaults(options, max_position_embeddings=2048), n_embed="hidden_size", ffn_hidden_size="intermediate_size"
    )
    own_sizes, n_norms = sizes(options), options.get("num_ln_in_parallel_attn")
    grouped = flag(options, "new_decoder_architecture", False)
    parallel, n_heads = flag(options, "parallel_attn", True), own_sizes["n_heads"]
    shared = options.get("num_kv_heads")
    if grouped:
        refuse_unless(options, parallel_attn=True)
        kv = n_heads if shared is None else whole(options, "num_kv_heads")
    elif flag(options, "multi_query", True):
        kv = 1
    else:
        kv = n_heads
        if shared is not None:
            agree(options, "num_kv_heads", n_heads, "num_attention_heads")
    if n_norms not in ((None, 1, 2) if grouped else (None, 1)):
        raise ConfigError(
            f"num_ln_in_parallel_attn={shown(n_norms)} is not supported with new_decoder_architecture={grouped}; it "
            f"must be {'1 or 2' if grouped else '1'}"
        )
    two = grouped and n_norms != 1
    bias, alibi = flag(options, "bias", False), flag(options, "alibi", False)
    positions = {"positional_embedding_type": "alibi", "alibi_bfloat16": True}
    return ModelConfig(
        **(own_sizes | (positions if alibi else rotary(options, base=10000.0))),
        n_key_value_heads=kv,
        act_fn=activation(options, "activation", "gelu"),
        eps=number(options, "layer_norm_epsilon", 1e-5),
        parallel_attn_mlp=parallel,
        shared_norm=parallel and not two,
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        attn_in_bias=bias,
        attn_out_bias=bias,
        mlp_bias=bias,
        unembed_bias=False,
        **general(options),
    )


def phi(options: Options) -> ModelConfig:
    """Phi-1, Phi-1.5 and Phi-2: attention and MLP read one norm, half of each head rotates (Li et al. 2023)."""
    return ModelConfig(
        **(sizes(options) | rotary(options, base=10000.0, fraction=0.5)),
        n_key_value_heads=kv_heads(options, None),
        act_fn=activation(options, "hidden_act", "gelu_new"),
        eps=number(options, "layer_norm_eps", 1e-5),
        qk_norm="LN" if flag(options, "qk_layernorm", False) else None,
        parallel_attn_mlp=True,
        shared_norm=True,
        tie_word_embeddings=flag(options, "tie_word_embeddings", False),
        **general(options),
    )


def _equal_heads(options: Options) -> None:
    """Refuse a `head_dim` other than an equal share of the width, which transformers takes whatever it says."""
    if options.get("head_dim") is not None:
        share = head_share(options, "hidden_size", "num_attention_heads")
        agree(options, "head_dim", share, "hidden_size over the heads")


def _plain_names(options: Options, **names: str) -> Options:
    """The options with sizes under the names that most families have; an MLP is four times as wide by default.

    Raises:
        ConfigError: two names of one size disagree.
    """
    found: dict[str, int] = {}
    for own, plain in names.items():
        if options.get(own) is not None:
            found[plain] = whole(options, own, least=0)
            if options.get(plain) is not None:
                agree(options, plain, found[plain], own)
    options = instead(options, **found)
    if options.get("intermediate_size") is None:
        options = instead(options, intermediate_size=4 * whole(options, "hidden_size"))
    return options
