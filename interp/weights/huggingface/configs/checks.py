"""Which options of a config.json are supported: others are refused by name, and sizes that are given twice must agree.

1. A value of the wrong type is refused (`interp.weights.options` reads them one by one).
2. For some families every option is known: it is read, or it must have the one supported value, or it does not affect
   the numbers. Any other option is refused by name, unless it is empty.

Source: the configuration files of `transformers` 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from interp.arguments import shown
from interp.errors import ConfigError, nearest
from interp.weights.options import Options, is_number, number, whole

FIXED = {"rms_norm": True, "is_causal": True, "add_cross_attention": False, "is_encoder_decoder": False}
# Options of every transformers configuration that do not affect logits: labels, tokens, outputs, sampling.
GENERAL = {
    "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "is_decoder", "label2id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
    "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache", "model_type",
}  # fmt: skip


# How a name ends that only training, drawing weights or running fast depends on.
HARMLESS_ENDS = (
    "dropout",
    "dropout_prob",
    "_pdrop",
    "_drop",
    "initializer_range",
    "initializer_factor",
    "aux_loss_coef",
    "attn_implementation",
)
# Options of older transformers or of the software that wrote a file, which transformers 5 does not read.
HARMLESS = {
    "initializer", "gradient_checkpointing", "use_flash_attn", "flash_attn", "fused_mlp", "pretraining_tp",
    "use_cache_quantization", "use_cache_kernel", "rotary_scaling", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "transformers.js_config", "unsloth_fixed",
    "unsloth_version", "output_router_logits", "use_unpad", "sparsity_config",
}  # fmt: skip


class Watched(Mapping[str, Any]):
    """The options of a config.json, which remember which of them were read.

    Args:
        options: the options.
        read: where the names of those that are read are noted.
    """

    def __init__(self, options: Options, read: set[str] | None = None) -> None:
        self._options = dict(options)
        self.read: set[str] = set() if read is None else read

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __contains__(self, name: object) -> bool:
        return name in self._options


def instead(options: Options, **values: Any) -> Options:
    """The options with some replaced; which are read is noted as before."""
    plain = dict(options) if not isinstance(options, Watched) else options._options
    return Watched({**plain, **values}, options.read if isinstance(options, Watched) else None)


def defaults(options: Options, **values: Any) -> Options:
    """The options, with values for those that are absent."""
    return instead(options, **{name: value for name, value in values.items() if name not in options})


def refuse_unread(options: Watched, kind: str, silent: Collection[str] = (), **fixed: Any) -> None:
    """Refuse options that were not read and may change the numbers.

    Args:
        options: after the family's function has read them.
        kind: the family, for the message.
        silent: options of this family that do not affect the numbers.
        fixed: options with one supported value each.
    """
    harmless = {*silent, *HARMLESS, *(name for name in options if name.endswith(HARMLESS_ENDS))}
    refuse_others(options, kind, set(options.read), harmless, **fixed)


def refuse_unless(options: Options, **supported: bool) -> None:
    """Refuse options whose value is not the supported one; an absent option has the supported value."""
    for name, value in supported.items():
        if options.get(name, value) != value:
            raise ConfigError(f"{name}={shown(options[name])} is not supported; it must be {value!r}")


def refuse_others(options: Options, kind: str, read: Collection[str], silent: Collection[str], **fixed: Any) -> None:
    """Refuse options that are unknown, or whose value is not supported.

    Args:
        options: the config.json.
        kind: the family, for messages.
        read: the options that the family's function reads.
        silent: options that do not affect the numbers.
        fixed: options with one supported value each.
    """
    fixed = FIXED | fixed
    known = {*read, *fixed}
    for name, value in options.items():
        empty = value is None or value == {} or value == []
        if empty or name.startswith("_") or name in known or name in silent or name in GENERAL:
            continue
        close = nearest(name, known, most=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"{name}={shown(value)} is not a known option of a {kind} model and may change its numbers{hint}"
        )
    refuse_unless(options, **fixed)


def silu_only(options: Options, name: str, kind: str) -> None:
    """Refuse any activation function but SiLU."""
    if options.get(name, "silu") not in ("silu", "swish"):
        raise ConfigError(f"{name}={shown(options[name])} is not supported in a {kind} model; it must be 'silu'")


def head_size(options: Options, names: tuple[str, str], heads: int, size: int, d_inner: int) -> int:
    """The channels of a head; heads times channels must be `d_inner`."""
    n_heads, d_head = whole(options, names[0], heads), whole(options, names[1], size)
    if n_heads * d_head != d_inner:
        raise ConfigError(
            f"{names[0]}={n_heads} heads of {names[1]}={d_head} channels contradict expand times hidden_size, {d_inner}"
        )
    return d_head


def limit(name: str, value: Any) -> tuple[float, float] | None:
    """The smallest and the largest step size of an option; None if neither is bounded."""
    if value is None:
        return None
    # JSON has no infinity: transformers 5 writes an object in its place.
    ends = (
        [math.inf if end == {"__float__": "Infinity"} else end for end in value]
        if isinstance(value, (list, tuple))
        else []
    )
    if len(ends) != 2 or not all(is_number(end) for end in ends):
        raise ConfigError(f"{name} must be the smallest and the largest step size, not {shown(value)}")
    return None if ends[0] <= 0 and ends[1] == math.inf else (float(ends[0]), float(ends[1]))


def agree(options: Options, name: str, expected: float, other: str) -> None:
    """Refuse a value that differs from `expected`, which comes from `other`."""
    if options.get(name, expected) != expected:
        raise ConfigError(f"{name}={shown(options[name])} contradicts {other}, {expected}")


def expanded(options: Options, name: str, d_model: int) -> int:
    """The channels of a state-space layer: the width times an option, which is 2 by default."""
    channels = number(options, name, 2) * d_model
    if not channels < 2**63:
        raise ConfigError(f"{name}={shown(options[name])} times a width of {d_model} is too large for any layer")
    return int(channels)
