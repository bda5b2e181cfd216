"""Encoders with a masked-token head: from their config.json to a `ModelConfig`, and where their weights lie.

BERT, RoBERTa and DistilBERT have norms on the residual stream, learned positions and one norm of all embeddings;
ModernBERT has norms before the parts, rotary positions and local layers, whose window looks both ways.

Sources: the configuration and modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.arguments import shown
from interp.config import ModelConfig
from interp.errors import ConfigError
from interp.weights.checkpoint import Row
from interp.weights.huggingface.configs import shared
from interp.weights.huggingface.configs.checks import instead, refuse_unless
from interp.weights.huggingface.configs.shared import activation, general, layer_kinds, rope_of
from interp.weights.huggingface.rows import HEADS_BIAS, HEADS_IN, HEADS_OUT, TRANSPOSED
from interp.weights.options import Options, flag, number, whole

QKV = (("Q", "query"), ("K", "key"), ("V", "value"))
BERT = {
    "embed.W_E": Row("embeddings.word_embeddings.weight"),
    "pos_embed.W_pos": Row("embeddings.position_embeddings.weight"),
    "token_type_embed.W_token_type": Row("embeddings.token_type_embeddings.weight"),
    "embed.ln.w": Row("embeddings.LayerNorm.weight"),
    "embed.ln.b": Row("embeddings.LayerNorm.bias"),
    **{f"blocks.{{l}}.attn.W_{x}": Row(f"encoder.layer.{{l}}.attention.self.{w}.weight", HEADS_IN) for x, w in QKV},
    **{f"blocks.{{l}}.attn.b_{x}": Row(f"encoder.layer.{{l}}.attention.self.{w}.bias", HEADS_BIAS) for x, w in QKV},
    "blocks.{l}.attn.W_O": Row("encoder.layer.{l}.attention.output.dense.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("encoder.layer.{l}.attention.output.dense.bias"),
    "blocks.{l}.ln1.w": Row("encoder.layer.{l}.attention.output.LayerNorm.weight"),
    "blocks.{l}.ln1.b": Row("encoder.layer.{l}.attention.output.LayerNorm.bias"),
    "blocks.{l}.mlp.W_in": Row("encoder.layer.{l}.intermediate.dense.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("encoder.layer.{l}.intermediate.dense.bias"),
    "blocks.{l}.mlp.W_out": Row("encoder.layer.{l}.output.dense.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("encoder.layer.{l}.output.dense.bias"),
    "blocks.{l}.ln2.w": Row("encoder.layer.{l}.output.LayerNorm.weight"),
    "blocks.{l}.ln2.b": Row("encoder.layer.{l}.output.LayerNorm.bias"),
    "mlm_head.W": Row("cls.predictions.transform.dense.weight", TRANSPOSED),
    "mlm_head.b": Row("cls.predictions.transform.dense.bias"),
    "mlm_head.ln.w": Row("cls.predictions.transform.LayerNorm.weight"),
    "mlm_head.ln.b": Row("cls.predictions.transform.LayerNorm.bias"),
    "unembed.W_U": Row("cls.predictions.decoder.weight", TRANSPOSED),
    "unembed.b_U": Row("cls.predictions.decoder.bias"),
}
ROBERTA = BERT | {
    "pos_embed.W_pos": Row("embeddings.position_embeddings.weight", skipped=None),
    "mlm_head.W": Row("lm_head.dense.weight", TRANSPOSED),
    "mlm_head.b": Row("lm_head.dense.bias"),
    "mlm_head.ln.w": Row("lm_head.layer_norm.weight"),
    "mlm_head.ln.b": Row("lm_head.layer_norm.bias"),
    "unembed.W_U": Row("lm_head.decoder.weight", TRANSPOSED),
    "unembed.b_U": Row("lm_head.decoder.bias"),
}
DISTILBERT = {
    **{name: row for name, row in BERT.items() if name.startswith(("embed", "pos_embed"))},
    **{f"blocks.{{l}}.attn.W_{x}": Row(f"transformer.layer.{{l}}.attention.{x.lower()}_lin.weight", HEADS_IN)
       for x, _ in QKV},
    **{f"blocks.{{l}}.attn.b_{x}": Row(f"transformer.layer.{{l}}.attention.{x.lower()}_lin.bias", HEADS_BIAS)
       for x, _ in QKV},
    "blocks.{l}.attn.W_O": Row("transformer.layer.{l}.attention.out_lin.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("transformer.layer.{l}.attention.out_lin.bias"),
    "blocks.{l}.ln1.w": Row("transformer.layer.{l}.sa_layer_norm.weight"),
    "blocks.{l}.ln1.b": Row("transformer.layer.{l}.sa_layer_norm.bias"),
    "blocks.{l}.mlp.W_in": Row("transformer.layer.{l}.ffn.lin1.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("transformer.layer.{l}.ffn.lin1.bias"),
    "blocks.{l}.mlp.W_out": Row("transformer.layer.{l}.ffn.lin2.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("transformer.layer.{l}.ffn.lin2.bias"),
    "blocks.{l}.ln2.w": Row("transformer.layer.{l}.output_layer_norm.weight"),
    "blocks.{l}.ln2.b": Row("transformer.layer.{l}.output_layer_norm.bias"),
    "mlm_head.W": Row("vocab_transform.weight", TRANSPOSED),
    "mlm_head.b": Row("vocab_transform.bias"),
    "mlm_head.ln.w": Row("vocab_layer_norm.weight"),
    "mlm_head.ln.b": Row("vocab_layer_norm.bias"),
    "unembed.W_U": Row("vocab_projector.weight", TRANSPOSED),
    "unembed.b_U": Row("vocab_projector.bias"),
}  # fmt: skip

FUSED, FUSED_BIAS = "(qkv head d_head) d_model -> qkv head d_model d_head", "(qkv head d_head) -> qkv head d_head"
GATED, GATED_BIAS = "(two d_mlp) d_model -> two d_model d_mlp", "(two d_mlp) -> two d_mlp"
MODERNBERT = {
    "embed.W_E": Row("embeddings.tok_embeddings.weight"),
    "embed.ln.w": Row("embeddings.norm.weight"),
    "embed.ln.b": Row("embeddings.norm.bias"),
    "blocks.{l}.ln1.w": Row("layers.{l}.attn_norm.weight"),
    "blocks.{l}.ln1.b": Row("layers.{l}.attn_norm.bias"),
    **{f"blocks.{{l}}.attn.W_{x}": Row("layers.{l}.attn.Wqkv.weight", FUSED, i) for i, x in enumerate("QKV")},
    **{f"blocks.{{l}}.attn.b_{x}": Row("layers.{l}.attn.Wqkv.bias", FUSED_BIAS, i) for i, x in enumerate("QKV")},
    "blocks.{l}.attn.W_O": Row("layers.{l}.attn.Wo.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("layers.{l}.attn.Wo.bias"),
    "blocks.{l}.ln2.w": Row("layers.{l}.mlp_norm.weight"),
    "blocks.{l}.ln2.b": Row("layers.{l}.mlp_norm.bias"),
    "blocks.{l}.mlp.W_gate": Row("layers.{l}.mlp.Wi.weight", GATED, 0),
    "blocks.{l}.mlp.b_gate": Row("layers.{l}.mlp.Wi.bias", GATED_BIAS, 0),
    "blocks.{l}.mlp.W_in": Row("layers.{l}.mlp.Wi.weight", GATED, 1),
    "blocks.{l}.mlp.b_in": Row("layers.{l}.mlp.Wi.bias", GATED_BIAS, 1),
    "blocks.{l}.mlp.W_out": Row("layers.{l}.mlp.Wo.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("layers.{l}.mlp.Wo.bias"),
    "ln_final.w": Row("final_norm.weight"),
    "ln_final.b": Row("final_norm.bias"),
    "mlm_head.W": Row("head.dense.weight", TRANSPOSED),
    "mlm_head.b": Row("head.dense.bias"),
    "mlm_head.ln.w": Row("head.norm.weight"),
    "mlm_head.ln.b": Row("head.norm.bias"),
    "unembed.W_U": Row("decoder.weight", TRANSPOSED),
    "unembed.b_U": Row("decoder.bias"),
}

ROTARY_BASES = {"global": 160_000.0, "local": 10_000.0}

# Options that do not affect the logits of masked tokens.
BERT_SILENT = frozenset({
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type",
})  # fmt: skip
# Among them how positions were drawn before they were trained.
DISTILBERT_SILENT = frozenset({"sinusoidal_pos_embds", "tie_weights_", "output_past"})
MODERNBERT_SILENT = frozenset({
    "classifier_pooling", "deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index",
    "initializer_cutoff_factor", "cls_token_id", "repad_logits_with_grad", "reference_compile",
    "position_embedding_type", "layer_norm_eps",
})  # fmt: skip


def bert(options: Options) -> ModelConfig:
    """BERT (Devlin et al. 2018)."""
    return _bert_like(options, head=activation(options, "hidden_act", "gelu"))


def roberta(options: Options) -> ModelConfig:
    """RoBERTa: positions count from the padding token's id plus 1 (Liu et al. 2019)."""
    skipped = whole(options, "pad_token_id", 1, least=0) + 1
    there = whole(options, "max_position_embeddings")
    if there <= skipped:
        raise ConfigError(f"max_position_embeddings={there} must be more than pad_token_id + 1 = {skipped}")
    return _bert_like(instead(options, max_position_embeddings=there - skipped), head="gelu")


def _bert_like(options: Options, *, head: str) -> ModelConfig:
    """BERT and models built like it; `head` is the activation function of the masked-token head."""
    refuse_unless(options, is_decoder=False, add_cross_attention=False)
    kind = options.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ConfigError(f"position_embedding_type={shown(kind)} is not supported; it must be 'absolute'")
    return _on_stream(
        options,
        sizes(options),
        act_fn=activation(options, "hidden_act", "gelu"),
        eps=number(options, "layer_norm_eps", 1e-12),
        n_token_types=whole(options, "type_vocab_size", 2),
        mlm_act_fn=head,
    )


def distilbert(options: Options) -> ModelConfig:
    """DistilBERT: BERT without segments (Sanh et al. 2019)."""
    names = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    }
    renamed = instead(options, **{ours: options[theirs] for ours, theirs in names.items()})
    act = activation(options, "activation", "gelu")
    return _on_stream(options, sizes(renamed), act_fn=act, eps=1e-12, mlm_act_fn=act)


def sizes(options: Options) -> dict[str, Any]:
    """The sizes, of heads with equal shares of the width."""
    return shared.sizes(instead(options, head_dim=None))


def _on_stream(options: Options, of_sizes: Mapping[str, Any], **own: Any) -> ModelConfig:
    """An encoder with norms on the residual stream."""
    return ModelConfig(
        **of_sizes,
        positional_embedding_type="standard",
        attention_dir="bidirectional",
        norm_placement="residual",
        final_norm=False,
        embed_norm=True,
        embed_norm_of_sum=True,
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        **general(options),
        **own,
    )


def modernbert(options: Options) -> ModelConfig:
    """ModernBERT: rotary positions, gated MLPs, most layers local (Warner et al. 2024)."""
    n_layers, every = whole(options, "num_hidden_layers", least=0), whole(options, "global_attn_every_n_layers", 3)
    kinds = layer_kinds(options, ["local" if at % every else "global" for at in range(n_layers)])
    assert kinds is not None
    rope = options.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"rope_parameters must be an object, not {shown(rope)}")
    bases = {
        "global": number(options, "global_rope_theta", 160_000.0),
        "local": number(options, "local_rope_theta", 1e4),
    }
    theirs = {"global": "full_attention", "local": "sliding_attention"}
    # Options of all layers but their lengths count for nothing in transformers, and are refused.
    of_all = {"max_position_embeddings": options["max_position_embeddings"]}
    turns = {kind: rope_of(of_all, rope.get(theirs[kind]) or {}, bases[kind]) for kind in bases}
    local: dict[str, Any] = {"rotary_base_local": turns["local"][0], "rope_scaling_local": turns["local"][1]}
    bias = flag(options, "attention_bias", False)
    return ModelConfig(
        **sizes(options),
        positional_embedding_type="rotary",
        rotary_base=turns["global"][0],
        rope_scaling=turns["global"][1],
        attention_dir="bidirectional",
        attn_types=kinds,
        window_size=whole(options, "local_attention", 128) // 2 + 1,  # so many on either side, and its own position
        **(local if "local" in kinds else {}),
        act_fn=activation(options, "hidden_activation", "gelu"),
        gated_mlp=True,
        eps=number(options, "norm_eps", 1e-5),
        norm_bias=flag(options, "norm_bias", False),
        first_norm=False,
        embed_norm=True,
        attn_in_bias=bias,
        attn_out_bias=bias,
        mlp_bias=flag(options, "mlp_bias", False),
        mlm_act_fn=activation(options, "classifier_activation", "gelu"),
        mlm_bias=flag(options, "classifier_bias", False),
        unembed_bias=flag(options, "decoder_bias", True),
        tie_word_embeddings=flag(options, "tie_word_embeddings", True),
        **general(options),
    )
