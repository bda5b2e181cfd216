"""Hugging Face families: for each `model_type` how its config.json is read and where its weights lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from interp.arguments import shown
from interp.config import EncoderDecoderConfig, ModelConfig
from interp.errors import ConfigError, nearest
from interp.weights.checkpoint import Row
from interp.weights.huggingface import encoders, rows
from interp.weights.huggingface.configs import experts, gpt_like, hybrids, llama_like, zamba
from interp.weights.huggingface.configs import mamba as mambas
from interp.weights.huggingface.configs.checks import Watched, refuse_unless, refuse_unread
from interp.weights.huggingface.encoder_decoder import bart, t5
from interp.weights.options import Options

BRIDGE = (
    "TransformerLens has more architectures, and every model of its bridge can be loaded: "
    "interp.load(TransformerBridge.boot_transformers(NAME)), in three lines:\n"
    "    import interp\n"
    "    from transformer_lens.model_bridge import TransformerBridge\n"
    "    model = interp.load(TransformerBridge.boot_transformers(NAME))"
)


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    One of `prefixes` begins the names in a model with a head, and is missing in a model without one; `{l}` in a name is
    the layer; `buffers` matches tensors that are computed, not learned, or belong to other tasks; `older` maps parts of
    names in older files to today's. `rows_of` gives the table where it depends on the configuration; `alternatives` are
    further tables, for weights that other files have under other names; `repeats` maps the names of tensors that repeat
    others to these, and `repeats_of` gives this where it depends on the configuration; `fallbacks` maps a name to
    another one, which counts only where a file has not the first. `head` is the end of the name of transformers' class:
    AutoModelForCausalLM, ...MaskedLM or ...Seq2SeqLM.
    """

    configure: Callable[[Options], ModelConfig | EncoderDecoderConfig]
    rows: Mapping[str, Row]
    prefixes: tuple[str, ...]
    buffers: re.Pattern[str] = re.compile(r"(?!)")  # matches no name
    older: Mapping[str, str] = field(default_factory=dict)
    rows_of: Callable[[Any], Mapping[str, Row]] | None = None
    silent: frozenset[str] | None = frozenset()
    alternatives: tuple[Mapping[str, Row], ...] = ()
    head: str = "CausalLM"
    repeats: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    repeats_of: Callable[[Any], Mapping[str, str]] | None = None

    def row(self, name: str, there: Container[str] = ()) -> Row:
        """The table's row for one of our weights, with the layer's number filled in, or a row of one layer alone.

        Where several tables have one it is the first whose tensor is `there`, and else that of `rows`.

        Raises:
            KeyError: this architecture has no such weight.
        """
        found_layer = _LAYER.search(name)
        layer, template = ("", name) if found_layer is None else (found_layer[2], _LAYER.sub(r"\1.{l}.", name, count=1))
        tables = (self.rows, *self.alternatives)
        found = [table.get(name, table.get(template)) for table in tables if name in table or template in table]
        if not found:
            raise KeyError(template)
        filled = [replace(row, theirs=row.theirs.replace("{l}", layer)) for row in found if row is not None]
        return next((row for row in filled if row.theirs.replace("{i}", "0") in there), filled[0])

    def bare(self, name: str) -> str:
        """One of their names as in the table: without the prefix, and with today's name of its module."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return ".".join(self.older.get(part, part) for part in name.split("."))


def configure(options: Options) -> tuple[Family, ModelConfig | EncoderDecoderConfig]:
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
    family = FAMILIES[model_type]
    quantized = options.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
    if quantized is not None and (method != "mxfp4" or "quantization_config" not in (family.silent or ())):
        raise ConfigError("quantization_config is not supported: load the unquantised model or a .gguf file")
    refuse_unless(options, is_causal=True)
    watched = Watched(options)
    try:
        cfg = family.configure(options if family.silent is None else watched)
    except KeyError as error:
        raise ConfigError(f"the configuration of this {model_type} model has no entry {error}") from error
    if family.silent is not None:
        refuse_unread(watched, model_type, family.silent, is_encoder_decoder=family.head == "Seq2SeqLM")
    if family.rows_of is not None:
        family = replace(family, rows=family.rows_of(cfg))
    return (family if family.repeats_of is None else replace(family, repeats=family.repeats_of(cfg))), cfg


_LAYER = re.compile(r"\b(blocks)\.(\d+)\.")
_INV_FREQ = r"(^|\.)rotary_emb\.inv_freq$"
_COMPUTED = re.compile(_INV_FREQ)
_NOT_TEXT = re.compile(rf"^(vision_tower|multi_modal_projector)\.|{_INV_FREQ}")
_ATTENTION_BUFFERS = re.compile(r"^h\.\d+\.attn\.(attention\.)?(masked_)?bias$")
# Heads of other tasks, and positions as numbers.
_BERT_UNUSED = re.compile(r"^pooler\.|^cls\.seq_relationship\.|position_ids$")
_BERT_OLDER = {"gamma": "weight", "beta": "bias"}
_MAMBA: dict[str, Any] = {"older": {"embedding": "embeddings"}, "silent": None}


def _llama(
    configure: Callable[[Options], ModelConfig],
    table: Mapping[str, Row] = rows.LLAMA,
    *silent: str,
    alternatives: tuple[Mapping[str, Row], ...] = (),
) -> Family:
    return Family(configure, table, ("model.",), _COMPUTED, silent=frozenset(silent), alternatives=alternatives)


_FAIRSEQ = ("encoder_layerdrop", "decoder_layerdrop", "init_std", "extra_pos_embeddings", "save_step")
_WINDOWS = ("max_window_layers", "sliding_window", "layer_types")  # read only where there are windows
FAMILIES = {
    "gpt2": Family(
        gpt_like.gpt2,
        rows.GPT2,
        ("transformer.",),
        _ATTENTION_BUFFERS,
        silent=frozenset({"n_ctx", "num_hidden_layers"}),
    ),
    "gpt_neox": Family(
        gpt_like.gpt_neox,
        rows.GPT_NEOX,
        ("gpt_neox.",),
        re.compile(rf"^layers\.\d+\.attention\.(masked_)?bias$|{_INV_FREQ}"),
        older={"embed_out": "lm_head"},
    ),
    "gpt_neo": Family(gpt_like.gpt_neo, rows.GPT_NEO, ("transformer.",), _ATTENTION_BUFFERS),
    "gptj": Family(gpt_like.gptj, rows.GPTJ, ("transformer.",), _ATTENTION_BUFFERS, silent=frozenset({"n_ctx"})),
    "opt": Family(gpt_like.opt, rows.OPT, ("model.decoder.", "decoder."), silent=frozenset({"init_std", "layerdrop"})),
    "bloom": Family(gpt_like.bloom, rows.BLOOM, ("transformer.",), silent=gpt_like.BLOOM_SILENT),
    "falcon": Family(
        gpt_like.falcon,
        rows.FALCON,
        ("transformer.",),
        _COMPUTED,
        rows_of=rows.falcon,
        # Not read where the layout or ALiBi leaves them without effect.
        silent=frozenset({"ff_factor", "multi_query", "rope_parameters", "rope_scaling", "rope_theta"}),
    ),
    "phi": _llama(gpt_like.phi, rows.PHI),
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
    "mixtral": _llama(
        experts.mixtral, rows.MIXTRAL, "router_jitter_noise", *_WINDOWS, alternatives=(rows.MIXTRAL_FUSED,)
    ),
    "qwen2_moe": _llama(experts.qwen2_moe, rows.QWEN2_MOE, *_WINDOWS, alternatives=(rows.QWEN_FUSED, rows.LLAMA)),
    "qwen3_moe": _llama(experts.qwen3_moe, rows.QWEN3_MOE, *_WINDOWS, alternatives=(rows.QWEN_FUSED, rows.LLAMA)),
    "olmoe": _llama(experts.olmoe, rows.OLMOE, alternatives=(rows.QWEN_FUSED,)),
    # The activation function of its experts is fixed; the two numbers repeat what is said elsewhere.
    "gpt_oss": _llama(
        experts.gpt_oss,
        rows.GPT_OSS,
        *("hidden_act", "experts_per_token", "initial_context_length", "quantization_config"),
        *_WINDOWS,
    ),
    "bert": Family(
        encoders.bert,
        encoders.BERT,
        ("bert.",),
        _BERT_UNUSED,
        _BERT_OLDER,
        fallbacks={"cls.predictions.decoder.bias": "cls.predictions.bias"},
        silent=encoders.BERT_SILENT,
        head="MaskedLM",
    ),
    "roberta": Family(
        encoders.roberta,
        encoders.ROBERTA,
        ("roberta.",),
        _BERT_UNUSED,
        fallbacks={"lm_head.decoder.bias": "lm_head.bias"},
        head="MaskedLM",
    ),
    "distilbert": Family(
        encoders.distilbert,
        encoders.DISTILBERT,
        ("distilbert.",),
        _BERT_UNUSED,
        silent=encoders.DISTILBERT_SILENT,
        head="MaskedLM",
    ),
    "modernbert": Family(
        encoders.modernbert, encoders.MODERNBERT, ("model.",), silent=encoders.MODERNBERT_SILENT, head="MaskedLM"
    ),
    "mamba": Family(mambas.mamba, rows.MAMBA, ("backbone.",), **_MAMBA),
    "falcon_mamba": Family(mambas.falcon_mamba, rows.MAMBA, ("backbone.",), **_MAMBA),
    "mamba2": Family(mambas.mamba2, rows.MAMBA2, ("backbone.",), **_MAMBA),
    "bamba": Family(hybrids.bamba, rows.BAMBA, ("model.",), _COMPUTED, silent=None),
    "jamba": Family(
        hybrids.jamba, rows.JAMBA, ("model.",), silent=None, alternatives=(rows.JAMBA_MOE, rows.JAMBA_FUSED)
    ),
    "nemotron_h": Family(
        hybrids.nemotron_h,
        rows.NEMOTRON_H,
        ("model.", "backbone."),
        silent=None,
        alternatives=(rows.NEMOTRON_MOE, rows.NEMOTRON_FUSED),
    ),
    "zamba2": Family(
        zamba.zamba2,
        rows.ZAMBA2,
        ("model.",),
        _COMPUTED,
        rows_of=rows.zamba2,
        silent=zamba.SILENT,
        repeats_of=rows.zamba2_repeats,
    ),
    "bart": Family(
        bart.bart,
        bart.BART,
        ("model.",),
        silent=frozenset({*_FAIRSEQ, "num_hidden_layers"}),
        head="Seq2SeqLM",
        repeats=bart.REPEATS,
    ),
    "marian": Family(
        bart.marian,
        bart.MARIAN,
        ("model.",),
        re.compile(r"^(en|de)coder\.embed_positions\.weight$"),
        silent=frozenset({*_FAIRSEQ, "num_hidden_layers"}),
        head="Seq2SeqLM",
        repeats=bart.REPEATS,
    ),
    "t5": Family(
        t5.t5,
        t5.T5,
        ("",),
        silent=frozenset({"dropout_rate", "n_positions", "output_past"}),
        head="Seq2SeqLM",
        rows_of=t5.rows_of,
        repeats=t5.REPEATS,
    ),
}
