"""Tidy table or tensor to matplotlib Figure: heat maps, attention, logit lens tables, lines, bars, points, circuits.

A figure computes nothing. Its frame is aggregated already: one row for each cell, point or bar, with columns for the
axes, `value`, and, where there are intervals, `n`, `ci_low` and `ci_high`. Heat maps, attention, lines and bars take a
tensor (or array, or nested lists of numbers) just as well: its axes become the columns. Every function takes names of
columns, or an `Axis` where a column needs a title, labels or a full range. Colours, fonts and sizes suit a page.

Arguments that mean the same in every figure that takes them:
    x: column across; of a chart, the places along it, whichever way it is turned.
    y: column of the rows of cells, or upwards where both axes are measured.
    value: column of what was measured, which gives the colour of a cell, the height of a point, the length of a bar.
    hue: column whose values have a colour each.
    interval: columns of the two ends of an interval.
    axes: names of a tensor's axes, such as ("layer", "head"), or the site that it is of, such as "z"; None takes those
        of facet, y (or hue) and x, in this order. Axes that no argument draws become, from the last, x, y (or hue), and
        panels. A batch of one prompt may lead.
    tokens: the prompt's tokens, with which axes of positions (pos, query, key) are labelled.
    facet: column, or columns, whose values split the frame into panels; a panel's title is such as `L9H6`.
    columns: panels in a row; None puts as many as stay legible.
    label: what the colour bar, or the axis of the values, says; None takes the frame's metric.
    baseline: what the values are relative to, added to the label.
    limit: the value at which the colour scale ends (on both sides of 0, if it is diverging); None takes the largest
        magnitude.
    note: small print at the upper right; None prints `n`, if the frame has it.
    title: printed above the figure.

Every figure raises `UnknownName` for a column that the frame does not have, and `InterpError` for a frame without rows,
for values that are not numbers, and for several rows in the place of one cell, bar or point.
"""

from __future__ import annotations

from interp.figures.axes import Axis
from interp.figures.circuit_diagram import circuit
from interp.figures.heatmaps import attention, heatmap, lens_table
from interp.figures.lines_and_bars import bars, lines
from interp.figures.mechanism_diagram import mechanism
from interp.figures.scatter import estimates, scatter
from interp.figures.style import Figure, nothing, save

__all__ = [
    "Axis",
    "Figure",
    "attention",
    "bars",
    "circuit",
    "estimates",
    "heatmap",
    "lens_table",
    "lines",
    "mechanism",
    "nothing",
    "save",
    "scatter",
]
