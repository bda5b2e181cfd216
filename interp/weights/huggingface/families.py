"""Hugging Face families: where each of our weights is found in their tensors, one table for each family.

A table has a row for each of our weights: the name of their tensor, the einops pattern that rearranges it to
TransformerLens's shape, and, if one tensor fuses several of our weights, the number of this part.

Source: the modelling files of `transformers` 5 for each `model_type`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from interp.arguments import shown
from interp.config import ModelConfig
from interp.errors import ConfigError, nearest
from interp.weights.checkpoint import Row
from interp.weights.huggingface import config as hf_config
from interp.weights.huggingface import hybrids as hf_hybrids
from interp.weights.huggingface import mamba as hf_mamba
from interp.weights.huggingface.options import refuse_unless
from interp.weights.options import Options

BRIDGE = (
    "TransformerLens has more architectures, and every model of its bridge can be loaded: "
    "interp.load(TransformerBridge.boot_transformers(NAME))"
)


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    One of `prefixes` begins the names in a model with a head, and is missing in a model without one; `{l}` in a name is
    the layer; `buffers` matches tensors that are computed, not learned; `older` maps the names of modules in older
    files to today's.
    """

    configure: Callable[[Options], ModelConfig]
    rows: Mapping[str, Row]
    prefixes: tuple[str, ...]
    buffers: re.Pattern[str] = re.compile(r"(?!)")  # matches no name
    older: Mapping[str, str] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """The table's row for one of our weights, with the layer's number filled in.

        Raises:
            KeyError: this architecture has no such weight.
        """
        start, layer, rest = "", "", name
        if name.startswith("blocks."):
            start, layer, rest = name.split(".", 2)
        row = self.rows[f"{start}.{{l}}.{rest}" if layer else name]
        return Row(row.theirs.format(l=layer), row.pattern, row.part)

    def bare(self, name: str) -> str:
        """One of their names as in the table: without the prefix, and with today's name of its module."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        module, dot, rest = name.partition(".")
        return self.older.get(module, module) + dot + rest


def configure(options: Options) -> tuple[Family, ModelConfig]:
    """The family and the configuration that a config.json describes.

    Raises:
        ConfigError: an architecture or an option that is not supported, or a missing entry.
    """
    model_type = options.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        close = nearest(str(model_type), FAMILIES)
        hint = f"; the nearest is {close[0]!r}" if close else ""
        raise ConfigError(
            f"model_type {shown(model_type)} is not supported; choose from {', '.join(FAMILIES)}{hint}. {BRIDGE}"
        )
    if options.get("quantization_config") is not None:
        raise ConfigError("quantization_config is not supported: load the unquantised model or a .gguf file")
    refuse_unless(options, is_causal=True)
    family = FAMILIES[model_type]
    try:
        return family, family.configure(options)
    except KeyError as error:
        raise ConfigError(f"the configuration of this {model_type} model has no entry {error}") from error


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

_INV_FREQ = r"(^|\.)rotary_emb\.inv_freq$"
FAMILIES = {
    "gpt2": Family(hf_config.gpt2, GPT2, ("transformer.",), re.compile(r"^h\.\d+\.attn\.(masked_)?bias$")),
    "gpt_neox": Family(
        hf_config.gpt_neox,
        GPT_NEOX,
        ("gpt_neox.",),
        re.compile(rf"^layers\.\d+\.attention\.(masked_)?bias$|{_INV_FREQ}"),
        older={"embed_out": "lm_head"},
    ),
    "llama": Family(hf_config.llama, LLAMA, ("model.",), re.compile(_INV_FREQ)),
    "mistral": Family(hf_config.mistral, LLAMA, ("model.",), re.compile(_INV_FREQ)),
    "qwen2": Family(hf_config.qwen2, LLAMA, ("model.",), re.compile(_INV_FREQ)),
    "mamba": Family(hf_mamba.mamba, MAMBA, ("backbone.",), older={"embedding": "embeddings"}),
    "falcon_mamba": Family(hf_mamba.falcon_mamba, MAMBA, ("backbone.",), older={"embedding": "embeddings"}),
    "mamba2": Family(hf_mamba.mamba2, MAMBA2, ("backbone.",), older={"embedding": "embeddings"}),
    "bamba": Family(hf_hybrids.bamba, BAMBA, ("model.",), re.compile(_INV_FREQ)),
    "jamba": Family(hf_hybrids.jamba, JAMBA, ("model.",)),
    "nemotron_h": Family(hf_hybrids.nemotron_h, NEMOTRON_H, ("model.", "backbone.")),
}
