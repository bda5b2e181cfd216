"""Where each of our weights is found in a GGUF file: one table for each architecture.

Source: llama.cpp's `conversion/` and gguf-py's tensor names.
"""

from __future__ import annotations

from interp.weights.checkpoint import Row

HEADS_IN = "(head d_head) d_model -> head d_model d_head"
HEADS_BIAS = "(head d_head) -> head d_head"
HEADS_OUT = "d_model (head d_head) -> head d_head d_model"
TRANSPOSED = "out_features in_features -> in_features out_features"

SHARED = {
    "embed.W_E": Row("token_embd.weight"),
    "blocks.{l}.ln1.w": Row("blk.{l}.attn_norm.weight"),
    "blocks.{l}.ln1.b": Row("blk.{l}.attn_norm.bias"),
    "blocks.{l}.attn.W_O": Row("blk.{l}.attn_output.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("blk.{l}.attn_output.bias"),
    "blocks.{l}.ln2.w": Row("blk.{l}.ffn_norm.weight"),
    "blocks.{l}.ln2.b": Row("blk.{l}.ffn_norm.bias"),
    "blocks.{l}.mlp.W_in": Row("blk.{l}.ffn_up.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("blk.{l}.ffn_up.bias"),
    "blocks.{l}.mlp.W_out": Row("blk.{l}.ffn_down.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("blk.{l}.ffn_down.bias"),
    "ln_final.w": Row("output_norm.weight"),
    "ln_final.b": Row("output_norm.bias"),
    "unembed.W_U": Row("output.weight", TRANSPOSED),
    "unembed.b_U": Row("output.bias"),
}
FUSED = {
    **SHARED,
    **{f"blocks.{{l}}.attn.W_{x.upper()}": Row("blk.{l}.attn_qkv.weight", HEADS_IN, x) for x in "qkv"},
    **{f"blocks.{{l}}.attn.b_{x.upper()}": Row("blk.{l}.attn_qkv.bias", HEADS_BIAS, x) for x in "qkv"},
}
GPT2 = {"pos_embed.W_pos": Row("position_embd.weight"), **FUSED}
BLOOM = {"embed.ln.w": Row("token_embd_norm.weight"), "embed.ln.b": Row("token_embd_norm.bias"), **FUSED}
# Falcon 40B has a norm for each of its parallel parts; its second one is the attention's.
FALCON_TWO_NORMS = FUSED | {
    f"blocks.{{l}}.{ours}.{x}": Row(f"blk.{{l}}.{theirs}.{name}")
    for ours, theirs in (("ln1", "attn_norm_2"), ("ln2", "attn_norm"))
    for x, name in (("w", "weight"), ("b", "bias"))
}
SEPARATE = {
    **SHARED,
    **{f"blocks.{{l}}.attn.W_{x}": Row(f"blk.{{l}}.attn_{x.lower()}.weight", HEADS_IN) for x in "QKV"},
    **{f"blocks.{{l}}.attn.b_{x}": Row(f"blk.{{l}}.attn_{x.lower()}.bias", HEADS_BIAS) for x in "QKV"},
    "blocks.{l}.mlp.W_gate": Row("blk.{l}.ffn_gate.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_gate": Row("blk.{l}.ffn_gate.bias"),
    "blocks.{l}.attn.q_norm.w": Row("blk.{l}.attn_q_norm.weight"),
    "blocks.{l}.attn.k_norm.w": Row("blk.{l}.attn_k_norm.weight"),
    "blocks.{l}.ln1_post.w": Row("blk.{l}.post_attention_norm.weight"),
    "blocks.{l}.ln2_post.w": Row("blk.{l}.post_ffw_norm.weight"),
}
LLAMA = {
    **SEPARATE,
    **{f"blocks.{{l}}.attn.W_{x}": Row(f"blk.{{l}}.attn_{x.lower()}.weight", HEADS_IN, interleaved=True) for x in "QK"},
    **{f"blocks.{{l}}.attn.b_{x}": Row(f"blk.{{l}}.attn_{x.lower()}.bias", HEADS_BIAS, interleaved=True) for x in "QK"},
}
OLMO2 = SEPARATE | {f"blocks.{{l}}.attn.{x}_norm.w": Row(f"blk.{{l}}.attn_{x}_norm.weight", HEADS_BIAS) for x in "qk"}
PHI3 = FUSED | {
    "blocks.{l}.mlp.W_gate": Row("blk.{l}.ffn_up.weight", TRANSPOSED, "gate"),
    "blocks.{l}.mlp.W_in": Row("blk.{l}.ffn_up.weight", TRANSPOSED, "up"),
}
# Experts lie one after another in one tensor.
EACH_TRANSPOSED = "expert out_features in_features -> expert in_features out_features"
EXPERTS = {
    "blocks.{l}.mlp.W_router": Row("blk.{l}.ffn_gate_inp.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_router": Row("blk.{l}.ffn_gate_inp.bias"),
    "blocks.{l}.mlp.w_shared": Row("blk.{l}.ffn_gate_inp_shexp.weight", "... d_model -> (... d_model)"),
    **{
        f"blocks.{{l}}.mlp.{ours}": Row(f"blk.{{l}}.ffn_{theirs}_exps.{kind}", pattern)
        for name, theirs in (("in", "up"), ("gate", "gate"), ("out", "down"))
        for ours, kind, pattern in ((f"W_{name}", "weight", EACH_TRANSPOSED), (f"b_{name}", "bias", None))
    },
    **{
        f"blocks.{{l}}.mlp.shared.W_{ours}": Row(f"blk.{{l}}.ffn_{theirs}_shexp.weight", TRANSPOSED)
        for ours, theirs in (("in", "up"), ("gate", "gate"), ("out", "down"))
    },
}
MIXTRAL = LLAMA | EXPERTS
QWEN_MOE = SEPARATE | EXPERTS
OLMOE = OLMO2 | EXPERTS
GPT_OSS = SEPARATE | {
    **EXPERTS,
    "blocks.{l}.attn.sinks": Row("blk.{l}.attn_sinks.weight"),
    "blocks.{l}.ln2.w": Row("blk.{l}.post_attention_norm.weight"),
}
SSM = {
    "embed.W_E": Row("token_embd.weight"),
    "blocks.{l}.ln1.w": Row("blk.{l}.attn_norm.weight"),
    "ln_final.w": Row("output_norm.weight"),
    "unembed.W_U": Row("output.weight", TRANSPOSED),
    "blocks.{l}.mixer.W_in": Row("blk.{l}.ssm_in.weight"),
    "blocks.{l}.mixer.W_conv": Row("blk.{l}.ssm_conv1d.weight"),
    "blocks.{l}.mixer.b_conv": Row("blk.{l}.ssm_conv1d.bias"),
    "blocks.{l}.mixer.b_dt": Row("blk.{l}.ssm_dt.bias"),
    "blocks.{l}.mixer.W_out": Row("blk.{l}.ssm_out.weight"),
}
MAMBA = SSM | {
    "blocks.{l}.mixer.W_x": Row("blk.{l}.ssm_x.weight"),
    "blocks.{l}.mixer.W_dt": Row("blk.{l}.ssm_dt.weight"),
    "blocks.{l}.mixer.A_log": Row("blk.{l}.ssm_a"),
    "blocks.{l}.mixer.D": Row("blk.{l}.ssm_d"),
}
MAMBA2 = SSM | {
    "blocks.{l}.mixer.A_log": Row("blk.{l}.ssm_a", "ssm_head 1 -> ssm_head"),
    "blocks.{l}.mixer.D": Row("blk.{l}.ssm_d", "ssm_head 1 -> ssm_head"),
    "blocks.{l}.mixer.w_norm": Row("blk.{l}.ssm_norm.weight", "group channel -> (group channel)"),
}
