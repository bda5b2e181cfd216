"""How certain a mean over prompts is: bootstrap intervals for many cells at once, and tests corrected for their number.

1. A cell has one value for each prompt; missing ones (NaN) are left out. 2. Prompts are resampled with replacement, by
the same draws for all cells that have equally many values. 3. The interval is the bias-corrected and accelerated one
(Efron 1987, "Better Bootstrap Confidence Intervals"), by `scipy.stats.bootstrap`; where it does not exist, the
percentile interval. A share of prompts has the exact interval of a binomial share: where all prompts are right, all
resampled ones are right as well, and a bootstrap interval would have no width.
4. Among many cells some are far from zero by chance: `tested` gives each a p that takes their number into account.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp.arguments import as_numbers, checked, column_of, real_number, resamples, share, shown, whole_number
from interp.arguments import seed as check_seed
from interp.errors import ConfigError, InterpError, check_choice
from interp.rounding import reason

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]
BATCH_NUMBERS = 500_000  # resampled numbers held at a time: 4 MB, which fits into a processor's cache


def _mean(values: Array, axis: int = -1) -> Any:
    # One memory layout means one order of summing: a cell gives the same bits alone and among others.
    return np.ascontiguousarray(values).mean(axis)


CORRECTIONS = ("bh", "by", "none")
SURE = 0.05  # the p below which reports call a result significant
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

    A cell's numbers depend only on its own values and the arguments. Cells of equal values get an interval of zero
    width; cells with fewer than two values, or with an infinite one, get NaN bounds.

    Args:
        values: [..., prompt]; NaN is a missing value.
        confidence: the probability with which the interval covers the true value.
        n_resamples: how often prompts are resampled.
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
    cells = np.take_along_axis(cells, np.argsort(missing, axis=-1, kind="stable"), axis=-1)  # missing values last
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
    """BCa bounds of cells [cell, value] whose values vary; percentile bounds where BCa bounds do not exist."""
    from scipy import stats

    def run(method: str, **options: Any) -> Any:
        return stats.bootstrap(
            (cells,), statistic, axis=-1, vectorized=True, confidence_level=confidence, method=method, **options
        )

    batch = max(1, BATCH_NUMBERS // cells.size)
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

    Where prompts count partly, `right` is not an integer; such values vary less than zeros and ones, so that the
    interval is too wide rather than too narrow.

    Args:
        right: how many are right [...].
        n: out of how many [...]; the interval of 0 is NaN.
        confidence: the probability with which the interval covers the true value.

    Returns:
        Lower and upper bounds [...].

    Raises:
        InterpError: numbers of which there are more right than there are, or that do not fit together.

    >>> print(*(f"{float(bound):.3f}" for bound in share_interval(20, 20)))
    0.832 1.000
    """
    confidence, right, n = share("confidence", confidence), as_numbers("right", right), as_numbers("n", n)
    try:
        right, n = np.broadcast_arrays(right, n)
    except ValueError:
        raise InterpError(f"right {list(right.shape)} and n {list(n.shape)} must be of one shape") from None
    if (n < 0).any() or (right < 0).any() or (right > n).any():
        raise InterpError("right must lie between 0 and n in every place")
    return _share_interval(right, n, confidence)


def _share_interval(right: Array, n: Array, confidence: float) -> tuple[Array, Array]:
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    with np.errstate(all="ignore"):
        low = np.where(right > 0, betaincinv(right, n - right + 1, tail), 0.0)
        high = np.where(right < n, betaincinv(right + 1, n - right, 1 - tail), 1.0)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def _of_shares(interval: Interval, named: pd.DataFrame, value: str, confidence: float) -> Interval:
    """The intervals of groups [group], replaced by exact ones where the metric is a share."""
    if value != "value":  # another column, such as the change of a share, is not a share itself
        return interval
    low, high = _share_interval(interval.value * interval.n, interval.n, share("confidence", confidence))
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
    """A tidy frame summarised over prompts: a row for each group, in the order in which groups first occur.

    Rows of one prompt within a group (positions, layers that `by` does not name) are averaged first, so that what is
    counted and resampled are prompts, which are independent. Rows of different metrics are never put together.

    Args:
        frame: one row a measurement, with a column `prompt`; without that column every row counts as a prompt.
        by: the columns whose values identify a group.
        value: the column to summarise, such as "value" or "effect"; NaN rows are left out.
        confidence, n_resamples, seed, statistic: as in `bootstrap`.

    Returns:
        Columns `by`, `metric`, `value`, `n` (prompts with a value), `ci_low`, `ci_high`; where the column is "value"
        and the metric a share (`SHARES`), the mean's interval is exact. If the frame has a column `rounding` and some
        prompts have no value because of rounding, a column `reason` says so.

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

    The mean over prompts is tested against `null` (`scipy.stats.ttest_1samp`, two-sided), with a correction for the
    number of groups of each metric.

    Args:
        frame, by, value, confidence, n_resamples, seed: as in `summarise`.
        null: the mean that is expected without an effect.
        correction: "bh" or "by" for the rate of false discoveries (Benjamini and Hochberg 1995; Benjamini and Yekutieli
            2001, whatever the groups' dependence), "none".
        rounding: how far rounding alone can move `value` [row]: a mean that is not further than this from `null` counts
            as no effect, however small its interval, and has p = 1.

    Returns:
        The columns of `summarise`, and `p` and `p_adjusted`. For groups of one prompt and those with an infinite value
        p is NaN; for groups whose values are all equal it is 1 if they equal `null`, else 0.

    Raises:
        UnknownName: a column or correction that does not exist.
        InterpError: a column that holds no numbers.
    """
    check_choice("correction", correction, CORRECTIONS)
    null = real_number("null", null)
    named, cells = _cells(frame, by, value)
    interval = _of_shares(
        bootstrap(cells, confidence=confidence, n_resamples=n_resamples, seed=seed), named, value, confidence
    )
    p = _p_values(cells, null)
    if rounding is not None:
        off = _mean_of_known(_cells(_with_rounding(frame, rounding), by, "rounding")[1], ~np.isnan(cells))
        p = np.where(np.abs(interval.value - null) <= off, np.minimum(1.0, p + 1.0), p)
    table = named.assign(**interval._asdict(), p=p, **_reasons(frame, by, cells))
    many = correction != "none"
    return table.assign(p_adjusted=adjusted(table["p"], table["metric"], correction=correction) if many else table["p"])


@checked
def strongest_first(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary, those whose values have the largest magnitudes first.

    Raises:
        UnknownName: there is no column `value`.
        ConfigError: it does not hold numbers.
    """
    as_numbers("value", column_of(table, "value"))
    return table.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)


@checked
def strongest_groups(table: pd.DataFrame, by: str, most: int) -> tuple[pd.DataFrame, int]:
    """The rows of the groups with the largest magnitudes, in their order, and how many groups there are.

    Args:
        table: has `value`.
        by: the column that says which group a row belongs to.
        most: how many groups are kept, each by the largest of its magnitudes.

    Raises:
        UnknownName: a column that does not exist.
        ConfigError: a column `value` that does not hold numbers, or `most` below 0.
    """
    as_numbers("value", column_of(table, "value"))
    groups, most = column_of(table, by), whole_number("most", most, least=0)
    largest = table["value"].abs().groupby(groups, sort=False).max()
    return table[groups.isin(largest.nlargest(most).index)], len(largest)


@checked
def as_measured(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary in the order in which their groups first occur in the measurements, as figures draw them.

    Groups are told apart by the columns of labels that both have; `metric` may be written differently in a summary.

    Raises:
        InterpError: a row of the summary whose group was not measured.
    """
    numbers = {"metric", "prompt", "value", "base_value", "source_value", "control", "effect", "rounding"}
    keys = [name for name in table if name in frame and name not in numbers]
    place = {key: at for at, key in enumerate(frame[keys].drop_duplicates().itertuples(index=False, name=None))}
    # Empty labels are equal here, which NaN is not.
    known = {_without_gaps(key): at for key, at in place.items()}
    groups = [_without_gaps(key) for key in table[keys].itertuples(index=False, name=None)]
    if absent := next((group for group in groups if group not in known), None):
        raise InterpError(f"the summary has a row for {dict(zip(keys, absent, strict=True))}, which was not measured")
    rows = [known[group] for group in groups]
    return table.iloc[np.argsort(rows, kind="stable")].reset_index(drop=True)


def _without_gaps(key: tuple[Any, ...]) -> tuple[Any, ...]:
    import pandas as pd

    return tuple(None if pd.isna(label) else label for label in key)


@checked
def adjusted(p: pd.Series[Any], among: pd.Series[Any] | None = None, *, correction: str = "bh") -> pd.Series[Any]:
    """Probabilities corrected for their number; NaN stays NaN and is not counted.

    Args:
        p: one for each test.
        among: the group of each test, such as its metric, with the index of `p`; None puts all into one group.
        correction: "bh" or "by", as in `tested`.
    """
    from scipy.stats import false_discovery_control

    check_choice("correction", correction, CORRECTIONS)
    if p.dtype.kind not in "iuf" or not p.dropna().between(0, 1).all():
        raise InterpError(f"p must be probabilities, from 0 to 1, not {shown(p.tolist())}")
    if among is not None and not among.index.equals(p.index):
        raise InterpError(f"among must have the index of p, one entry for each of its {len(p)}, not {shown(among)}")
    known = p.dropna()
    groups = known.groupby(np.zeros(len(known)) if among is None else among[known.index])
    return groups.transform(false_discovery_control, method=correction).reindex(p.index)


def _with_rounding(frame: pd.DataFrame, rounding: Any) -> pd.DataFrame:
    """The frame with a column `rounding` that was given as one number, or as one for each row."""
    import pandas as pd

    given = as_numbers("rounding", rounding)
    if given.shape not in ((), (len(frame),)):
        raise InterpError(
            f"rounding must be a number, or one for each of the frame's {len(frame)} rows, not {shown(rounding)}"
        )
    return frame.assign(rounding=rounding if isinstance(rounding, pd.Series) else given if given.ndim else float(given))


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


@checked
def why_missing(frame: pd.DataFrame, value: str = "value") -> str:
    """Why prompts of a frame have no number in a column; "" where all have one, or the reason is not known."""
    return next(iter(_reasons(frame, [], _cells(frame, [], value)[1]).get("reason", [])), "")


@checked
def why_nothing(frame: pd.DataFrame, value: str = "value") -> str:
    """Why a column has no number at all; "" where it has one."""
    return why_missing(frame, value) if bool(column_of(frame, value).isna().all()) else ""


def _mean_of_known(cells: Array, known: Array) -> Array:
    """The mean of each row's known numbers; NaN where none is known.  # [group, prompt] -> [group]"""
    count = known.sum(-1)
    return np.where(count, np.where(known, cells, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def _reasons(frame: pd.DataFrame, by: str | Sequence[str], cells: Array) -> dict[str, list[str]]:
    """The column `reason` of a summary, if prompts of some group have no value because of rounding."""
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
    for column in (*keys, value, *(name for name in ("prompt",) if name in frame.columns)):
        column_of(frame, column)
    if "metric" in frame.columns and "metric" not in keys:
        keys.append("metric")
    given = frame[value]
    try:
        if given.dtype.kind in "mMc" or any(isinstance(one, str) for one in given if given.dtype.kind == "O"):
            raise TypeError  # NumPy would make numbers of dates, and of texts such as "1"
        numbers = given.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise InterpError(f"column {value!r} holds {given.dtype}, expected numbers") from None

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
    """The mean of each group's numbers for each prompt, NaN where there are none: [row] -> [group, prompt]."""
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
@checked
def rank_agreement(one: Any, other: Any, *, top: int = 10, n_resamples: int = 2000, seed: int = 0) -> RankAgreement:
    """Do two scores put the same things first?

    Args:
        one, other: a score of each thing [thing].
        top: how many each puts first.
        n_resamples: how often things are drawn again for the interval.
        seed: of these draws.

    Raises:
        ConfigError: scores that are not finite numbers in a row, or of which one has more than the other.

    >>> round(rank_agreement([1, 2, 3, 4], [10, 30, 20, 40], top=2).spearman, 6)
    0.8
    """
    from scipy.stats import spearmanr

    one, other = as_numbers("one", one), as_numbers("other", other)
    if one.ndim != 1 or one.shape != other.shape or not len(one) or not np.isfinite([one, other]).all():
        raise ConfigError(
            f"rank agreement takes two rows of as many finite scores, not {shown(one)} and {shown(other)}"
        )
    top, n_resamples, seed = whole_number("top", top, least=1), resamples(n_resamples), check_seed(seed)
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
