"""GGUF files as checkpoints: where each weight of an architecture lies.

1. The metadata becomes a `ModelConfig` (config.py) and a `Tokenizer` (tokenizer.py).
2. A table (rows.py) has a row for each of our weights: the stored tensor's name, and the einops pattern to
   TransformerLens's shape. A stored tensor that no row uses is refused.
3. llama.cpp's converter reorders the rows of q and k in the `llama` architecture, so that rotary pairs are next to each
   other; the pattern `DEINTERLEAVED` undoes this, and half-split rotary applies as in transformers.

Source: llama.cpp's `conversion/`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from einops import rearrange

from interp.arguments import shown
from interp.config import ModelConfig
from interp.errors import ConfigError, WeightsError, nearest
from interp.text.tokenizer import Tokenizer
from interp.weights.build import empty, weights
from interp.weights.checkpoint import Checkpoint, Row, Source, Stored, refuse_deeper
from interp.weights.gguf import rows
from interp.weights.gguf.config import CONFIGURE, Metadata, configure
from interp.weights.gguf.container import GGUFFile, StoredTensor, open_gguf
from interp.weights.gguf.tokenizer import build_tokenizer
from interp.weights.huggingface.families import BRIDGE


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
    if name not in CONFIGURE:
        close = nearest(name, CONFIGURE)
        hint = f"; the nearest is {close[0]!r}" if close else ""
        known = ", ".join(CONFIGURE)
        raise ConfigError(
            f"{path}: architecture {shown(name)} is not supported in a GGUF file; choose from {known}{hint}. The "
            f"Hugging Face directory of the same model may be. {BRIDGE}"
        )
    refuse_deeper(file.metadata.get(f"{name}.block_count"), file.tensors, path)
    try:
        cfg = configure(Metadata(file, name))
    except ConfigError as error:
        raise error if str(path) in str(error) else ConfigError(f"{path}: {error}") from error
    tensors = _tensors(file, cfg, name)
    tokenizer = tokenizer or build_tokenizer(file.metadata, name=str(path), pre_tokenizer=pre_tokenizer)
    if tokenizer is not None and len(tokenizer) > cfg.d_vocab:
        raise WeightsError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the embedding {cfg.d_vocab} rows")
    return Checkpoint(cfg, tensors, tokenizer, Source("gguf", str(path), files=(file.path,)))


ROWS = {
    "gpt2": rows.GPT2,
    "gptneox": rows.FUSED,
    "bloom": rows.BLOOM,
    "falcon": rows.FUSED,
    "llama": rows.LLAMA,
    "phi3": rows.PHI3,
    **dict.fromkeys(("qwen2moe", "qwen3moe"), rows.QWEN_MOE),
    "olmoe": rows.OLMOE,
    "gpt-oss": rows.GPT_OSS,
    "olmo2": rows.OLMO2,
    "mamba": rows.MAMBA,
    "mamba2": rows.MAMBA2,
    **dict.fromkeys(("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "starcoder2", "phi2"), rows.SEPARATE),
}
# Frequency factors are read with the configuration.
OF_POSITIONS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
DEINTERLEAVED = "(head half pair) ... -> (head pair half) ..."


def _tensors(file: GGUFFile, cfg: ModelConfig, architecture: str) -> dict[str, Stored]:
    table = ROWS[architecture]
    if architecture == "falcon" and not cfg.shared_norm:
        table = rows.FALCON_TWO_NORMS
    if architecture == "llama" and cfg.experts is not None:
        table = rows.MIXTRAL
    if architecture == "phi2" and "blk.0.attn_qkv.weight" in file.tensors:  # of older files
        table = rows.FUSED
    tensors: dict[str, Stored] = {}
    used = set(OF_POSITIONS)
    for ours, place in weights(empty(cfg)).items():
        layer = ours.split(".")[1] if ours.startswith("blocks.") else ""
        row = table[ours.replace(f"blocks.{layer}.", "blocks.{l}.", 1) if layer else ours]
        stored = _stored(file, row.theirs.replace("{l}", layer), layer)
        used.add(stored.name)
        weight = ours.rpartition(".")[2]
        shape = _checked_shape(file, cfg, stored, row, ours, tuple(place.shape))
        tensors[ours] = Stored(partial(_load, cfg, stored, row, weight), shape, torch.float32, stored.name)
    extra = sorted(name for name in file.tensors if name not in used and not name.endswith(".attn_rot_embd.weight"))
    if extra:
        raise WeightsError(f"{file.path}: this architecture has no place for {extra[0]!r} ({len(extra)} such tensors)")
    return tensors


def _stored(file: GGUFFile, name: str, layer: str) -> StoredTensor:
    """A tensor; the norm before the MLP has two names in llama.cpp, of which files have either."""
    other = name.replace("ffn_norm", "pre_ffw_norm")
    return file.tensor(other if name not in file.tensors and other in file.tensors else name)


def _load(cfg: ModelConfig, stored: StoredTensor, row: Row, weight: str) -> torch.Tensor:
    loaded = stored.load(*_rows_of(cfg, row)) if isinstance(row.part, str) else stored.load()
    # Files hold A itself, which is -exp(A_log).
    return _arranged(cfg, (-loaded).log() if weight == "A_log" else loaded, row, weight)


def _rows_of(cfg: ModelConfig, row: Row) -> tuple[int, int]:
    """The first row and the one after the last of a weight in a tensor that holds several under one another."""
    queries, keys, d_mlp = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head, cfg.d_mlp or 0
    ends = {"q": (0, queries), "k": (queries, queries + keys), "v": (queries + keys, queries + 2 * keys)}
    return (ends | {"gate": (0, d_mlp), "up": (d_mlp, 2 * d_mlp)})[str(row.part)]


def _arranged(cfg: ModelConfig, tensor: torch.Tensor, row: Row, weight: str) -> torch.Tensor:
    n_heads = cfg.n_kv_heads if weight[-2:] in ("_K", "_V") else cfg.n_heads
    if row.interleaved:
        tensor = rearrange(tensor, DEINTERLEAVED, head=n_heads, pair=2)
    if row.pattern is None:
        return tensor
    return rearrange(tensor, row.pattern, **({"d_head": cfg.d_head} if "(head" in row.pattern else {}))


def _checked_shape(
    file: GGUFFile, cfg: ModelConfig, stored: StoredTensor, row: Row, ours: str, expected: tuple[int, ...]
) -> tuple[int, ...]:
    shape = stored.shape
    if isinstance(row.part, str):
        first, last = _rows_of(cfg, row)
        shape = (max(0, min(last, shape[0]) - first), *shape[1:])
    try:
        arranged = tuple(_arranged(cfg, torch.empty(shape, device="meta"), row, ours.rpartition(".")[2]).shape)
    except (RuntimeError, TypeError, OverflowError):  # from einops, or from torch if an axis is too long for it
        arranged = ()
    if arranged != expected:
        raise WeightsError(
            f"{file.path}: tensor {stored.name!r} has shape {list(stored.shape)}, which cannot be rearranged to the "
            f"{ours.rpartition('.')[2]} of shape {list(expected)} that the metadata implies"
        )
    return arranged
