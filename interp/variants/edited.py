"""An edit outside of a sweep: `with edited(model, pairs, variant):` plain forwards run with the variant's edits.

1. The runs that the edits copy from are made, and means over the prompts. 2. Hooks that make the edits are attached, as
a sweep attaches them, for the length of the block. 3. Whatever is run in it, on all of the prompts, sees the edits: its
logits, caches and lenses are those of the cells that a sweep measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from interp.arguments import checked
from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import HookError
from interp.hooked.hooks import HookPoint, attached
from interp.hooked.model import HookedModel
from interp.prompts.pair_checks import check_side
from interp.prompts.pairs import PromptPairs, fitting
from interp.sweeps.batched_edits import Changes, Layout
from interp.sweeps.edit_reach import Placed, Placement, rows_first
from interp.sweeps.encoder_decoder.reach import StackPlacement
from interp.sweeps.encoder_decoder.run import StackChanges
from interp.sweeps.source_values import Sources, copied_sites

Model = TypeVar("Model", bound=HookedModel)


@checked
@torch.no_grad()
def edited(
    model: Model,
    pairs: PromptPairs,
    variant: Variant | Edit | Sequence[Edit],
    *,
    base: str = "corrupt",
    source: str = "clean",
) -> AbstractContextManager[Model]:
    """Run plain forwards with the edits of a variant, for the length of a `with` block.

    In the block `model(**pairs.inputs(base))`, `model(pairs.corrupt, attention_mask=pairs.mask)`, `run_with_cache` and
    whatever else runs all of the prompts see the edits; a metric of these logits is the value of that variant in
    `interp.sweep(model, pairs, [variant], base=base, source=source)`. The runs that edits copy from are made once, when
    this is called. As with `model.hooks`, other threads run without the edits.

    Args:
        model: the model.
        pairs: the prompts.
        variant: what to change: a variant, an edit, or a list of edits.
        base: the side that gets edited, "clean" or "corrupt".
        source: the side that edits copy from; the same as `base` for ablations.

    Returns:
        A context manager that gives the model.

    Raises:
        UnknownName: a site, layer, head, role or side that does not exist.
        PromptError: a position outside some prompt, or a source that does not fit its site.
        HookError: in the block, a forward of other prompts than all of `pairs`; after it, if no forward was run in it.

    Example:
        >>> from interp import GPT, ModelConfig
        >>> model = GPT(ModelConfig(n_layers=2, d_model=16, n_ctx=32, d_head=8, d_vocab=50, seed=0))
        >>> pairs = PromptPairs.from_tokens([[5, 6, 7]], [[5, 9, 7]], answers=[(1, 2)])
        >>> with edited(model, pairs, Edit("z", {"layer": 0, "head": 1}, op="zero")):
        ...     logits, cache = model.run_with_cache(pairs.corrupt)
        >>> float(cache["z", 0][:, :, 1].abs().max())
        0.0
    """
    for side in (base, source):
        check_side(side)
    if not isinstance(variant, Variant):
        variant = Variant([variant] if isinstance(variant, Edit) else variant)
    pairs = fitting(model, pairs).to(model.device)
    placed = _placed(model, pairs, variant, base, source)
    # 1. What the edits copy.
    sides, stored = {"base": base, "source": source}, {}
    for run, names in copied_sites([variant], model).items():
        stored[run] = _values(model, pairs, sides[run], names)
    every = (0, len(pairs))
    sources = Sources(model, pairs, [variant], sides, [every])
    # 2. The edits, of a batch that has a row for every position of every prompt.
    made = StackChanges if isinstance(model, EncoderDecoder) else Changes
    changes = made(lambda edit: sources.of(edit, stored, every), {})
    numbers = np.arange(len(pairs))
    changes.add(placed, numbers, numbers)
    layouts = {"": _layout(pairs)}
    if pairs.encoder is not None:
        layouts = {"encoder": _layout(pairs.encoder), "decoder": layouts[""]}
    if isinstance(changes, StackChanges):
        changes.layouts = layouts
    changes.layout = layouts.get("")

    def hook(value: Tensor, hook: HookPoint) -> Tensor:
        expected, given = layouts[hook.site.rows_in].row_of.shape, tuple(rows_first(value, hook.site).shape[:2])
        if given != expected:
            raise HookError(
                f"edited runs the {expected[0]} prompts of its pairs together, padded to {expected[1]} positions, as "
                f"model(**pairs.inputs({base!r})) does: at {hook.name!r} came {given[0]} of {given[1]} positions"
            )
        return changes.hook(value, hook)

    return attached(model.hook_dict, [(name, hook) for name in changes.names], gives=model)


def _placed(model: HookedModel, pairs: PromptPairs, variant: Variant, base: str, source: str) -> Sequence[Placed]:
    """Where the edits act; after the last attention too they are made everywhere, as somebody may look there."""
    if isinstance(model, EncoderDecoder):
        return StackPlacement(model, pairs, [variant], base=base, source=source).edits(0)
    return Placement(model, pairs, [variant], pairs.mask.cpu().numpy(), base=base, source=source).edits(0)


def _values(model: HookedModel, pairs: PromptPairs, side: str, names: set[str]) -> dict[str, Tensor]:
    """The values of some sites in the run of one side."""
    if not names:
        return {}
    _, cache = model.run_with_cache(**pairs.inputs(side), names_filter=sorted(names), return_type=None)
    return dict(cache)


def _layout(pairs: PromptPairs) -> Layout:
    """A batch of all prompts, with a row for each of their positions."""
    return Layout(np.arange(len(pairs)), np.arange(pairs.mask.numel()).reshape(pairs.mask.shape))
