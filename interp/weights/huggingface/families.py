"""Hugging Face families: for each `model_type` how its config.json is read and where its weights lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from interp.arguments import shown
from interp.config import ModelConfig
from interp.errors import ConfigError, nearest
from interp.weights.checkpoint import Row
from interp.weights.huggingface import encoders, gpt_like, hybrids, llama_like, rows
from interp.weights.huggingface import mamba as mambas
from interp.weights.huggingface.options import Watched, refuse_unless, refuse_unread
from interp.weights.options import Options

BRIDGE = (
    "TransformerLens has more architectures, and every model of its bridge can be loaded: "
    "interp.load(TransformerBridge.boot_transformers(NAME))"
)


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    One of `prefixes` begins the names in a model with a head, and is missing in a model without one; `{l}` in a name is
    the layer; `buffers` matches tensors that are computed, not learned; `older` maps parts of names in older files to
    today's; `copies` maps a name in the table to another
    one, under which files may have the same tensor instead or as well.
    """

    configure: Callable[[Options], ModelConfig]
    rows: Mapping[str, Row]
    prefixes: tuple[str, ...]
    buffers: re.Pattern[str] = re.compile(r"(?!)")  # matches no name
    older: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    silent: frozenset[str] | None = frozenset()

    def row(self, name: str) -> Row:
        """The table's row for one of our weights, with the layer's number filled in.

        Raises:
            KeyError: this architecture has no such weight.
        """
        start, layer, rest = "", "", name
        if name.startswith("blocks."):
            start, layer, rest = name.split(".", 2)
        row = self.rows[f"{start}.{{l}}.{rest}" if layer else name]
        return replace(row, theirs=row.theirs.replace("{l}", layer))

    def bare(self, name: str) -> str:
        """One of their names as in the table: without the prefix, and with today's name of its module."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return ".".join(self.older.get(part, part) for part in name.split("."))


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
    watched = Watched(options)
    try:
        cfg = family.configure(options if family.silent is None else watched)
    except KeyError as error:
        raise ConfigError(f"the configuration of this {model_type} model has no entry {error}") from error
    if family.silent is not None:
        refuse_unread(watched, model_type, family.silent)
    return family, cfg


_INV_FREQ = r"(^|\.)rotary_emb\.inv_freq$"
_COMPUTED = re.compile(_INV_FREQ)
_NOT_TEXT = re.compile(rf"^(vision_tower|multi_modal_projector)\.|{_INV_FREQ}")
# Heads of other tasks, and positions as numbers.
_BERT_UNUSED = re.compile(r"^pooler\.|^cls\.seq_relationship\.|position_ids$")
_BERT_OLDER = {"gamma": "weight", "beta": "bias"}
_MAMBA: dict[str, Any] = {"older": {"embedding": "embeddings"}, "silent": None}


def _llama(configure: Callable[[Options], ModelConfig], table: Mapping[str, Row] = rows.LLAMA, *silent: str) -> Family:
    return Family(configure, table, ("model.",), _COMPUTED, silent=frozenset(silent))


_WINDOWS = ("max_window_layers", "sliding_window", "layer_types")  # read only where there are windows
FAMILIES = {
    "gpt2": Family(
        gpt_like.gpt2,
        rows.GPT2,
        ("transformer.",),
        re.compile(r"^h\.\d+\.attn\.(masked_)?bias$"),
        silent=frozenset({"n_ctx", "num_hidden_layers"}),
    ),
    "gpt_neox": Family(
        gpt_like.gpt_neox,
        rows.GPT_NEOX,
        ("gpt_neox.",),
        re.compile(rf"^layers\.\d+\.attention\.(masked_)?bias$|{_INV_FREQ}"),
        older={"embed_out": "lm_head"},
    ),
    "llama": _llama(llama_like.llama),
    "mistral": _llama(llama_like.mistral),
    "qwen2": _llama(llama_like.qwen2, rows.LLAMA, *_WINDOWS),
    "qwen3": _llama(llama_like.qwen3, rows.HEAD_NORMED, *_WINDOWS),
    "gemma": _llama(llama_like.gemma),
    "gemma2": _llama(llama_like.gemma2, rows.SANDWICHED, *_WINDOWS),
    "gemma3_text": _llama(llama_like.gemma3_text, rows.GEMMA3, *_WINDOWS),
    "gemma3": Family(
        llama_like.gemma3,
        rows.GEMMA3,
        ("model.language_model.", "language_model.model.", "language_model.", "model."),
        _NOT_TEXT,
        silent=frozenset(
            {"vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"}
        ),
    ),
    "phi3": _llama(llama_like.phi3, rows.PHI3, *_WINDOWS),
    "olmo": _llama(llama_like.olmo),
    "olmo2": _llama(llama_like.olmo2, rows.OLMO2),
    "stablelm": _llama(llama_like.stablelm, rows.STABLELM),
    "starcoder2": _llama(llama_like.starcoder2, rows.STARCODER2),
    "cohere": _llama(llama_like.cohere, rows.HEAD_NORMED),
    "granite": _llama(llama_like.granite),
    "smollm3": _llama(llama_like.smollm3, rows.LLAMA, *_WINDOWS),
    "bert": Family(
        encoders.bert,
        encoders.BERT,
        ("bert.",),
        _BERT_UNUSED,
        _BERT_OLDER,
        copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
        silent=encoders.BERT_SILENT,
    ),
    "roberta": Family(
        encoders.roberta,
        encoders.ROBERTA,
        ("roberta.",),
        _BERT_UNUSED,
        copies={"lm_head.decoder.bias": "lm_head.bias"},
    ),
    "distilbert": Family(
        encoders.distilbert,
        encoders.DISTILBERT,
        ("distilbert.",),
        _BERT_UNUSED,
        silent=encoders.DISTILBERT_SILENT,
    ),
    "modernbert": Family(encoders.modernbert, encoders.MODERNBERT, ("model.",), silent=encoders.MODERNBERT_SILENT),
    "mamba": Family(mambas.mamba, rows.MAMBA, ("backbone.",), **_MAMBA),
    "falcon_mamba": Family(mambas.falcon_mamba, rows.MAMBA, ("backbone.",), **_MAMBA),
    "mamba2": Family(mambas.mamba2, rows.MAMBA2, ("backbone.",), **_MAMBA),
    "bamba": Family(hybrids.bamba, rows.BAMBA, ("model.",), _COMPUTED, silent=None),
    "jamba": Family(hybrids.jamba, rows.JAMBA, ("model.",), silent=None),
    "nemotron_h": Family(hybrids.nemotron_h, rows.NEMOTRON_H, ("model.", "backbone."), silent=None),
}
