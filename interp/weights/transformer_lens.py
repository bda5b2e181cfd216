"""Weights under TransformerLens's names: from a state dict, to a state dict, and from the folder of `interp.save`.

1. The configuration may be a `ModelConfig` or TransformerLens's own. A field of theirs with no effect on the numbers is
   ignored; an active field that changes them and is not supported is refused by name.
2. Buffers are skipped; the `_W_K` of grouped-query models becomes `W_K`.
3. The tensors are checked and copied by `interp.weights.build`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import device_of, shown
from interp.config import STACKS, EncoderDecoderConfig, ModelConfig, RopeScaling
from interp.errors import ConfigError, WeightsError, nearest
from interp.files.foreign_files import read_json
from interp.models.gpt import GPT
from interp.text.tokenizer import Tokenizer
from interp.weights.build import build, dtype_of, weights
from interp.weights.checkpoint import (
    ACTIVATION_NAMES,
    FLOATS,
    Checkpoint,
    Source,
    Stored,
    equal,
    in_memory,
    refuse_deeper,
)
from interp.weights.files import open_safetensors
from interp.weights.options import flag, number, whole

BUFFERS = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)")
GROUPED = re.compile(r"(blocks\.\d+\.attn\.)_([Wb]_[KV])")

# Fields of HookedTransformerConfig and its descendants that do not affect the numbers, or only together with one of the
# fields that are refused below.
IGNORED = {
    "architecture", "attn_implementation", "bos_token_id", "checkpoint_index",
    "checkpoint_label_type", "checkpoint_value", "decoder_start_token_id", "default_padding_side",
    "default_prepend_bos", "device", "eos_token_id", "experts_per_token", "from_checkpoint", "init_mode",
    "init_weights", "layer_norm_folding", "mm_tokens_per_image", "n_devices", "n_params", "norm_topk_prob",
    "original_architecture", "pad_token_id", "relative_attention_max_distance", "relative_attention_num_buckets",
    "split_attention_weights", "tokenizer_appends_eos", "tokenizer_name",
    "tokenizer_prepends_bos", "trust_remote_code", "ungroup_grouped_query_attention", "use_attn_in",
    "use_attn_result", "use_hook_mlp_in", "use_hook_tokens", "use_split_qkv_input", "uses_rms_norm",
    "vision_hidden_size", "vision_num_heads", "vision_num_layers",
}  # fmt: skip
# Fields that are translated rather than copied.
TRANSLATED = {
    "attn_scale", "dtype", "NTK_by_parts_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_low_freq_factor",
    "NTK_original_ctx_len", "use_NTK_by_parts_rope", "attn_scores_soft_cap", "output_logits_soft_cap", "use_local_attn",
    "window_size", "attn_types", "rotary_base_local", "use_qk_norm", "use_normalization_before_and_after",
    "post_embedding_ln", "use_yarn_rope", "yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_factor",
    "yarn_original_max_position_embeddings",
}  # fmt: skip
OUR_FIELDS = frozenset(field.name for field in fields(ModelConfig))

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "model.safetensors"


def load_transformer_lens(
    cfg: ModelConfig | Mapping[str, Any] | Any,
    state_dict: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> GPT:
    """A model from tensors under TransformerLens's names and in its shapes.

    Args:
        cfg: a `ModelConfig` or what its `to_dict` gives; or TransformerLens's fields, as a mapping or an object with
            `to_dict()`. TransformerLens's fields do not mention biases: the model has those that `state_dict` has.
        state_dict: torch tensors or numpy arrays.
        tokenizer: the model's tokenizer, for prompts as text.
        device: where the weights go.
        dtype: the number type of the model's weights; None takes TransformerLens's `cfg.dtype`, else float32.

    Raises:
        ConfigError: a field that is not supported, by name.
        WeightsError: tensors that are missing, not expected, of the wrong shape or not finite.

    Example:
        >>> model = GPT(ModelConfig(n_layers=1, d_model=4, n_ctx=8, d_head=2, d_vocab=5, attn_only=True))
        >>> copy = load_transformer_lens(model.cfg, to_transformer_lens(model))
        >>> torch.equal(copy(torch.tensor([[1, 2]])), model(torch.tensor([[1, 2]])))
        True
    """
    source = Source(kind="transformer_lens", location="a TransformerLens state dict")
    checkpoint, own_dtype = _checkpoint(cfg, state_dict, tokenizer, source)
    if not isinstance(tokenizer, Tokenizer | None):
        raise ConfigError(f"tokenizer must be a Tokenizer of interp or None, not {shown(tokenizer)}")
    place, number_type = device_of(device, with_values=True), dtype_of(own_dtype if dtype is None else dtype)
    model = build(checkpoint, device=place, dtype=number_type)
    assert isinstance(model, GPT)
    return model


def to_transformer_lens(model: GPT) -> dict[str, Tensor]:
    """A model's weights under TransformerLens's names and in its shapes; they share the model's memory.

    As `interp.weights.build.weights`, but a tied unembedding is included as `unembed.W_U`.
    """
    tensors = weights(model)
    if model.cfg.tie_word_embeddings:
        tensors["unembed.W_U"] = model.W_U.detach()
    return tensors


def read(directory: str | Path, *, tokenizer: Tokenizer | None = None) -> Checkpoint:
    """A directory that `interp.save` wrote, or one with TransformerLens's own fields in `cfg.json`.

    Args:
        directory: the folder.
        tokenizer: used instead of the one in the folder, whose files are then not read.

    Raises:
        ConfigError: a configuration that is not supported.
        WeightsError: files that are missing, damaged or inconsistent.
    """
    folder = Path(directory)
    tensors = open_safetensors(folder / WEIGHTS_FILE)
    source = Source(kind="transformer_lens", location=str(folder), files=(folder / WEIGHTS_FILE,))
    cfg = read_json(folder / CONFIG_FILE)
    try:
        if set(STACKS) <= set(cfg):
            own = tokenizer or Tokenizer.from_directory(folder)
            return Checkpoint(EncoderDecoderConfig.from_dict(cfg), tensors, own, source)
        return _checkpoint(cfg, tensors, tokenizer or Tokenizer.from_directory(folder), source)[0]
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG_FILE}: {error}") from error


def _checkpoint(
    cfg: Any, state_dict: Mapping[str, Any], tokenizer: Tokenizer | None, source: Source
) -> tuple[Checkpoint, torch.dtype]:
    if not isinstance(state_dict, Mapping):
        raise WeightsError(f"a state dict must be a mapping from names to tensors, not {shown(state_dict)}")
    tensors: dict[str, Stored] = {}
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise WeightsError(f"a state dict must hold tensors under names, not under {shown(name)}")
        if not BUFFERS.fullmatch(name):
            tensors[GROUPED.sub(r"\1\2", name)] = value if isinstance(value, Stored) else _stored(name, value)
    if isinstance(cfg, ModelConfig):
        settled, dtype = cfg, torch.float32
    else:
        own_fields = _fields(cfg)
        written_by_us = "attn_in_bias" in own_fields  # a field that TransformerLens does not have
        settled = ModelConfig.from_dict(own_fields) if written_by_us else config_of(own_fields, tensors)
        dtype = _dtype(own_fields.get("dtype"))
    refuse_deeper(settled.n_layers, tensors, source.location)
    settled = _settle_tied(settled, tensors)
    _settle_gated(settled, tensors)
    return Checkpoint(settled, tensors, tokenizer, source), dtype


def _fields(cfg: Any) -> dict[str, Any]:
    """The fields of a configuration that is not a `ModelConfig`, by their names."""
    fields = cfg
    if not isinstance(cfg, Mapping | type) and callable(getattr(cfg, "to_dict", None)):
        fields = cfg.to_dict()
    if not isinstance(fields, Mapping):
        raise ConfigError(
            "cfg must be a ModelConfig, a mapping of TransformerLens's fields or an object with to_dict() that gives "
            f"them, not {shown(cfg)}"
        )
    for name, value in fields.items():
        if not isinstance(name, str):
            raise ConfigError(f"cfg has its fields by name, not by {shown(name)}")
        if getattr(value, "ndim", 0):
            raise ConfigError(f"{name} of cfg must be one value, not {shown(value)}")
    return dict(fields)


def _stored(name: str, value: Any) -> Stored:
    if isinstance(value, Tensor):
        return in_memory(value.detach())
    try:
        array = np.asarray(value)
        if array.dtype.kind in "fiu":
            usable = array.flags.writeable and array.flags.c_contiguous
            return in_memory(torch.from_numpy(array if usable else array.copy()))
    except (TypeError, ValueError):  # rows of different lengths, a number type or an order of bytes that torch has not
        pass
    raise WeightsError(f"{name!r} must be a tensor or an array of numbers, not {shown(value)}")


def config_of(given: Mapping[str, Any], names: Mapping[str, Any]) -> ModelConfig:
    """TransformerLens's configuration fields as a `ModelConfig`, with the biases that are among `names`.

    Raises:
        ConfigError: an active field that is not supported or unknown.
    """
    missing = [name for name in ("n_layers", "d_model", "n_ctx", "d_head", "d_vocab") if given.get(name) is None]
    if missing:
        raise ConfigError(f"the configuration lacks {', '.join(missing)}")
    kept = {name: value for name, value in given.items() if name in OUR_FIELDS - TRANSLATED}
    for name, value in given.items():
        if name not in OUR_FIELDS | TRANSLATED | IGNORED and _active(name, value, given):
            close = nearest(name, OUR_FIELDS, most=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{name}={shown(value)} is not supported by this model{hint}")
    biases = {
        "attn_in_bias": r"blocks\.\d+\.attn\.b_[QKV]",
        "attn_out_bias": r"blocks\.\d+\.attn\.b_O",
        "mlp_bias": r"blocks\.\d+\.mlp\.b_(in|out)",
        "unembed_bias": r"unembed\.b_U",
    }
    kept |= {name: any(re.fullmatch(pattern, other) for other in names) for name, pattern in biases.items()}
    kept["act_fn"] = ACTIVATION_NAMES.get(str(given.get("act_fn")), given.get("act_fn"))
    if flag(given, "use_attn_scale", True) and not _unset(given, "attn_scale"):
        kept["attn_scale"] = float(number(given, "attn_scale"))
    if kept.get("positional_embedding_type") != "rotary":
        kept.pop("rotary_dim", None)
    if _unset(given, "initializer_range"):
        kept["initializer_range"] = 0.8 / whole(given, "d_model") ** 0.5  # TransformerLens's meaning of -1
    return ModelConfig.from_dict(kept | _parts(given) | _windows(given) | _scaling(given))


def _parts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Norms and soft caps that not every model has."""
    found: dict[str, Any] = {
        name: float(number(given, name))
        for name in ("attn_scores_soft_cap", "output_logits_soft_cap")
        if not _unset(given, name)
    }
    found["norm_placement"] = "both" if flag(given, "use_normalization_before_and_after", False) else "pre"
    found["qk_norm"] = "RMS" if flag(given, "use_qk_norm", False) else None
    return found | {"embed_norm": flag(given, "post_embedding_ln", False)}


def _windows(given: Mapping[str, Any]) -> dict[str, Any]:
    """Local layers, where a window is shorter than the context or they rotate in their own way."""
    if not flag(given, "use_local_attn", False):
        return {}
    if _unset(given, "window_size"):
        raise ConfigError("use_local_attn=True needs window_size, the positions that a query sees")
    n_ctx, own_base = whole(given, "n_ctx"), not _unset(given, "rotary_base_local")
    size = min(whole(given, "window_size"), n_ctx)
    if size == n_ctx and not own_base:
        return {}
    found: dict[str, Any] = {"window_size": size, "attn_types": given.get("attn_types")}
    return found | ({"rotary_base_local": float(number(given, "rotary_base_local"))} if own_base else {})


def _scaling(given: Mapping[str, Any]) -> dict[str, Any]:
    """How rotary frequencies are stretched."""
    if flag(given, "use_yarn_rope", False):
        scale = None if _unset(given, "yarn_attention_factor") else float(number(given, "yarn_attention_factor"))
        yarn = RopeScaling(
            "yarn",
            factor=float(number(given, "yarn_factor", 1.0)),
            original_n_ctx=whole(given, "yarn_original_max_position_embeddings", whole(given, "n_ctx")),
            attention_factor=scale,
            beta_fast=float(number(given, "yarn_beta_fast", 32.0)),
            beta_slow=float(number(given, "yarn_beta_slow", 1.0)),
        )
        return {"rope_scaling": yarn}
    if flag(given, "use_NTK_by_parts_rope", False):
        ntk = RopeScaling(
            "llama3",
            factor=float(number(given, "NTK_by_parts_factor", 8.0)),
            low_freq_factor=float(number(given, "NTK_by_parts_low_freq_factor", 1.0)),
            high_freq_factor=float(number(given, "NTK_by_parts_high_freq_factor", 4.0)),
            # Releases without this field used the model's own context.
            original_n_ctx=whole(given, "NTK_original_ctx_len", whole(given, "n_ctx")),
        )
        return {"rope_scaling": ntk}
    return {}


def _unset(given: Mapping[str, Any], name: str) -> bool:
    """Whether a field is not set: absent, None, or TransformerLens's -1."""
    value = given.get(name)
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0)


def _active(name: str, value: Any, given: Mapping[str, Any]) -> bool:
    """Whether an unknown field can change the computation; -1 is TransformerLens's "not set"."""
    if name == "final_rms":
        return bool(value) and given.get("normalization_type", "LN") in ("LN", "LNPre")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value > 0
    return bool(value)


def _dtype(value: Any) -> torch.dtype:
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _settle_tied(cfg: ModelConfig, tensors: dict[str, Stored]) -> ModelConfig:
    """Drop a W_U that equals a tied W_E: TransformerLens stores both. If they differ, they are not tied."""
    if not cfg.tie_word_embeddings or not {"unembed.W_U", "embed.W_E"} <= tensors.keys():
        return cfg
    unembedding = tensors["unembed.W_U"]
    transposed = Stored(lambda: unembedding().T, unembedding.shape[::-1], unembedding.dtype)
    if not equal(transposed, tensors["embed.W_E"]):
        return cfg.replace(tie_word_embeddings=False)
    del tensors["unembed.W_U"]
    return cfg


def _settle_gated(cfg: ModelConfig, tensors: dict[str, Stored]) -> None:
    """TransformerLens adds a gated MLP's b_in after the product, and has no b_gate: only b_in = 0 means the same."""
    if not (cfg.gated_mlp and cfg.mlp_bias):
        return
    for layer in range(cfg.n_layers):
        here = f"blocks.{layer}.mlp."
        if here + "b_in" not in tensors or here + "b_gate" in tensors or tensors[here + "b_in"].dtype not in FLOATS:
            continue
        b_in = tensors[here + "b_in"]()
        if bool(b_in.any()):
            raise WeightsError(
                f"{here + 'b_in'!r} of a gated MLP is not zero, and there is no 'b_gate': TransformerLens adds such a "
                "b_in after the product, which is not supported; fold b_in @ W_out into b_out"
            )
        tensors[here + "b_gate"] = tensors[here + "b_in"]
