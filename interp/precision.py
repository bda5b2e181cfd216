"""Wide number types: where half precision would lose digits, in long sums and small differences, float32 is used."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The number type to compute in: float32 at least.

    >>> wide_type(torch.bfloat16), wide_type(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def widened(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(wide_type(x.dtype))
