"""Figures made of cells: heat maps of anything by anything, attention patterns, the table of a logit lens.

1. Each panel becomes a matrix; cells that the frame lacks stay empty and are hatched.
2. The figure's size follows from the number of cells and the length of their labels, up to a page's width.
3. All panels of a figure share one colour scale, whose bar names what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from interp.canvas import INK, RASTER_DPI, SMALL, TEXT_WIDTH, TINY, Figure, blank, styled
from interp.glyphs import position_labels, shorten, visible, width, written
from interp.scales import Axis, Grid, Scale, matrix, metric_name, name, numbers, panels, place, scale

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

POINTS = 72.0
"""In an inch; fonts are measured in points, figures in inches."""

HEIGHT = 8.6
LEGIBLE = 0.085
LONGEST_LABEL = 46.0
CELL_WIDTHS = (0.06, 0.34)
CELL_HEIGHTS = (0.07, 0.125, 0.2)
MOST_VECTOR_CELLS = 600
Colour = tuple[float, float, float, float]


@styled()
def heatmap(
    frame: pd.DataFrame,
    *,
    x: str | Axis,
    y: str | Axis,
    value: str = "value",
    facet: str | Sequence[str] | None = None,
    columns: int | None = None,
    diverging: bool = True,
    limit: float | None = None,
    label: str | None = None,
    baseline: str | None = None,
    annotate: int = 0,
    title: str | None = None,
) -> Figure:
    """A heat map: `y` downwards (layer 0 at the top), `x` across, one panel for each value of `facet`.

    Args:
        frame: one row a cell; cells without a row, or NaN, are hatched.
        x: column, or `Axis`, across.
        y: column, or `Axis`, downwards.
        value: column that gives the colour.
        facet: column, or columns, that cut the frame into panels.
        columns: panels in a row; None puts as many as stay legible.
        diverging: red, white, blue around 0 with positive blue; False is white to blue from 0, or from the least value
            where that is negative.
        limit: the colour scale ends here (on both sides, if diverging); None takes the largest magnitude.
        label: what the colour bar says; None takes the frame's metric.
        baseline: what the values are relative to, added to the label.
        annotate: mark this many cells of largest magnitude in each panel: heads by name (`L9H6`), others by value.
        title: stands above the figure.

    Raises:
        UnknownName: a column that the frame does not have.
        InterpError: no rows, no numbers, or several rows for one cell.
    """
    across, down, names = scale(frame, x), scale(frame, y), (name(x), name(y))
    numbers(frame, value)
    parts = [(head, matrix(part, across, down, names, value)) for head, part in panels(frame, facet)]
    label = metric_name(frame, value) if label is None else label
    label = label if baseline is None else f"{label} (baseline: {baseline})"
    colours = _colours([grid for _, grid in parts], diverging=diverging, limit=limit)
    sheet = _sheet(parts, across, down, colours, label, columns=columns, title=title)
    for axes, (_, grid) in zip(sheet.axes, parts, strict=True):
        for row, column in _strongest(grid, annotate):
            where = {names[1]: down.values[row], names[0]: across.values[column]}
            text = place(where) if set(names) == {"layer", "head"} else f"{grid[row, column]:.2f}".replace("-", "−")
            _mark(axes, row, column, text, colours.of(grid[row, column]), sheet.cell_width)
    return sheet.figure


@styled()
def attention(
    frame: pd.DataFrame,
    *,
    tokens: Sequence[str],
    query: str = "query",
    key: str = "key",
    value: str = "value",
    facet: str | Sequence[str] | None = ("layer", "head"),
    columns: int | None = None,
    limit: float = 1.0,
    label: str = "attention probability",
    title: str | None = None,
) -> Figure:
    """Attention patterns of one prompt: destination (query) rows, source (key) columns, tokens on both axes.

    Args:
        frame: one row for each query, key and panel; positions count from 0. Where no panel looks ahead, the keys that
            a causal mask hides are left grey.
        tokens: the prompt's tokens, or its labels `9: John`.
        query: column of destination positions.
        key: column of source positions.
        value: column that gives the colour, from 0.
        facet: column, or columns, that cut the frame into panels, titled `L9H6` for layer and head.
        columns: panels in a row; None puts as many as stay legible.
        limit: the value of the darkest colour.
        label: what the colour bar says.
        title: stands above the figure.

    Raises:
        UnknownName: a column that the frame does not have.
        InterpError: no rows, positions beyond the tokens, or several rows for one cell.
    """
    labels, positions = position_labels(tokens), range(len(tokens))
    across, down = (scale(frame, Axis(at, labels=labels, values=positions)) for at in (key, query))
    numbers(frame, value)
    parts = [(head, matrix(part, across, down, (key, query), value)) for head, part in panels(frame, facet)]
    ahead = np.triu_indices(len(tokens), 1)
    causal = not any(np.nan_to_num(grid[ahead]).any() for _, grid in parts)
    if causal:
        for _, grid in parts:
            grid[ahead] = np.nan
    colours = _colours([grid for _, grid in parts], diverging=False, limit=limit)
    sheet = _sheet(parts, across, down, colours, label, columns=columns, title=title, square=True, hatched=not causal)
    return sheet.figure


@styled()
def lens_table(
    frame: pd.DataFrame,
    *,
    x: str | Axis = "pos",
    y: str | Axis = "layer",
    value: str = "value",
    text: str = "top_token",
    label: str = "probability of the top token",
    title: str | None = None,
) -> Figure:
    """The table of a logit lens: the top token in each cell, on the colour of its probability.

    Args:
        frame: one row for each cell; of a frame with several metrics the rows of `top_prob` are drawn.
        x: column, or `Axis`, across.
        y: column, or `Axis`, downwards.
        value: column of probabilities, from 0 to 1.
        text: column of tokens; what cannot be seen in them is shown, and what is too long is cut.
        label: what the colour bar says.
        title: stands above the figure.

    Raises:
        UnknownName: a column that the frame does not have.
        InterpError: no rows, or several rows for one cell.
    """
    if "metric" in frame.columns and "top_prob" in set(frame["metric"]):
        frame = frame[frame["metric"] == "top_prob"]
    across, down, names = scale(frame, x), scale(frame, y), (name(x), name(y))
    numbers(frame, value)
    grid, texts = (matrix(frame, across, down, names, column) for column in (value, text))
    colours = _colours([grid], diverging=False, limit=1.0)
    sheet = _sheet([("", grid)], across, down, colours, label, title=title, widest=0.8)
    room = sheet.cell_width * POINTS - 2.5
    for row, column in zip(*np.nonzero(~np.isnan(grid)), strict=True):
        token = shorten(visible(str(texts[row, column])), TINY, room)
        _print(sheet.axes[0], row, column, token, colours.of(grid[row, column]))
    return sheet.figure


@dataclass(frozen=True)
class Sheet:
    """A figure with its drawn panels; `cell_width` in inches."""

    figure: Figure
    axes: list[Axes]
    cell_width: float


@dataclass(frozen=True)
class Colours:
    """One colour scale for all panels of a figure, symmetric around 0 or from low to high."""

    map: Colormap
    norm: Normalize
    symmetric: bool

    def of(self, value: float) -> Colour:
        """The colour of one value."""
        return self.map(self.norm(value))


def _colours(grids: list[Grid], *, diverging: bool, limit: float | None) -> Colours:
    known = np.concatenate([grid[~np.isnan(grid)] for grid in grids])
    if limit is None:
        limit = float(np.abs(known).max(initial=0.0)) or 1.0
    least = -limit if diverging else min(0.0, float(known.min(initial=0.0)))
    return Colours(colormaps["RdBu" if diverging else "Blues"], Normalize(least, limit), diverging)


def _sheet(
    parts: list[tuple[str, Grid]],
    across: Scale,
    down: Scale,
    colours: Colours,
    label: str,
    *,
    columns: int | None = None,
    title: str | None = None,
    square: bool = False,
    hatched: bool = True,
    widest: float = CELL_WIDTHS[1],
) -> Sheet:
    """Panels of cells side by side, as large as they need to be, with shared axes and one colour bar."""
    across, down = _shortened(across), _shortened(down)
    left = _longest(down) + 0.25
    room = TEXT_WIDTH - left - 0.6
    if columns is None:
        columns = max(1, min(len(parts), int(room / (len(across) * LEGIBLE + 0.1))))
    n_rows = -(-len(parts) // columns)
    columns = -(-len(parts) // n_rows)
    least, usual, most = CELL_HEIGHTS
    cell_width = min(max(room / columns - 0.08, 0.5) / len(across), most if square else widest)
    cell_height = min(cell_width, most) if square else min(max(1.6 / len(down), usual), most)
    upright = _upright(across, cell_width)
    below = {0: 0.1, 45: 0.75 * _longest(across), 90: _longest(across)}[upright]
    extra = below + 0.2 + (0.15 if title else 0)
    cell_height = max(min(cell_height, (HEIGHT - extra - 0.2 * n_rows) / (n_rows * len(down))), least)
    figure = blank(
        min(TEXT_WIDTH, left + 0.6 + columns * (len(across) * cell_width + 0.08)),
        extra + n_rows * (len(down) * cell_height + (0.2 if parts[0][0] else 0.06)),
    )
    grid = figure.subplots(n_rows, columns, squeeze=False)
    vector = sum(values.size for _, values in parts) <= MOST_VECTOR_CELLS
    axes = list(grid.flat)
    for spare in axes[len(parts) :]:
        spare.remove()
    axes = axes[: len(parts)]
    for at, (panel, (head, values)) in enumerate(zip(axes, parts, strict=True)):
        _cells(panel, values, colours, vector=vector, hatched=hatched)
        panel.set_title(head)
        _ticks(panel, across, down, cell_width, cell_height, upright)
        panel.tick_params(labelleft=at % columns == 0, labelbottom=at + columns >= len(parts))
        if at % columns == 0:
            panel.set_ylabel(down.title)
        if at + columns >= len(parts):
            panel.set_xlabel(across.title)
    if title:
        figure.suptitle(written(title), x=0.01, ha="left", weight="bold", size=7.0)
    tall = n_rows * len(down) * cell_height
    wanted = max(width(label, 7.0) / POINTS + 0.1, 1.4)
    shown = ScalarMappable(colours.norm, colours.map)
    bar = figure.colorbar(shown, ax=axes, shrink=min(1.0, wanted / tall), aspect=20, pad=0.02, fraction=0.08)
    bar.set_label(written(label))
    bar.outline.set_linewidth(0.4)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, symmetric=colours.symmetric))
    return Sheet(figure, axes, cell_width)


def _shortened(ticks: Scale) -> Scale:
    return replace(ticks, labels=[shorten(text, SMALL, LONGEST_LABEL) for text in ticks.labels])


def _longest(ticks: Scale) -> float:
    """Width of the longest label in inches."""
    return max(width(text, SMALL) for text in ticks.labels) / POINTS


def _cells(axes: Axes, values: Grid, colours: Colours, *, vector: bool, hatched: bool) -> None:
    n_rows, n_columns = values.shape
    axes.pcolormesh(
        np.arange(n_columns + 1) - 0.5,
        np.arange(n_rows + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=colours.map,
        norm=colours.norm,
        edgecolors="white",
        linewidth=0.35 if vector else POINTS / RASTER_DPI,
        rasterized=not vector,
    )
    axes.set(xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    if np.isnan(values).any():
        empty = Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor="#efefef", edgecolor="#bdbdbd", linewidth=0)
        empty.set(hatch="//////" if hatched else None, zorder=0)
        axes.add_patch(empty)


def _upright(across: Scale, cell_width: float) -> int:
    """The angle at which the labels below the cells do not touch."""
    if across.numeric or _longest(across) * POINTS + 2 <= cell_width * POINTS:
        return 0
    return 45 if cell_width >= 0.19 else 90


def _ticks(axes: Axes, across: Scale, down: Scale, cell_width: float, cell_height: float, upright: int) -> None:
    for axis, ticks, room in ((axes.xaxis, across, cell_width), (axes.yaxis, down, cell_height)):
        step = _step(room, 0.2 if axis is axes.yaxis else 0.16) if ticks.numeric else 1
        shown = range(0, len(ticks), step)
        axis.set_ticks(list(shown), labels=[ticks.labels[at] for at in shown])
        size = SMALL if ticks.numeric else min(SMALL, max(0.92 * room * POINTS, 4.0))
        axis.set_tick_params(labelsize=size, length=1.5)
    if upright:
        slanted = {"ha": "right", "va": "top", "rotation_mode": "anchor"} if upright == 45 else {"ha": "center"}
        for text in axes.get_xticklabels():
            text.set(rotation=upright, **slanted)


def _step(room: float, least: float) -> int:
    """Every how many cells a number fits."""
    return next((step for step in (1, 2, 5, 10, 20, 50, 100, 200) if step * room >= least), 500)


def _strongest(values: Grid, count: int) -> list[tuple[int, int]]:
    known = np.argwhere(~np.isnan(values))
    order = np.argsort([-abs(values[row, column]) for row, column in known], kind="stable")
    return [(int(row), int(column)) for row, column in known[order[:count]]]


def _mark(axes: Axes, row: int, column: int, text: str, colour: Colour, cell_width: float) -> None:
    """Print in the cell where the text fits, otherwise beside the cell, which gets a border."""
    if width(text, TINY) <= cell_width * POINTS - 1:
        _print(axes, row, column, text, colour)
        return
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=INK, linewidth=0.6))
    side = 1 if column < axes.get_xlim()[1] / 2 else -1
    beside = axes.annotate(text, (column + side * 0.5, row), xytext=(side * 1.5, 0), textcoords="offset points")
    beside.set(ha="left" if side > 0 else "right", va="center", size=TINY, color=INK)
    beside.set_path_effects([patheffects.withStroke(linewidth=1.2, foreground="white")])


def _print(axes: Axes, row: int, column: int, text: str, colour: Colour) -> None:
    axes.text(column, row, text, ha="center", va="center_baseline", size=TINY, color=_on(colour))


def _on(colour: Colour) -> str:
    """Black or white, whichever has more contrast on a colour (WCAG 2.2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.19 else "white"
