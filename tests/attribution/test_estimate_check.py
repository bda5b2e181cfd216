"""Samples of cells and what they say of the rest, against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.attribution.estimate_check import agreement, choose, means, most_missed, ranked, tabulated
from interp.attribution.run_values import RunValues
from interp.errors import InterpError, UnknownName
from interp.stats import summarise
from interp.study.sentences import how_estimates_agree


def table(estimate: np.ndarray, exact: np.ndarray, sample: list[str]) -> pd.DataFrame:
    """A frame as studies make it, of [cell, prompt]."""
    cells, prompts = np.indices(estimate.shape)
    return pd.DataFrame(
        {
            "cell": cells.ravel(),
            "prompt": prompts.ravel(),
            "value": estimate.ravel(),
            "exact": exact.ravel(),
            "sample": np.repeat(sample, estimate.shape[1]),
        }
    )


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 3))
def test_half_of_a_sample_are_the_largest_and_no_cell_is_drawn_twice(values: list[float], n: int, seed: int) -> None:
    chosen = choose(values, n, seed=seed)
    assert len(chosen) == min(n, len(values)) and list(chosen) == sorted(chosen)
    top = [at for at, kind in chosen.items() if kind == "top"]
    assert len(top) == min((n + 1) // 2, len(values))
    left = [abs(values[at]) for at in range(len(values)) if at not in top]
    assert not left or min(abs(values[at]) for at in top) >= max(left)
    assert choose(values, n, seed=seed) == chosen


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 4), st.integers(0, 4))
def test_the_bound_is_the_largest_number_that_is_not_unlikely(left: int, drawn: int, found: int) -> None:
    found = min(found, drawn)

    def chance(large: int) -> float:
        """Of so few large cells in the draw, if there are `large` in all: by trying every draw."""
        draws = list(itertools.combinations(range(left + drawn), drawn))
        return sum(sum(at < large for at in draw) <= found for draw in draws) / len(draws)

    likely = [large for large in range(found, left + found + 1) if chance(large) > 0.05]
    assert most_missed(found, drawn, left) == max(likely) - found


def test_the_bound_holds_as_often_as_it_says() -> None:
    rng, truth, held = np.random.default_rng(0), 40, 0
    for _ in range(400):
        found = int(rng.hypergeometric(truth, 360, 50))
        held += truth - found <= most_missed(found, 50, 350)
    assert held / 400 > 0.93


def test_perfect_estimates_agree_perfectly() -> None:
    values = np.random.default_rng(1).normal(size=(20, 6))
    found = agreement(table(values, values, ["top"] * 10 + ["random"] * 10), "cell", n_cells=20).set_index("quantity")
    for name, expected in (("correlation", 1), ("rank correlation", 1), ("same sign", 1), ("relative error", 0)):
        assert found.loc[name, "value"] == pytest.approx(expected)
    assert found.loc["correlation", "ci_low"] == pytest.approx(1)
    assert found.loc["missed", "ci_high"] == 0  # every cell was measured
    low, high = found.loc["correlation of shuffled cells", ["ci_low", "ci_high"]]
    assert -1 < low < 0 < high < 1


def test_agreement_is_what_numpy_finds_of_the_means() -> None:
    rng = np.random.default_rng(2)
    exact = rng.normal(size=(30, 5)) + rng.normal(size=(30, 1))
    estimate = exact + rng.normal(size=(30, 5))
    found = agreement(table(estimate, exact, ["top", "random"] * 15), "cell", n_cells=100).set_index("quantity")
    a, b = estimate.mean(1), exact.mean(1)
    assert found.loc["correlation", "value"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found.loc["relative error", "value"] == pytest.approx(np.abs(a - b).sum() / np.abs(b).sum())
    large = np.abs(b) >= 0.1 * np.abs(b).max()
    assert found.loc["same sign", "n"] == large.sum()
    assert found.loc["same sign", "value"] == pytest.approx((np.sign(a) == np.sign(b))[large].mean())
    drawn = int(large[1::2].sum())
    assert found.loc["missed", "value"] == pytest.approx(70 * drawn / 15)
    assert found.loc["missed", "ci_high"] == most_missed(drawn, 15, 70)
    correlation = found.loc["correlation"]
    assert correlation["ci_low"] < correlation["value"] < correlation["ci_high"]


@pytest.mark.parametrize(("cells", "prompts", "scale"), [(1, 1, 1.0), (1, 4, 1.0), (4, 1, 1.0), (3, 3, 0.0)])
def test_little_or_nothing_to_compare_is_said_and_raises_nothing(cells: int, prompts: int, scale: float) -> None:
    exact = scale * np.random.default_rng(3).normal(size=(cells, prompts))
    found = agreement(table(exact, exact, ["top"] * cells), "cell", n_cells=cells + 2)
    text = how_estimates_agree(found, "heads")
    assert "nan" not in text and "At most 2 large heads were missed" in text
    every = how_estimates_agree(agreement(table(exact, exact, ["top"] * cells), "cell", n_cells=cells), "heads")
    assert "nan" not in every and "No other heads are left; large is" in every
    correlation = found.set_index("quantity").loc["correlation", "value"]
    assert math.isnan(correlation) == (cells == 1 or scale == 0)


def tabled(most: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, dict[int, str]]:
    """A table of 12 cells and 3 prompts, of which 4 were measured, and what it was made of."""
    rng = np.random.default_rng(4)
    estimates, chosen = rng.normal(size=(12, 3)), {1: "random", 4: "top", 7: "top", 9: "random"}
    exact = rng.normal(size=(4, 3))
    runs = RunValues(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([2.0, 5.0, -5.0]), torch.full((3,), 1e-5))
    names = "abcdefghijkl"
    frame = tabulated(
        lambda at: {"name": names[at], "layer": at // 4},
        estimates,
        exact,
        chosen=chosen,
        most=most,
        runs=runs,
        metric="kl",
    )
    return frame, estimates, exact, chosen


@pytest.mark.parametrize("most", [0, 3, 12, 40])
def test_a_table_has_the_largest_and_the_measured_cells(most: int) -> None:
    frame, estimates, exact, chosen = tabled(most)
    largest = sorted(range(12), key=lambda at: -abs(estimates[at].mean()))[:most]
    kept = sorted({*largest, *chosen})
    assert list(frame["name"].unique()) == ["abcdefghijkl"[at] for at in kept] and len(frame) == 3 * len(kept)
    assert list(frame)[:2] == ["name", "layer"] and (frame["cells"] == 12).all() and (frame["metric"] == "kl").all()
    for row in frame.itertuples():
        at, gap = "abcdefghijkl".index(row.name), [2.0, 4.0, -4.0][row.prompt]
        assert (row.layer, row.sample) == (at // 4, chosen.get(at, ""))
        assert row.value == estimates[at, row.prompt] and row.source_value - row.base_value == gap
        assert row.effect == pytest.approx(row.value / gap)
        if at in chosen:
            assert row.exact == exact[list(chosen).index(at), row.prompt]
            assert row.exact_effect == pytest.approx(row.exact / gap)
        else:
            assert math.isnan(row.exact) and math.isnan(row.exact_effect)


def test_a_ranking_counts_the_cells_that_have_no_rows() -> None:
    frame = tabled(12)[0]
    table, plain = ranked(frame, ["name", "layer"]), summarise(frame, by=["name", "layer"], value="effect")
    assert table["value"].abs().is_monotonic_decreasing and set(table["metric"]) == {"effect on kl"}
    both = table.merge(plain, on=["name", "layer"], suffixes=("", "_plain"))
    assert len(both) == 12 and both["value"].equals(both["value_plain"])
    of_all = table.set_index("name")
    for name, part in frame.groupby("name"):
        np.testing.assert_allclose(of_all.loc[name, "exact"], part["exact_effect"].mean())
        assert of_all.loc[name, "sample"] == part["sample"].iloc[0]
    fewer = frame[frame["name"].isin(table["name"].head(4))]  # 4 of the 12 have rows
    assert (ranked(fewer, "name").set_index("name")["p_adjusted"] >= of_all["p_adjusted"].head(4) - 1e-12).all()


def test_means_are_of_measured_cells_the_largest_estimates_first() -> None:
    frame = tabled(12)[0]
    found = means(frame, "name")
    assert list(found["name"]) == ["e", "h", "b", "j"] and list(found["sample"]) == ["top", "top", "random", "random"]
    for row in found.itertuples():
        part = frame[frame["name"] == row.name]
        assert (row.effect, row.exact_effect) == pytest.approx((part["effect"].mean(), part["exact_effect"].mean()))


def test_what_cannot_be_compared_is_refused() -> None:
    frame = table(np.ones((2, 2)), np.ones((2, 2)), ["", ""])
    with pytest.raises(InterpError, match="no cell was measured"):
        agreement(frame, "cell", n_cells=2)
    with pytest.raises(UnknownName, match="did you mean 'cell'"):
        agreement(frame, "cells", n_cells=2)
    with pytest.raises(InterpError, match="sample must be at least 1, not 0"):
        choose([1.0], 0)
