"""How large a difference between two runs rounding alone can cause, and the one rule for dividing by such a difference.

Two runs that are equal on paper differ in their last digits: kernels sum in a different order on another processor, in
another batch, with another number of threads. A ratio whose denominator is such a difference is noise, and can be any
number. So every ratio whose denominator is a difference of runs goes through `quotient`:

1. A logit is uncertain by `of_logits`: (4 eps + 12 eps') times the largest logit of its prompt. eps is the spacing of
   the logits' number type at 1, which is the rounding of stored values: it happens twice per layer and adds up as a
   random walk. eps' is the spacing of the type in which products are summed (float32 for half precision, else the type
   itself): a sum of d terms is off by about sqrt(d) of it. What counts is the largest logit, not the logits that are
   read, because the error comes from a product with the whole residual stream, which all logits share.
2. A metric is uncertain by how far it moves when the logits that it reads move by that much
   (`interp.metric_rounding`). For a difference of two logits that is twice the step: 32 eps of the largest logit in
   float32, 8 in half precision.
3. A difference of two runs, or of means over the same prompts, that is not larger than this counts as none: the ratio
   is NaN, and `reason` says why in tables, figures and sentences.

The two factors are measured (docs/log.md): over SmolLM2-135M and small models of 2 to 12 layers with attention, state
spaces or both, in plain forwards, sweeps and circuits, under the kernels of several processors, a difference of two
runs was off by up to 16 eps in float32 and 6.5 eps in half precision, against float64. Models that amplify rounding on
the way to their logits can go beyond it (docs/rounding.md says which).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import as_numbers

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[np.float64]]

STORED, SUMMED = 4, 12  # by how many spacings of the stored and of the summing type a logit may be off
ON_LOGITS = 2  # a difference of two logits moves by twice what each of them does


def of_logits(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rounding alone can move a logit.

    Args:
        largest: the largest magnitude among the logits of each prompt, in any shape.
        dtype: the logits' number type.

    Returns:
        The same shape, in float64.

    >>> [round(float(of_logits(torch.tensor(20.0), dtype)), 5) for dtype in (torch.float32, torch.bfloat16)]
    [4e-05, 0.62503]
    """
    stored = torch.finfo(dtype).eps
    summed = min(stored, torch.finfo(torch.float32).eps)
    return largest.double() * (STORED * stored + SUMMED * summed)


def quotient(numerator: Any, difference: Any, rounding: Any) -> Array:
    """numerator / difference; NaN where `difference` is not larger than what rounding alone can cause.

    Args:
        numerator: array, of any shape that broadcasts with the others.
        difference: the difference of two runs.
        rounding: how large a difference rounding alone can cause, in the same unit; 0 leaves out only differences of 0.

    >>> quotient([1.0, 1.0], [2.0, 1e-6], 1e-5)
    array([0.5, nan])
    """
    gap = np.asarray(difference, dtype=np.float64)
    gap = np.where(np.abs(gap) > np.asarray(rounding, dtype=np.float64), gap, np.nan)
    return np.asarray(np.asarray(numerator, dtype=np.float64) / gap)


def assumed(*values: Any) -> Array:
    """The rounding of a difference of values whose number type is not known: as if they were float32 logits."""
    size = np.maximum.reduce([np.abs(as_numbers("a run's values", value)) for value in values])
    return ON_LOGITS * (STORED + SUMMED) * float(torch.finfo(torch.float32).eps) * size


def normalised_effect(value: Any, base: Any, source: Any, *, rounding: Any = None) -> Array:
    """(value - base) / (source - base): 0 where a run is like the base, 1 where it is like the source.

    NaN where the base and source runs do not differ by more than `rounding`: there is nothing to explain.

    Args:
        value: metric of the edited run; array, tensor or column, of any shape that broadcasts with the others.
        base: metric of the run that is edited.
        source: metric of the run that edits copy from.
        rounding: how far rounding alone can move the metric, as in the column `rounding` of a sweep's table; None takes
            what it would be if the metric were a float32 logit.

    >>> normalised_effect([1.0, 3.0], [1.0, 1.0], [5.0, 1.0])
    array([ 0., nan])
    """
    arguments = {"value": value, "base": base, "source": source}
    value, base, source = (as_numbers(name, x) for name, x in arguments.items())
    least = assumed(base, source) if rounding is None else as_numbers("rounding", rounding)
    return quotient(value - base, source - base, least)


def of_rows(frame: pd.DataFrame, *runs: str) -> Array:
    """How far rounding alone can move the metric [row]: the column `rounding`, or else `assumed` of these columns."""
    return as_numbers("rounding", frame["rounding"]) if "rounding" in frame else assumed(*(frame[run] for run in runs))


def of_effect(frame: pd.DataFrame) -> Array:
    """How far rounding alone can move the column `effect` of a sweep's table [row]; NaN where there is no effect."""
    off = of_rows(frame, "base_value", "source_value")
    return quotient(off, (frame["source_value"] - frame["base_value"]).abs(), off)


def no_effect(table: pd.DataFrame) -> str:
    """The sentence for a summary without a single value; "" where there is one."""
    if table["value"].notna().any() or "reason" not in table:
        return ""
    return f"There is no effect to measure: {table['reason'].iloc[0]}."


def within(value: float, rounding: float) -> str:
    """The clause that a sentence adds to a difference that is no more than rounding; "" for a larger one.

    >>> within(0.1, 0.25)
    ', which is no more than rounding (0.25)'
    """
    return f", which is no more than rounding ({rounding:.2g})" if abs(value) <= rounding else ""


def reason(missing: int, n: int, rounding: float) -> str:
    """Why a number is missing, or is based on only some of the prompts; "" where no prompt is missing.

    Args:
        missing: the number of prompts without a value.
        n: the number of prompts.
        rounding: the largest difference of the metric that rounding alone can cause on one of them.

    >>> reason(2, 8, 2.1e-4)
    '2 of 8 prompts left out: their two runs differ by no more than rounding (0.00021)'
    """
    if not missing:
        return ""
    whose = "the two runs differ" if missing == n else "their two runs differ"
    which = "" if missing == n else f"{missing} of {n} prompts left out: "
    return f"{which}{whose} by no more than rounding ({rounding:.2g})"
