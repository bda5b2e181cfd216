"""Relative positions: a learned number for each head and each range of distances, which is added to the scores.

1. Near distances have a number each, farther ones share one with more and more neighbours, and all beyond
   `relative_max_distance` the last one.
2. Where a query also looks ahead, half of the numbers are for keys after it.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning" ("T5"), section 2.1, and its released code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interp.config import ModelConfig


def relative_bias(cfg: ModelConfig, table: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor:
    """What relative positions add to the scores.

    Args:
        cfg: the model's configuration.
        table: [bucket, head].
        positions: of the queries [batch or 1, query].
        key_positions: [batch or 1, key].

    Returns:
        [batch or 1, head, query, key].
    """
    ahead = key_positions[:, None, :] - positions[:, :, None]  # [batch, query, key]
    return table[_buckets(cfg, ahead)].permute(0, 3, 1, 2)


def _buckets(cfg: ModelConfig, ahead: Tensor) -> Tensor:
    """Which number of the table belongs to a key that stands so far ahead of its query."""
    count, first = cfg.relative_buckets, torch.zeros_like(ahead)
    if cfg.causal:
        distance = (-ahead).clamp(min=0)
    else:
        # 2. A half for each direction.
        count //= 2
        first, distance = (ahead > 0) * count, ahead.abs()
    # 1. Half of them for one distance each; the logarithm in float32 as in the released code, since it is rounded down.
    exact = count // 2
    far = (distance.float().clamp(min=1) / exact).log() / math.log(cfg.relative_max_distance / exact) * (count - exact)
    shared = (exact + far.long()).clamp(max=count - 1)
    return first + torch.where(distance < exact, distance, shared)
