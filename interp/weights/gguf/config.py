"""The configuration that a GGUF file's `{architecture}.*` metadata describes.

1. Sizes, norms and rotary frequencies are read under llama.cpp's names (gguf-py/gguf/constants.py).
2. What the metadata leaves to the architecture (activation, norm) is set as in transformers; biases exist if the file
   stores them.
3. An unknown entry may change the computation and is refused by name, unless its value means "not used"; so are a
   sliding window shorter than the context, and a rotary scaling other than linear and Llama 3's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from interp.arguments import shown
from interp.config import ModelConfig, RopeScaling
from interp.errors import ConfigError, WeightsError
from interp.weights.gguf.container import GGUFFile

KNOWN = {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size", "use_parallel_residual",
    "tensor_data_layout", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
    "attention.sliding_window", "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
}  # fmt: skip

Value = TypeVar("Value", int, float, bool, str)


@dataclass(frozen=True)
class Metadata:
    """The `{architecture}.*` entries of a file, under their names without the architecture."""

    file: GGUFFile
    architecture: str

    def get(self, key: str, default: Value) -> Value:
        """An entry of the type of `default`, or `default`; a list with the same value for every layer is that value."""
        full = f"{self.architecture}.{key}"
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


def gpt2(metadata: Metadata) -> ModelConfig:
    """GPT-2 and models with its code."""
    _refuse_unknown(metadata)
    return ModelConfig(
        **_sizes(metadata),
        act_fn="gelu_new",
        eps=metadata.need("attention.layer_norm_epsilon", float),
        unembed_bias=False,
    )


def gpt_neox(metadata: Metadata) -> ModelConfig:
    """GPT-NeoX and Pythia."""
    _refuse_unknown(metadata)
    return ModelConfig(
        **_sizes(metadata),
        **_rotary(metadata),
        act_fn="gelu",
        eps=metadata.need("attention.layer_norm_epsilon", float),
        parallel_attn_mlp=metadata.get("use_parallel_residual", True),
        attn_in_bias=metadata.has("blk.0.attn_qkv.bias"),
        attn_out_bias=metadata.has("blk.0.attn_output.bias"),
        unembed_bias=False,
    )


def llama_like(metadata: Metadata) -> ModelConfig:
    """Llama, SmolLM and Mistral (architecture `llama`), and Qwen 2."""
    _refuse_unknown(metadata)
    cfg = ModelConfig(
        **_sizes(metadata),
        **_rotary(metadata),
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        eps=metadata.need("attention.layer_norm_rms_epsilon", float),
        attn_in_bias=metadata.has("blk.0.attn_q.bias"),
        attn_out_bias=metadata.has("blk.0.attn_output.bias"),
        mlp_bias=metadata.has("blk.0.ffn_up.bias"),
        unembed_bias=False,
    )
    if cfg.rotary_dim != cfg.d_head:
        raise ConfigError(
            f"{metadata.file.path}: {metadata.architecture}.rope.dimension_count={cfg.rotary_dim} is not supported; "
            f"it must be the whole head of {cfg.d_head}"
        )
    return cfg


def _refuse_unknown(metadata: Metadata) -> None:
    path, architecture = metadata.file.path, metadata.architecture
    for full, value in metadata.file.metadata.items():
        key = full.removeprefix(f"{architecture}.")
        neutral = value in (0, "", "none", []) or (key == "attention.causal" and value is True)
        if key != full and key not in KNOWN and not neutral:
            raise ConfigError(f"{path}: {full}={shown(value)} may change the computation and is not supported")
    window, n_ctx = metadata.get("attention.sliding_window", 0), metadata.need("context_length", int)
    if 0 < window < n_ctx:
        raise ConfigError(
            f"{path}: {architecture}.attention.sliding_window={window} is not supported: it is shorter than the "
            f"context of {n_ctx} tokens"
        )


def _sizes(metadata: Metadata) -> dict[str, Any]:
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


def _rotary(metadata: Metadata) -> dict[str, Any]:
    rotary_dim = metadata.get("rope.dimension_count", _sizes(metadata)["d_head"])
    base = metadata.get("rope.freq_base", 10000.0)
    return {
        "positional_embedding_type": "rotary",
        "rotary_dim": rotary_dim,
        "rotary_base": base,
        "rope_scaling": _rope_scaling(metadata, rotary_dim, base),
    }


def _rope_scaling(metadata: Metadata, rotary_dim: int, base: float) -> RopeScaling | None:
    """The scaling that the metadata names, or that of Llama 3, which is stored as a tensor of frequency factors."""
    linear = metadata.get("rope.scale_linear", 1.0)
    kind = metadata.get("rope.scaling.type", "none" if linear == 1.0 else "linear")
    if kind not in ("none", "linear"):
        raise ConfigError(
            f"{metadata.file.path}: {metadata.architecture}.rope.scaling.type={kind!r} is not supported; "
            "choose from 'none', 'linear'"
        )
    if not metadata.has("rope_freqs.weight"):
        factor = metadata.get("rope.scaling.factor", linear)
        return RopeScaling("linear", factor) if kind == "linear" and factor != 1.0 else None
    stored = metadata.file.tensor("rope_freqs.weight").load().double()  # [rotary_dim / 2]
    if stored.shape != (rotary_dim // 2,):
        raise WeightsError(
            f"{metadata.file.path}: rope_freqs.weight has shape {list(stored.shape)}, not one factor for each of the "
            f"{rotary_dim // 2} frequencies"
        )
    if kind == "none" and bool((stored == 1).all()):
        return None
    original = metadata.get("rope.scaling.original_context_length", 8192)
    scaling = RopeScaling("llama3", round(float(stored.max()), 6), original_n_ctx=original)
    if kind == "linear" or not torch.allclose(stored, _llama3_factors(scaling, rotary_dim, base), rtol=1e-4):
        raise ConfigError(
            f"{metadata.file.path}: rope_freqs.weight holds frequency factors that are not those of Llama 3 "
            f"(factor {scaling.factor}, trained context {original}), and others are not supported"
        )
    return scaling


def _llama3_factors(scaling: RopeScaling, rotary_dim: int, base: float) -> torch.Tensor:
    """What each rotary frequency is divided by, as llama.cpp's converter stores it."""
    frequencies = base ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    turns = scaling.original_n_ctx * frequencies / (2 * math.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return 1 / ((1 - smooth) / scaling.factor + smooth)
