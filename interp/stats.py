"""How sure a mean over prompts is: bootstrap intervals for many cells at once, and tests corrected for their number.

1. Values stand in cells, one for each prompt; missing ones (NaN) are left out. 2. Prompts are drawn again with
replacement, the same draws for every cell with as many values. 3. The interval is the bias-corrected and accelerated
one (Efron 1987, "Better Bootstrap Confidence Intervals"), by `scipy.stats.bootstrap`; where it does not exist, the
percentile interval. A share of prompts has the exact interval of a binomial share: where all are right, prompts drawn
again are right, too, and a bootstrap interval would have no width.
4. Among many cells some are far from zero by chance: `tested` gives each a p that takes their number into account.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp.arguments import as_numbers, checked, resamples, share
from interp.arguments import seed as check_seed
from interp.errors import InterpError, check_choice, unknown
from interp.rounding import reason

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]
MOST_AT_ONCE = 500_000  # resampled numbers held at a time: 4 MB, which a cache can hold


def _mean(values: Array, axis: int = -1) -> Any:
    # Laid out in one way, so that the sum is rounded in one way: a cell alone and among others gives the same bits.
    return np.ascontiguousarray(values).mean(axis)


CORRECTIONS = ("bh", "by", "none")
SURE = 0.05  # the p below which reports call something sure
SHARES = frozenset({"correct", "first", "accuracy"})  # metrics that are shares: their values lie between 0 and 1
STATISTICS: dict[str, Callable[..., Any]] = {"mean": _mean, "median": np.median}


class Interval(NamedTuple):
    """A statistic of each cell, the bounds of its confidence interval, and the number of values behind it."""

    value: Array
    n: Array
    ci_low: Array
    ci_high: Array


@checked
def bootstrap(
    values: Any,
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    statistic: str = "mean",
) -> Interval:
    """Statistic and bootstrap interval of each cell.

    A cell's numbers depend on its own values and the arguments alone. Cells of equal values get an interval of zero
    width; cells of one value or none, or with an infinite one, get NaN bounds.

    Args:
        values: [..., prompt]; NaN is a missing value.
        confidence: probability that the interval is to cover the truth with.
        n_resamples: how often prompts are drawn again.
        seed: makes the draws repeatable.
        statistic: "mean" or "median".

    Returns:
        `Interval` of arrays [...].

    Raises:
        InterpError: an argument out of range.

    >>> bootstrap([[1.0, 2.0, 3.0], [5.0, 5.0, float("nan")]]).value
    array([2., 5.])
    """
    check_choice("statistic", statistic, STATISTICS)
    confidence, n_resamples, seed = share("confidence", confidence), resamples(n_resamples), check_seed(seed)
    array = as_numbers("values", values)
    if array.ndim == 0:
        raise InterpError("values must be [..., prompt], not a single number")
    shape = array.shape[:-1]
    cells = array.reshape(int(np.prod(shape)), array.shape[-1])
    missing = np.isnan(cells)
    n = (~missing).sum(-1)
    cells = np.take_along_axis(cells, np.argsort(missing, axis=-1, kind="stable"), axis=-1)  # what is there comes first
    value, low, high = (np.full(len(cells), np.nan) for _ in range(3))
    for count in np.unique(n[n > 0]):
        at = np.flatnonzero(n == count)
        full = cells[at, :count]
        value[at] = STATISTICS[statistic](full, axis=-1)
        constant = full.min(-1) == full.max(-1)
        varied = ~constant & np.isfinite(full).all(-1)
        if count > 1:
            low[at] = high[at] = np.where(constant & np.isfinite(value[at]), value[at], np.nan)
        if varied.any():
            low[at[varied]], high[at[varied]] = _bounds(
                full[varied], STATISTICS[statistic], confidence, n_resamples, seed
            )
    return Interval(*(part.reshape(shape) for part in (value, n, low, high)))


def _bounds(
    cells: Array, statistic: Callable[..., Any], confidence: float, n_resamples: int, seed: int
) -> tuple[Array, Array]:
    """BCa bounds of cells [cell, value] that vary, percentile bounds where those do not exist."""
    from scipy import stats

    def run(method: str, **options: Any) -> Any:
        return stats.bootstrap(
            (cells,), statistic, axis=-1, vectorized=True, confidence_level=confidence, method=method, **options
        )

    batch = max(1, MOST_AT_ONCE // cells.size)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy warns of cells without BCa bounds
        result = run("BCa", n_resamples=n_resamples, batch=batch, rng=np.random.default_rng(seed))
        low, high = result.confidence_interval
        failed = np.isnan(low) | np.isnan(high)
        if failed.any():
            percentile = run("percentile", n_resamples=0, bootstrap_result=result).confidence_interval
            low, high = np.where(failed, percentile.low, low), np.where(failed, percentile.high, high)
    return low, high


def share_interval(right: Any, n: Any, *, confidence: float = 0.95) -> tuple[Array, Array]:
    """The exact interval of a share (Clopper and Pearson 1934).

    Where prompts count in part, `right` is no whole number; such values vary less than those that are 0 or 1, and the
    interval is too wide rather than too narrow.

    Args:
        right: how many are right [...].
        n: of how many [...]; of none the interval is NaN.
        confidence: probability that the interval is to cover the truth with.

    Returns:
        Lower and upper bounds [...].

    >>> print(*(f"{float(bound):.3f}" for bound in share_interval(20, 20)))
    0.832 1.000
    """
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    right, n = np.asarray(right, dtype=np.float64), np.asarray(n, dtype=np.float64)
    with np.errstate(all="ignore"):
        low = np.where(right > 0, betaincinv(right, n - right + 1, tail), 0.0)
        high = np.where(right < n, betaincinv(right + 1, n - right, 1 - tail), 1.0)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def _of_shares(interval: Interval, named: pd.DataFrame, value: str, confidence: float) -> Interval:
    """The intervals of groups [group], exact where the values of a metric are shares."""
    if value != "value":  # changes of a share are none
        return interval
    low, high = share_interval(interval.value * interval.n, interval.n, confidence=confidence)
    of_share = named["metric"].isin(SHARES).to_numpy() & (interval.value >= 0) & (interval.value <= 1)
    return interval._replace(
        ci_low=np.where(of_share, low, interval.ci_low), ci_high=np.where(of_share, high, interval.ci_high)
    )


@checked
def summarise(
    frame: pd.DataFrame,
    by: str | Sequence[str],
    *,
    value: str = "value",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    statistic: str = "mean",
) -> pd.DataFrame:
    """A tidy frame summed up over prompts: a row for each group, in the order in which groups first occur.

    Rows of one prompt within a group (positions, layers that `by` does not name) are averaged first, so that prompts,
    which are independent, are what is drawn again and counted. Rows of different metrics are never put together.

    Args:
        frame: one row a measurement, with a column `prompt`; without one every row counts as a prompt.
        by: columns that make a group.
        value: the column to sum up, such as "value" or "effect"; NaN rows are left out.
        confidence: as in `bootstrap`, and so are the further arguments.

    Returns:
        Columns `by`, `metric`, `value`, `n` (prompts with a value), `ci_low`, `ci_high`; of the column "value" of a
        metric that is a share (`SHARES`), the mean's interval is exact. And `reason`, of a frame that says in
        `rounding` how far rounding can take its metric, where prompts have no value because of it.

    Raises:
        UnknownName: a column that the frame does not have.
        InterpError: a column that holds no numbers.
    """
    named, cells = _cells(frame, by, value)
    interval = bootstrap(cells, confidence=confidence, n_resamples=n_resamples, seed=seed, statistic=statistic)
    interval = interval if statistic != "mean" else _of_shares(interval, named, value, confidence)
    return named.assign(**interval._asdict(), **_reasons(frame, by, cells))


@checked
def tested(
    frame: pd.DataFrame,
    by: str | Sequence[str],
    *,
    value: str = "value",
    null: float = 0.0,
    correction: str = "bh",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    rounding: Any = None,
) -> pd.DataFrame:
    """`summarise`, and how likely a mean as far from `null` would be in each group if there were no effect.

    The mean over prompts is tested against `null` (`scipy.stats.ttest_1samp`, two-sided), and the groups of each metric
    are corrected for being many.

    Args:
        frame, by, value, confidence, n_resamples, seed: as in `summarise`.
        null: the mean without an effect.
        correction: "bh" or "by" for the rate of false discoveries (Benjamini and Hochberg 1995; Benjamini and Yekutieli
            2001, whatever the groups' dependence), "none".
        rounding: how far rounding alone can take `value` [row]: a mean that is no further from `null` is no effect,
            however small its interval, and has p 1.

    Returns:
        The columns of `summarise`, `p` and `p_adjusted`. Groups of one prompt, and those with an infinite value, have
        no p (NaN); groups whose values are all equal have 1 if they are `null` and else 0.

    Raises:
        UnknownName: a column or correction that does not exist.
        InterpError: a column that holds no numbers.
    """
    check_choice("correction", correction, CORRECTIONS)
    named, cells = _cells(frame, by, value)
    interval = _of_shares(
        bootstrap(cells, confidence=confidence, n_resamples=n_resamples, seed=seed), named, value, confidence
    )
    p = _p_values(cells, null)
    if rounding is not None:
        off = _mean_of_known(_cells(frame.assign(rounding=rounding), by, "rounding")[1], ~np.isnan(cells))
        p = np.where(np.abs(interval.value - null) <= off, np.minimum(1.0, p + 1.0), p)
    table = named.assign(**interval._asdict(), p=p, **_reasons(frame, by, cells))
    many = correction != "none"
    return table.assign(p_adjusted=adjusted(table["p"], table["metric"], correction=correction) if many else table["p"])


def strongest_first(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary, those whose values have the largest magnitudes first."""
    return table.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)


def as_measured(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary in the order in which their groups first occur in the measurements, as figures draw them.

    Groups are told apart by the columns of labels that both have; `metric` may be written differently in a summary.
    """
    numbers = {"metric", "prompt", "value", "base_value", "source_value", "control", "effect", "rounding"}
    keys = [name for name in table if name in frame and name not in numbers]
    place = {key: at for at, key in enumerate(frame[keys].drop_duplicates().itertuples(index=False, name=None))}
    # Empty labels are equal here, which NaN is not.
    known = {_without_gaps(key): at for key, at in place.items()}
    rows = [known[_without_gaps(key)] for key in table[keys].itertuples(index=False, name=None)]
    return table.iloc[np.argsort(rows, kind="stable")].reset_index(drop=True)


def _without_gaps(key: tuple[Any, ...]) -> tuple[Any, ...]:
    import pandas as pd

    return tuple(None if pd.isna(label) else label for label in key)


@checked
def adjusted(p: pd.Series[Any], among: pd.Series[Any] | None = None, *, correction: str = "bh") -> pd.Series[Any]:
    """Probabilities corrected for being many; NaN stays NaN and counts for nothing.

    Args:
        p: one for each test.
        among: what belongs together, with the index of `p`, such as the metric; None takes all together.
        correction: "bh" or "by", as in `tested`.
    """
    from scipy.stats import false_discovery_control

    check_choice("correction", correction, CORRECTIONS)
    known = p.dropna()
    groups = known.groupby(np.zeros(len(known)) if among is None else among[known.index])
    return groups.transform(false_discovery_control, method=correction).reindex(p.index)


def _p_values(cells: Array, null: float) -> Array:
    """Two-sided p of every row's mean, as `tested` gives it.  # [group, prompt] -> [group]"""
    from scipy.stats import ttest_1samp

    p = np.full(len(cells), np.nan)
    missing = np.isnan(cells)
    usable = ((~missing).sum(-1) > 1) & ~np.isinf(cells).any(-1)
    low, high = np.nanmin(cells[usable], axis=-1), np.nanmax(cells[usable], axis=-1)
    p[usable] = np.where(low == null, 1.0, 0.0)
    varied = np.flatnonzero(usable)[low < high]
    if len(varied):
        p[varied] = ttest_1samp(cells[varied], null, axis=-1, nan_policy="omit").pvalue
    return p


def why_missing(frame: pd.DataFrame, value: str = "value") -> str:
    """Why prompts of a frame have no number in a column, in words; "" where all have one or no reason is known."""
    return next(iter(_reasons(frame, [], _cells(frame, [], value)[1]).get("reason", [])), "")


def why_nothing(frame: pd.DataFrame, value: str = "value") -> str:
    """Why a column has no number at all, in words; "" where it has one."""
    return why_missing(frame, value) if bool(frame[value].isna().all()) else ""


def _mean_of_known(cells: Array, known: Array) -> Array:
    """The mean of each row's numbers where they are known; NaN where none is.  # [group, prompt] -> [group]"""
    count = known.sum(-1)
    return np.where(count, np.where(known, cells, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def _reasons(frame: pd.DataFrame, by: str | Sequence[str], cells: Array) -> dict[str, list[str]]:
    """The column `reason` of a summary, where prompts of a group lack a value because of rounding."""
    if "rounding" not in frame.columns or not np.isnan(cells).any():
        return {}
    off = _cells(frame, by, "rounding")[1]
    missing = np.isnan(cells) & ~np.isnan(off)
    if not missing.any():
        return {}
    most = np.where(missing, off, 0.0).max(-1)
    n = (~np.isnan(off)).sum(-1)
    return {"reason": [reason(*each) for each in zip(missing.sum(-1).tolist(), n.tolist(), most.tolist(), strict=True)]}


def _cells(frame: pd.DataFrame, by: str | Sequence[str], value: str) -> tuple[pd.DataFrame, Array]:
    """The groups of a frame, in the order in which they first occur, and their values [group, prompt]."""
    import pandas as pd

    keys = [by] if isinstance(by, str) else list(by)
    for column in (*keys, value):
        if column not in frame.columns:
            raise unknown("column", column, map(str, frame.columns))
    if "metric" in frame.columns and "metric" not in keys:
        keys.append("metric")
    try:
        numbers = frame[value].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise InterpError(f"column {value!r} holds {frame[value].dtype}, expected numbers") from None

    if keys:
        groups = frame.groupby(keys, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    else:
        groups = np.zeros(len(frame), dtype=np.int64)
    prompts = (
        pd.factorize(frame["prompt"], use_na_sentinel=False)[0] if "prompt" in frame.columns else np.arange(len(frame))
    )
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(first)
    named = frame.iloc[first[order]][keys].reset_index(drop=True)
    if "metric" not in keys:
        named["metric"] = value
    return named, _per_prompt(numbers, group, prompts)[order]


def _per_prompt(numbers: Array, group: Array, prompt: Array) -> Array:
    """The mean of each group's numbers of each prompt, NaN where there is none: [row] -> [group, prompt]."""
    shape = (int(group.max(initial=-1)) + 1, int(prompt.max(initial=-1)) + 1)
    there = ~np.isnan(numbers)
    cell = (group * shape[1] + prompt)[there]
    size = shape[0] * shape[1]
    count = np.bincount(cell, minlength=size)
    total = np.bincount(cell, weights=numbers[there], minlength=size)
    return np.where(count, total / np.maximum(count, 1), np.nan).reshape(shape)


class RankAgreement(NamedTuple):
    """How alike two scores order the same things: `rank_agreement`.

    Attributes:
        spearman: the rank correlation, NaN where one of the scores is the same for all.
        ci_low, ci_high: its 95% interval, things drawn again.
        n: how many things.
        p: of no correlation.
        top: how many each puts first; half of them at most.
        shared: how many of these both put there.
        by_chance: how many would be by chance.
    """

    spearman: float
    ci_low: float
    ci_high: float
    n: int
    p: float
    top: int
    shared: int
    by_chance: float


@checked
def rank_agreement(one: Any, other: Any, *, top: int = 10, n_resamples: int = 2000, seed: int = 0) -> RankAgreement:
    """Do two scores put the same things first?

    Args:
        one, other: a score of each thing [thing].
        top: how many each puts first.
        n_resamples: how often things are drawn again for the interval.
        seed: of these draws.

    >>> rank_agreement([1, 2, 3, 4], [10, 30, 20, 40], top=2)[:1]
    (0.7999999999999999,)
    """
    from scipy.stats import spearmanr

    one, other = as_numbers("one", one), as_numbers("other", other)
    n = len(one)
    first = max(min(top, n // 2), 1)
    rho = p = low = high = np.nan
    if n > 2 and min(np.ptp(one), np.ptp(other)) > 0:
        found = spearmanr(one, other)
        rho, p = float(found.statistic), float(found.pvalue)
        low, high = _of_ranks(one, other, n_resamples, seed)
    best = ({*np.argsort(-scores, kind="stable")[:first]} for scores in (one, other))
    return RankAgreement(rho, low, high, n, p, first, len(set.intersection(*best)), first * first / n)


def _of_ranks(one: Array, other: Array, n_resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of the rank correlation, with things drawn again."""
    from scipy.stats import rankdata

    drawn = np.random.default_rng(seed).integers(len(one), size=(n_resamples, len(one)))
    a, b = (rankdata(values[drawn], axis=-1) for values in (one, other))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    rho = (a * b).sum(-1)[size > 0] / size[size > 0]
    low, high = np.quantile(rho, [0.025, 0.975]) if len(rho) else (np.nan, np.nan)
    return float(low), float(high)
