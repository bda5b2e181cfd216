"""Hidden attention: how much of what a state-space layer reads at a position was written at each earlier one.

1. A recurrence is equal to a matrix, y = pattern x, which the site `pattern` of a mixer has: [query, key] for each head
   of a Mamba-2 layer, for each channel of a Mamba-1 layer. It has signs, and its rows have no sum in common.
2. D stands on its diagonal. It passes by the state and is left out.
3. A share is the magnitude of an entry as a part of all magnitudes of its row. So it can be read, and drawn, as an
   attention probability. The share of a whole mixer is that of the mean magnitude over its channels or heads.

Source: Ali et al. 2024 ("The Hidden Attention of Mamba Models", section 3); they, too, average over channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from interp.config import MAMBAS
from interp.errors import UnknownName
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.models.gpt import GPT
from interp.state_space.mixer import RECURRENT, MambaMixer, on_diagonal
from interp.text.padding import as_mask

MOST_NUMBERS = 2**25  # of a pattern at once: 128 MB in float32


def mixer_of(model: HookedModel, layer: int) -> MambaMixer:
    """The state-space mixer of a layer.

    Raises:
        UnknownName: the layer has none.
    """
    mixer = model.block(layer).mixer if isinstance(model, GPT) else None
    if mixer is None:
        there = model.cfg.layers_with(*MAMBAS)
        has = f"layers {', '.join(map(str, there))} have" if there else "no layer of this model has"
        raise UnknownName(f"layer {layer} has no state-space mixer: {has} one")
    return mixer


def sources(layer: int) -> list[str]:
    """The sites that the pattern of a layer is made of; a run that keeps these keeps no pattern."""
    return [f"blocks.{layer}.mixer.hook_{name}" for name in RECURRENT]


@torch.no_grad()
def patterns(
    model: HookedModel, cache: ActivationCache, layer: int, mask: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The pattern of a layer, some prompts at a time, so that it fits into memory.

    Args:
        model: the model.
        cache: what it computed at `sources(layer)`.
        layer: a layer with a state-space mixer.
        mask: True at real tokens [batch, pos]; None means all.

    Yields:
        The prompts, and their pattern [batch, ssm_head, query, key], or [batch, channel, query, key].

    Raises:
        UnknownName: a layer without such a mixer.
    """
    mixer, mask = mixer_of(model, layer), None if mask is None else as_mask(mask, "mask")
    values = {name: cache[site] for name, site in zip(RECURRENT, sources(layer), strict=True)}
    n, n_pos = values["delta"].shape[:2]
    each = max(1, MOST_NUMBERS // (mixer.D.numel() * n_pos * n_pos))
    for start in range(0, n, each):
        rows = slice(start, start + each)
        own = None if mask is None else mask[rows]
        found = mixer.derive("pattern", own, **{name: value[rows] for name, value in values.items()})
        assert found is not None
        yield rows, found


def shares(pattern: Tensor, D: Tensor) -> Tensor:
    """The magnitudes of a pattern, without D, as parts of their row.

    Args:
        pattern: [batch, unit, query, key]; the units are heads or channels.
        D: [unit].

    Returns:
        The same shape, from 0 to 1; the keys of a query sum to 1, unless it reads nothing at all.
    """
    return _parts(_magnitudes(pattern, D))


def together(pattern: Tensor, D: Tensor) -> Tensor:
    """The shares of a whole mixer: of the mean magnitude over its units.  # [batch, query, key]"""
    return _parts(_magnitudes(pattern, D).mean(1))


def _magnitudes(pattern: Tensor, D: Tensor) -> Tensor:
    return (pattern - on_diagonal(D.detach(), pattern)).abs().float()


def _parts(magnitudes: Tensor) -> Tensor:
    total = magnitudes.sum(-1, keepdim=True)
    return magnitudes / torch.where(total > 0, total, 1.0)
