"""GGUF files as checkpoints: where each weight of an architecture lies.

1. The metadata becomes a `ModelConfig` (config.py) and a `Tokenizer` (tokenizer.py).
2. A table has a row for each of our weights: the stored tensor's name, and the einops pattern to TransformerLens's
   shape. A stored tensor that no row uses is refused.
3. llama.cpp's converter reorders the rows of q and k in the `llama` architecture, so that rotary pairs are next to each
   other; the pattern `DEINTERLEAVED` undoes this, and half-split rotary applies as in transformers.

Source: llama.cpp's `conversion/` (llama.py, gpt2.py, gpt_neox.py, qwen.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from einops import rearrange

from interp.arguments import shown
from interp.config import ModelConfig
from interp.errors import ConfigError, WeightsError, nearest
from interp.text.tokenizer import Tokenizer
from interp.weights.checkpoint import Checkpoint, Row, Source, Stored, refuse_deeper
from interp.weights.gguf.config import Metadata, gpt2, gpt_neox, llama_like
from interp.weights.gguf.container import GGUFFile, StoredTensor, open_gguf
from interp.weights.gguf.tokenizer import build_tokenizer
from interp.weights.huggingface.families import BRIDGE


@dataclass(frozen=True)
class Architecture:
    """One value of `general.architecture`: how its metadata is read and where its weights lie."""

    configure: Callable[[Metadata], ModelConfig]
    rows: dict[str, Row]


def read(path: str | Path, *, tokenizer: Tokenizer | None = None, pre_tokenizer: str | None = None) -> Checkpoint:
    """A GGUF file as a checkpoint: tensors are dequantised to float32 one by one, when they are needed.

    Args:
        path: the file.
        tokenizer: used instead of the one in the file, which is then not read.
        pre_tokenizer: how text is split before byte-level BPE, where the file does not say (one of
            `interp.weights.gguf.tokenizer.PRE_TOKENIZERS`).

    Raises:
        WeightsError: the file is not GGUF, truncated or damaged, or a tensor is missing, extra or of the wrong shape.
        ConfigError: an architecture or metadata that is not supported.
    """
    file = open_gguf(path)
    name = str(file.metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        close = nearest(name, ARCHITECTURES)
        hint = f"; the nearest is {close[0]!r}" if close else ""
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(
            f"{path}: architecture {shown(name)} is not supported in a GGUF file; choose from {known}{hint}. The "
            f"Hugging Face directory of the same model may be. {BRIDGE}"
        )
    try:
        cfg = ARCHITECTURES[name].configure(Metadata(file, name))
    except ConfigError as error:
        raise error if str(path) in str(error) else ConfigError(f"{path}: {error}") from error
    refuse_deeper(cfg.n_layers, file.tensors, path)
    tensors = _tensors(file, cfg, ARCHITECTURES[name].rows)
    tokenizer = tokenizer or build_tokenizer(file.metadata, name=str(path), pre_tokenizer=pre_tokenizer)
    if tokenizer is not None and len(tokenizer) > cfg.d_vocab:
        raise WeightsError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the embedding {cfg.d_vocab} rows")
    return Checkpoint(cfg, tensors, tokenizer, Source("gguf", str(path), files=(file.path,)))


HEADS_IN = "(head d_head) d_model -> head d_model d_head"
HEADS_BIAS = "(head d_head) -> head d_head"
HEADS_OUT = "d_model (head d_head) -> head d_head d_model"
DEINTERLEAVED = "(head half pair) ... -> (head pair half) ..."
TRANSPOSED = "out_features in_features -> in_features out_features"

SHARED = {
    "embed.W_E": Row("token_embd.weight"),
    "blocks.{l}.ln1.w": Row("blk.{l}.attn_norm.weight"),
    "blocks.{l}.attn.W_O": Row("blk.{l}.attn_output.weight", HEADS_OUT),
    "blocks.{l}.attn.b_O": Row("blk.{l}.attn_output.bias"),
    "blocks.{l}.ln2.w": Row("blk.{l}.ffn_norm.weight"),
    "blocks.{l}.mlp.W_in": Row("blk.{l}.ffn_up.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_in": Row("blk.{l}.ffn_up.bias"),
    "blocks.{l}.mlp.W_out": Row("blk.{l}.ffn_down.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_out": Row("blk.{l}.ffn_down.bias"),
    "ln_final.w": Row("output_norm.weight"),
    "unembed.W_U": Row("output.weight", TRANSPOSED),
}
NORM_BIASES = {
    "blocks.{l}.ln1.b": Row("blk.{l}.attn_norm.bias"),
    "blocks.{l}.ln2.b": Row("blk.{l}.ffn_norm.bias"),
    "ln_final.b": Row("output_norm.bias"),
}
GPT_NEOX = {
    **SHARED,
    **NORM_BIASES,
    **{f"blocks.{{l}}.attn.W_{x}": Row("blk.{l}.attn_qkv.weight", HEADS_IN, i) for i, x in enumerate("QKV")},
    **{f"blocks.{{l}}.attn.b_{x}": Row("blk.{l}.attn_qkv.bias", HEADS_BIAS, i) for i, x in enumerate("QKV")},
}
GPT2 = {"pos_embed.W_pos": Row("position_embd.weight"), **GPT_NEOX}
QWEN2 = {
    **SHARED,
    **{f"blocks.{{l}}.attn.W_{x}": Row(f"blk.{{l}}.attn_{x.lower()}.weight", HEADS_IN) for x in "QKV"},
    **{f"blocks.{{l}}.attn.b_{x}": Row(f"blk.{{l}}.attn_{x.lower()}.bias", HEADS_BIAS) for x in "QKV"},
    "blocks.{l}.mlp.W_gate": Row("blk.{l}.ffn_gate.weight", TRANSPOSED),
    "blocks.{l}.mlp.b_gate": Row("blk.{l}.ffn_gate.bias"),
}
LLAMA = {
    **QWEN2,
    **{f"blocks.{{l}}.attn.W_{x}": Row(f"blk.{{l}}.attn_{x.lower()}.weight", HEADS_IN, interleaved=True) for x in "QK"},
    **{f"blocks.{{l}}.attn.b_{x}": Row(f"blk.{{l}}.attn_{x.lower()}.bias", HEADS_BIAS, interleaved=True) for x in "QK"},
}
ARCHITECTURES = {
    "gpt2": Architecture(gpt2, GPT2),
    "gptneox": Architecture(gpt_neox, GPT_NEOX),
    "llama": Architecture(llama_like, LLAMA),
    "qwen2": Architecture(llama_like, QWEN2),
}


def _tensors(file: GGUFFile, cfg: ModelConfig, rows: dict[str, Row]) -> dict[str, Stored]:
    biases = {"b_Q": cfg.attn_in_bias, "b_K": cfg.attn_in_bias, "b_V": cfg.attn_in_bias, "b_O": cfg.attn_out_bias}
    biases |= dict.fromkeys(("b_in", "b_gate", "b_out"), cfg.mlp_bias)
    tensors: dict[str, Stored] = {}
    used = {"rope_freqs.weight"}
    for ours, row in rows.items():
        weight = ours.rpartition(".")[2]
        if not biases.get(weight, True) or (weight == "W_U" and cfg.tie_word_embeddings):
            continue
        for layer in range(cfg.n_layers) if "{l}" in ours else [0]:
            stored = file.tensor(row.theirs.format(l=layer))
            used.add(stored.name)
            shape = _checked_shape(file, cfg, stored, row, weight)
            read = partial(_load, cfg, stored, row, weight)
            tensors[ours.format(l=layer)] = Stored(read, shape, torch.float32, stored.name)
    extra = sorted(name for name in file.tensors if name not in used and not name.endswith(".attn_rot_embd.weight"))
    if extra:
        raise WeightsError(f"{file.path}: this architecture has no place for {extra[0]!r} ({len(extra)} such tensors)")
    return tensors


def _load(cfg: ModelConfig, stored: StoredTensor, row: Row, weight: str) -> torch.Tensor:
    if not isinstance(row.part, int):
        return _arranged(cfg, stored.load(), row, weight)
    third = stored.shape[0] // 3
    return _arranged(cfg, stored.load(row.part * third, (row.part + 1) * third), row, weight)


def _arranged(cfg: ModelConfig, tensor: torch.Tensor, row: Row, weight: str) -> torch.Tensor:
    n_heads = cfg.n_kv_heads if weight[-2:] in ("_K", "_V") else cfg.n_heads
    if row.interleaved:
        tensor = rearrange(tensor, DEINTERLEAVED, head=n_heads, pair=2)
    if row.pattern is None:
        return tensor
    return rearrange(tensor, row.pattern, **({"head": n_heads} if "(head" in row.pattern else {}))


def _checked_shape(file: GGUFFile, cfg: ModelConfig, stored: StoredTensor, row: Row, weight: str) -> tuple[int, ...]:
    heads, kv_heads, d_mlp = cfg.n_heads, cfg.n_kv_heads, cfg.d_mlp or 0
    expected = {
        "W_E": (cfg.d_vocab, cfg.d_model), "W_pos": (cfg.n_ctx, cfg.d_model), "W_U": (cfg.d_model, cfg.d_vocab_out),
        "W_Q": (heads, cfg.d_model, cfg.d_head), "W_K": (kv_heads, cfg.d_model, cfg.d_head),
        "W_V": (kv_heads, cfg.d_model, cfg.d_head), "W_O": (heads, cfg.d_head, cfg.d_model),
        "b_Q": (heads, cfg.d_head), "b_K": (kv_heads, cfg.d_head), "b_V": (kv_heads, cfg.d_head),
        "W_in": (cfg.d_model, d_mlp), "W_gate": (cfg.d_model, d_mlp), "W_out": (d_mlp, cfg.d_model),
        "b_in": (d_mlp,), "b_gate": (d_mlp,),
    }.get(weight, (cfg.d_model,))  # fmt: skip
    rows = (stored.shape[0] // 3, *stored.shape[1:]) if row.part is not None else stored.shape
    try:
        arranged = tuple(_arranged(cfg, torch.empty(rows, device="meta"), row, weight).shape)
    except (RuntimeError, TypeError, OverflowError):  # from einops, or from torch if an axis is too long for it
        arranged = ()
    if arranged != expected:
        raise WeightsError(
            f"{file.path}: tensor {stored.name!r} has shape {list(stored.shape)}, which cannot be rearranged to the "
            f"{weight} of shape {list(expected)} that the metadata implies"
        )
    return arranged
