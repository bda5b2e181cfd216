"""What steering adds, and what it is measured on: vectors of prompts that are held out, and neutral prompts.

1. `pulled` keeps the pairs whose two prompts are of different classes: nothing pulls the others either way.
2. The pairs are dealt into two halves. `held_out_vectors` gives each the difference of means over the half without it.
3. `random_like` gives the control, random vectors of the same lengths; `neutral_prompts` are those on which steering
   should change little. `adding` makes the edits.
4. `beyond_random` says what a difference of means does beyond random vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp import stats
from interp.arguments import checked
from interp.directions.classes import Array, Contrast
from interp.directions.probes import Probe, rows_of
from interp.directions.steering import Where, between, states
from interp.edits import Edit
from interp.errors import PromptError
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_effect, of_rows

if TYPE_CHECKING:
    import pandas as pd

ADDED = ("onward", "there", "all")
"""Where a vector is added: from a position on, at it alone, at all positions."""

VECTORS = ("difference", "random")
HELD_OUT, NEUTRAL = "held out", "neutral"  # the prompts of a row
MOST_NEUTRAL = 16


def pulled(told: Contrast, pairs: PromptPairs) -> tuple[Contrast, PromptPairs, Array]:
    """The pairs whose prompts are of different classes, and their numbers."""
    if told.corrupt is None:
        raise PromptError(
            "steering goes from the class of a corrupt prompt to that of its clean one: give labels of both, "
            f"[{len(pairs)}, 2]"
        )
    kept = np.flatnonzero(told.clean != told.corrupt)
    if not len(kept):
        raise PromptError(f"the two prompts of every pair are of one class of {told.name!r}: nothing pulls them apart")
    chosen = replace(told, clean=told.clean[kept], corrupt=told.corrupt[kept], group=told.group[kept])
    return chosen, pairs[kept.tolist()], kept


def held_out_vectors(
    model: HookedModel, pairs: PromptPairs, told: Contrast, site: str, places: Sequence[Where], *, seed: int = 0
) -> Tensor:
    """For every place and pair the difference of means over the half without it, towards the class of the clean prompt.

    Returns:
        [place, prompt, the site's other axes], float32.
    """
    rows = rows_of(told, Probe(folds=2, seed=seed))
    read = torch.cat([states(model, pairs, site, places, side=side) for side in told.sides], dim=1)
    half = rows.fold[: len(pairs)]
    vectors = torch.empty_like(read[:, : len(pairs)])
    for at, found in enumerate(read):
        for fold in (0, 1):
            others = torch.from_numpy(rows.fold != fold)
            vectors[at, torch.from_numpy(half == fold)] = between(found[others], rows.classes[rows.fold != fold], told)
    towards = torch.from_numpy(np.where(told.clean == 0, 1.0, -1.0)).to(vectors)
    return vectors * towards.reshape(-1, *[1] * (vectors.ndim - 2))


def random_like(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector of the same length for every prompt [prompt, ...]."""
    drawn = torch.randn(vectors.shape, generator=generator)
    inner = tuple(range(1, vectors.ndim))
    return drawn * (vectors.norm(dim=inner, keepdim=True) / drawn.norm(dim=inner, keepdim=True))


def neutral_prompts(
    model: HookedModel, pairs: PromptPairs, neutral: Sequence[str] | PromptPairs | None = None, seed: int = 0
) -> PromptPairs:
    """Texts, or the clean side of pairs; None takes the first clean prompts, each cut off at a random position."""
    if isinstance(neutral, PromptPairs):
        return neutral
    if neutral is not None:
        return PromptPairs.from_text(model, list(neutral), answers=[(0, 1)] * len(neutral))
    pairs, generator = pairs[:MOST_NEUTRAL], np.random.default_rng(seed)
    cut = [int(generator.integers(min(2, n - 1), n)) if n > 1 else 1 for n in pairs.lengths.tolist()]
    rows = [row[:n].tolist() for row, n in zip(pairs.clean, cut, strict=True)]
    return PromptPairs.from_tokens(rows, answers=pairs.answer_sets or pairs.answers, name="neutral")


def adding(site: str, layer: int, vectors: Tensor, pairs: PromptPairs, pos: int | str, add: str) -> Edit:
    """The edit that adds to every prompt its own vector.

    Args:
        site, layer: where.
        vectors: [prompt, the site's other axes].
        pairs: the prompts.
        pos: a position, or a role.
        add: "onward" adds from there on, "there" at it alone, "all" at every position.
    """
    source = vectors[:, None]  # [prompt, pos, ...]
    if add == "all":
        return Edit(site, {"layer": layer}, "add", source)
    if add == "there" or pos == -1:
        return Edit(site, {"layer": layer, "pos": pos}, "add", source)
    from_there = torch.arange(pairs.mask.shape[1]) >= pairs.positions(pos).cpu()  # [prompt, pos]
    return Edit(
        site, {"layer": layer}, "add", source * from_there.reshape(*from_there.shape, *[1] * (vectors.ndim - 1))
    )


@checked
def beyond_random(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect on held-out prompts, and mean divergence on neutral ones, of every layer, strength and vector.

    Args:
        frame: has `layer, strength, vector` ("difference" or "random"), `prompts` ("held out" or "neutral") and a
            sweep's columns; `effect` counts on held-out prompts, `value` on neutral ones.

    Returns:
        Means with intervals, held-out prompts and differences first, the largest of them at the top. `control` is the
        mean of the random vectors at the same layer and strength. `p` and `p_adjusted` are of what a difference of
        means does beyond them: the mean of the paired differences against 0, corrected for being many.
    """
    by = ["layer", "strength", "vector", "prompts", "metric"]
    measured = frame["effect"].where(frame["prompts"] == HELD_OUT, frame["value"])
    frame = frame.assign(measured=measured)
    cell = ["layer", "strength", "prompts", "metric"]
    random = frame[frame["vector"] == "random"][[*cell, "prompt", "measured"]]
    paired = frame[frame["vector"] == "difference"].merge(random, on=[*cell, "prompt"], suffixes=("", "_random"))
    paired["beyond"] = paired["measured"] - paired["measured_random"]
    off = np.where(paired["prompts"] == HELD_OUT, of_effect(paired), of_rows(paired, "base_value"))
    # Of these two no interval is shown.
    tested = stats.tested(paired, by=by, value="beyond", rounding=off, n_resamples=1)[[*by, "p", "p_adjusted"]]
    control = stats.summarise(paired, by=by, value="measured_random", n_resamples=1)[[*by, "value"]]
    table = stats.summarise(frame, by=by, value="measured")
    table = table.merge(control.rename(columns={"value": "control"}), on=by, how="left").merge(
        tested, on=by, how="left"
    )
    held = table["prompts"] == HELD_OUT
    table["metric"] = table["metric"].where(~held, "effect on " + table["metric"])
    order = held * 2 + (table["vector"] == "difference")
    return (
        table.assign(order=order)
        .sort_values(["order", "value"], ascending=False, kind="stable", ignore_index=True)
        .drop(columns="order")
    )
