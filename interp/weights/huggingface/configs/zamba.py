"""From the config.json of Zamba2 to a `ModelConfig` (Glorioso et al. 2024, "The Zamba2 Suite").

Every layer is Mamba-2; a `hybrid` one also calls one of `num_mem_blocks` transformer blocks, by turns.

Source: the configuration and modelling files of `transformers` 5 for `zamba2`.
"""

from __future__ import annotations

import math

from interp.arguments import is_several, shown
from interp.config import ModelConfig, SharedBlocks
from interp.errors import ConfigError, nearest
from interp.weights.huggingface.configs.checks import agree, expanded, head_size, instead, limit, refuse_unless
from interp.weights.huggingface.configs.shared import activation, general, kv_heads, rotary, sizes
from interp.weights.options import Options, flag, number, whole

LAYERS = {"mamba": "mamba2", "linear_attention": "mamba2", "hybrid": "shared+mamba2"}
LONG_CONTEXT = 16384
# Options without effect on the numbers: training, kernels, what transformers does not read, and positions where there
# are none.
SILENT = frozenset(
    {
        "chunk_size", "use_conv_bias", "use_mamba_kernels", "use_mem_eff_path", "num_logits_to_keep", "kv_channels",
        "num_query_groups", "time_step_max", "time_step_floor", "time_step_limit", "ffn_hidden_size",
        "rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor",
    }
)  # fmt: skip


def zamba2(options: Options) -> ModelConfig:
    """Zamba2: Mamba-2 layers, some of which call shared transformer blocks first (Glorioso et al. 2024).

    Step sizes are at least `time_step_min`, and the convolution always has a bias, as in transformers.
    """
    # Where the unembedding is not tied, transformers does not tie the blocks either.
    refuse_unless(options, use_shared_mlp_adapter=True, tie_word_embeddings=True)
    # The norm in the mixers has this one, whatever the option says.
    agree(options, "rms_norm_eps", 1e-5, "the one of the norm in the mixers")
    layers = _layers(options)
    agree(options, "num_hidden_layers", len(layers), "the number of layers that are named")
    hybrid = [at for at, kind in enumerate(layers) if kind.startswith("shared")]
    if options.get("hybrid_layer_ids", hybrid) != hybrid:
        raise ConfigError(f"hybrid_layer_ids={shown(options['hybrid_layer_ids'])} contradicts the layers, {hybrid}")
    d_model, n_heads = whole(options, "hidden_size", 2560), whole(options, "num_attention_heads", 32)
    if 2 * d_model % n_heads:
        raise ConfigError(f"twice hidden_size={d_model} is not a multiple of num_attention_heads={n_heads}")
    d_head = 2 * d_model // n_heads
    for name, value in {"head_dim": d_head, "attention_head_dim": d_head, "attention_hidden_size": 2 * d_model}.items():
        agree(options, name, value, "hidden_size and num_attention_heads")
    options = instead(
        options,
        hidden_size=d_model,
        num_attention_heads=n_heads,
        num_hidden_layers=len(layers),
        head_dim=d_head,
        vocab_size=whole(options, "vocab_size", 32000),
        intermediate_size=options.get("intermediate_size") or 4 * d_model,
        max_position_embeddings=LONG_CONTEXT
        if flag(options, "use_long_context", False)
        else whole(options, "max_position_embeddings", 4096),
    )
    d_inner, bias = expanded(options, "mamba_expand", d_model), flag(options, "add_bias_linear", False)
    n_ssm_heads = whole(options, "n_mamba_heads", 8)
    rotates = flag(options, "use_mem_rope", False) and bool(hybrid)
    adapted = flag(options, "use_shared_attention_adapter", False)
    return ModelConfig(
        **(sizes(options) | (rotary(options, base=10000.0) if rotates else {"positional_embedding_type": "none"})),
        layer_types=layers,
        shared=SharedBlocks(
            whole(options, "num_mem_blocks", 1),
            adapter_rank=whole(options, "adapter_rank", 128),
            attn_adapters=adapted,
        ),
        n_key_value_heads=kv_heads(options, None),
        attn_scale=math.sqrt(d_head / 2),
        normalization_type="RMS",
        eps=float(number(options, "rms_norm_eps", 1e-5)),
        tie_word_embeddings=True,
        unembed_bias=False,
        d_inner=d_inner,
        d_state=whole(options, "mamba_d_state", 64),
        d_conv=whole(options, "mamba_d_conv", 4),
        d_ssm_head=head_size(options, ("n_mamba_heads", "mamba_headdim"), 8, d_inner // n_ssm_heads, d_inner),
        n_ssm_groups=whole(options, "mamba_ngroups", 1),
        dt_limit=limit("time_step_min", (options.get("time_step_min", 0.001), math.inf)),
        mamba_bias=bias,
        act_fn=activation(options, "hidden_act", "gelu") if hybrid else None,
        gated_mlp=bool(hybrid),
        mlp_bias=bias,
        attn_in_bias=False,
        attn_out_bias=False,
        **general(options),
    )


def _layers(options: Options) -> tuple[str, ...]:
    """The kind of each layer; without the option those of the model with 2.7 billion parameters."""
    option = "layers_block_type (also called layer_types)"
    named = options.get("layers_block_type") or options.get("layer_types")
    if named is None:
        hybrid = {*range(6, 48, 6), 47, 51}
        return tuple(LAYERS["hybrid" if at in hybrid else "mamba"] for at in range(54))
    if not is_several(named):
        raise ConfigError(f"{option} must be a list with the kind of each layer, not {shown(named)}")
    for kind in named:
        if not isinstance(kind, str) or kind not in LAYERS:
            close = nearest(str(kind), LAYERS, most=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{option} has {shown(kind)}, expected one of {', '.join(map(repr, LAYERS))}{hint}")
    return tuple(LAYERS[kind] for kind in named)
