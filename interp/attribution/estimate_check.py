"""How far off are estimates, and what may they have missed? Some cells are measured exactly and compared.

1. `choose` takes the cells with the largest estimates, and as many at random among the others. `tabulated` puts the
   estimates and the measurements into one table; `ranked` and `means` summarise it.
2. `agreement` compares means over prompts: correlation (with shuffled cells as a control), sign, error. Intervals come
   from resampling prompts; the chosen cells stay the same.
3. A cell is missed if its effect is large and it was not measured. The random cells bound how many were missed: if more
   than the bound were large, drawing so few large ones would have been unlikely. Nothing is assumed about how effects
   are distributed.

Source: Kramár et al. 2024 ("AtP*", section 3.3, on diagnostics), with the exact bound for draws without replacement in
place of their normal one (Clopper and Pearson 1934, by the hypergeometric distribution).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interp import stats
from interp.arguments import MOST, as_numbers, checked, real_number, resamples, share, whole_number
from interp.arguments import seed as check_seed
from interp.attribution.run_values import RunValues
from interp.errors import InterpError, unknown
from interp.rounding import of_effect, quotient

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

TOP, RANDOM = "top", "random"
LARGE = 0.1  # a large effect is at least this part of the largest one that was measured


@checked
def choose(estimates: Any, n: int, *, seed: int = 0) -> dict[int, str]:
    """Which cells to measure: half of them those with the largest estimates, half at random among the others.

    Args:
        estimates: [cell]; NaN counts as 0.
        n: how many cells to measure; all, if there are fewer.
        seed: of the draw.

    Returns:
        Number of the cell -> "top" or "random", in the order of the cells.

    Raises:
        InterpError: `n` below 1.

    >>> choose([0.1, -3.0, 0.2, 0.0], 2)
    {1: 'top', 3: 'random'}
    """
    n = whole_number("sample", n, least=1)
    sizes = np.abs(np.nan_to_num(as_numbers("estimates", estimates)))
    order = np.argsort(-sizes, kind="stable")
    n_top = min((n + 1) // 2, len(order))
    rest = order[n_top:]
    drawn = np.random.default_rng(check_seed(seed)).permutation(len(rest))[: n - n_top]
    chosen = {int(at): TOP for at in order[:n_top]} | {int(at): RANDOM for at in rest[drawn]}
    return dict(sorted(chosen.items()))


def tabulated(
    labels: Callable[[int], Mapping[str, Any]],
    estimates: Array,
    exact: Array,
    *,
    chosen: Mapping[int, str],
    most: int,
    runs: RunValues,
    metric: str,
) -> pd.DataFrame:
    """Estimates and exact effects as a study's table, for the measured cells and those with the largest estimates.

    Args:
        labels: number of a cell -> the columns that identify it.
        estimates: estimated changes of the metric [cell, prompt].
        exact: measured changes [chosen cell, prompt].
        chosen: the cells that were measured, as `choose` gives them.
        most: how many cells get rows, those with the largest estimates; measured cells always get rows.
        runs: the metric in the base run and in the source run, and their rounding, each [prompt].
        metric: the name of the metric.

    Returns:
        A row for each of these cells and every prompt: the labels, `sample` ("top", "random" or ""), `cells` (how many
        were estimated), `prompt, metric, value` (the estimate), `exact` (NaN where nothing was measured), `base_value,
        source_value`, `rounding` (how much rounding alone can change the metric: where the runs differ by no more,
        there is no effect), `effect` and `exact_effect` (the changes as parts of the difference between the two runs).
    """
    import pandas as pd

    n_cells, n_prompts = estimates.shape
    measured = np.full(estimates.shape, np.nan)
    measured[list(chosen)] = exact
    largest = np.argsort(-np.abs(estimates.mean(1)), kind="stable")[: whole_number("most", most, least=0)]
    kept = sorted({*largest.tolist(), *chosen})
    named = pd.DataFrame([{**labels(at), "sample": chosen.get(at, "")} for at in kept])
    base, source, rounding = (np.tile(run.detach().double().cpu().numpy(), len(kept)) for run in runs)
    value, change = estimates[kept].ravel(), measured[kept].ravel()
    frame = named.loc[named.index.repeat(n_prompts)].reset_index(drop=True)
    return frame.assign(
        cells=n_cells,
        prompt=np.tile(np.arange(n_prompts), len(kept)),
        metric=metric,
        value=value,
        exact=change,
        base_value=base,
        source_value=source,
        rounding=rounding,
        effect=quotient(value, source - base, rounding),
        exact_effect=quotient(change, source - base, rounding),
    )


@checked
def ranked(frame: pd.DataFrame, by: str | Sequence[str]) -> pd.DataFrame:
    """Mean estimated effect of every cell over prompts with intervals, and the mean exact effect; the largest first.

    Args:
        frame: as `tabulated` makes it.
        by: the columns that identify a cell.

    Returns:
        The columns of `interp.stats.tested`, and `exact` and `sample`. `p_adjusted` takes account of all estimated
        cells, including those without rows.
    """
    table = stats.tested(frame, by=by, value="effect", rounding=of_effect(frame))
    table["metric"] = "effect on " + table["metric"]
    # The p of the other cells are not known. Among all cells each of these could only rank later and be adjusted less,
    # so this is conservative.
    table["p_adjusted"] = (table["p_adjusted"] * frame["cells"].iloc[0] / len(table)).clip(upper=1.0)
    groups = frame.groupby(by, sort=False, dropna=False)
    table.insert(table.columns.get_loc("value") + 1, "exact", groups["exact_effect"].mean().to_numpy())
    table["sample"] = groups["sample"].first().to_numpy()
    return stats.strongest_first(table)


@checked
def means(frame: pd.DataFrame, by: str | Sequence[str]) -> pd.DataFrame:
    """Mean `effect` and `exact_effect` of every measured cell, and its `sample`: "top" first, then "random".

    Args:
        frame: as `tabulated` makes it.
        by: the columns that identify a cell.
    """
    keys = [by] if isinstance(by, str) else list(by)
    part = frame[frame["sample"] != ""].sort_values("sample", ascending=False, kind="stable")  # top, then random
    return part.groupby([*keys, "sample"], sort=False, dropna=False)[["effect", "exact_effect"]].mean().reset_index()


@checked
def agreement(
    frame: pd.DataFrame,
    by: str | Sequence[str],
    *,
    n_cells: int,
    least: float = LARGE,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well estimates and exact effects of the measured cells agree.

    Args:
        frame: one row for each cell and prompt: `value` (the estimate), `exact`, `sample` ("top" or "random"; other
            rows are ignored), `prompt`, and optionally `rounding`: cells whose means differ by no more count as equal.
        by: the columns that identify a cell.
        n_cells: how many cells were estimated.
        least: the smallest effect that counts as large, as a part of the largest measured one.
        confidence: of the intervals, and of the bound on what was missed.
        n_resamples, seed: of the draws of prompts and of shuffled cells.

    Returns:
        A row for each of `correlation`, `rank correlation`, `correlation of shuffled cells` (its mean, and the
        interval in which it falls), `same sign` (of large cells), `relative error` (mean difference divided by mean
        exact magnitude) and `missed` (large cells among those not measured: the estimate, 0, and the upper bound), with
        `value, n` (how many cells it is based on), `ci_low, ci_high`; NaN where a quantity is not defined.

    Raises:
        UnknownName: a column that the frame does not have.
        InterpError: nothing was measured.
    """
    import pandas as pd
    from scipy import stats as scipy_stats

    confidence, n_resamples, seed = share("confidence", confidence), resamples(n_resamples), check_seed(seed)
    least, n_cells = real_number("least", least, least=0), whole_number("n_cells", n_cells, least=1)
    keys = [by] if isinstance(by, str) else list(by)
    for column in (*keys, "value", "exact", "sample", "prompt"):
        if column not in frame:
            raise unknown("column", column, map(str, frame.columns))
    estimates, exacts, drawn, rounding = _measured(frame, keys)
    estimate, exact = estimates.mean(1), exacts.mean(1)  # [cell]
    largest = np.abs(exact).max()
    large = (np.abs(exact) >= least * largest) & (largest > rounding)
    all_equal = min(np.ptp(estimate), np.ptp(exact)) <= rounding  # without an order of cells no correlation exists

    # Prompts are resampled for the intervals, cells are shuffled for the control.
    rng = np.random.default_rng(seed)
    n_prompts = estimates.shape[1]
    shares = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_resamples) / n_prompts
    resampled = estimates @ shares.T, exacts @ shares.T  # [cell, resample]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    shuffled = np.stack([rng.permutation(exact) for _ in range(n_resamples)], axis=1)  # [cell, resample]
    control = _correlation(estimate[:, None], shuffled) * (np.nan if all_equal else 1)

    def interval(statistic: Any, undefined: bool) -> tuple[float, float, float]:
        if undefined:
            return np.nan, np.nan, np.nan
        low, high = np.quantile(statistic(*resampled), tails) if n_prompts > 1 else (np.nan, np.nan)
        return float(statistic(estimate[:, None], exact[:, None])[0]), float(low), float(high)

    n_large = int(large.sum())
    signs = int((np.sign(estimate) == np.sign(exact))[large].sum())
    bounds = scipy_stats.binomtest(signs, n_large).proportion_ci(confidence) if n_large else (np.nan, np.nan)
    n_drawn, large_drawn = int(drawn.sum()), int((large & drawn).sum())
    left = n_cells - len(estimate)
    missed = left * large_drawn / n_drawn if n_drawn else np.nan if left else 0.0
    bound = float(most_missed(large_drawn, n_drawn, left, confidence))
    rows = [
        ("correlation", *interval(_correlation, all_equal), len(estimate)),
        ("rank correlation", *interval(_rank_correlation, all_equal), len(estimate)),
        ("correlation of shuffled cells", float(control.mean()), *np.quantile(control, tails), len(estimate)),
        ("same sign", signs / n_large if n_large else np.nan, *bounds, n_large),
        ("relative error", *interval(_relative_error, largest <= rounding), len(estimate)),
        ("missed", missed, 0.0, bound, n_drawn),
    ]
    return pd.DataFrame(rows, columns=["quantity", "value", "ci_low", "ci_high", "n"])[
        ["quantity", "value", "n", "ci_low", "ci_high"]
    ]


def _measured(frame: pd.DataFrame, keys: Sequence[str]) -> tuple[Array, Array, Array, float]:
    """Estimates and exact effects of the measured cells [cell, prompt], which of them are random, and the rounding."""
    measured = frame[frame["sample"].isin([TOP, RANDOM])]
    if not len(measured):
        raise InterpError("no cell was measured exactly: a row's sample must be 'top' or 'random' for it to count")
    cell = measured.groupby(list(keys), sort=False, dropna=False).ngroup()
    estimates, exacts = (
        measured.assign(cell=cell).pivot(index="cell", columns="prompt", values=name).to_numpy(dtype=np.float64)
        for name in ("value", "exact")
    )
    drawn = measured.groupby(cell)["sample"].first().to_numpy() == RANDOM
    rounding = measured.groupby("prompt")["rounding"].first().mean() if "rounding" in measured else 0.0
    return estimates, exacts, drawn, float(rounding)


def most_missed(found: int, drawn: int, left: int, confidence: float = 0.95) -> int:
    """An upper bound on how many of the `left` cells are large, given that `found` of `drawn` random ones were.

    It is the largest number for which drawing at most `found` large cells would have had a probability above
    1 - `confidence`.

    >>> most_missed(0, 50, 1000), most_missed(0, 50, 0), most_missed(0, 0, 7)
    (59, 0, 7)
    """
    from scipy import stats as scipy_stats

    drawn, left = (whole_number(name, x, least=0, most=MOST) for name, x in (("drawn", drawn), ("left", left)))
    found, confidence = whole_number("found", found, least=0, most=drawn), share("confidence", confidence)
    least, most = 0, left  # by halves: the more of them are large, the less likely are so few among the drawn ones
    while least < most:
        possible = (least + most + 1) // 2
        likely = scipy_stats.hypergeom.cdf(found, left + drawn, possible + found, drawn) > 1 - confidence
        least, most = (possible, most) if likely else (least, possible - 1)
    return least


def _correlation(a: Array, b: Array) -> Array:
    """Pearson's correlation over the first axis, NaN where one side does not vary.  # [cell, n] -> [n]"""
    a, b = (x - x.mean(0) for x in (a, b))
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.divide((a * b).sum(0), scale, out=np.full(np.broadcast(a, b).shape[1], np.nan), where=scale > 0)


def _rank_correlation(a: Array, b: Array) -> Array:
    """Spearman's correlation, as `_correlation`."""
    from scipy import stats as scipy_stats

    return _correlation(scipy_stats.rankdata(a, axis=0), scipy_stats.rankdata(b, axis=0))


def _relative_error(a: Array, b: Array) -> Array:
    """Mean difference divided by the mean magnitude of `b`, NaN where that is 0.  # [cell, n] -> [n]"""
    size = np.abs(b).mean(0)
    return np.divide(np.abs(a - b).mean(0), size, out=np.full(len(size), np.nan), where=size > 0)
