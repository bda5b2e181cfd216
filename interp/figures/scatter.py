"""Figures made of points: one measurement against another, such as an estimate against the exact effect.

1. All panels have the same two scales; a hue has one colour in all panels.
2. With a diagonal both axes have one range, and a line shows where the two numbers are equal.
3. Points with a name in the column `labels` are named, if the name covers no other name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from interp.arguments import checked
from interp.errors import InterpError
from interp.figures.axes import Axis, Grid, column, legend_name, name, numbers, ordered, panels
from interp.figures.glyphs import drawable, width, written
from interp.figures.style import (
    INK,
    MUTED,
    OKABE_ITO,
    POINTS,
    RULE,
    TEXT_WIDTH,
    TINY,
    Figure,
    blank,
    colours_by_name,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SIDE, MAX_SIDE = 2.3, 3.4  # the width of a panel in inches
MAX_VECTOR_POINTS = 2000
MAX_LABELS = 40  # names written in a panel
MAX_COLUMNS = 3  # panels in a row
MAX_NAMED = 6  # points that `estimates` names

Colours = Mapping[Any, str] | ScalarMappable


@checked
@styled()
def scatter(
    frame: pd.DataFrame,
    *,
    x: str | Axis,
    y: str | Axis,
    hue: str | None = None,
    facet: str | Sequence[str] | None = None,
    diagonal: bool = False,
    labels: str | None = None,
    title: str | None = None,
) -> Figure:
    """Points, one for each row that has both numbers.

    Args:
        frame: one row for each point.
        x: column of numbers, or `Axis`, across.
        y: column of numbers, or `Axis`, upwards.
        hue: column that gives the colour: up to eight names, or numbers, which get a colour bar.
        diagonal: one range for both axes, and the line on which they are equal.
        labels: column with the names of a few points; empty or missing for points without a name. Only the first 40
            names of a panel are written.
        facet, title: as `interp.figures` describes them.

    Raises:
        UnknownName, InterpError: as every figure; also for more than eight names of a hue.
    """
    titles = _title(x), _title(y)
    x, y = name(x), name(y)
    across, up = numbers(frame, x), numbers(frame, y)
    known = np.isfinite(across) & np.isfinite(up)
    if not known.any():
        raise InterpError(f"there is nothing to draw: no row has both {x!r} and {y!r}")
    if labels is not None:
        column(frame, labels)
    parts = panels(frame[known], facet)
    colours = _colours(frame[known], hue)
    figure, axes = _panels(len(parts), title, legend=isinstance(colours, Mapping) and len(colours) > 1)
    if diagonal:
        both = np.concatenate([across[known], up[known]])
        ends = _with_margin(both.min(), both.max())
    for axis, (head, part) in zip(axes, parts, strict=True):
        axis.set_title(head)
        axis.grid()
        if diagonal:
            axis.set(xlim=ends, ylim=ends)
            axis.plot(ends, ends, color=RULE, linewidth=0.6, zorder=1.5)
        row_colours = _row_colours(part, hue, colours)
        _points(axis, numbers(part, x), numbers(part, y), row_colours, vector=len(frame) <= MAX_VECTOR_POINTS)
        for draw, (low, high) in ((axis.axvline, axis.get_xlim()), (axis.axhline, axis.get_ylim())):
            if low < 0 < high:
                draw(0, color=RULE, linewidth=0.5, zorder=0.9)
        if labels is not None:
            _names(axis, numbers(part, x), numbers(part, y), part[labels], figure)
    _describe(figure, axes, *titles)
    _explain(figure, axes, hue, colours)
    return figure


@checked
def estimates(table: pd.DataFrame) -> Figure:
    """Estimated against exact effect of cells; on the diagonal they are equal.

    Args:
        table: a row for each cell, as `interp.attribution.estimate_check.means` makes it, with a column `name`, which
            is written for the cells with the largest exact effects.
    """
    named = table["exact_effect"].abs().nlargest(MAX_NAMED).index
    return scatter(
        table.assign(name=table["name"].where(table.index.isin(named), "")),
        x=Axis("exact_effect", title="exact effect"),
        y=Axis("effect", title="estimated effect"),
        hue="sample",
        diagonal=True,
        labels="name",
    )


def _title(axis: str | Axis) -> str:
    """What an axis says: its title, or the column's name."""
    return axis.title if isinstance(axis, Axis) and axis.title is not None else name(axis)


def _colours(frame: pd.DataFrame, hue: str | None) -> Colours:
    """A colour for every name, or a scale for numbers."""
    if hue is None:
        return {None: OKABE_ITO[0]}
    values = column(frame, hue)
    if values.dtype.kind in "iuf":
        known = numbers(frame, hue)
        known = known[np.isfinite(known)]
        return ScalarMappable(Normalize(known.min(initial=0.0), known.max(initial=1e-12)), colormaps["viridis"])
    return colours_by_name(hue, ordered(values))


def _row_colours(part: pd.DataFrame, hue: str | None, colours: Colours) -> Any:
    """The colour of every row."""
    if isinstance(colours, ScalarMappable):
        assert hue is not None
        return colours.to_rgba(numbers(part, hue))
    return colours[None] if hue is None else [colours.get(value, MUTED) for value in part[hue]]


def _points(axes: Axes, across: Grid, up: Grid, colours: Any, *, vector: bool) -> None:
    size, alpha = (9.0, 0.85) if len(across) <= 200 else (4.0, 0.6)
    axes.scatter(across, up, s=size, c=colours, alpha=alpha, linewidths=0, rasterized=not vector, zorder=2)


def _panels(count: int, title: str | None, *, legend: bool) -> tuple[Figure, list[Axes]]:
    """An empty figure and the axes of its panels."""
    columns = min(count, MAX_COLUMNS)
    rows = -(-count // columns)
    side = min(MAX_SIDE, max(SIDE, (TEXT_WIDTH - 0.6) / columns)) if columns > 1 else MAX_SIDE
    tall = min(side, MAX_SIDE) * 0.82
    figure = blank(min(TEXT_WIDTH, columns * side + 0.6), rows * (tall + 0.25) + 0.3 + 0.15 * (bool(title) + legend))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    if title:
        figure.suptitle(written(title), x=0.01, ha="left", weight="bold", size=7.0)
    for axis in axes[:count]:
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.margins(0.06)
    return figure, axes[:count]


def _with_margin(low: float, high: float) -> tuple[float, float]:
    gap = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - gap, high + gap


def _names(axes: Axes, across: Grid, up: Grid, texts: pd.Series[Any], figure: Figure) -> None:
    """Write names beside their points, on a side where they cover no earlier name; leave out those without room."""
    axes.autoscale_view()
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    places = axes.get_subplotspec()
    assert places is not None
    rows, columns = places.get_gridspec().get_geometry()
    room = figure.get_size_inches() * POINTS / (columns, rows) - (30, 24)  # in points, less ticks and titles
    shown = [(at, drawable(str(text))) for at, text in enumerate(texts) if isinstance(text, str) and text]
    occupied: list[tuple[float, float, float, float]] = []
    for at, text in shown[:MAX_LABELS]:
        here = ((across[at] - left) / (right - left) * room[0], (up[at] - low) / (high - low) * room[1])
        size = width(text, TINY), TINY + 1
        for above, aside in product((0, 1, -1, 2, -2), (1, -1)):
            corner = (
                here[0] + (3 if aside > 0 else -3 - size[0]),
                here[1] + above * size[1] - size[1] / 2,
            )
            box = (corner[0], corner[1], corner[0] + size[0], corner[1] + size[1])
            if box[0] > -3 and box[2] < room[0] + 20 and not any(_touch(box, other) for other in occupied):
                break
        else:
            continue
        occupied.append(box)
        named = axes.annotate(
            text, (across[at], up[at]), xytext=(3 * aside, above * size[1]), textcoords="offset points", zorder=3
        )
        named.set(ha="left" if aside > 0 else "right", va="center", size=TINY, color=INK)
        named.set_path_effects([patheffects.withStroke(linewidth=1.2, foreground="white")])


def _touch(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _describe(figure: Figure, axes: list[Axes], below: str, beside: str) -> None:
    """Titles of both axes; several panels share one at the left."""
    below, beside = (written(text.replace("_", " ")) for text in (below, beside))
    if len(axes) == 1:
        axes[0].set(xlabel=below, ylabel=beside)
        return
    columns = min(len(axes), MAX_COLUMNS)
    for axis in axes[-columns:]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(below)
    figure.supylabel(beside, size=7.0)


def _explain(figure: Figure, axes: list[Axes], hue: str | None, colours: Colours) -> None:
    """Explain the colours: a legend for names, a colour bar for numbers."""
    if hue is None:
        return
    if isinstance(colours, ScalarMappable):
        bar = figure.colorbar(colours, ax=axes, aspect=25, pad=0.02, fraction=0.05)
        bar.set_label(written(hue.replace("_", " ")))
        bar.outline.set_linewidth(0.4)
        bar.ax.yaxis.set_major_locator(MaxNLocator(5))
        return
    if len(colours) < 2:
        return
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=3, linestyle="", label=legend_name(hue, value))
        for value, colour in colours.items()
    ]
    look: dict[str, Any] = {"handles": handles, "ncols": min(len(handles), 6), "handlelength": 0.6}
    if len(axes) == 1:
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.4, **look)
    else:
        figure.legend(loc="outside upper right", **look)
