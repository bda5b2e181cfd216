"""T5 and T5 v1.1, with relative positions (Raffel et al. 2020, "T5"; Shazeer 2020 for the gated MLP of v1.1).

Source: the configuration and modelling files of `transformers` 5 for `t5`.
"""

from __future__ import annotations

from interp.arguments import shown
from interp.config import EncoderDecoderConfig, ModelConfig
from interp.errors import ConfigError, unknown
from interp.weights.checkpoint import ACTIVATION_NAMES, Row
from interp.weights.huggingface.configs.shared import activation, general, suppressed
from interp.weights.huggingface.rows import HEADS_IN, HEADS_OUT, TRANSPOSED
from interp.weights.options import Options, flag, number, whole

N_CTX = 2**20
"""Relative positions have no longest prompt: more than any machine attends to."""


def t5(options: Options) -> EncoderDecoderConfig:
    """T5 and T5 v1.1: relative position biases, RMS norms (Raffel et al. 2020)."""
    act_fn, gated = _activation(options.get("feed_forward_proj", "relu"))
    if options.get("dense_act_fn") is not None:  # the two parts of the same, which count where they are given
        act_fn = activation(options, "dense_act_fn", act_fn)
    gated = flag(options, "is_gated_act", gated)
    n_layers = whole(options, "num_layers")
    d_model = whole(options, "d_model")
    # transformers ties always, and remembers the option, by which v1.1 is told apart, under another name.
    scaled = flag(options, "scale_decoder_outputs", flag(options, "tie_word_embeddings", True))
    sizes = {
        "d_model": d_model,
        "n_ctx": N_CTX,
        "n_heads": whole(options, "num_heads"),
        "d_head": whole(options, "d_kv"),
        "d_vocab": whole(options, "vocab_size"),
        "d_mlp": whole(options, "d_ff"),
        "act_fn": act_fn,
        "gated_mlp": gated,
        "normalization_type": "RMS",
        "eps": number(options, "layer_norm_epsilon", 1e-6),
        "positional_embedding_type": "relative",
        "relative_buckets": whole(options, "relative_attention_num_buckets", 32),
        "relative_max_distance": whole(options, "relative_attention_max_distance", 128),
        "use_attn_scale": False,
        "attn_in_bias": False,
        "attn_out_bias": False,
        "mlp_bias": False,
        "unembed_bias": False,
        **general(options),
    }
    decoder_layers = options.get("num_decoder_layers")
    decoder = ModelConfig(
        n_layers=n_layers if decoder_layers is None else whole(options, "num_decoder_layers"),
        cross_attention=True,
        tie_word_embeddings=True,
        logit_scale=d_model**-0.5 if scaled else 1.0,
        **sizes,
    )
    encoder = ModelConfig(n_layers=n_layers, attention_dir="bidirectional", **sizes)
    start = options.get("decoder_start_token_id")
    start = options.get("pad_token_id", 0) if start is None else start
    return EncoderDecoderConfig(encoder, decoder, True, start, suppressed(options))


def _activation(given: object) -> tuple[str, bool]:
    """Our name of the activation function, and whether the MLP is gated, of an option such as "gated-gelu"."""
    if not isinstance(given, str):
        raise ConfigError(f"feed_forward_proj must be text, such as 'relu' or 'gated-gelu', not {shown(given)}")
    first, _, name = given.rpartition("-")
    if given == "gated-gelu":  # an old name of gelu_new
        return "gelu_new", True
    if name not in ACTIVATION_NAMES or first not in ("", "gated"):
        raise unknown("feed_forward_proj", given, ["relu", "gated-gelu", "gated-silu", *ACTIVATION_NAMES])
    return ACTIVATION_NAMES[name], first == "gated"


def _stack(stack: str, mlp: int) -> dict[str, Row]:
    """The rows of a stack, whose MLP is the part of that number in each block."""
    block = f"{stack}.block.{{l}}.layer"

    def attention(ours: str, norm: str, at: int, theirs: str) -> dict[str, Row]:
        here = f"{stack}.blocks.{{l}}"
        rows = {
            f"{here}.{ours}.W_{x}": Row(
                f"{block}.{at}.{theirs}.{x.lower()}.weight", HEADS_OUT if x == "O" else HEADS_IN
            )
            for x in "QKVO"
        }
        return {f"{here}.{norm}.w": Row(f"{block}.{at}.layer_norm.weight"), **rows}

    return {
        f"{stack}.W_rel": Row(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        **attention("attn", "ln1", 0, "SelfAttention"),
        **(attention("cross_attn", "ln_cross", 1, "EncDecAttention") if stack == "decoder" else {}),
        f"{stack}.blocks.{{l}}.ln2.w": Row(f"{block}.{mlp}.layer_norm.weight"),
        f"{stack}.blocks.{{l}}.mlp.W_in": Row(f"{block}.{mlp}.DenseReluDense.wi.weight", TRANSPOSED),
        f"{stack}.blocks.{{l}}.mlp.W_out": Row(f"{block}.{mlp}.DenseReluDense.wo.weight", TRANSPOSED),
        f"{stack}.ln_final.w": Row(f"{stack}.final_layer_norm.weight"),
    }


T5 = {
    "encoder.embed.W_E": Row("shared.weight"),
    **_stack("encoder", 1),
    **_stack("decoder", 2),
    "decoder.unembed.W_U": Row("lm_head.weight", TRANSPOSED),
}
"""Where the weights of a `t5` model lie."""

_GATED = {
    "mlp.W_gate": "wi_0",
    "mlp.W_in": "wi_1",
}
T5_GATED = T5 | {
    f"{stack}.blocks.{{l}}.{ours}": Row(f"{stack}.block.{{l}}.layer.{mlp}.DenseReluDense.{theirs}.weight", TRANSPOSED)
    for stack, mlp in (("encoder", 1), ("decoder", 2))
    for ours, theirs in _GATED.items()
}
"""The same where the MLPs are gated."""


def rows_of(cfg: EncoderDecoderConfig) -> dict[str, Row]:
    """Where the weights lie, by whether the MLPs are gated."""
    return T5_GATED if cfg.decoder.gated_mlp else T5


REPEATS = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"}
"""Tensors that repeat another one."""
