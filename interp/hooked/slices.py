"""Some indices of one axis of a tensor, given as to NumPy: a number, a slice, a list, or None for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import entries, is_whole

PosSlice = int | slice | Sequence[int] | Tensor | np.ndarray[Any, Any] | None


def take(value: Tensor, wanted: PosSlice, axis: int, name: str = "pos_slice") -> Tensor:
    """`value` at some indices of one axis: a number drops the axis, a slice or a list keeps it, None takes all.

    Raises:
        PromptError: no index, or one outside the axis; `name` is what it was given as.
    """
    if wanted is None:
        return value
    found = entries(name, wanted, value.shape[axis])
    if is_whole(wanted):
        return value.select(axis, found[0])
    steps = range(found[0], found[-1] + 1) if found else range(0)
    if found == list(steps):  # a view, as a slice without steps gives it
        return value.narrow(axis, steps.start, len(steps))
    return value.index_select(axis, torch.tensor(found, device=value.device))
