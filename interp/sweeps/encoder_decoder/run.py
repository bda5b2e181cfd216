"""Running the cells of a chunk through two stacks, from the first layer on that any of its variants changes.

1. Cells whose encoder is that of the base run look at its output, and at the keys and values made of it; the others
   enter the encoder where their first edit is, with the residual stream of the base run.
2. They enter the decoder in the same way. Only positions that the metric reads are handed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.config import STACKS
from interp.encoder_decoder.cross_attention import Encoded
from interp.encoder_decoder.model import EncoderDecoder
from interp.forward.packed_rows import KeysValues
from interp.hooked.hooks import HookPoint, attached
from interp.prompts.pairs import PromptPairs
from interp.sweeps.batched_edits import Changes, Layout, SourceOf
from interp.sweeps.edit_reach import Differs, Numbers, changed, value_differences
from interp.sweeps.encoder_decoder.reach import StackPlacement, Start, edited, start_of, stream_into


class StackChanges(Changes):
    """The edits of a chunk in both stacks: a batch has a layout for the positions of each."""

    def __init__(self, source_of: SourceOf, base: Mapping[str, Tensor]) -> None:
        super().__init__(source_of, base)
        self.layouts: dict[str, Layout] = {}

    def hook(self, value: Tensor, hook: HookPoint) -> Tensor:
        """The hook function that makes every edit of a site."""
        self.layout = self.layouts[hook.site.rows_in]
        return super().hook(value, hook)


@dataclass(eq=False)
class StackCells:
    """The cells of a chunk that must be run, as `interp.sweeps.run_chunk.Cells`.

    Attributes:
        variant: the variant of every cell, counted in the chunk [cell].
        prompt: the prompt of every cell, counted in the block [cell].
        changes: their edits.
        start: where they enter the stacks.
    """

    variant: Numbers
    prompt: Numbers
    changes: StackChanges
    start: Start


def cells_of(
    placement: StackPlacement,
    prompts: tuple[int, int],
    variants: Sequence[int],
    stored: Mapping[str, Mapping[str, Tensor]],
    source_of: SourceOf,
    *,
    watched: bool,
) -> StackCells:
    """The cells of some variants on a block of prompts that must be run.

    Args:
        placement: of all variants.
        prompts: first and after the last.
        variants: their numbers.
        stored: "base" and "source" to what was stored of each run.
        source_of: what an edit copies from.
        watched: whether somebody's hooks expect all prompts and whole forwards.
    """
    changes = StackChanges(source_of, stored["base"])
    differs = value_differences(stored["base"], stored["source"], _of_block(placement, prompts))
    variant: list[Numbers] = [np.zeros(0, dtype=np.int64)]
    prompt, n_cells = list(variant), 0
    for at, number in enumerate(variants):
        edits = placement.block(number, prompts)
        live = np.logical_or.reduce([changed(edit, differs).any(1) for edit in edits], axis=0)
        own = np.nonzero(live | watched)[0] if edits else np.zeros(0, dtype=np.int64)
        if len(own):
            changes.add(edits, np.arange(n_cells, n_cells + len(own)), own)
            variant.append(np.full(len(own), at))
            prompt.append(own)
            n_cells += len(own)
    starts = [start_of(placement.variants[number], placement.model.cfg) for number in variants]
    return StackCells(np.concatenate(variant), np.concatenate(prompt), changes, earliest(starts, watched=watched))


def earliest(starts: Sequence[Start], *, watched: bool = False) -> Start:
    """Where variants that share a batch enter the stacks; whole forwards if somebody watches."""
    if watched:
        return Start(0, 0)
    inside = [start.encoder for start in starts if start.encoder is not None]
    return Start(min(inside) if inside else None, min(start.decoder for start in starts))


def _of_block(placement: StackPlacement, prompts: tuple[int, int]) -> Differs:
    chosen = slice(*prompts)
    return lambda placed: placement.differs(placed)[chosen, : placed.rows.shape[1]]


def decoded(
    model: EncoderDecoder, pairs: PromptPairs, side: str, base: Mapping[str, Tensor], cells: StackCells
) -> Tensor:
    """What the unembedding reads of every cell, at all positions of the decoder [cell, pos, d_model].

    Args:
        model: the model.
        pairs: the prompts of the block.
        side: that is edited.
        base: what was stored of the base run (`kept_sites`).
        cells: what is run.
    """
    inputs = pairs.inputs(side)
    prompt = torch.from_numpy(cells.prompt).to(model.device)
    n_cells = len(prompt)
    widths = {"encoder": inputs["input"].shape[1], "decoder": inputs["decoder_input"].shape[1]}
    for stack in STACKS:
        rows = np.arange(n_cells * widths[stack]).reshape(n_cells, widths[stack])
        cells.changes.layouts[stack] = Layout(cells.prompt, rows)
    mask, own_mask = (
        None if given is None else given[prompt]
        for given in (inputs["attention_mask"], inputs["decoder_attention_mask"])
    )

    def entering(stack: str, layer: int, tokens: Tensor) -> Tensor:
        return (base[stream_into(model.cfg, stack, layer)] if layer else tokens)[prompt]

    names, kept = cells.changes.names, None
    with attached(model.hook_dict, [(name, cells.changes.hook) for name in names]):
        # 1. The encoder, or what the base run has of it.
        start, first = cells.start
        if start is None:
            kept = _known(model, base, prompt, names, first)
            out = model.encoder.ln_final(base[stream_into(model.cfg, "encoder", model.cfg.encoder.n_layers)])
            encoded = Encoded(out[prompt], mask)
        else:
            resid = entering("encoder", start, inputs["input"])
            encoded = Encoded(model.encoder(resid, mask, start_at_layer=start), mask)
        # 2. The decoder.
        resid = entering("decoder", first, inputs["decoder_input"])
        normalized: Tensor = model.decoder(resid, own_mask, encoded=encoded, kept=kept, start_at_layer=first)
    return normalized


def _known(
    model: EncoderDecoder, base: Mapping[str, Tensor], prompt: Tensor, names: Sequence[str], first: int
) -> dict[int, KeysValues]:
    """Keys and values of the base run's encoder, by layer of the decoder, where no edit changes them."""
    found = {}
    for layer in range(first, model.cfg.decoder.n_layers):
        k, v = (base[f"decoder.blocks.{layer}.cross_attn.hook_{letter}"] for letter in "kv")
        if not edited(names, layer):
            found[layer] = (k[prompt], v[prompt])
    return found


def kept_sites(model: EncoderDecoder, starts: Sequence[Start]) -> set[str]:
    """The sites of the base run that `decoded` needs for variants that begin there."""
    cfg, names = model.cfg, set()
    for start in starts:
        if start.encoder:
            names.add(stream_into(cfg, "encoder", start.encoder))
        if start.decoder:
            names.add(stream_into(cfg, "decoder", start.decoder))
        if start.encoder is None:
            layers = range(start.decoder, cfg.decoder.n_layers)
            names |= {f"decoder.blocks.{layer}.cross_attn.hook_{letter}" for layer in layers for letter in "kv"}
            names.add(stream_into(cfg, "encoder", cfg.encoder.n_layers))
    return names
