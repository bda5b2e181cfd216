"""From the config.json of GPT-2 and models descended from it to a `ModelConfig`: one function for each family.

Sources: the configuration and modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

from interp.config import ModelConfig
from interp.weights.huggingface.config import activation, general, head_channels, rotary, sizes
from interp.weights.huggingface.options import refuse_unless
from interp.weights.options import Options, flag, number, whole


def gpt2(options: Options) -> ModelConfig:
    """GPT-2 (Radford et al. 2019)."""
    refuse_unless(
        options, scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False, add_cross_attention=False
    )
    d_model, n_heads = whole(options, "n_embd"), whole(options, "n_head")
    return ModelConfig(
        n_layers=whole(options, "n_layer", least=0),
        d_model=d_model,
        n_ctx=whole(options, "n_positions"),
        n_heads=n_heads,
        d_head=head_channels(options, d_model, n_heads),
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
    base, fraction = number(options, "rotary_emb_base", 10000.0), number(options, "rotary_pct", 0.25)
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
