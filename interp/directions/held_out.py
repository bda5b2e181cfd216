"""What steering adds, and what it is measured on: vectors of prompts that are held out, and neutral prompts.

1. `pulled` keeps the pairs whose two prompts are of different classes: nothing pulls the others either way.
2. The pairs are dealt into two halves. `held_out_vectors` gives each the difference of means over the half without it.
3. `random_like` gives the control, random vectors of the same lengths; `neutral_prompts` are those on which steering
   should change little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from interp.directions.classes import Array, Contrast
from interp.directions.probes import Probe, rows_of
from interp.directions.steering import Where, between, states
from interp.errors import PromptError
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs

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
