"""Figures made of values along an axis: lines with bands, bars with error bars.

1. All panels have the same axis of places; a hue has one colour in all panels.
2. Bands and error bars are drawn from the frame's own columns, and `n` is printed.
3. Lines are named at their right end; bars of several hues have a legend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import offset_copy

from interp.arguments import checked, whole_number
from interp.errors import InterpError
from interp.figures.axes import (
    Axis,
    Grid,
    Scale,
    bounds,
    column,
    legend_name,
    metric_name,
    name,
    numbers,
    ordered,
    panels,
    repeated_rows,
    scale,
    spread,
    with_tokens,
)
from interp.figures.glyphs import width, written
from interp.figures.style import (
    INK,
    MUTED,
    OKABE_ITO,
    POINTS,
    RULE,
    SMALL,
    TEXT_WIDTH,
    Figure,
    blank,
    colours_by_name,
    explained,
    styled,
)
from interp.figures.tensors import Values, framed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Sizes in inches.
NARROW = 4.6  # the width of a figure with one panel and few places
PANEL_HEIGHT = 2.0
MAX_COLUMNS = 12
BAR = 0.16  # the room of one horizontal bar

POSITIVE, NEGATIVE = "#2f79b5", "#b3392f"
Edges = tuple[str, str]


@checked
@styled()
def lines(
    values: Values,
    *,
    x: str | Axis | None = None,
    value: str = "value",
    hue: str | None = None,
    interval: Edges | None = ("ci_low", "ci_high"),
    axes: str | Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    facet: str | Sequence[str] | None = None,
    columns: int | None = None,
    share: bool = True,
    log: bool = False,
    label: str | None = None,
    baseline: str | None = None,
    note: str | None = None,
    title: str | None = None,
) -> Figure:
    """Lines in Okabe and Ito's colours with bands, named at their right end.

    Args:
        values: one row for each point, in any order, or a tensor [facet..., hue, x] or [facet..., x].
        x: column, or `Axis`, across; text keeps the order in which it appears.
        value: column of heights.
        hue: column with one value for each line: up to eight names, or numbers, which run from dark to light.
        interval: columns of the band's lower and upper edge; if the frame does not have them, no band is drawn.
        share: one scale of heights for all panels; False gives each its own.
        log: heights on a logarithmic scale.
        facet, axes, tokens, columns, label, baseline, note, title: as `interp.figures` describes them.

    Raises:
        UnknownName, InterpError: as every figure; also for more than eight names.

    >>> figure = lines(np.arange(6).reshape(2, 3), hue="head", x="pos", tokens=["When", " Mary", " and"])
    """
    frame, (hue, x), facet = framed(values, axes, {"hue": hue, "x": x}, facet, optional=["hue"])
    across, colours, edges = scale(frame, with_tokens(x, tokens)), _colours(frame, hue), bounds(frame, interval)
    numbers(frame, value)
    chart = _chart(panels(frame, facet), columns, across, share=share, title=title)
    for panel, (head, part) in zip(chart.axes, chart.parts, strict=True):
        _check_unique(part, name(x), hue)
        if log:
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{height:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
        ends = {}
        for one, colour in colours.items():
            at, points = _along(part if hue is None else part[part[hue] == one], name(x), across)
            if not len(at):
                continue
            if edges is not None:
                low, high = (numbers(points, edge) for edge in edges)
                panel.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            panel.plot(at, points[value], color=colour, marker="o" if len(across) <= 40 else "", markersize=1.7)
            if hue is not None:
                ends[legend_name(hue, one)] = (float(at[-1]), float(points[value].iloc[-1]), colour)
        _frame(panel, head, across, "y")
        _name_ends(panel, ends, chart.height)
    _describe(chart, across.title, _label(frame, value, label, baseline), _note(frame, note), share=share)
    return explained(chart.figure, frame)


@checked
@styled()
def bars(
    values: Values,
    *,
    x: str | Axis | None = None,
    value: str = "value",
    hue: str | None = None,
    interval: Edges | None = ("ci_low", "ci_high"),
    axes: str | Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    horizontal: bool = False,
    diverging: bool = False,
    facet: str | Sequence[str] | None = None,
    columns: int | None = None,
    share: bool = True,
    label: str | None = None,
    baseline: str | None = None,
    note: str | None = None,
    title: str | None = None,
) -> Figure:
    """Bars with error bars, for layers or components.

    Args:
        values: one row for each bar, or a tensor [facet..., hue, x] or [facet..., x].
        x: column, or `Axis`, of the bars' places; text keeps the order in which it appears.
        value: column of lengths.
        hue: column that gives the colour; bars of one place and several hues are drawn side by side.
        interval: columns of the error bar's two ends; if the frame does not have them, no error bars are drawn.
        horizontal: draw horizontal bars, the first on top, which leaves room for long names.
        diverging: positive blue, negative red, if there is no hue.
        share: one scale of lengths for all panels; False gives each its own.
        facet, axes, tokens, columns, label, baseline, note, title: as `interp.figures` describes them.

    Raises:
        UnknownName, InterpError: as every figure; also for more than eight names.

    >>> figure = bars([0.2, -0.1, 1.4], x="head", diverging=True)
    """
    frame, (hue, x), facet = framed(values, axes, {"hue": hue, "x": x}, facet, optional=["hue"])
    places, colours, ends = scale(frame, with_tokens(x, tokens)), _colours(frame, hue), bounds(frame, interval)
    numbers(frame, value)
    parts = panels(frame, facet)
    beside = bool(frame.duplicated([name(x), *_names(facet)]).any())
    thick = 0.78 / (len(colours) if beside else 1)
    height = max(len(places) * max(thick * len(colours) if beside else 1, 1) * BAR, 0.5) if horizontal else None
    chart = _chart(parts, columns, places, share=share, title=title, horizontal=height)
    for panel, (head, part) in zip(chart.axes, chart.parts, strict=True):
        _check_unique(part, name(x), hue)
        for order, (one, colour) in enumerate(colours.items()):
            at, points = _along(part if hue is None else part[part[hue] == one], name(x), places)
            if not len(at):
                continue
            at = at + (thick * (order - (len(colours) - 1) / 2) if beside else 0)
            lengths = numbers(points, value)
            fill = np.where(lengths < 0, NEGATIVE, POSITIVE) if diverging and hue is None else colour
            (panel.barh if horizontal else panel.bar)(at, lengths, thick, color=fill, linewidth=0)
            if ends is not None:
                low, high = (numbers(points, end) for end in ends)
                (panel.hlines if horizontal else panel.vlines)(at, low, high, color=INK, linewidth=0.6)
        _frame(panel, head, places, "x" if horizontal else "y")
    if hue is not None and len(colours) > 1:
        handles = [Patch(color=colour, label=legend_name(hue, one)) for one, colour in colours.items()]
        above: dict[str, Any] = {"handles": handles, "ncols": min(len(handles), 6), "handlelength": 0.8}
        if facet is None:
            chart.axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.4, **above)
        else:
            chart.figure.legend(loc="outside upper left", **above)
    label = _label(frame, value, label, baseline)
    _describe(chart, *((label, places.title) if horizontal else (places.title, label)), _note(frame, note), share=share)
    return explained(chart.figure, frame)


@dataclass(frozen=True)
class Chart:
    """A figure with its panels, and the title and rows of each; `height` of a panel's axes in inches, roughly."""

    figure: Figure
    axes: list[Axes]
    parts: list[tuple[str, pd.DataFrame]]
    columns: int
    height: float


def _chart(
    parts: list[tuple[str, pd.DataFrame]],
    columns: int | None,
    places: Scale,
    *,
    share: bool,
    title: str | None,
    horizontal: float | None = None,
) -> Chart:
    """An empty chart with its panels; `horizontal` is the height of a panel of horizontal bars, if they are."""
    if columns is None:
        columns = 2 if share and len(parts) == 4 else 3 if len(parts) > 4 else len(parts)
    columns = min(len(parts), whole_number("columns", columns, least=1))
    if columns > MAX_COLUMNS:
        raise InterpError(f"{columns} panels do not fit side by side: columns must be at most {MAX_COLUMNS}")
    n_rows = -(-len(parts) // columns)
    wide = columns > 1 or (len(places) > 12 and horizontal is None)
    height = PANEL_HEIGHT if horizontal is None else horizontal
    slanted = 0.0 if horizontal is not None or places.numeric else _longest(places) * 0.7
    figure = blank(TEXT_WIDTH if wide else NARROW, n_rows * (height + 0.25) + 0.3 + slanted + (0.15 if title else 0))
    across, down = (share, True) if horizontal is not None else (True, share)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharex=across, sharey=down)
    axes = list(grid.flat)
    for spare in axes[len(parts) :]:
        spare.remove()
    if title:
        figure.suptitle(written(title), x=0.01, ha="left", weight="bold", size=7.0)
    if horizontal is not None:
        axes[0].set_ylim(len(places) - 0.4, -0.6)
    room = (TEXT_WIDTH if wide else NARROW) / columns
    for panel in axes[: len(parts)]:
        _mark_places(panel.xaxis if horizontal is None else panel.yaxis, places, room)
    return Chart(figure, axes[: len(parts)], parts, columns, height - 0.15)


def _mark_places(axis: Any, places: Scale, room: float) -> None:
    if places.numeric:
        axis.set_major_locator(MaxNLocator("auto", integer=True))
        return
    slanted = axis.axis_name == "x" and sum(width(text, SMALL) + 4 for text in places.labels) > (room - 0.8) * POINTS
    step = math.ceil(len(places) * (SMALL + 3) / ((room - 0.8) * POINTS)) if slanted else 1
    axis.set_ticks(range(0, len(places), step), labels=places.labels[::step])
    if slanted:
        for text in axis.get_ticklabels():
            text.set(rotation=45, ha="right", va="top", rotation_mode="anchor")


def _along(part: pd.DataFrame, where: str, places: Scale) -> tuple[Grid, pd.DataFrame]:
    """The places of the rows along the axis, from left to right, and the rows in this order."""
    at = part[where] if places.numeric else part[where].map({value: i for i, value in enumerate(places.values)})
    order = at.argsort(kind="stable")
    return at.to_numpy(dtype=float)[order], part.iloc[order]


def _check_unique(part: pd.DataFrame, where: str, hue: str | None) -> None:
    """Refuse several rows for one point or bar."""
    keys = [where, *_names(hue)]
    repeated = part[part.duplicated(keys, keep=False)]
    if len(repeated):
        raise InterpError(f"a point takes one row of the frame, but {repeated_rows(repeated, keys)} or hue")


def _names(facet: str | Sequence[str] | None) -> list[str]:
    return [] if facet is None else [facet] if isinstance(facet, str) else list(facet)


def _colours(frame: pd.DataFrame, hue: str | None) -> Mapping[Any, str]:
    """Value of the hue -> its colour; more than three numbers get a ramp from dark to light."""
    if hue is None:
        return {None: OKABE_ITO[0]}
    values = ordered(column(frame, hue))
    if frame[hue].dtype.kind in "iuf":
        values = [value for value in values if (frame[hue] == value).any()]
        if len(values) > 3:
            ramp = colormaps["viridis"]
            return {value: to_hex(ramp(0.9 * at / (len(values) - 1))) for at, value in enumerate(values)}
    return colours_by_name(hue, values)


def _frame(axes: Axes, head: str, places: Scale, lengths: Literal["x", "y"]) -> None:
    """Title, light lines at the ticks of the values, and a line at zero if there are values on both sides of it."""
    axes.set_title(head)
    axes.grid(axis=lengths)
    low, high = axes.get_ylim() if lengths == "y" else axes.get_xlim()
    if low < 0 < high:
        (axes.axhline if lengths == "y" else axes.axvline)(0, color=RULE, linewidth=0.5, zorder=0.9)
    if lengths == "y" and places.numeric:
        axes.margins(x=0.02)


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]], height: float) -> None:
    """Write each line's name to the right of its last point; names that would touch are moved apart."""
    if not ends:
        return
    axes.autoscale_view()
    known = {name: end for name, end in ends.items() if np.isfinite(end[1])}
    # Heights of the ends as fractions of the panel.
    fractions = [axes.transAxes.inverted().transform(axes.transData.transform(end[:2]))[1] for end in known.values()]
    apart = spread(fractions, (SMALL + 2.0) / (height * POINTS))
    aside = offset_copy(axes.transAxes, axes.get_figure(root=True), x=9, units="points")
    for (text, (at, value, colour)), level in zip(known.items(), apart, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 1, "relpos": (0, 0.5)}
        name = axes.annotate(text, (at, value), xytext=(1, level), textcoords=aside, arrowprops=leader)
        name.set(va="center", size=SMALL)


def _describe(chart: Chart, below: str, beside: str, note: str, *, share: bool) -> None:
    """Axis titles on the outer panels, and the small print at the upper right."""
    count = len(chart.axes)
    for at, axes in enumerate(chart.axes):
        lowest = at + chart.columns >= count
        axes.tick_params(labelbottom=lowest or not share, labelleft=at % chart.columns == 0 or not share)
        if lowest:
            axes.set_xlabel(below)
        if at % chart.columns == 0 and count <= chart.columns:
            axes.set_ylabel(beside)
    if count > chart.columns:
        chart.figure.supylabel(beside, size=7.0)
    if note:
        last = chart.axes[min(chart.columns, count) - 1]
        last.set_title(written(note), loc="right", weight="normal", size=SMALL, color=MUTED)


def _label(frame: pd.DataFrame, value: str, label: str | None, baseline: str | None) -> str:
    text = metric_name(frame, value) if label is None else label
    return written(text if baseline is None else f"{text} (baseline: {baseline})")


def _note(frame: pd.DataFrame, note: str | None) -> str:
    if note is not None or "n" not in frame.columns:
        return note or ""
    least, most = frame["n"].min(), frame["n"].max()
    return f"n = {least}" if least == most else f"n = {least} to {most}"


def _longest(places: Scale) -> float:
    return max(width(text, SMALL) for text in places.labels) / POINTS
