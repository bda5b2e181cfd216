"""The metric of both runs of every pair, and how far rounding alone can take it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from interp.attribution.gradients import AnyMetric
from interp.attribution.logits_read import logits_read
from interp.attribution.prompt_batches import batches
from interp.hooked.model import HookedModel
from interp.metric_rounding import rounding
from interp.metrics import check_metric, evaluate, get_metric, largest_logit, read_there
from interp.prompts.pair_checks import other_side
from interp.prompts.pairs import PromptPairs, fitting
from interp.sweeps.sweep import Measured


class RunValues(NamedTuple):
    """A metric in two runs, and how far rounding alone can take it (`interp.rounding`), each [prompt]."""

    base: Tensor
    source: Tensor
    rounding: Tensor


@torch.no_grad()
def run_values(
    model: HookedModel,
    pairs: PromptPairs,
    metric: AnyMetric = "logit_diff",
    *,
    base: str = "clean",
    source: str | None = None,
) -> RunValues:
    """The metric of the base run and of the source run (the other side's), which is also the reference."""
    pairs, sides = fitting(model, pairs).to(model.device), (base, other_side(base) if source is None else source)
    measure, found = get_metric(metric), []
    for _, part in batches(model, pairs, ()):
        there = [logits_read(model, part, measure, side) for side in sides]  # each [prompt, read, d_vocab_out]
        check_metric(measure, part, there[0].shape[-1])
        largest = torch.maximum(*map(largest_logit, there))
        seen = [read_there(measure, own, part) for own in there]
        values = [evaluate(measure, own, part, seen[1], side=base) for own in seen]
        off = [rounding(measure, own, part, seen[1], largest, side=base) for own in seen]
        found.append((*values, torch.maximum(*off)))
    return RunValues(*(torch.cat(column) for column in zip(*found, strict=True)))


def of_sweep(measured: Measured) -> RunValues:
    """The same as a sweep has measured it."""
    return RunValues(*map(torch.from_numpy, (measured.base, measured.source, measured.rounding)))
