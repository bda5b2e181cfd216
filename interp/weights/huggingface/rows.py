"""Where each of our weights is found in the tensors of Hugging Face checkpoints: one table for each family.

A table has a row for each of our weights: the name of their tensor, the einops pattern that rearranges it to
TransformerLens's shape, and, if one tensor fuses several of our weights, the number of this part.

Source: the modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from interp.config import ModelConfig
from interp.weights.checkpoint import Row

# The rows of a query are ordered by head; Linear layers store [out, in], GPT-2's Conv1D stores [in, out].
HEADS_IN = "(head d_head) d_model -> head d_model d_head"
HEADS_OUT = "d_model (head d_head) -> head d_head d_model"
HEADS_BIAS = "(head d_head) -> head d_head"
TRANSPOSED = "out_features in_features -> in_features out_features"

GPT2_FUSED = "d_model (qkv head d_head) -> qkv head d_model d_head"
GPT2_FUSED_BIAS = "(qkv head d_head) -> qkv head d_head"
GPT2 = {
    "embed.W_E": Row("wte.weight"),
    "pos_embed.W_pos": Row("wpe.weight"),
    "blocks.{l}.ln1.w": Row("h.{l}.ln_1.weight"),
    "blocks.{l}.ln1.b": Row("h.{l}.ln_1.bias"),
    **{f"blocks.{{l}}.attn.W_{x}": Row("h.{l}.attn.c_attn.weight", GPT2_FUSED, i) for i, x in enumerate("QKV")},
    **{f"blocks.{{l}}.attn.b_{x}": Row("h.{l}.attn.c_attn.bias", GPT2_FUSED_BIAS, i) for i, x in enumerate("QKV")},
    "blocks.{l}.attn.W_O": Row("h.{l}.attn.c_proj.weight", "(head d_head) d_model -> head d_head d_model"),
    "blocks.{l}.attn.b_O": Row("h.{l}.attn.c_proj.bias"),
    "blocks.{l}.ln2.w": Row("h.{l}.ln_2.weight"),
    "blocks.{l}.ln2.b": Row("h.{l}.ln_2.bias"),
    "blocks.{l}.mlp.W_in": Row("h.{l}.mlp.c_fc.weight"),
    "blocks.{l}.mlp.b_in": Row("h.{l}.mlp.c_fc.bias"),
    "blocks.{l}.mlp.W_out": Row("h.{l}.mlp.c_proj.weight"),
    "blocks.{l}.mlp.b_out": Row("h.{l}.mlp.c_proj.bias"),
    "ln_final.w": Row("ln_f.weight"),
    "ln_final.b": Row("ln_f.bias"),
    "unembed.W_U": Row("lm_head.weight", TRANSPOSED),
}

NEOX_FUSED = "(head qkv d_head) d_model -> qkv head d_model d_head"
NEOX_FUSED_BIAS = "(head qkv d_head) -> qkv head d_head"
GPT_NEOX = {
    "embed.W_E": Row("embed_in.weight"),
    "blocks.{l}.ln1.w": Row("layers.{l}.input_layernorm.weight"),
    "blocks.{l}.ln1.b": Row("layers.{l}.input_layernorm.bias"),
    **{
        f"blocks.{{l}}.attn.W_{x}": Row("layers.{l}.attention.query_key_value.weight", NEOX_FUSED, i)
        for i, x in enumerate("QKV")
    },
    **{
        f"blocks.{{l}}.attn.b_{x}": Row("layers.{l}.attention.query_key_value.bias", NEOX_FUSED_BIAS, i)
        for i, x in enumerate("QKV")
    },
    "blocks.{l}.attn.W_O": Row("layers.{l}.attention.dense.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("layers.{l}.attention.dense.bias"),
    "blocks.{l}.ln2.w": Row("layers.{l}.post_attention_layernorm.weight"),
    "blocks.{l}.ln2.b": Row("layers.{l}.post_attention_layernorm.bias"),
    "blocks.{l}.mlp.W_in": Row("layers.{l}.mlp.dense_h_to_4h.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("layers.{l}.mlp.dense_h_to_4h.bias"),
    "blocks.{l}.mlp.W_out": Row("layers.{l}.mlp.dense_4h_to_h.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("layers.{l}.mlp.dense_4h_to_h.bias"),
    "ln_final.w": Row("final_layer_norm.weight"),
    "ln_final.b": Row("final_layer_norm.bias"),
    "unembed.W_U": Row("lm_head.weight", TRANSPOSED),
}

GPT_NEO = {
    **{name: row for name, row in GPT2.items() if ".attn." not in name},
    **{f"blocks.{{l}}.attn.W_{x.upper()}": Row(f"h.{{l}}.attn.attention.{x}_proj.weight", HEADS_IN) for x in "qkv"},
    "blocks.{l}.attn.W_O": Row("h.{l}.attn.attention.out_proj.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("h.{l}.attn.attention.out_proj.bias"),
    "blocks.{l}.mlp.W_in": Row("h.{l}.mlp.c_fc.weight", TRANSPOSED),
    "blocks.{l}.mlp.W_out": Row("h.{l}.mlp.c_proj.weight", TRANSPOSED),
}
GPTJ = {
    **{name: row for name, row in GPT2.items() if ".attn." not in name and ".mlp." not in name},
    **{f"blocks.{{l}}.attn.W_{x.upper()}": Row(f"h.{{l}}.attn.{x}_proj.weight", HEADS_IN) for x in "qkv"},
    "blocks.{l}.attn.W_O": Row("h.{l}.attn.out_proj.weight", HEADS_OUT),
    "blocks.{l}.mlp.W_in": Row("h.{l}.mlp.fc_in.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("h.{l}.mlp.fc_in.bias"),
    "blocks.{l}.mlp.W_out": Row("h.{l}.mlp.fc_out.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("h.{l}.mlp.fc_out.bias"),
    "unembed.b_U": Row("lm_head.bias"),
}
OPT = {
    "embed.W_E": Row("embed_tokens.weight"),
    "pos_embed.W_pos": Row("embed_positions.weight", skipped=2),
    "blocks.{l}.ln1.w": Row("layers.{l}.self_attn_layer_norm.weight"),
    "blocks.{l}.ln1.b": Row("layers.{l}.self_attn_layer_norm.bias"),
    **{f"blocks.{{l}}.attn.W_{x.upper()}": Row(f"layers.{{l}}.self_attn.{x}_proj.weight", HEADS_IN) for x in "qkv"},
    **{f"blocks.{{l}}.attn.b_{x.upper()}": Row(f"layers.{{l}}.self_attn.{x}_proj.bias", HEADS_BIAS) for x in "qkv"},
    "blocks.{l}.attn.W_O": Row("layers.{l}.self_attn.out_proj.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("layers.{l}.self_attn.out_proj.bias"),
    "blocks.{l}.ln2.w": Row("layers.{l}.final_layer_norm.weight"),
    "blocks.{l}.ln2.b": Row("layers.{l}.final_layer_norm.bias"),
    "blocks.{l}.mlp.W_in": Row("layers.{l}.fc1.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("layers.{l}.fc1.bias"),
    "blocks.{l}.mlp.W_out": Row("layers.{l}.fc2.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("layers.{l}.fc2.bias"),
    "ln_final.w": Row("final_layer_norm.weight"),
    "ln_final.b": Row("final_layer_norm.bias"),
    "unembed.W_U": Row("lm_head.weight", TRANSPOSED),
}
# The layers of BLOOM and Falcon are those of GPT-NeoX under other names.
BLOOM = {
    **{
        name: Row(
            row.theirs.replace("layers.", "h.", 1).replace(".attention.", ".self_attention."), row.pattern, row.part
        )
        for name, row in GPT_NEOX.items()
    },
    "embed.W_E": Row("word_embeddings.weight"),
    "embed.ln.w": Row("word_embeddings_layernorm.weight"),
    "embed.ln.b": Row("word_embeddings_layernorm.bias"),
    "ln_final.w": Row("ln_f.weight"),
    "ln_final.b": Row("ln_f.bias"),
}
GROUPS = "(kv_head slot d_head) d_model -> kv_head slot d_model d_head"
GROUPS_BIAS = "(kv_head slot d_head) -> kv_head slot d_head"
# With one group this is multi-query attention, with a group for each head it is GPT-NeoX's layout.
FALCON = BLOOM | {
    **{
        f"blocks.{{l}}.attn.W_{x.upper()}": Row("h.{l}.self_attention.query_key_value.weight", GROUPS, x) for x in "qkv"
    },
    **{
        f"blocks.{{l}}.attn.b_{x.upper()}": Row("h.{l}.self_attention.query_key_value.bias", GROUPS_BIAS, x)
        for x in "qkv"
    },
}
FALCON_TWO_NORMS = FALCON | {
    "blocks.{l}.ln1.w": Row("h.{l}.ln_attn.weight"),
    "blocks.{l}.ln1.b": Row("h.{l}.ln_attn.bias"),
    "blocks.{l}.ln2.w": Row("h.{l}.ln_mlp.weight"),
    "blocks.{l}.ln2.b": Row("h.{l}.ln_mlp.bias"),
}


def falcon(cfg: ModelConfig) -> dict[str, Row]:
    """Falcon's table: its norms have other names where attention and MLP in parallel have one each."""
    return FALCON_TWO_NORMS if cfg.parallel_attn_mlp and not cfg.shared_norm else FALCON


LLAMA = {
    "embed.W_E": Row("embed_tokens.weight"),
    "blocks.{l}.ln1.w": Row("layers.{l}.input_layernorm.weight"),
    "blocks.{l}.attn.W_Q": Row("layers.{l}.self_attn.q_proj.weight", HEADS_IN),
    "blocks.{l}.attn.W_K": Row("layers.{l}.self_attn.k_proj.weight", HEADS_IN),
    "blocks.{l}.attn.W_V": Row("layers.{l}.self_attn.v_proj.weight", HEADS_IN),
    "blocks.{l}.attn.W_O": Row("layers.{l}.self_attn.o_proj.weight", HEADS_OUT),
    "blocks.{l}.attn.b_Q": Row("layers.{l}.self_attn.q_proj.bias", HEADS_BIAS),
    "blocks.{l}.attn.b_K": Row("layers.{l}.self_attn.k_proj.bias", HEADS_BIAS),
    "blocks.{l}.attn.b_V": Row("layers.{l}.self_attn.v_proj.bias", HEADS_BIAS),
    "blocks.{l}.attn.b_O": Row("layers.{l}.self_attn.o_proj.bias"),
    "blocks.{l}.ln2.w": Row("layers.{l}.post_attention_layernorm.weight"),
    "blocks.{l}.mlp.W_gate": Row("layers.{l}.mlp.gate_proj.weight", TRANSPOSED),
    "blocks.{l}.mlp.W_in": Row("layers.{l}.mlp.up_proj.weight", TRANSPOSED),
    "blocks.{l}.mlp.W_out": Row("layers.{l}.mlp.down_proj.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_gate": Row("layers.{l}.mlp.gate_proj.bias"),
    "blocks.{l}.mlp.b_in": Row("layers.{l}.mlp.up_proj.bias"),
    "blocks.{l}.mlp.b_out": Row("layers.{l}.mlp.down_proj.bias"),
    "ln_final.w": Row("norm.weight"),
    "unembed.W_U": Row("lm_head.weight", TRANSPOSED),
}

SANDWICHED = LLAMA | {
    "blocks.{l}.ln1_post.w": Row("layers.{l}.post_attention_layernorm.weight"),
    "blocks.{l}.ln2.w": Row("layers.{l}.pre_feedforward_layernorm.weight"),
    "blocks.{l}.ln2_post.w": Row("layers.{l}.post_feedforward_layernorm.weight"),
}
HEAD_NORMED = LLAMA | {
    "blocks.{l}.attn.q_norm.w": Row("layers.{l}.self_attn.q_norm.weight"),
    "blocks.{l}.attn.k_norm.w": Row("layers.{l}.self_attn.k_norm.weight"),
}
GEMMA3 = SANDWICHED | {name: row for name, row in HEAD_NORMED.items() if "_norm" in name}
OLMO2 = SANDWICHED | {
    "blocks.{l}.attn.q_norm.w": Row("layers.{l}.self_attn.q_norm.weight", HEADS_BIAS),
    "blocks.{l}.attn.k_norm.w": Row("layers.{l}.self_attn.k_norm.weight", HEADS_BIAS),
}
PHI3 = LLAMA | {
    **{f"blocks.{{l}}.attn.W_{x.upper()}": Row("layers.{l}.self_attn.qkv_proj.weight", HEADS_IN, x) for x in "qkv"},
    "blocks.{l}.mlp.W_gate": Row("layers.{l}.mlp.gate_up_proj.weight", "(two d_mlp) d_model -> two d_model d_mlp", 0),
    "blocks.{l}.mlp.W_in": Row("layers.{l}.mlp.gate_up_proj.weight", "(two d_mlp) d_model -> two d_model d_mlp", 1),
}
LLAMA_LN = LLAMA | {
    "blocks.{l}.ln1.b": Row("layers.{l}.input_layernorm.bias"),
    "blocks.{l}.ln2.b": Row("layers.{l}.post_attention_layernorm.bias"),
    "ln_final.b": Row("norm.bias"),
}
STABLELM = LLAMA_LN | {
    "blocks.{l}.attn.q_norm.w": Row("layers.{l}.self_attn.q_layernorm.norms.{i}.weight"),
    "blocks.{l}.attn.k_norm.w": Row("layers.{l}.self_attn.k_layernorm.norms.{i}.weight"),
}
PHI = LLAMA_LN | {
    "blocks.{l}.attn.q_norm.w": Row("layers.{l}.self_attn.q_layernorm.weight"),
    "blocks.{l}.attn.q_norm.b": Row("layers.{l}.self_attn.q_layernorm.bias"),
    "blocks.{l}.attn.k_norm.w": Row("layers.{l}.self_attn.k_layernorm.weight"),
    "blocks.{l}.attn.k_norm.b": Row("layers.{l}.self_attn.k_layernorm.bias"),
    "blocks.{l}.attn.W_O": Row("layers.{l}.self_attn.dense.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("layers.{l}.self_attn.dense.bias"),
    "blocks.{l}.mlp.W_in": Row("layers.{l}.mlp.fc1.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("layers.{l}.mlp.fc1.bias"),
    "blocks.{l}.mlp.W_out": Row("layers.{l}.mlp.fc2.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("layers.{l}.mlp.fc2.bias"),
    "ln_final.w": Row("final_layernorm.weight"),
    "ln_final.b": Row("final_layernorm.bias"),
    "unembed.b_U": Row("lm_head.bias"),
}
STARCODER2 = LLAMA_LN | {
    "blocks.{l}.mlp.W_in": Row("layers.{l}.mlp.c_fc.weight", TRANSPOSED),
    "blocks.{l}.mlp.W_out": Row("layers.{l}.mlp.c_proj.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("layers.{l}.mlp.c_fc.bias"),
    "blocks.{l}.mlp.b_out": Row("layers.{l}.mlp.c_proj.bias"),
}

# The weights of a state-space layer, Mamba-1 or Mamba-2, without the name of its module.
MIXER = {
    "W_in": Row("in_proj.weight"),
    "b_in": Row("in_proj.bias"),
    "W_conv": Row("conv1d.weight", "channel 1 d_conv -> channel d_conv"),
    "b_conv": Row("conv1d.bias"),
    "A_log": Row("A_log"),
    "D": Row("D"),
    "W_out": Row("out_proj.weight"),
    "b_out": Row("out_proj.bias"),
}
MIXER1 = MIXER | {
    "W_x": Row("x_proj.weight"),
    "W_dt": Row("dt_proj.weight"),
    "b_dt": Row("dt_proj.bias"),
}
MIXER1_NORMED = MIXER1 | {
    "w_dt_norm": Row("dt_layernorm.weight"),
    "w_B_norm": Row("b_layernorm.weight"),
    "w_C_norm": Row("c_layernorm.weight"),
}
MIXER2 = MIXER | {"b_dt": Row("dt_bias"), "w_norm": Row("norm.weight")}


def _mixer(rows: Mapping[str, Row], module: str) -> dict[str, Row]:
    return {
        f"blocks.{{l}}.mixer.{name}": Row(f"layers.{{l}}.{module}.{row.theirs}", row.pattern)
        for name, row in rows.items()
    }


MAMBA_STACK = {
    "embed.W_E": Row("embeddings.weight"),
    "blocks.{l}.ln1.w": Row("layers.{l}.norm.weight"),
    "ln_final.w": Row("norm_f.weight"),
    "unembed.W_U": Row("lm_head.weight", TRANSPOSED),
}
MAMBA = MAMBA_STACK | _mixer(MIXER1, "mixer")
MAMBA2 = MAMBA_STACK | _mixer(MIXER2, "mixer")
HYBRID = {name: Row(row.theirs.replace(".mlp.", ".feed_forward."), row.pattern) for name, row in LLAMA.items()}
HYBRID |= {
    "blocks.{l}.ln2.w": Row("layers.{l}.pre_ff_layernorm.weight"),
    "ln_final.w": Row("final_layernorm.weight"),
}
BAMBA = HYBRID | _mixer(MIXER2, "mamba")
JAMBA = HYBRID | _mixer(MIXER1_NORMED, "mamba")
# Each layer is one Mamba-2, attention or MLP with a norm before it; all of them are called `mixer`.
NEMOTRON_H = {
    **{name: Row(re.sub("self_attn|mlp", "mixer", row.theirs), row.pattern) for name, row in LLAMA.items()},
    **MAMBA2,
    "blocks.{l}.ln2.w": Row("layers.{l}.norm.weight"),
}

# A layer that calls a shared block has its mixer one module deeper.
ZAMBA2 = {
    **{name: Row(row.theirs, row.pattern) for name, row in MAMBA2.items() if ".mixer." not in name},
    **_mixer(MIXER2, "mamba"),
    "embed.W_E": Row("embed_tokens.weight"),
    "blocks.{l}.ln1.w": Row("layers.{l}.input_layernorm.weight"),
    "ln_final.w": Row("final_layernorm.weight"),
}
ZAMBA2_SHARED = {
    "blocks.{l}.W_shared": Row("layers.{l}.linear.weight", TRANSPOSED),
    "blocks.{l}.ln_mixer.w": Row("layers.{l}.mamba_decoder.input_layernorm.weight"),
    **_mixer(MIXER2, "mamba_decoder.mamba"),
    "blocks.{l}.ln1.w": Row("layers.{l}.shared_transformer.input_layernorm.weight"),
    **{
        f"blocks.{{l}}.attn.W_{x.upper()}": Row(
            f"layers.{{l}}.shared_transformer.self_attn.{x}_proj.weight", HEADS_OUT if x == "o" else HEADS_IN
        )
        for x in "qkvo"
    },
    "blocks.{l}.ln2.w": Row("layers.{l}.shared_transformer.pre_ff_layernorm.weight"),
    **{
        f"blocks.{{l}}.mlp.{ours}": Row(f"layers.{{l}}.shared_transformer.feed_forward.{theirs}", pattern, part)
        for ours, theirs, pattern, part in (
            ("W_gate", "gate_up_proj.weight", "(two d_mlp) d_model -> two d_model d_mlp", 0),
            ("W_in", "gate_up_proj.weight", "(two d_mlp) d_model -> two d_model d_mlp", 1),
            ("b_gate", "gate_up_proj.bias", "(two d_mlp) -> two d_mlp", 0),
            ("b_in", "gate_up_proj.bias", "(two d_mlp) -> two d_mlp", 1),
            ("W_out", "down_proj.weight", TRANSPOSED, None),
            ("b_out", "down_proj.bias", None, None),
        )
    },
}
_MLP_ADAPTER = {"mlp.adapter": "feed_forward.gate_up_proj_adapter_list"}
_ATTN_ADAPTERS = {f"attn.adapters.{x.upper()}": f"self_attn.linear_{x}_adapter_list" for x in "qkv"}


def zamba2(cfg: ModelConfig) -> dict[str, Row]:
    """Zamba2's table: the adapters of all layers that call a block lie in the first of them, by their turn."""
    rows, adapters = dict(ZAMBA2), dict(_MLP_ADAPTER)
    if cfg.shared is not None and cfg.shared.attn_adapters:
        adapters |= _ATTN_ADAPTERS
    for turn, layer in enumerate(cfg.layers_that_share):
        here, block = f"blocks.{layer}.", f"layers.{cfg.first_call(layer)}.shared_transformer."
        for name, row in ZAMBA2_SHARED.items():
            rows[name.replace("{l}", str(layer))] = Row(row.theirs.replace("{l}", str(layer)), row.pattern, row.part)
        for ours, theirs in adapters.items():
            for at, weight in enumerate(("W_narrow", "W_wide")):
                rows[f"{here}{ours}.{weight}"] = Row(f"{block}{theirs}.{turn}.{at}.weight")
    return rows


def zamba2_repeats(cfg: ModelConfig) -> dict[str, str]:
    """The names of a block's tensors in later layers that call it, and in the first."""
    every = [row.theirs for row in zamba2(cfg).values()]
    found: dict[str, str] = {}
    for layer in cfg.layers_that_share:
        block, first = (f"layers.{at}.shared_transformer." for at in (layer, cfg.first_call(layer)))
        if block != first:
            found |= {name.replace(first, block, 1): name for name in every if name.startswith(first)}
    return found


# One tensor for each expert, as files have them; and all experts of a layer in one, as transformers 5 has in memory.
EACH = "expert out_features in_features -> expert in_features out_features"
FUSED = "expert (two d_expert) d_model -> two expert d_model d_expert"


def _experts(module: str, names: tuple[str, str, str], router: str = "gate") -> dict[str, Row]:
    """The rows of a router and of experts that have a tensor each; `names` are gate, input and output."""
    here, mlp = f"layers.{{l}}.{module}", "blocks.{l}.mlp."
    rows = {f"{mlp}W_router": Row(f"{here}.{router}.weight", TRANSPOSED)}
    for ours, theirs in zip(("W_gate", "W_in", "W_out"), names, strict=True):
        rows[mlp + ours] = Row(f"{here}.experts.{{i}}.{theirs}.weight", EACH)
    return rows


def _fused(module: str, *more: str) -> dict[str, Row]:
    """The rows of experts of which a layer has one tensor; `more` are weights whose name differs from that in files."""
    here, mlp = f"layers.{{l}}.{module}", "blocks.{l}.mlp."
    return {
        f"{mlp}W_gate": Row(f"{here}.experts.gate_up_proj", FUSED, 0),
        f"{mlp}W_in": Row(f"{here}.experts.gate_up_proj", FUSED, 1),
        f"{mlp}W_out": Row(f"{here}.experts.down_proj", EACH),
        **{f"{mlp}W_router": Row(f"{here}.{router}", TRANSPOSED) for router in more},
    }


GATED_EXPERT = ("gate_proj", "up_proj", "down_proj")
MIXTRAL = LLAMA | _experts("block_sparse_moe", ("w1", "w3", "w2"))
MIXTRAL_FUSED = _fused("mlp", "gate.weight")
QWEN2_MOE = {
    **LLAMA,
    **_experts("mlp", GATED_EXPERT),
    **{
        f"blocks.{{l}}.mlp.shared.{ours}": Row(f"layers.{{l}}.mlp.shared_expert.{theirs}.weight", TRANSPOSED)
        for ours, theirs in zip(("W_gate", "W_in", "W_out"), GATED_EXPERT, strict=True)
    },
    "blocks.{l}.mlp.w_shared": Row("layers.{l}.mlp.shared_expert_gate.weight", "1 d_model -> d_model"),
}
QWEN3_MOE = HEAD_NORMED | _experts("mlp", GATED_EXPERT)
QWEN_FUSED = _fused("mlp")
OLMOE = {**LLAMA, **{name: row for name, row in OLMO2.items() if "_norm" in name}, **_experts("mlp", GATED_EXPERT)}
JAMBA_MOE = JAMBA | _experts("feed_forward", GATED_EXPERT, "router")
JAMBA_FUSED = _fused("feed_forward")
NEMOTRON_MOE = {
    **NEMOTRON_H,
    **_experts("mixer", GATED_EXPERT),
    "blocks.{l}.mlp.b_choice": Row("layers.{l}.mixer.gate.e_score_correction_bias"),
    **{
        f"blocks.{{l}}.mlp.shared.{ours}": Row(f"layers.{{l}}.mixer.shared_experts.{theirs}", pattern)
        for ours, theirs, pattern in (
            ("W_in", "up_proj.weight", TRANSPOSED),
            ("W_out", "down_proj.weight", TRANSPOSED),
            ("b_in", "up_proj.bias", None),
            ("b_out", "down_proj.bias", None),
        )
    },
}
NEMOTRON_MOE |= {
    f"blocks.{{l}}.mlp.latent_{ours}.{weight}": Row(f"layers.{{l}}.mixer.{theirs}_latent_proj.{name}", pattern)
    for ours, theirs in (("in", "fc1"), ("out", "fc2"))
    for weight, name, pattern in (("W", "weight", TRANSPOSED), ("b", "bias", None))
}
NEMOTRON_FUSED = _fused("mixer") | {"blocks.{l}.mlp.W_in": Row("layers.{l}.mixer.experts.up_proj", EACH)}
# Gate and input of a neuron stand next to each other.
GPT_OSS = {
    **LLAMA,
    "blocks.{l}.attn.sinks": Row("layers.{l}.self_attn.sinks"),
    "blocks.{l}.mlp.W_router": Row("layers.{l}.mlp.router.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_router": Row("layers.{l}.mlp.router.bias"),
    **{
        f"blocks.{{l}}.mlp.{ours}": Row(f"layers.{{l}}.mlp.experts.gate_up_proj{theirs}", pattern, part)
        for part, kind in enumerate(("gate", "in"))
        for ours, theirs, pattern in (
            (f"W_{kind}", "", "expert d_model (d_expert two) -> two expert d_model d_expert"),
            (f"b_{kind}", "_bias", "expert (d_expert two) -> two expert d_expert"),
        )
    },
    "blocks.{l}.mlp.W_out": Row("layers.{l}.mlp.experts.down_proj"),
    "blocks.{l}.mlp.b_out": Row("layers.{l}.mlp.experts.down_proj_bias"),
}
