"""The configuration that a GGUF file's `{architecture}.*` metadata describes.

1. Sizes, norms and rotary frequencies are read under llama.cpp's names (gguf-py/gguf/constants.py).
2. What the metadata leaves to the architecture (activation, norm, which layers are local) is set as in transformers;
   biases exist if the file stores them.
3. An entry that was not read may change the computation and is refused by name, unless its value means "not used".
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from interp.arguments import shown
from interp.config import Experts, ModelConfig, RopeScaling
from interp.errors import ConfigError, WeightsError
from interp.weights.gguf.container import GGUFFile

# Entries without effect on the numbers: how rows of q and k lie, how many tokens there are, whether it was finetuned.
SILENT = {"tensor_data_layout", "vocab_size", "rope.scaling.finetuned"}
# The layers of the models whose scores are scaled by the width a head would have, and not by the one that it has.
LARGEST_GEMMA2, LARGEST_GEMMA3 = 46, 62

Value = TypeVar("Value", int, float, bool, str)
Fields = dict[str, Any]  # of a `ModelConfig`


@dataclass(frozen=True)
class Metadata:
    """The `{architecture}.*` entries of a file, under their names without the architecture."""

    file: GGUFFile
    architecture: str
    read: set[str] = field(default_factory=set)  # the entries that were asked for

    def get(self, key: str, default: Value) -> Value:
        """An entry of the type of `default`, or `default`; a list with the same value for every layer is that value."""
        full = f"{self.architecture}.{key}"
        self.read.add(full)
        value = self.file.metadata.get(full, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ConfigError(
                    f"{self.file.path}: {full}={shown(value)} must be one value, or the same one for every layer"
                )
            value = value[0]
        if type(value) is not type(default):  # an int is not taken for a float either, as in llama.cpp
            raise WeightsError(f"{self.file.path}: {full}={shown(value)} must be of type {type(default).__name__}")
        if isinstance(value, (int, float)) and not abs(value) < math.inf:
            raise WeightsError(f"{self.file.path}: {full}={value} must be a finite number")
        return type(default)(value)

    def need(self, key: str, kind: type[Value]) -> Value:
        """An entry that must exist."""
        if f"{self.architecture}.{key}" not in self.file.metadata:
            raise WeightsError(f"{self.file.path}: metadata '{self.architecture}.{key}' is missing")
        return self.get(key, kind())

    def has(self, tensor: str) -> bool:
        """Whether the file stores a tensor."""
        return tensor in self.file.tensors


def configure(metadata: Metadata) -> ModelConfig:
    """The configuration of a file.

    Raises:
        ConfigError: an entry, or a value of one, that is not supported.
    """
    cfg = CONFIGURE[metadata.architecture](metadata)
    _refuse_unread(metadata)
    return cfg


def gpt2(metadata: Metadata) -> ModelConfig:
    """GPT-2 and models with its code."""
    return ModelConfig(**_sizes(metadata), **_layer_norm(metadata), act_fn="gelu_new", unembed_bias=False)


def gpt_neox(metadata: Metadata) -> ModelConfig:
    """GPT-NeoX and Pythia."""
    return ModelConfig(
        **_sizes(metadata),
        **_rotary(metadata),
        **_layer_norm(metadata),
        act_fn="gelu",
        parallel_attn_mlp=metadata.get("use_parallel_residual", True),
        attn_in_bias=metadata.has("blk.0.attn_qkv.bias"),
        attn_out_bias=metadata.has("blk.0.attn_output.bias"),
        unembed_bias=False,
    )


def bloom(metadata: Metadata) -> ModelConfig:
    """BLOOM."""
    return ModelConfig(
        **_sizes(metadata),
        **_layer_norm(metadata),
        positional_embedding_type="alibi",
        embed_norm=True,
        act_fn="gelu_new",
        unembed_bias=False,
    )


def falcon(metadata: Metadata) -> ModelConfig:
    """Falcon with rotary positions: 7B and 40B."""
    return ModelConfig(
        **_sizes(metadata),
        **_rotary(metadata),
        **_layer_norm(metadata),
        act_fn="gelu",
        parallel_attn_mlp=True,
        shared_norm=not metadata.has("blk.0.attn_norm_2.weight"),
        attn_in_bias=False,
        attn_out_bias=False,
        mlp_bias=False,
        unembed_bias=False,
    )


def phi2(metadata: Metadata) -> ModelConfig:
    """Phi-1, Phi-1.5 and Phi-2."""
    return ModelConfig(
        **_sizes(metadata),
        **_rotary(metadata),
        **_layer_norm(metadata),
        act_fn="gelu_new",
        parallel_attn_mlp=True,
        shared_norm=True,
        unembed_bias=metadata.has("output.bias"),
    )


def starcoder2(metadata: Metadata) -> ModelConfig:
    """StarCoder2."""
    own = {"act_fn": "gelu_new", "gated_mlp": False}
    return ModelConfig(**_llama(metadata, norm=_layer_norm(metadata)) | own)


def llama_like(metadata: Metadata) -> ModelConfig:
    """Llama, SmolLM, Mistral and Mixtral (architecture `llama`), and Qwen 2."""
    experts = _experts(metadata, width="feed_forward_length") if metadata.get("expert_count", 0) else {}
    return ModelConfig(**_llama(metadata), **_window(metadata), **experts)


def qwen2moe(metadata: Metadata) -> ModelConfig:
    """Qwen 1.5 MoE and Qwen 2 MoE: a shared expert beside the chosen ones, whose weights are not normalised."""
    width = metadata.need("expert_shared_feed_forward_length", int)
    experts = _experts(metadata, normalize_weights=False, d_shared=width, shared_gate=True)
    return ModelConfig(**_llama(metadata), **experts)


def qwen3moe(metadata: Metadata) -> ModelConfig:
    """Qwen 3 MoE."""
    return ModelConfig(**_llama(metadata), **_experts(metadata), qk_norm="RMS")


def olmoe(metadata: Metadata) -> ModelConfig:
    """OLMoE."""
    experts = _experts(metadata, width="feed_forward_length", normalize_weights=False)
    return ModelConfig(**_llama(metadata), **experts, qk_norm="RMS_all_heads")


def gpt_oss(metadata: Metadata) -> ModelConfig:
    """gpt-oss: sinks, every other layer local, experts that clamp what they multiply."""
    fields = _llama(metadata)
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = dataclasses.replace(fields["rope_scaling"], truncate=False)
    return ModelConfig(
        **fields,
        **_experts(metadata, router_bias=True, expert_bias=True, swiglu_limit=7.0),
        **_window(metadata, _pattern(metadata, 2)),
        attn_sinks=True,
    )


def qwen3(metadata: Metadata) -> ModelConfig:
    """Qwen 3."""
    return ModelConfig(**_llama(metadata), qk_norm="RMS")


def olmo2(metadata: Metadata) -> ModelConfig:
    """OLMo 2."""
    fields = _llama(metadata) | {"norm_placement": "post", "qk_norm": "RMS_all_heads"}
    return ModelConfig(**fields, **_window(metadata, _pattern(metadata, 4)))


def phi3(metadata: Metadata) -> ModelConfig:
    """Phi-3 and Phi-4-mini."""
    return ModelConfig(**_llama(metadata, whole_heads=False), **_window(metadata))


def gemma(metadata: Metadata) -> ModelConfig:
    """Gemma. The file's norms hold their weights, not their weights less 1."""
    return ModelConfig(**_gemma(metadata))


def gemma2(metadata: Metadata) -> ModelConfig:
    """Gemma 2."""
    return ModelConfig(
        **_gemma_sides(metadata, LARGEST_GEMMA2),
        attn_scores_soft_cap=metadata.get("attn_logit_softcapping", 50.0),
        output_logits_soft_cap=metadata.get("final_logit_softcapping", 30.0),
        **_window(metadata, _pattern(metadata, 2), default=4096),
    )


def gemma3(metadata: Metadata) -> ModelConfig:
    """Gemma 3."""
    fields = _gemma_sides(metadata, LARGEST_GEMMA3) | {"qk_norm": "RMS"}
    n_ctx, size, kinds = fields["n_ctx"], metadata.get("attention.sliding_window", 0), _pattern(metadata, 6)
    if size and "local" in kinds:  # local layers rotate in their own way, however long their window
        fields |= {"window_size": min(size, n_ctx), "attn_types": kinds}
        fields |= {"rotary_base_local": metadata.get("rope.freq_base_swa", 10000.0)}
    cap = metadata.get("final_logit_softcapping", 0.0)
    return ModelConfig(**fields, output_logits_soft_cap=cap or None)


def mamba(metadata: Metadata) -> ModelConfig:
    """Mamba and Falcon Mamba."""
    normed = metadata.get("ssm.dt_b_c_rms", False)
    return ModelConfig(
        **_ssm(metadata, "mamba"),
        dt_rank=metadata.need("ssm.time_step_rank", int),
        ssm_normalization_type="RMSPre" if normed else None,
    )


def mamba2(metadata: Metadata) -> ModelConfig:
    """Mamba-2."""
    fields = _ssm(metadata, "mamba2")
    n_heads = metadata.need("ssm.time_step_rank", int)
    if not n_heads or fields["d_inner"] % n_heads:
        raise ConfigError(f"{metadata.file.path}: {fields['d_inner']} channels cannot be split into {n_heads} heads")
    groups = metadata.get("ssm.group_count", 1)
    return ModelConfig(**fields, d_ssm_head=fields["d_inner"] // n_heads, n_ssm_groups=groups)


CONFIGURE = {
    "gpt2": gpt2,
    "gptneox": gpt_neox,
    "bloom": bloom,
    "falcon": falcon,
    "llama": llama_like,
    "qwen2": llama_like,
    "qwen2moe": qwen2moe,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
    "olmoe": olmoe,
    "gpt-oss": gpt_oss,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "olmo2": olmo2,
    "phi2": phi2,
    "phi3": phi3,
    "starcoder2": starcoder2,
    "mamba": mamba,
    "mamba2": mamba2,
}
"""How the metadata of each architecture is read."""


def _llama(metadata: Metadata, *, norm: Fields | None = None, whole_heads: bool = True) -> Fields:
    """What all models built like Llama have, with RMS norms if not `norm`.

    `whole_heads` refuses one that rotates a part of each head.
    """
    fields = {
        **_sizes(metadata),
        **_rotary(metadata),
        "act_fn": "silu",
        "gated_mlp": True,
        **(_rms_norm(metadata) if norm is None else norm),
        "attn_in_bias": metadata.has("blk.0.attn_q.bias"),
        "attn_out_bias": metadata.has("blk.0.attn_output.bias"),
        "mlp_bias": metadata.has("blk.0.ffn_up.bias"),
        "unembed_bias": False,
    }
    if whole_heads and fields["rotary_dim"] != fields["d_head"]:
        raise ConfigError(
            f"{metadata.file.path}: {metadata.architecture}.rope.dimension_count={fields['rotary_dim']} is not "
            f"supported; it must be the whole head of {fields['d_head']}"
        )
    return fields


def _experts(metadata: Metadata, *, width: str = "expert_feed_forward_length", **own: Any) -> Fields:
    """A mixture of experts in every layer; `width` is the entry of their neurons."""
    experts = Experts(
        metadata.need("expert_count", int),
        metadata.need("expert_used_count", int),
        metadata.need(width, int),
        **{"normalize_weights": metadata.get("expert_weights_norm", True), **own},
    )
    return {"experts": experts}


def _gemma(metadata: Metadata) -> Fields:
    own = {"act_fn": "gelu_new", "embed_scale": metadata.need("embedding_length", int) ** 0.5}
    return _llama(metadata) | own


def _gemma_sides(metadata: Metadata, largest: int) -> Fields:
    """What Gemma 2 and 3 have in common; the largest model of either scales scores in another way than the others."""
    fields = _gemma(metadata)
    channels = fields["d_model"] // fields["n_heads"] if fields["n_layers"] == largest else fields["d_head"]
    return fields | {"norm_placement": "both", "attn_scale": channels**0.5}


def _layer_norm(metadata: Metadata) -> Fields:
    return {"normalization_type": "LN", "eps": metadata.need("attention.layer_norm_epsilon", float)}


def _rms_norm(metadata: Metadata) -> Fields:
    return {"normalization_type": "RMS", "eps": metadata.need("attention.layer_norm_rms_epsilon", float)}


def _pattern(metadata: Metadata, every: int) -> tuple[str, ...]:
    """Which layers are local: as the file lists them, or all but every so manieth."""
    n_layers, full = metadata.need("block_count", int), f"{metadata.architecture}.attention.sliding_window_pattern"
    metadata.read.add(full)
    given = metadata.file.metadata.get(full, every)
    if type(given) is int and given > 0:
        given = [(layer + 1) % given != 0 for layer in range(n_layers)]
    if not isinstance(given, list) or len(given) != n_layers or not all(type(one) is bool for one in given):
        raise ConfigError(
            f"{metadata.file.path}: {full}={shown(given)} must be true or false for each layer, or a number"
        )
    return tuple("local" if one else "global" for one in given)


def _window(metadata: Metadata, kinds: tuple[str, ...] | None = None, default: int = 0) -> Fields:
    """The window of local layers; one that is as long as the context is none."""
    size = metadata.get("attention.sliding_window", default)
    if not 0 < size < metadata.need("context_length", int) or (kinds is not None and "local" not in kinds):
        return {}
    return {"window_size": size, "attn_types": kinds}


def _ssm(metadata: Metadata, kind: str) -> Fields:
    """What both kinds of state-space models have in common."""
    tied, n_layers = not metadata.has("output.weight"), metadata.need("block_count", int)
    d_vocab = metadata.file.tensor("token_embd.weight").shape[0]
    return {
        "n_layers": n_layers,
        "d_model": metadata.need("embedding_length", int),
        "n_ctx": metadata.need("context_length", int),
        "d_vocab": d_vocab,
        "tie_word_embeddings": tied,
        "layer_types": (kind,) * n_layers,
        **_rms_norm(metadata),
        "d_inner": metadata.need("ssm.inner_size", int),
        "d_state": metadata.need("ssm.state_size", int),
        "d_conv": metadata.need("ssm.conv_kernel", int),
        "conv_bias": metadata.has("blk.0.ssm_conv1d.bias"),
        "unembed_bias": False,
        "model_name": metadata.file.path.stem,
    }


def _refuse_unread(metadata: Metadata) -> None:
    path, architecture = metadata.file.path, metadata.architecture
    for full, value in metadata.file.metadata.items():
        key = full.removeprefix(f"{architecture}.")
        neutral = value is True if key == "attention.causal" else value in (0, "", "none", [])
        if key != full and full not in metadata.read and key not in SILENT and not neutral:
            raise ConfigError(f"{path}: {full}={shown(value)} may change the computation and is not supported")


def _sizes(metadata: Metadata) -> Fields:
    d_model, n_heads = metadata.need("embedding_length", int), metadata.need("attention.head_count", int)
    d_head = metadata.get("attention.key_length", d_model // max(n_heads, 1))
    if metadata.get("attention.value_length", d_head) != d_head:
        raise ConfigError(f"{metadata.file.path}: keys and values of different sizes are not supported")
    tied = not metadata.has("output.weight")
    unembedding = metadata.file.tensor("token_embd.weight" if tied else "output.weight")
    return {
        "n_layers": metadata.need("block_count", int),
        "d_model": d_model,
        "n_ctx": metadata.need("context_length", int),
        "n_heads": n_heads,
        "n_key_value_heads": metadata.get("attention.head_count_kv", n_heads),
        "d_head": d_head,
        "d_mlp": metadata.need("feed_forward_length", int),
        "d_vocab": metadata.file.tensor("token_embd.weight").shape[0],
        "d_vocab_out": unembedding.shape[0],
        "tie_word_embeddings": tied,
        "model_name": metadata.file.path.stem,
    }


def _rotary(metadata: Metadata) -> Fields:
    rotary_dim = metadata.get("rope.dimension_count", _sizes(metadata)["d_head"])
    base = metadata.get("rope.freq_base", 10000.0)
    return {
        "positional_embedding_type": "rotary",
        "rotary_dim": rotary_dim,
        "rotary_base": base,
        "rope_scaling": _rope_scaling(metadata, rotary_dim, base),
    }


def _rope_scaling(metadata: Metadata, rotary_dim: int, base: float) -> RopeScaling | None:
    """The scaling that the metadata names, or one that is stored as tensors of frequency factors."""
    linear = metadata.get("rope.scale_linear", 1.0)
    kind = metadata.get("rope.scaling.type", "none" if linear == 1.0 else "linear")
    name = "rope.scaling.original_context_length"
    original = metadata.get(name, 8192)
    if original < 1:
        raise ConfigError(f"{metadata.file.path}: {metadata.architecture}.{name}={original} must be at least 1")
    if metadata.has("rope_factors_long.weight"):
        return _longrope(metadata, rotary_dim, original)
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(
            f"{metadata.file.path}: {metadata.architecture}.rope.scaling.type={kind!r} is not supported; "
            "choose from 'none', 'linear', 'yarn'"
        )
    factor = metadata.get("rope.scaling.factor", linear)
    if kind == "yarn":
        return RopeScaling("yarn", factor, original_n_ctx=original)
    if not metadata.has("rope_freqs.weight"):
        return RopeScaling("linear", factor) if kind == "linear" and factor != 1.0 else None
    stored = _factors(metadata, "rope_freqs.weight", rotary_dim).double()
    if kind == "none" and bool((stored == 1).all()):
        return None
    scaling = RopeScaling("llama3", round(float(stored.max()), 6), original_n_ctx=original)
    if kind == "linear" or not torch.allclose(stored, _llama3_factors(scaling, rotary_dim, base), rtol=1e-4):
        raise ConfigError(
            f"{metadata.file.path}: rope_freqs.weight holds frequency factors that are not those of Llama 3 "
            f"(factor {scaling.factor}, trained context {original}), and others are not supported"
        )
    return scaling


def _longrope(metadata: Metadata, rotary_dim: int, original: int) -> RopeScaling:
    """LongRoPE, whose two sets of factors are tensors."""
    names = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
    factors: Fields = {name: tuple(_factors(metadata, stored, rotary_dim).tolist()) for name, stored in names.items()}
    factor = metadata.need("context_length", int) / original
    scale = metadata.get("rope.scaling.attn_factor", 0.0)
    return RopeScaling("longrope", factor, original_n_ctx=original, attention_factor=scale or None, **factors)


def _factors(metadata: Metadata, name: str, rotary_dim: int) -> torch.Tensor:
    """What each frequency is divided by [rotary_dim / 2]."""
    stored = metadata.file.tensor(name)
    if stored.shape != (rotary_dim // 2,):
        raise WeightsError(
            f"{metadata.file.path}: {name} has shape {list(stored.shape)}, not one factor for each of the "
            f"{rotary_dim // 2} frequencies"
        )
    return stored.load()


def _llama3_factors(scaling: RopeScaling, rotary_dim: int, base: float) -> torch.Tensor:
    """What each rotary frequency is divided by, as llama.cpp's converter stores it."""
    frequencies = base ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    turns = scaling.original_n_ctx * frequencies / (2 * math.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return 1 / ((1 - smooth) / scaling.factor + smooth)
