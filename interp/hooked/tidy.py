"""A site of a cache as a tidy table: a row for every entry, its place on each axis in columns.

1. Every entry is at a place on each axis of its site. 2. Positions count from the start of the real prompt, as in all
tables; entries at padding are left out. 3. Where the tokens are known, each position has its label: `9: John`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import entries
from interp.hooked.slices import PosSlice
from interp.sites import AXIS_WORDS, Site
from interp.text.tokenizer import Tokenizer, labels

if TYPE_CHECKING:
    import pandas as pd

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class CachedPrompts:
    """What a cache knows of the prompts that ran.

    Attributes:
        tokens: their ids [batch, pos]; None where a residual stream was given, or earlier positions come before them.
        mask: [batch, earlier and own positions], True at real tokens; None where all are.
        n_pos: how many positions ran; None if that is not known.
        n_past: how many positions came before these, of which keys were kept.
        kept: the positions of which values were kept.
        tokenizer: gives the tokens their text; None labels them by their ids. A pickle leaves both behind.
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    n_pos: int | None = None
    n_past: int = 0
    kept: PosSlice = None
    tokenizer: Tokenizer | None = None

    def only(self, prompt: int) -> CachedPrompts:
        """What is known of one of the prompts."""
        tokens, mask = (None if rows is None else rows[prompt : prompt + 1] for rows in (self.tokens, self.mask))
        return replace(self, tokens=tokens, mask=mask)

    def __getstate__(self) -> dict[str, Any]:
        alone = {} if self.tokenizer is None else {"tokens": None, "tokenizer": None}
        return {**vars(self), **alone}


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions of one axis.

    Attributes:
        number: from the start of each real prompt [batch, place].
        real: False at padding [batch, place].
        label: as `9: John` [batch, place]; None where the tokens are not known.
    """

    number: Numbers
    real: np.ndarray[Any, np.dtype[np.bool_]]
    label: np.ndarray[Any, np.dtype[np.object_]] | None


def positions(prompts: CachedPrompts, shape: tuple[int, int], *, keys: bool) -> Positions:
    """The positions on one axis of a value.

    Args:
        prompts: whose positions they are.
        shape: of the value on its axis `batch` and on this one.
        keys: whether it is an axis of keys, which has the earlier positions too, and all of them.
    """
    if keys or prompts.n_pos is None:
        place = np.arange(shape[1])
    else:
        place = prompts.n_past + np.array(entries("pos_slice", prompts.kept, prompts.n_pos))
    if prompts.mask is None:
        number = np.broadcast_to(place, shape)
        real = np.ones(shape, dtype=bool)
    else:
        mask = prompts.mask.bool().cpu().numpy()
        number, real = (mask.cumsum(1) - 1)[:, place], mask[:, place]
    label = None
    if prompts.tokens is not None:
        label = np.full(shape, "", dtype=object)
        for row, ids in enumerate(prompts.tokens.cpu()):
            own = (ids if prompts.mask is None else ids[prompts.mask[row].bool().cpu()]).tolist()
            told = prompts.tokenizer
            texts = labels([str(token) for token in own]) if told is None else told.labels(own)
            label[row, real[row]] = np.array(texts, dtype=object)[number[row, real[row]]]
    return Positions(number, real, label)


def tidy(value: Tensor, site: Site, layer: int | None, rows: CachedPrompts, keys: CachedPrompts) -> pd.DataFrame:
    """A row for every entry of a site's value, as `ActivationCache.tidy` describes it.

    Args:
        value: in the site's axes; without that of positions if `rows` kept one position alone.
        site: what it is of.
        layer: the layer; None for a site of no layer.
        rows: the prompts whose positions are those of the site.
        keys: those of its keys.
    """
    import pandas as pd

    value = value.detach().cpu()
    row_axis = next((axis for axis in ("query", "pos") if axis in site.axes), None)
    if row_axis is not None and value.ndim < len(site.axes):
        value = value.unsqueeze(site.axes.index(row_axis))
    # 2. Where the real positions are.
    there = np.ones(value.shape, dtype=bool)
    found: dict[str, Positions] = {}
    for axis, prompts in ((row_axis, rows), ("key", keys)):
        if axis is not None and axis in site.axes:
            at = site.axes.index(axis)
            own = (value.shape[0], value.shape[at])
            found[axis] = positions(prompts, own, keys=axis == "key")
            wide = [own[0], *[1] * (value.ndim - 1)]
            wide[at] = own[1]
            there &= found[axis].real.reshape(wide)
    # 1. and 3. The places of the entries, and their labels.
    index = dict(zip(site.axes, there.nonzero(), strict=True))
    columns: dict[str, Any] = {} if layer is None else {"layer": np.full(int(there.sum()), layer)}
    for axis, places in index.items():
        if axis == "batch":
            columns["prompt"] = places
        elif axis in found:
            columns[axis] = found[axis].number[index["batch"], places]
            label = found[axis].label
            if label is not None:
                columns["token" if axis == "pos" else f"{axis}_token"] = label[index["batch"], places]
        elif axis != "one":
            columns[AXIS_WORDS.get(axis, axis)] = places
    exact = value.double() if value.is_floating_point() else value.to(torch.int64)
    return pd.DataFrame({**columns, "value": exact.numpy()[there]})
