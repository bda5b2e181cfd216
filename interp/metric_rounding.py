"""How far rounding alone can take a metric of each prompt: the logits that it reads are moved by what they may be off.

So it holds for every metric, those of users among them; what `interp.rounding` says of logits is where it starts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from interp.metrics import ROWS, Metric, evaluate
from interp.precision import widened
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_logits

DRAWN = 2  # ways of moving logits by their rounding, beside two that are chosen


def rounding(
    metric: Metric,
    seen: Tensor,
    pairs: PromptPairs,
    reference: Tensor | None,
    largest: Tensor,
    *,
    side: str | None = None,
) -> Tensor:
    """How far rounding alone can take a metric of each pair [rows], in float64; see `interp.rounding`.

    The logits that the metric reads are moved up and down by what each of them may be off, in several patterns; what
    counts is the largest change. So it holds for every metric: twice the step for a difference of two logits, a whole
    token for a rank that rounding can change.

    Args:
        metric, seen, pairs, reference, side: as `evaluate` takes them.
        largest: the largest magnitude among the logits where the metric reads, of the whole vocabulary [rows].
    """
    if not metric.whole and len(pairs) > ROWS:  # so that moved copies of a large vocabulary stay few
        parts = [slice(start, start + ROWS) for start in range(0, len(pairs), ROWS)]
        refs = [None if reference is None else reference[part] for part in parts]
        found = [
            rounding(metric, seen[part], pairs[part], ref, largest[part]) for part, ref in zip(parts, refs, strict=True)
        ]
        return torch.cat(found)
    step = of_logits(largest, seen.dtype).to(seen.device)
    step, seen = step.reshape(-1, *[1] * (seen.ndim - 1)), widened(seen)
    value = evaluate(metric, seen, pairs, reference, side=side).double()
    worst = torch.zeros_like(value)
    for pattern in _patterns(seen):
        for sign in (1, -1):
            moved = seen + (sign * step).to(seen.dtype) * pattern
            change = (evaluate(metric, moved, pairs, reference, side=side).double() - value).abs()
            worst = torch.maximum(worst, change.nan_to_num(float("inf")))
    return worst


def _patterns(seen: Tensor) -> Iterator[Tensor]:
    """Directions in which logits are moved together, of +1 and -1.

    The first half of the tokens against the second, which parts the right answers from the wrong ones; every other one
    by size, which parts the likeliest token from the next; then drawn ones.
    """
    n_tokens = seen.shape[-1]
    place = torch.arange(n_tokens, device=seen.device)
    turns = (1 - 2 * (place % 2)).to(seen.dtype)
    yield (1 - 2 * (2 * place >= n_tokens).long()).to(seen.dtype)
    yield torch.empty_like(seen).scatter_(-1, seen.argsort(-1, descending=True), turns.expand_as(seen))
    rng = np.random.default_rng(0)
    for _ in range(DRAWN):
        yield torch.from_numpy(1.0 - 2.0 * rng.integers(2, size=n_tokens)).to(seen)
