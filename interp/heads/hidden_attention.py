"""Hidden attention: how much of what a state-space layer reads at a position was written at each earlier one.

1. A recurrence equals a matrix, y = pattern x, which is the mixer's site `pattern`: [query, key] for each head of a
   Mamba-2 layer, and for each channel of a Mamba-1 layer. Entries may be negative, and rows do not sum to 1.
2. D is on its diagonal. It bypasses the state and is left out.
3. A share is the magnitude of an entry divided by the sum of the magnitudes of its row, so that it can be read, and
   drawn, like an attention probability. The share of a whole mixer uses the mean magnitude over its channels or heads.

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

MAX_NUMBERS = 2**25  # of a pattern at once: 128 MB in float32


def mixer_of(model: HookedModel, layer: int) -> MambaMixer:
    """The state-space mixer of a layer.

    Raises:
        UnknownName: the layer has none.
    """
    mixer = model.block(layer).mixer if isinstance(model, GPT) else None
    if mixer is None:
        layers = model.cfg.layers_with(*MAMBAS)
        which = f"layers {', '.join(map(str, layers))} have" if layers else "no layer of this model has"
        raise UnknownName(f"layer {layer} has no state-space mixer: {which} one")
    return mixer


def sources(layer: int) -> list[str]:
    """The sites from which the pattern of a layer is computed; a cache of these need not hold the pattern itself."""
    return [f"blocks.{layer}.mixer.hook_{name}" for name in RECURRENT]


@torch.no_grad()
def patterns(
    model: HookedModel, cache: ActivationCache, layer: int, mask: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The pattern of a layer, a few prompts at a time, so that it fits into memory.

    Args:
        model: the model.
        cache: its values at `sources(layer)`.
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
    each = max(1, MAX_NUMBERS // (mixer.D.numel() * n_pos * n_pos))
    for start in range(0, n, each):
        rows = slice(start, start + each)
        own_mask = None if mask is None else mask[rows]
        pattern = mixer.derive("pattern", own_mask, **{name: value[rows] for name, value in values.items()})
        assert pattern is not None
        yield rows, pattern


def shares(pattern: Tensor, D: Tensor) -> Tensor:
    """The magnitudes of a pattern, without D, each divided by the sum of its row.

    Args:
        pattern: [batch, unit, query, key]; the units are heads or channels.
        D: [unit].

    Returns:
        The same shape, from 0 to 1; the keys of a query sum to 1, or to 0 where all are 0.
    """
    return _normalised(_magnitudes(pattern, D))


def together(pattern: Tensor, D: Tensor) -> Tensor:
    """The shares of a whole mixer, from the mean magnitude over its units.  # [batch, query, key]"""
    return _normalised(_magnitudes(pattern, D).mean(1))


def _magnitudes(pattern: Tensor, D: Tensor) -> Tensor:
    return (pattern - on_diagonal(D.detach(), pattern)).abs().float()


def _normalised(magnitudes: Tensor) -> Tensor:
    total = magnitudes.sum(-1, keepdim=True)
    return magnitudes / torch.where(total > 0, total, 1.0)
