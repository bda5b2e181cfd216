"""Hugging Face checkpoints: a directory, a repository of the hub, or a transformers model in memory.

1. config.json gives the family and the `ModelConfig` (see `families`).
2. The family's table says how each of our tensors is rearranged from theirs; a missing or unexpected tensor is refused
   by name, except for computed buffers.
3. Tensors are read one at a time, when `interp.weights.build` copies them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from interp.config import EncoderDecoderConfig, ModelConfig
from interp.errors import ConfigError, UnknownName, WeightsError
from interp.files.foreign_files import read_json
from interp.text.tokenizer import Tokenizer
from interp.weights.build import empty, name_problems, weights
from interp.weights.checkpoint import Checkpoint, Row, Source, Stored, equal, in_memory, refuse_deeper
from interp.weights.files import WEIGHT_FILES, Tensors, contents, open_weights, shards_of
from interp.weights.huggingface.families import configure
from interp.weights.mxfp4 import dequantized

GENERATION = "generation_config.json"
TOKENIZER_FILES = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", GENERATION,
]  # fmt: skip
SAFE_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
PICKLED_FILES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]
INDICES = [f"{name}.index.json" for name in WEIGHT_FILES]


def read(source: str | Path, revision: str | None = None, tokenizer: Tokenizer | None = None) -> Checkpoint:
    """A model directory (config.json and safetensors), or a repository of the hub such as "EleutherAI/pythia-70m".

    Args:
        source: a directory, or a repository's name if there is no such directory. Repositories are looked up in the
            local cache, and downloaded if they are not there; `HF_HUB_OFFLINE` is respected.
        revision: a branch, tag or commit of a repository.
        tokenizer: used instead of the one in the directory, whose files are then not read.

    Raises:
        ConfigError: an architecture or option that is not supported.
        WeightsError: weights that cannot be fetched, are truncated or do not fit their configuration.
    """
    folder = Path(source) if Path(source).is_dir() else download(str(source), revision)
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} is not a model directory: it holds no config.json, but {contents(folder)}")
    options = read_json(folder / "config.json")
    tensors, files = open_weights(folder)
    name, commit = str(folder), None
    if folder.parent.name == "snapshots":  # the hub's cache: models--owner--name/snapshots/commit
        name, commit = folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    origin = Source(kind="huggingface", location=name, revision=commit, files=files)
    if (folder / GENERATION).is_file():
        options |= _of_generation(read_json(folder / GENERATION))
    options = {**options, "_name_or_path": name if commit else folder.name}
    try:
        return _checkpoint(options, tensors, tokenizer or Tokenizer.from_directory(folder), origin)
    except (ConfigError, UnknownName) as error:
        raise type(error)(f"{folder / 'config.json'}: {error}") from error
    except WeightsError as error:
        raise error if str(folder) in str(error) else WeightsError(f"{folder}: {error}") from error


def from_transformers(hf_model: Any, tokenizer: Any = None) -> Checkpoint:
    """A transformers model in memory, whose weights are copied when the model is built.

    Args:
        hf_model: a model with a language modelling head, or one without it and with tied embeddings.
        tokenizer: a `Tokenizer`, a transformers tokenizer, or None.
    """
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_transformers(tokenizer)
    options = hf_model.config.to_dict()
    if getattr(hf_model, "generation_config", None) is not None:
        options |= _of_generation(hf_model.generation_config.to_dict())
    name = options.get("_name_or_path") or type(hf_model).__name__
    state = hf_model.state_dict()
    tensors: Tensors = {key: in_memory(tensor, key) for key, tensor in state.items()}
    return _checkpoint(options, tensors, tokenizer, Source(kind="transformers", location=name))


def _of_generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of generation, those that `generate` follows: the tokens that are never written."""
    return {name: settings[name] for name in ("bad_words_ids", "suppress_tokens") if settings.get(name)}


def download(repository: str, revision: str | None = None) -> Path:
    """The local copy of a repository of the hub; pickled weights are fetched only if there are no others."""
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["config.json", *patterns]))

    try:
        folder = fetch(TOKENIZER_FILES + SAFE_FILES)
        if not any(folder.glob("model*.safetensors*")):
            folder = fetch(TOKENIZER_FILES + PICKLED_FILES)
        shards = {shard for index in INDICES for shard in shards_of(folder / index) if not (folder / shard).exists()}
        return fetch(sorted(shards)) if shards else folder
    except WeightsError:
        raise
    except Exception as error:  # from huggingface_hub, its HTTP library or the file system
        at = f" at revision {revision!r}" if revision else ""
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise WeightsError(
            f"{repository!r}{at} is not in the local cache and cannot be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {reason})"
        ) from error


def _names(row: Row, length: int, held: int) -> list[str]:
    """The names of their tensors in a row: one, or as many as our first axis is long.

    Of an axis that is longer than the number of tensors that the file holds, one too many: enough to be refused.
    """
    if "{i}" not in row.theirs:
        return [row.theirs]
    return [row.theirs.replace("{i}", str(at)) for at in range(min(length, held + 1))]


def _stacked(stored: Sequence[Stored], row: Row) -> Stored:
    """Several tensors as one with an axis more, or the only one as it is."""
    first = stored[0]
    if "{i}" not in row.theirs:
        return first
    odd = next((one for one in stored if one.shape != first.shape or one.dtype != first.dtype), None)
    if odd is not None:
        raise WeightsError(f"{odd.origin!r} has shape {list(odd.shape)}, unlike {first.origin!r}, {list(first.shape)}")
    return Stored(
        lambda: torch.stack([one() for one in stored]), (len(stored), *first.shape), first.dtype, first.origin
    )


def _piece(stored: Stored, row: Row, cfg: ModelConfig) -> Stored:
    """One of our tensors, to be read from one of theirs."""
    arrange = partial(_arranged, row=row, cfg=cfg, origin=stored.origin)
    return Stored(lambda: arrange(stored()), tuple(arrange(_empty(stored)).shape), stored.dtype, stored.origin)


def _empty(stored: Stored) -> Tensor:
    try:
        return torch.empty(stored.shape, device="meta")
    except (RuntimeError, TypeError, OverflowError) as error:  # an axis that is too long for torch
        raise WeightsError(f"{stored.origin!r} has shape {list(stored.shape)}, which no tensor can have") from error


def _arranged(tensor: Tensor, *, row: Row, cfg: ModelConfig, origin: str | None) -> Tensor:
    """A tensor of theirs, or an empty one of its shape, in our shape."""
    tensor = tensor[max(0, tensor.shape[0] - cfg.n_ctx) if row.skipped is None else row.skipped :]
    if row.pattern is None:
        return tensor
    sizes = {"d_head": cfg.d_head, "kv_head": cfg.n_kv_heads, "qkv": 3, "two": 2}
    try:
        ours = rearrange(tensor, row.pattern, **{k: n for k, n in sizes.items() if k in row.pattern})
    except RuntimeError as error:  # from einops
        shape = list(tensor.shape)
        raise WeightsError(f"{origin!r} has shape {shape}, which cannot be split as {row.pattern!r}") from error
    if not isinstance(row.part, str):
        return ours if row.part is None else ours[row.part]
    return _of_groups(ours, row.part) if "slot" in row.pattern else ours[head_rows(cfg)[row.part]]


def _of_groups(grouped: Tensor, part: str) -> Tensor:
    """Queries, keys or values of groups: the slots of each are its queries, a key and a value.

    [kv_head, slot, ...] -> [head, ...]
    """
    return grouped[:, :-2].flatten(0, 1) if part == "q" else grouped[:, -2 if part == "k" else -1]


def head_rows(cfg: ModelConfig) -> dict[str, slice]:
    """Which heads of a tensor that holds queries, keys and values under one another are which."""
    heads, both = cfg.n_heads, cfg.n_heads + cfg.n_kv_heads
    return {"q": slice(heads), "k": slice(heads, both), "v": slice(both, both + cfg.n_kv_heads)}


def part_of(cfg: ModelConfig | EncoderDecoderConfig, name: str) -> ModelConfig:
    """The configuration of the stack that a weight belongs to."""
    return getattr(cfg, name.partition(".")[0]) if isinstance(cfg, EncoderDecoderConfig) else cfg


def with_output(cfg: ModelConfig | EncoderDecoderConfig, **changes: Any) -> ModelConfig | EncoderDecoderConfig:
    """The configuration with some fields changed in the stack that makes logits."""
    if isinstance(cfg, EncoderDecoderConfig):
        return dataclasses.replace(cfg, decoder=cfg.decoder.replace(**changes))
    return cfg.replace(**changes)


def _ends_of_logits(cfg: ModelConfig | EncoderDecoderConfig) -> tuple[str, str]:
    """The unembedding, and before it the token embedding that it reads where they are tied."""
    if not isinstance(cfg, EncoderDecoderConfig):
        return "embed.W_E", "unembed.W_U"
    return "encoder.embed.W_E" if cfg.shared_embeddings else "decoder.embed.W_E", "decoder.unembed.W_U"


def _repeats(repeats: Mapping[str, str], cfg: ModelConfig | EncoderDecoderConfig) -> Mapping[str, str]:
    """Which tensors repeat others: a decoder's embedding only where the stacks share one."""
    shared = not isinstance(cfg, EncoderDecoderConfig) or cfg.shared_embeddings
    return {copy: first for copy, first in repeats.items() if shared or not copy.startswith("decoder.")}


def _drop_repeats(repeats: Mapping[str, str], names: dict[str, str], tensors: Tensors) -> None:
    """Leave out tensors that repeat others; one that is not like the other is refused."""
    for copy, first in repeats.items():
        if copy not in names:
            continue
        if first in names and not equal(tensors[names[first]], tensors[names[copy]]):
            raise WeightsError(f"{names[copy]!r} and {names[first]!r} differ, but this model has one table for both")
        names.setdefault(first, names[copy])
        del names[copy]


def _checkpoint(
    options: Mapping[str, Any], tensors: Tensors, tokenizer: Tokenizer | None, source: Source
) -> Checkpoint:
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        refuse_deeper(options.get(name), tensors, source.location)
    # 1. The family and the configuration.
    family, cfg = configure(options)
    tensors = dequantized(tensors)
    for part in (cfg.encoder, cfg.decoder) if isinstance(cfg, EncoderDecoderConfig) else (cfg,):
        refuse_deeper(part.n_layers, tensors, source.location)
    # The name in the family's table -> the name in the file.
    names = {family.bare(name): name for name in tensors if not family.buffers.search(family.bare(name))}
    _drop_repeats(_repeats(family.repeats, cfg), names, tensors)
    for first, fallback in family.fallbacks.items():
        if fallback in names:
            names.setdefault(first, names.pop(fallback))
    last = cfg.decoder if isinstance(cfg, EncoderDecoderConfig) else cfg
    if "final_logits_bias" not in names and isinstance(cfg, EncoderDecoderConfig):
        cfg = with_output(cfg, unembed_bias=False)  # a table of zeros that some files leave out
    embedding, head = (family.rows[name].theirs for name in _ends_of_logits(cfg))
    tied = last.tie_word_embeddings and head in names
    if tied and embedding in names and not equal(tensors[names[embedding]], tensors[names[head]]):
        # As in transformers: two different tensors are not tied, whatever the configuration says.
        cfg = with_output(cfg, tie_word_embeddings=False)
    elif tied:
        names.setdefault(embedding, names[head])
        del names[head]
    # 2. Their tensors as ours; 3. none is read before it is called.
    places = weights(empty(cfg))
    rows = {name: family.row(name, names) for name in places}
    theirs = {name: _names(rows[name], len(place), len(names)) for name, place in places.items()}
    problems = name_problems({one for each in theirs.values() for one in each}, names)
    if problems:
        raise WeightsError(f"the weights of {source.location} do not fit its config.json: {'; '.join(problems)}")
    pieces = {
        name: _piece(_stacked([tensors[names[one]] for one in theirs[name]], row), row, part_of(cfg, name))
        for name, row in rows.items()
    }
    return Checkpoint(cfg, pieces, tokenizer, source)
