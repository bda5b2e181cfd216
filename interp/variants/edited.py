"""`interp.edited`: make a variant's edits in forwards of one's own, outside a sweep.

1. The runs that the edits copy from are made once, when the block begins.
2. Every forward of the base prompts in the block is then changed at the same places, and in the same way, as `sweep`
   changes them: by the same code, with a row for every position of every prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.arguments import checked
from interp.edits import Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, HookError
from interp.hooked.model import HookedModel
from interp.prompts.pair_checks import check_side
from interp.prompts.pairs import PromptPairs, fitting
from interp.sweeps.batched_edits import Changes, Layout
from interp.sweeps.edit_reach import Placed, Placer, rows_first
from interp.sweeps.source_values import mean_over_prompts, whole_source

if TYPE_CHECKING:
    from interp.hooked.hooks import HookPoint


@checked
@contextmanager
def edited(
    model: HookedModel, pairs: PromptPairs, variant: Variant, *, base: str = "corrupt", source: str = "clean"
) -> Iterator[HookedModel]:
    """Make a variant's edits in every forward of a `with` block, which is of the base prompts.

    The forward may keep a cache, be shown (`interp.show`) or be differentiated; what it computes is what `sweep`
    measures for this variant.

    Args:
        model: the model.
        pairs: the prompts; padded forwards need the padding of these.
        variant: what to change; see `interp.edits`.
        base: the side that the block runs, "clean" or "corrupt".
        source: the side that edits copy from.

    Raises:
        UnknownName: a site, layer, head, role or side that does not exist.
        ConfigError: a model with an encoder and a decoder.
        HookError: the model was not run in the block, or on other prompts than these.

    Example:
        variant = interp.Variant([interp.Edit("z", {"layer": 9, "head": 6}, "zero")])
        with interp.edited(model, pairs, variant, base="clean"):
            logits, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.attention_mask)
    """
    if isinstance(model, EncoderDecoder):
        raise ConfigError("edited is of a model with one stack; `sweep` edits one with an encoder and a decoder")
    sides = {"base": base, "source": source}
    for side in sides.values():
        check_side(side)
    pairs = fitting(model, pairs).to(model.device)
    placer = Placer(model, pairs, pairs.mask.cpu().numpy())
    placed = [placer.place(edit) for edit in variant.edits]

    # 1. What the edits copy.
    stored = _stored(model, pairs, placed, sides)

    def source_of(own: Placed) -> Tensor:
        if own.edit.run is None:
            return whole_source(own.edit, own.name, own.site, model.cfg, pairs)
        value = stored[own.edit.run][own.name]
        if own.edit.op == "mean":
            return mean_over_prompts(value, own.site, pairs.masks(own.site)[0]).expand_as(value)
        return value

    # 2. A row for every position of every prompt.
    n, width = pairs.mask.shape
    changes = Changes(source_of, stored["base"])
    changes.layout = Layout(np.arange(n), np.arange(n * width).reshape(n, width))
    changes.add(placed, np.arange(n), np.arange(n))

    def change(value: Tensor, hook: HookPoint) -> Tensor:
        given = list(rows_first(value, hook.site).shape[:2])  # [prompt, pos]
        if given != [n, width]:
            raise HookError(f"edited was given prompts of shape {[n, width]}, and the model was run on {given}")
        return changes.hook(value, hook)

    with model.hooks([(name, change) for name in changes.names]):
        yield model


@torch.no_grad()
def _stored(
    model: HookedModel, pairs: PromptPairs, placed: list[Placed], sides: Mapping[str, str]
) -> dict[str, dict[str, Tensor]]:
    """What each run has at the sites that edits read, by site name; of the base run also what functions are given."""
    names: dict[str, set[str]] = {"base": set(), "source": set()}
    for own in placed:
        if own.edit.run is not None:
            names[own.edit.run].add(own.name)
        elif own.edit.computed:
            names["base"].add(own.name)
    stored: dict[str, dict[str, Tensor]] = {run: {} for run in sides}
    for run, wanted in names.items():
        if wanted:
            inputs = pairs.inputs(sides[run])
            _, cache = model.run_with_cache(**inputs, names_filter=sorted(wanted), return_type=None)
            stored[run] = dict(cache)
    return stored
