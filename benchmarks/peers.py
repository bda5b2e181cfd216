"""The peers of a sweep: the loops that users of TransformerLens and of nnsight write, one full forward a cell.

1. Both run the weights that transformers reads from the file that we read.
2. A loop takes a sweep's arguments, runs the source side once to keep what the variants copy, and returns a function
   from a variant to the logit differences [prompts]. All prompts are one batch; they must be of one length.
3. Edits are written in place, as both libraries' own examples do; no gradients, no key and value cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from interp import Edit, PromptPairs, Variant

Loop = Callable[[Variant], Tensor]


def transformers_model(file: Path) -> Any:
    """The model of a GGUF file as transformers reads it, with SDPA attention."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="sdpa"
    )


def lens_bridge(model: Any, file: Path) -> Any:
    """TransformerLens's bridge around a copy, as it changes the model that it is given; raw weights, its default."""
    from transformer_lens.model_bridge import TransformerBridge

    own = copy.deepcopy(model)
    own.set_attn_implementation("eager")  # as the bridge loads models itself
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return TransformerBridge.boot_transformers(str(file.parent), hf_model=own, tokenizer=tokenizer, device="cpu")


def lens_loop(bridge: Any, pairs: PromptPairs, variants: Sequence[Variant], *, base: str, source: str) -> Loop:
    """`run_with_hooks` for every cell, its hooks at `hook_z` and `hook_resid_pre`."""
    tokens, answers = _tokens(pairs, base), pairs.answers
    copied = sorted({_lens_name(edit) for variant in variants for edit in variant.edits if edit.op == "set"})
    kept: Any = {}
    if copied:
        _, kept = bridge.run_with_cache(_tokens(pairs, source), names_filter=copied, use_cache=False)

    def patch(value: Tensor, hook: Any, edit: Edit) -> Tensor:
        place = _place(edit)
        value[place] = 0 if edit.op == "zero" else kept[_lens_name(edit)][place]
        return value

    def run(variant: Variant) -> Tensor:
        hooks = [(_lens_name(edit), partial(patch, edit=edit)) for edit in variant.edits]
        logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False)
        return _logit_diff(logits[:, -1], answers)

    return run


def _lens_name(edit: Edit) -> str:
    within = {"z": "attn.hook_z", "resid_pre": "hook_resid_pre"}[edit.site]
    return f"blocks.{edit.where['layer']}.{within}"


def nnsight_model(model: Any) -> Any:
    """The transformers model itself, as nnsight's `NNsight` wraps any module."""
    from nnsight import NNsight

    return NNsight(model)


def nnsight_loop(traced: Any, pairs: PromptPairs, variants: Sequence[Variant], *, base: str, source: str) -> Loop:
    """One trace for every cell, which writes into the input of `o_proj` or of the layer."""
    tokens, answers = _tokens(pairs, base), pairs.answers
    heads = (traced.config.num_attention_heads, -1)
    copied = sorted({_layer_site(edit) for variant in variants for edit in variant.edits if edit.op == "set"})
    kept: dict[tuple[int, str], Tensor] = {}
    if copied:
        with traced.trace(_tokens(pairs, source), use_cache=False):
            for layer, site in copied:
                inside = traced.model.layers[layer]
                value = inside.self_attn.o_proj.input.unflatten(-1, heads) if site == "z" else inside.input
                kept[layer, site] = value.clone().save()

    def run(variant: Variant) -> Tensor:
        with traced.trace(tokens, use_cache=False):
            for edit in variant.edits:
                inside = traced.model.layers[edit.where["layer"]]
                value = inside.self_attn.o_proj.input.unflatten(-1, heads) if edit.site == "z" else inside.input
                place = _place(edit)
                value[place] = 0 if edit.op == "zero" else kept[_layer_site(edit)][place]
            logits = traced.lm_head.output[:, -1].save()
        return _logit_diff(logits, answers)

    return run


def _layer_site(edit: Edit) -> tuple[int, str]:
    return edit.where["layer"], edit.site


def _place(edit: Edit) -> tuple[Any, ...]:
    """The index of an edit in z [batch, pos, head, d_head] or resid_pre [batch, pos, d_model]."""
    axes = ("pos", "head") if edit.site == "z" else ("pos",)
    return (slice(None), *(edit.where.get(axis, slice(None)) for axis in axes))


def _tokens(pairs: PromptPairs, side: str) -> Tensor:
    if pairs.attention_mask is not None:
        raise ValueError(f"the loops take prompts of one length, not of {sorted(set(pairs.lengths.tolist()))} tokens")
    return getattr(pairs, side)


def _logit_diff(logits: Tensor, answers: Tensor) -> Tensor:
    """Right minus wrong answer [prompts] from the last position's logits [prompts, d_vocab]."""
    right, wrong = logits.gather(-1, answers).unbind(-1)
    return right - wrong
