"""Bootstrap intervals: scipy's own for each cell, whatever else stands in the table, and right as often as they say."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.stats import binomtest

from interp import stats
from interp.errors import InterpError, UnknownName
from interp.stats import bootstrap, summarise

NAN = float("nan")


def by_scipy(values: Any, method: str = "BCa", statistic: Any = np.mean, **options: Any) -> tuple[float, float]:
    """One cell's interval straight from scipy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = scipy_stats.bootstrap(
            (values,), statistic, method=method, rng=np.random.default_rng(0), **{"n_resamples": 2000, **options}
        )
    return tuple(result.confidence_interval)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 40), missing=st.floats(0, 0.6))
def test_every_cell_is_what_scipy_gives_for_it_alone(seed: int, n: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.exponential(size=(2, 4, n)) - 1
    cells[rng.random(cells.shape) < missing] = NAN
    together = bootstrap(cells)
    for at in np.ndindex(2, 4):
        there = cells[at][~np.isnan(cells[at])]
        assert together.n[at] == len(there)
        np.testing.assert_array_equal([part[at] for part in together], bootstrap(cells[at]))
        if len(there):
            assert together.value[at] == pytest.approx(there.mean())
        if len(there) > 2:
            expected = by_scipy(there)
            assert (together.ci_low[at], together.ci_high[at]) == pytest.approx(expected, rel=1e-9)


def test_arguments_reach_scipy() -> None:
    values = np.random.default_rng(3).normal(size=25)
    narrow = bootstrap(values, confidence=0.5)
    assert (narrow.ci_low, narrow.ci_high) == pytest.approx(by_scipy(values, confidence_level=0.5))
    few = bootstrap(values, n_resamples=50)
    assert (few.ci_low, few.ci_high) == pytest.approx(by_scipy(values, n_resamples=50))
    middle = bootstrap(values, statistic="median")
    assert middle.value == np.median(values)
    assert bootstrap(values, seed=1).ci_low != bootstrap(values).ci_low == bootstrap(values).ci_low


def test_the_percentile_interval_steps_in_where_bca_does_not_exist() -> None:
    values = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 3.0])  # leaving one out never moves this median: 0 / 0
    assert np.isnan(by_scipy(values, statistic=np.median)).all()
    cells = np.stack([values, np.arange(7.0)])
    got = bootstrap(cells, statistic="median")
    assert (got.ci_low[0], got.ci_high[0]) == by_scipy(values, "percentile", np.median)
    assert got.ci_low[0] <= got.value[0] <= got.ci_high[0] and got.ci_high[0] > got.ci_low[0]
    assert (got.ci_low[1], got.ci_high[1]) == by_scipy(cells[1], "BCa", np.median)


def test_cells_without_spread_or_without_values() -> None:
    cells = [[2.0, 2.0, 2.0], [0.1, 0.1, 0.1], [NAN, 5.0, NAN], [NAN] * 3, [np.inf, 1.0, 2.0], [1.0, NAN, 3.0]]
    got = bootstrap(cells)
    np.testing.assert_allclose(got.value, [2, 0.1, 5, NAN, np.inf, 2])
    assert got.n.tolist() == [3, 3, 1, 0, 3, 2]
    assert np.array_equal(got.ci_low[:2], got.value[:2]) and np.array_equal(got.ci_high[:2], got.value[:2])
    assert np.isnan(got.ci_low[2:5]).all() and np.isnan(got.ci_high[2:5]).all()
    assert got.ci_low[5] == 1 and got.ci_high[5] == 3


def test_shapes_follow_the_cells() -> None:
    assert bootstrap([1.0, 2.0, 4.0]).ci_low.shape == ()
    assert bootstrap(np.zeros((0, 5))).value.shape == (0,)
    assert bootstrap(np.zeros((2, 0))).n.tolist() == [0, 0]
    assert bootstrap(np.ones((2, 3, 4))).ci_high.shape == (2, 3)


def test_memory_is_bounded_without_changing_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.random.default_rng(0).normal(size=(6, 9))
    whole = bootstrap(cells)
    monkeypatch.setattr("interp.stats.BATCH_NUMBERS", 200)
    assert all(np.array_equal(a, b) for a, b in zip(whole, bootstrap(cells), strict=True))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for draws in (rng.normal(size=(600, 32)), rng.exponential(size=(600, 32)) - 1):
        got = bootstrap(draws, confidence=0.9)
        covered = ((got.ci_low <= 0) & (got.ci_high >= 0)).mean()
        assert 0.85 < covered < 0.94  # 0.9 less the bootstrap's known shortfall at n = 32; standard error 0.012


def test_no_global_state_is_touched() -> None:
    np.random.seed(4)
    before = np.random.get_state()[1].copy()
    filters = list(warnings.filters)
    bootstrap(np.arange(12.0).reshape(2, 6))
    assert np.array_equal(before, np.random.get_state()[1]) and warnings.filters == filters


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"confidence": 95}, "confidence must lie between 0 and 1, such as 0.95, not 95"),
        ({"n_resamples": 0}, "n_resamples must be at least 1, not 0"),
        ({"statistic": "meen"}, "no statistic matches 'meen'; did you mean 'mean'"),
        ({"values": 3.0}, "not a single number"),
    ],
)
def test_arguments_that_make_no_sense(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InterpError, match=says):
        bootstrap(**{"values": [1.0, 2.0], **change})


@pytest.fixture
def frame() -> pd.DataFrame:
    """Two metrics of heads, later layers first, with a gap, and a component that has no head."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "layer": layer,
            "head": head,
            "prompt": prompt,
            "metric": metric,
            "value": rng.normal() + 10 * (metric == "kl"),
        }
        for layer, head in [(1, 0.0), (1, 1.0), (0, 0.0), (0, NAN)]
        for prompt in range(8)
        for metric in ("logit_diff", "kl")
    ]
    frame = pd.DataFrame(rows)
    frame.loc[frame["prompt"].eq(3) & frame["layer"].eq(0), "value"] = NAN
    return frame


def test_a_summary_has_a_row_for_every_group_in_order(frame: pd.DataFrame) -> None:
    summary = summarise(frame, ["layer", "head"])
    assert list(summary.columns) == ["layer", "head", "metric", "value", "n", "ci_low", "ci_high"]
    assert summary["layer"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert summary["metric"].tolist() == ["logit_diff", "kl"] * 4
    assert summary["head"].isna().tolist() == [False] * 6 + [True] * 2
    assert summary["n"].tolist() == [8] * 4 + [7] * 4
    for row in summary.itertuples():
        head = frame["head"].isna() if np.isnan(row.head) else frame["head"].eq(row.head)
        values = frame[head & frame["layer"].eq(row.layer) & frame["metric"].eq(row.metric)]["value"].dropna()
        assert row.value == pytest.approx(values.mean())
        assert (row.ci_low, row.ci_high) == pytest.approx(by_scipy(values.to_numpy()))


def test_prompts_are_drawn_again_and_not_rows(frame: pd.DataFrame) -> None:
    one = frame[frame["metric"].eq("kl") & frame["layer"].eq(1)]
    by_prompt = one.groupby("prompt")["value"].mean().to_numpy()
    (row,) = summarise(one, ["layer"]).itertuples()
    assert row.n == 8 and row.value == pytest.approx(by_prompt.mean())
    assert (row.ci_low, row.ci_high) == pytest.approx(by_scipy(by_prompt))
    doubled = summarise(pd.concat([one, one]), ["layer"])  # the same evidence twice is no more evidence
    pd.testing.assert_frame_equal(doubled, summarise(one, ["layer"]))


def test_the_order_of_rows_within_a_group_of_prompts_does_not_matter(frame: pd.DataFrame) -> None:
    shuffled = frame.sort_values(["head", "metric"], kind="stable")
    keys = ["layer", "head", "metric"]
    pd.testing.assert_frame_equal(
        summarise(frame, keys).sort_values(keys, ignore_index=True),
        summarise(shuffled, keys).sort_values(keys, ignore_index=True),
    )


def test_other_columns_other_keys_and_none(frame: pd.DataFrame) -> None:
    frame = frame.assign(effect=frame["value"] / 2, kind=pd.Categorical(["head"] * len(frame), ["head", "mlp"]))
    assert summarise(frame, "layer", value="effect")["value"].tolist() == pytest.approx(
        [value / 2 for value in summarise(frame, "layer")["value"]]
    )
    assert summarise(frame, [])["metric"].tolist() == ["logit_diff", "kl"]
    assert summarise(frame, "kind")["kind"].tolist() == ["head", "head"]  # not the category that never occurs
    bare = frame[["value"]].dropna()
    (row,) = summarise(bare, []).itertuples()
    assert (row.n, row.metric) == (len(bare), "value") and row.value == pytest.approx(bare["value"].mean())


def test_an_empty_frame_gives_an_empty_summary(frame: pd.DataFrame) -> None:
    summary = summarise(frame[:0], ["layer", "head"])
    assert len(summary) == 0
    assert list(summary.columns) == ["layer", "head", "metric", "value", "n", "ci_low", "ci_high"]


def test_columns_that_are_not_there_are_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(UnknownName, match="no column of the frame matches 'layr'; did you mean 'layer'"):
        summarise(frame, ["layr"])
    with pytest.raises(UnknownName, match="no column of the frame matches 'effect'"):
        summarise(frame, ["layer"], value="effect")
    with pytest.raises(InterpError, match=r"column 'metric' holds .*, expected numbers"):
        summarise(frame, ["layer"], value="metric")


def test_importing_interp_loads_neither_pandas_nor_scipy() -> None:
    code = "import sys, interp.stats, interp.metrics, interp.tasks; print({'pandas', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_many_cells_are_tested_and_corrected() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(40, 6)) + np.where(np.arange(40) < 3, 4.0, 0.0)[:, None]
    values[5, 2:] = np.nan
    rows = [
        {"head": head, "prompt": prompt, "metric": metric, "value": value if metric == "a" else 2 * value}
        for metric in ("a", "b")
        for head, of_head in enumerate(values)
        for prompt, value in enumerate(of_head)
    ]
    table = stats.tested(pd.DataFrame(rows), ["head", "metric"], n_resamples=50)
    expected = [scipy_stats.ttest_1samp(row[~np.isnan(row)], 0).pvalue for row in values]
    for metric in ("a", "b"):
        part = table[table["metric"] == metric]
        assert part["p"].tolist() == pytest.approx(expected)
        order = np.argsort(expected)  # Benjamini and Hochberg's step-up, as they write it
        stepped = [min(expected[k] * 40 / (rank + 1) for rank, k in enumerate(order) if rank >= at) for at in range(40)]
        assert part["p_adjusted"].to_numpy()[order].tolist() == pytest.approx(np.minimum(stepped, 1))
        assert set(part[part["p_adjusted"] < 0.05]["head"]) >= {0, 1, 2}
    plain = stats.tested(pd.DataFrame(rows), ["head", "metric"], correction="none", n_resamples=50)
    assert plain["p"].equals(plain["p_adjusted"])
    with pytest.raises(UnknownName, match="no correction matches 'bhh'"):
        stats.tested(pd.DataFrame(rows), "head", correction="bhh")


def test_cells_that_cannot_be_tested_say_so_by_their_p() -> None:
    values = {"one": [3.0], "null": [0.0, 0.0], "same": [2.0, 2.0], "infinite": [1.0, np.inf], "none": [np.nan, np.nan]}
    rows = [{"cell": c, "prompt": i, "value": x} for c, of_cell in values.items() for i, x in enumerate(of_cell)]
    table = stats.tested(pd.DataFrame(rows), "cell", n_resamples=20).set_index("cell")
    assert table["p"].isna().to_dict() == {"one": True, "null": False, "same": False, "infinite": True, "none": True}
    assert table["p"]["null"] == 1 and table["p"]["same"] == 0 and table["p_adjusted"]["same"] == 0
    assert stats.tested(pd.DataFrame(rows), "cell", null=2.0, n_resamples=20).set_index("cell")["p"]["same"] == 1


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (19, 20), (7, 12), (300, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_a_share_has_the_exact_interval_wherever_it_is_reported(right: int, n: int, confidence: float) -> None:
    expected = binomtest(right, n).proportion_ci(confidence_level=confidence, method="exact")
    low, high = stats.share_interval(right, n, confidence=confidence)
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), abs=1e-12)
    values = [1.0] * right + [0.0] * (n - right)
    frame = pd.DataFrame({"prompt": range(n), "metric": "correct", "layer": 3, "value": values})
    tables = [stats.summarise(frame, by="layer", confidence=confidence)]
    tables.append(stats.tested(frame, by="layer", confidence=confidence))
    for table in tables:
        assert table[["ci_low", "ci_high"]].iloc[0].tolist() == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_only_shares_have_the_interval_of_a_share() -> None:
    frame = pd.DataFrame({"prompt": range(6), "metric": "accuracy", "value": [1.0] * 6, "effect": [0.5] * 6})
    assert stats.summarise(frame, by=[], value="effect")["ci_low"].item() == 0.5  # a change of a share is none
    assert stats.summarise(frame.assign(metric="prob"), by=[])["ci_low"].item() == 1
    assert stats.summarise(frame, by=[], statistic="median")["ci_low"].item() == 1
    assert 0.5 < stats.summarise(frame, by=[])["ci_low"].item() < 0.6
    low, high = stats.share_interval([0.5, 0], [1, 0])
    assert 0 < low[0] < 0.5 < high[0] < 1 and np.isnan([low[1], high[1]]).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *[(lambda frame, v=v: stats.why_nothing(frame, v), "no column of the frame matches") for v in ("", "x", "\0")],
        *[(lambda frame, v=v: stats.why_nothing(frame, v), "value must be text") for v in (1.5, [None], [])],
        *[(lambda frame, v=v: stats.why_missing(frame, v), "value must be text") for v in (1.5, [None], [])],
        *[(lambda frame, f=f: stats.why_nothing(f), "frame must be a DataFrame") for f in (None, [], {}, "x")],
        *[(lambda frame, f=f: stats.why_missing(f), "frame must be a DataFrame") for f in (None, [], {}, "x")],
        *[(lambda frame, r=r: stats.tested(frame, "layer", rounding=r), "rounding must be") for r in ([1.0], "x")],
        (lambda frame: stats.tested(frame, "layer", null=float("nan")), "null must be a finite number"),
        (lambda frame: summarise(pd.concat([frame, frame[["value"]]], axis=1), "layer"), "2 columns of the frame"),
        (lambda frame: summarise(frame.assign(layer=[[1]] * len(frame)), "layer"), "column 'layer' must hold"),
        (lambda frame: summarise(frame.assign(value="1"), "layer"), "expected numbers"),
        (lambda frame: summarise(frame.assign(value=1j), "layer"), "expected numbers"),
        *[(lambda frame, p=p: stats.adjusted(pd.Series(p)), "p must be probabilities") for p in ([1.5], [-0.1], ["x"])],
        (lambda frame: stats.adjusted(pd.Series([0.1, 0.2]), pd.Series([1])), "among must have the index of p"),
        *[(lambda frame, r=r: stats.share_interval(r, 3), "between 0 and n") for r in (-1, 4)],
        (lambda frame: stats.share_interval([1, 2], [3, 3, 3]), "must be of one shape"),
        *[
            (lambda frame, t=t: stats.strongest_first(t), "table must be a DataFrame")
            for t in (None, [], torch.ones(2))
        ],
        (lambda frame: stats.strongest_first(frame.assign(value="x")), "value must be numbers"),
        *[
            (lambda frame, b=b: stats.strongest_groups(frame, b, 2), "no column of the frame matches")
            for b in ("", "x")
        ],
        (lambda frame: stats.strongest_groups(frame, "layer", -1), "most must be at least 0"),
        (lambda frame: stats.strongest_first(frame.drop(columns="value")), "no column of the frame matches 'value'"),
        *[(lambda frame, t=t: stats.as_measured(t, frame), "table must be a DataFrame") for t in ("x", torch.ones(2))],
        (lambda frame: stats.as_measured(frame.assign(layer=99), frame), "layer': 99.*not measured"),
        *[(lambda frame, r=r: stats.rank_agreement([1, 2], r), "two rows of as many") for r in (1.5, [1], [1, np.nan])],
        (lambda frame: stats.rank_agreement([1, 2], [2, 1], top=0), "top must be at least 1"),
    ],
)
def test_tables_and_numbers_of_a_wrong_kind_are_refused(call: Any, says: str, frame: pd.DataFrame) -> None:
    with pytest.raises(InterpError, match=says):
        call(frame)


def test_a_summary_goes_back_to_the_order_of_the_measurements() -> None:
    frame = pd.DataFrame(
        {"kind": ["b", "b", "a", "a"], "head": [0, None, 0, None], "prompt": 0, "metric": "m", "value": [1.0, -3, 2, 0]}
    )
    table = stats.strongest_first(stats.summarise(frame, by=["kind", "head"]))
    assert table["value"].tolist() == [-3, 2, 1, 0]
    again = stats.as_measured(table.assign(metric="m lost"), frame)
    assert again["value"].tolist() == frame["value"].tolist() and set(again["metric"]) == {"m lost"}


def test_ranks_agree_as_far_as_both_orders_do() -> None:
    one = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    same, turned = (stats.rank_agreement(one, [sign * x for x in one], top=2) for sign in (1, -1))
    assert same.spearman == pytest.approx(1) and (same.shared, same.top, same.by_chance) == (2, 2, pytest.approx(2 / 3))
    assert turned.spearman == pytest.approx(-1) and turned.shared == 0
    flat = stats.rank_agreement(one, [1.0] * 6)
    assert math.isnan(flat.spearman) and math.isnan(flat.ci_low) and flat.top == 3
