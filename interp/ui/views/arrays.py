"""Arrays as a payload carries them: base64 of half precision, or of bytes where there would be too much of it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from torch import Tensor

LARGEST_HALVES = 2_000_000
"""More numbers than this are stored as shares of the largest, in 255 steps: a view says then that it rounds."""


def packed(values: Tensor, *, causal: bool = False) -> dict[str, Any]:
    """Numbers as `numbers` of base.js reads them.

    Args:
        values: [..., query, key] or any other shape; not below 0 if there are more than `LARGEST_HALVES`.
        causal: keep of [..., query, key] the keys up to the query alone; the others are 0.
    """
    array = values.detach().to("cpu").float().numpy()
    shape = list(array.shape)
    if causal:
        array = array[..., *np.tril_indices(shape[-1])]
    made: dict[str, Any] = {"shape": shape}
    if causal:
        made["packed"] = "causal"
    if array.size > LARGEST_HALVES:
        largest = float(array.max(initial=0.0)) or 1.0
        stored = np.rint(array / largest * 255).astype(np.uint8)
        made |= {"dtype": "uint8", "scale": largest / 255}
    else:
        stored = array.astype("<f2")
        made["dtype"] = "float16"
    return made | {"data": base64.b64encode(stored.tobytes()).decode("ascii")}


def exact(values: Tensor) -> dict[str, Any]:
    """Numbers in single precision, for what is computed with."""
    array = values.detach().to("cpu").float().numpy().astype("<f4")
    return {"shape": list(array.shape), "dtype": "float32", "data": base64.b64encode(array.tobytes()).decode("ascii")}
