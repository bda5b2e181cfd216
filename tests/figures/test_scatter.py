"""Points stand at their numbers, in their colours, with the names that they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from shown import panels, texts

from interp import figures
from interp.errors import InterpError, UnknownName


def points(n: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=n)
    frame = pd.DataFrame(
        {"exact": exact, "estimate": exact + 0.1, "layer": np.arange(n), "site": ["z", "q"] * (n // 2)}
    )
    return frame.assign(name=["L9H6", "", None, *[""] * (n - 3)])


def drawn(axes: object) -> list[PathCollection]:
    return [artist for artist in axes.collections if isinstance(artist, PathCollection)]  # type: ignore[attr-defined]


def test_every_row_with_two_numbers_is_a_point() -> None:
    frame = points()
    frame.loc[3, "estimate"] = np.nan
    (axes,) = panels(figures.scatter(frame, x="exact", y="estimate"))
    (cloud,) = drawn(axes)
    np.testing.assert_array_equal(cloud.get_offsets(), frame.drop(index=3)[["exact", "estimate"]])


def test_a_diagonal_is_where_both_axes_are_equal() -> None:
    (axes,) = panels(figures.scatter(points(), x="exact", y="estimate", diagonal=True))
    assert axes.get_xlim() == axes.get_ylim()
    line = next(line for line in axes.lines if len(set(line.get_xdata())) == 2 and len(set(line.get_ydata())) == 2)
    assert list(line.get_xdata()) == list(line.get_ydata()) == list(axes.get_xlim())


def test_names_and_axis_titles_are_written() -> None:
    figure = figures.scatter(
        points(), x=figures.Axis("exact", "exact effect"), y="estimate", labels="name", title="Both"
    )
    found = texts(figure)
    assert {"L9H6", "exact effect", "estimate", "Both"} <= found
    (axes,) = panels(figure)
    assert len([text for text in axes.texts if text.get_text()]) == 1


def test_names_never_cover_each_other() -> None:
    frame = pd.DataFrame({"x": [0.0] * 30 + [1.0], "y": [0.0] * 30 + [1.0], "name": [f"L{i}H0" for i in range(31)]})
    figure = figures.scatter(frame, x="x", y="y", labels="name")
    texts(figure)  # draws
    (axes,) = panels(figure)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 1 < len(boxes) < 31
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_hues_are_names_with_a_legend_or_numbers_with_a_bar() -> None:
    named = figures.scatter(points(), x="exact", y="estimate", hue="site")
    assert {"z", "q"} <= texts(named) and len(named.axes) == 1
    colours = drawn(panels(named)[0])[0].get_facecolors()
    assert len(np.unique(colours, axis=0)) == 2
    numbered = figures.scatter(points(), x="exact", y="estimate", hue="layer")
    assert len(numbered.axes) == 2 and "layer" in texts(numbered)
    assert len(np.unique(drawn(panels(numbered)[0])[0].get_facecolors(), axis=0)) == 12


def test_facets_share_both_axes(tmp_path: Path) -> None:
    figure = figures.scatter(points(), x="exact", y="estimate", facet="site", hue="site", title="Two")
    first, second = panels(figure)
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()
    assert [first.get_title("left"), second.get_title("left")] == ["z", "q"]
    assert sum(len(cloud.get_offsets()) for axes in (first, second) for cloud in drawn(axes)) == 12
    figures.save(figure, points(), tmp_path / "points")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": "exakt"}, UnknownName, "did you mean 'exact'"),
        ({"y": "site"}, InterpError, "must hold numbers"),
        ({"labels": "names"}, UnknownName, "did you mean 'name'"),
        ({"hue": "kind"}, InterpError, "12 different names"),
        ({"x": "nothing"}, InterpError, "no row has both"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, str], error: type[Exception], says: str) -> None:
    frame = points().assign(kind=[f"kind {i}" for i in range(12)], nothing=np.nan)
    with pytest.raises(error, match=says):
        figures.scatter(frame, **{"x": "exact", "y": "estimate", **change})  # type: ignore[arg-type]


def test_estimates_are_drawn_against_exact_effects_and_the_largest_are_named() -> None:
    exact = np.array([0.0, -9.0, 1.0, 8.0, 2.0, -7.0, 3.0, 6.0, 5.0, 4.0])
    table = pd.DataFrame({"exact_effect": exact, "effect": exact[::-1], "sample": ["top"] * 5 + ["random"] * 5})
    figure = figures.estimates(table.assign(name=[f"L{at}H0" for at in range(10)]))
    assert {"top", "random", "exact effect", "estimated effect"} <= texts(figure)
    (axes,) = panels(figure)
    assert {text.get_text() for text in axes.texts} == {"L1H0", "L3H0", "L5H0", "L7H0", "L8H0", "L9H0"}
    (cloud,) = drawn(axes)
    np.testing.assert_array_equal(cloud.get_offsets(), table[["exact_effect", "effect"]])
    assert axes.get_xlim() == axes.get_ylim()
