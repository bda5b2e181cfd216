"""BART and Marian: the original Transformer's layers, with norms on the residual stream.

They differ in their positions (learned in BART, sines and then cosines in Marian), in BART's norm after the embeddings,
and in Marian's vocabularies, which may be one for each stack.

Sources: Lewis et al. 2020 ("BART"); Junczys-Dowmunt et al. 2018 ("Marian"); the configuration and modelling files of
`transformers` 5 for `bart` and `marian`.
"""

from __future__ import annotations

from typing import Any

from interp.config import EncoderDecoderConfig, ModelConfig
from interp.errors import ConfigError
from interp.weights.checkpoint import Row
from interp.weights.huggingface.configs.checks import refuse_unless
from interp.weights.huggingface.configs.shared import activation, general, head_share, suppressed
from interp.weights.huggingface.rows import HEADS_BIAS, HEADS_IN, HEADS_OUT, TRANSPOSED
from interp.weights.options import Options, flag, whole

OFFSET = 2
"""Rows of BART's table of positions that come before that of the first position."""


def bart(options: Options) -> EncoderDecoderConfig:
    """BART: learned positions, norms after the parts of both stacks (Lewis et al. 2020)."""
    refuse_unless(options, normalize_embedding=True, static_position_embeddings=False)
    return _two_stacks(options, {"embed_norm": True, "embed_norm_of_sum": True}, start=2)


def marian(options: Options) -> EncoderDecoderConfig:
    """Marian: sinusoidal positions, norms after the parts of both stacks (Junczys-Dowmunt et al. 2018)."""
    refuse_unless(options, normalize_embedding=False, static_position_embeddings=True)
    own = {"positional_embedding_type": "sinusoidal", "sinusoidal_halves": True}
    shared = flag(options, "share_encoder_decoder_embeddings", True)
    d_vocab = whole(options, "vocab_size")
    d_target = d_vocab if options.get("decoder_vocab_size") is None else whole(options, "decoder_vocab_size")
    if shared and d_target != d_vocab:
        raise ConfigError(
            f"decoder_vocab_size={d_target} contradicts vocab_size={d_vocab} of embeddings that both stacks share"
        )
    return _two_stacks(options, own, start=58100, shared=shared, d_target=d_target)


def _two_stacks(
    options: Options, own: dict[str, Any], *, start: int, shared: bool = True, d_target: int | None = None
) -> EncoderDecoderConfig:
    """What both families have; `own` is what a family does in another way, `start` its token at the start."""
    refuse_unless(options, normalize_before=False, add_final_layer_norm=False, add_bias_logits=False)
    d_model, d_vocab = whole(options, "d_model"), whole(options, "vocab_size")

    def stack(name: str) -> dict[str, Any]:
        return {
            "n_layers": whole(options, f"{name}_layers"),
            "d_model": d_model,
            "n_ctx": whole(options, "max_position_embeddings"),
            "n_heads": whole(options, f"{name}_attention_heads"),
            "d_head": head_share(options, "d_model", f"{name}_attention_heads"),
            "d_mlp": whole(options, f"{name}_ffn_dim"),
            "act_fn": activation(options, "activation_function", "gelu"),
            "norm_placement": "residual",
            "final_norm": False,
            "embed_scale": d_model**0.5 if flag(options, "scale_embedding", False) else 1.0,
            **general({**options, "initializer_range": options.get("init_std", 0.02)}),
            **own,
        }

    encoder = ModelConfig(**stack("encoder"), d_vocab=d_vocab, attention_dir="bidirectional", unembed_bias=False)
    decoder = ModelConfig(
        **stack("decoder"),
        d_vocab=d_vocab if d_target is None else d_target,
        cross_attention=True,
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
    )
    given = options.get("decoder_start_token_id", start)
    fits = isinstance(given, int) and given < decoder.d_vocab
    return EncoderDecoderConfig(encoder, decoder, shared, given if fits else None, suppressed(options))


def _stack(stack: str) -> dict[str, Row]:
    here, theirs = f"{stack}.blocks.{{l}}", f"{stack}.layers.{{l}}"
    rows = {
        f"{here}.mlp.W_in": Row(f"{theirs}.fc1.weight", TRANSPOSED),
        f"{here}.mlp.b_in": Row(f"{theirs}.fc1.bias"),
        f"{here}.mlp.W_out": Row(f"{theirs}.fc2.weight", TRANSPOSED),
        f"{here}.mlp.b_out": Row(f"{theirs}.fc2.bias"),
    }
    norms = {"ln1": "self_attn_layer_norm", "ln2": "final_layer_norm", "ln_cross": "encoder_attn_layer_norm"}
    attentions = {"attn": "self_attn", "cross_attn": "encoder_attn"}
    if stack == "encoder":
        del norms["ln_cross"], attentions["cross_attn"]
    for ours, name in norms.items():
        rows |= {f"{here}.{ours}.{x[0]}": Row(f"{theirs}.{name}.{x}") for x in ("weight", "bias")}
    for ours, name in attentions.items():
        for x in "QKV":
            rows[f"{here}.{ours}.W_{x}"] = Row(f"{theirs}.{name}.{x.lower()}_proj.weight", HEADS_IN)
            rows[f"{here}.{ours}.b_{x}"] = Row(f"{theirs}.{name}.{x.lower()}_proj.bias", HEADS_BIAS)
        rows[f"{here}.{ours}.W_O"] = Row(f"{theirs}.{name}.out_proj.weight", HEADS_OUT)
        rows[f"{here}.{ours}.b_O"] = Row(f"{theirs}.{name}.out_proj.bias")
    return rows


MARIAN = {
    "encoder.embed.W_E": Row("shared.weight"),
    "decoder.embed.W_E": Row("decoder.embed_tokens.weight"),
    **_stack("encoder"),
    **_stack("decoder"),
    "decoder.unembed.W_U": Row("lm_head.weight", TRANSPOSED),
    "decoder.unembed.b_U": Row("final_logits_bias", "one d_vocab -> (one d_vocab)"),
}
"""Where the weights of a `marian` model lie; an encoder's own embedding counts as the shared one (`REPEATS`)."""

BART = MARIAN | {
    name: row
    for stack in ("encoder", "decoder")
    for name, row in {
        f"{stack}.pos_embed.W_pos": Row(f"{stack}.embed_positions.weight", skipped=OFFSET),
        f"{stack}.embed.ln.w": Row(f"{stack}.layernorm_embedding.weight"),
        f"{stack}.embed.ln.b": Row(f"{stack}.layernorm_embedding.bias"),
    }.items()
}
"""Where the weights of a `bart` model lie."""

REPEATS = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"}
"""Tensors that repeat another one, where the stacks share their embeddings."""
