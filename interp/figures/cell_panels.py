"""Panels of coloured cells on one sheet: their sizes, colours and labels, and what is printed in them.

1. Panels are placed side by side as long as their cells stay legible, then in more rows; the sheet grows with the cells
   up to a page's width and height.
2. All panels share one colour scale; its bar names the values.
3. A few cells are drawn as vectors; many are drawn as one image inside the vector file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from interp.arguments import real_number, whole_number
from interp.errors import InterpError
from interp.figures.axes import Grid, Scale
from interp.figures.glyphs import broken, shorten, width, written
from interp.figures.style import INK, POINTS, RASTER_DPI, SMALL, TEXT_WIDTH, TINY, Figure, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Sizes in inches.
TEXT_HEIGHT = 8.6  # of a page
GAP = 0.08  # between panels
BAR = 0.6  # the room of the colour bar
MAX_CELL_WIDTH = 0.34
MAX_CELL_HEIGHT = 0.65
MAX_SQUARE = 0.2  # the side of a square cell
MIN_ROW = 0.125  # the height of a row in a tall panel
MIN_LEGIBLE = 0.085  # the side of a cell whose label can be read
MIN_PANEL = 1.3  # the side of a panel, which widens its cells if there are few

MAX_LABEL = 56.0  # points; longer labels are cut
MAX_COLUMNS = 4  # panels in a row, unless the caller says otherwise
MAX_VECTOR_CELLS = 600

Colour = tuple[float, float, float, float]


@dataclass(frozen=True)
class Colours:
    """The colour scale of all panels of a figure, symmetric around 0 or from low to high."""

    map: Colormap
    norm: Normalize
    symmetric: bool

    def of(self, value: float) -> Colour:
        """The colour of one value."""
        return self.map(self.norm(value))


@dataclass(frozen=True)
class Sheet:
    """A figure with its panels drawn; `cell_width` is in inches."""

    figure: Figure
    axes: list[Axes]
    cell_width: float


@dataclass(frozen=True)
class SheetLayout:
    """Sizes of a cell and of the whole sheet in inches; `slant` is the angle of the labels below, in degrees."""

    rows: int
    columns: int
    cell_width: float
    cell_height: float
    slant: int
    across: float
    down: float

    @property
    def smallest(self) -> float:
        """The shorter side of a cell."""
        return min(self.cell_width, self.cell_height)


def colours_for(grids: Sequence[Grid], *, diverging: bool, limit: float | None) -> Colours:
    """The scale for all values of several panels: red to blue, symmetric around 0, or white to blue."""
    known = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    largest = float(np.abs(known).max(initial=0.0)) or 1.0
    most = largest if limit is None else real_number("limit", limit, above=0)
    least = -most if diverging else min(0.0, float(known.min(initial=0.0)))
    return Colours(colormaps["RdBu" if diverging else "Blues"], Normalize(least, most), diverging)


def sheet(
    parts: Sequence[tuple[str, Grid]],
    across: Scale,
    down: Scale,
    colours: Colours,
    label: str,
    *,
    columns: int | None = None,
    title: str | None = None,
    square: bool = False,
    hatched: bool = True,
    widest: float = MAX_CELL_WIDTH,
) -> Sheet:
    """Draw panels of cells, each a title and a grid, with shared axes and one colour bar.

    Args:
        parts: titles and grids [down, across], NaN, or infinite like a masked score, where nothing is drawn.
        across: the axis of the columns.
        down: the axis of the rows, the first on top.
        colours: the scale of all panels.
        label: what the colour bar says.
        columns, title: as `interp.figures` describes them.
        square: make cells as high as wide.
        hatched: hatch the cells that are NaN, rather than leave them grey.
        widest: the largest width of a cell in inches; a panel of few cells may exceed it.
    """
    across, down = _shortened(across), _shortened(down)
    headed = any(head for head, _ in parts)
    extra = 0.2 * bool(title) + 0.05
    plan = _plan(len(parts), across, down, columns=columns, square=square, widest=widest, headed=headed, extra=extra)
    figure = blank(plan.across, plan.down)
    grid = figure.subplots(plan.rows, plan.columns, squeeze=False)
    axes = list(grid.flat)[: len(parts)]
    for spare in list(grid.flat)[len(parts) :]:
        spare.remove()
    vector = sum(values.size for _, values in parts) <= MAX_VECTOR_CELLS
    for at, (panel, (head, values)) in enumerate(zip(axes, parts, strict=True)):
        _cells(panel, values, colours, vector=vector, hatched=hatched)
        panel.set_title(shorten(head, 7.9, plan.cell_width * len(across) * POINTS))  # bold is wider
        _ticks(panel, across, down, plan)
        first, lowest = at % plan.columns == 0, at + plan.columns >= len(parts)
        panel.tick_params(labelleft=first, labelbottom=lowest)
        panel.set_ylabel(down.title if first else "")
        panel.set_xlabel(across.title if lowest else "")
        if at // plan.columns < plan.rows - 1:
            panel.xaxis.set_in_layout(False)  # the last row has fewer panels: labels may use the free space below
    if title:
        figure.suptitle(written(title), x=0.01, ha="left", weight="bold", size=7.0)
    _bar(figure, axes, colours, label, plan.rows * plan.cell_height * len(down))
    return Sheet(figure, axes, plan.cell_width)


def _plan(
    count: int,
    across: Scale,
    down: Scale,
    *,
    columns: int | None,
    square: bool,
    widest: float,
    headed: bool,
    extra: float,
) -> SheetLayout:
    columns = None if columns is None else whole_number("columns", columns, least=1)
    left, head = _longest(down) + 0.25, 0.2 if headed else 0.06

    def arrange(columns: int) -> SheetLayout:
        rows = -(-count // columns)
        columns = -(-count // rows)
        room = (TEXT_WIDTH - left - BAR) / columns - GAP
        largest = MAX_SQUARE if square else widest
        cell_width = min(max(largest, MIN_PANEL / len(across)), room / len(across))
        slant = _slant(across, cell_width)
        below = 0.3 + {0: 0.0, 45: 0.75 * _longest(across), 90: _longest(across)}[slant]
        high = cell_width if square else min(max(MIN_PANEL / len(down), MIN_ROW), MAX_CELL_HEIGHT)
        cell_height = min(high, ((TEXT_HEIGHT - extra - below) / rows - head) / len(down))
        size_across = left + BAR + columns * (len(across) * cell_width + GAP)
        size_down = extra + below + rows * (len(down) * cell_height + head)
        return SheetLayout(rows, columns, cell_width, cell_height, slant, size_across, size_down)

    tried = [min(columns, count)] if columns is not None else range(min(count, MAX_COLUMNS), 0, -1)
    plans = [arrange(columns) for columns in tried]
    legible = [plan for plan in plans if plan.smallest >= MIN_LEGIBLE]
    chosen = legible[0] if legible else max(plans, key=lambda plan: plan.smallest)
    if chosen.smallest <= 0:
        raise InterpError(
            f"{count} panels in {chosen.columns} columns do not fit on a page: draw fewer, or other columns"
        )
    return chosen


def _bar(figure: Figure, axes: list[Axes], colours: Colours, label: str, tall: float) -> None:
    label = broken(written(label), 7.0, max(tall, 1.0) * POINTS)
    wanted = max(max(width(line, 7.0) for line in label.split("\n")) / POINTS + 0.1, 1.4)
    shown = ScalarMappable(colours.norm, colours.map)
    bar = figure.colorbar(shown, ax=axes, shrink=min(1.0, wanted / tall), aspect=20, pad=0.02, fraction=0.08)
    bar.set_label(label)
    bar.outline.set_linewidth(0.4)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5 if tall > 1 else 3, symmetric=colours.symmetric))


def _shortened(ticks: Scale) -> Scale:
    return replace(ticks, labels=[shorten(text, SMALL, MAX_LABEL) for text in ticks.labels])


def _longest(ticks: Scale) -> float:
    """Width of the longest label in inches."""
    return max(width(text, SMALL) for text in ticks.labels) / POINTS


def _slant(across: Scale, cell_width: float) -> int:
    """The angle at which the labels below the cells do not touch."""
    if across.numeric or _longest(across) * POINTS + 2 <= cell_width * POINTS:
        return 0
    return 45 if cell_width >= 0.19 else 90


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
    if not np.isfinite(values).all():
        empty = Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor="#efefef", edgecolor="#bdbdbd", linewidth=0)
        empty.set(hatch="//////" if hatched else None, zorder=0)
        axes.add_patch(empty)


def _ticks(axes: Axes, across: Scale, down: Scale, plan: SheetLayout) -> None:
    for axis, ticks, room in ((axes.xaxis, across, plan.cell_width), (axes.yaxis, down, plan.cell_height)):
        step = _step(room, 0.2 if axis is axes.yaxis else 0.16) if ticks.numeric else math.ceil(0.065 / room)
        shown = range(0, len(ticks), step)
        axis.set_ticks(list(shown), labels=[ticks.labels[at] for at in shown])
        size = SMALL if ticks.numeric else min(SMALL, 0.92 * room * step * POINTS)
        axis.set_tick_params(labelsize=size, length=1.5)
    if plan.slant:
        slanted = {"ha": "right", "va": "top", "rotation_mode": "anchor"} if plan.slant == 45 else {"ha": "center"}
        for text in axes.get_xticklabels():
            text.set(rotation=plan.slant, **slanted)


def _step(room: float, least: float) -> int:
    """The step between numbered cells at which the numbers do not touch."""
    return next((step for step in (1, 2, 5, 10, 20, 50, 100, 200) if step * room >= least), 500)


def mark(axes: Axes, row: int, named: Sequence[tuple[Sequence[int], str]], cell_width: float) -> None:
    """Frame cells of one row and print text beside them, on the side with room for it.

    Args:
        axes: the panel.
        row: the row.
        named: neighbouring columns, and the text beside them; from left to right.
        cell_width: in inches.
    """
    left_edge, right_edge = axes.get_xlim()
    occupied = [(columns[0] - 0.5, columns[-1] + 0.5) for columns, _ in named]
    for columns, text in named:
        first, last = columns[0] - 0.5, columns[-1] + 0.5
        for column in columns:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=INK, linewidth=0.6))
        needs = (width(text, TINY) + 3) / (cell_width * POINTS)  # in cells
        right = min([low for low, _ in occupied if low >= last], default=right_edge + 1) - last
        left = first - max([high for _, high in occupied if high <= first], default=left_edge - 1)
        side = 1 if last < right_edge / 2 else -1
        if min(left, right) < needs:
            side = 1 if right > left else -1
        occupied.append((last, last + needs) if side > 0 else (first - needs, first))
        beside = axes.annotate(
            text, (last if side > 0 else first, row), xytext=(side * 1.5, 0), textcoords="offset points"
        )
        beside.set(ha="left" if side > 0 else "right", va="center", size=TINY, color=INK)
        beside.set_path_effects([patheffects.withStroke(linewidth=1.2, foreground="white")])


def write(axes: Axes, row: int, column: int, text: str, colour: Colour) -> None:
    """Print text in the middle of a cell, in black or white, whichever is readable on the cell's colour."""
    axes.text(column, row, text, ha="center", va="center_baseline", size=TINY, color=_on(colour))


def _on(colour: Colour) -> str:
    """Black or white, whichever has more contrast on a colour (WCAG 2.2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.19 else "white"
