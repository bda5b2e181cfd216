"""Tidy DataFrame to matplotlib Figure: heat maps, attention patterns, logit lens tables, lines, bars, points, circuits.

A figure computes nothing. A frame comes aggregated, one row a cell, point or bar, with columns for the axes, `value`,
and where there are intervals `n`, `ci_low` and `ci_high`. Every function takes the names of columns, or an `Axis` where
a column needs a title, labels or a full range; colours, fonts and sizes are those of a paper's page.
"""

from __future__ import annotations

from interp.figures.axes import Axis
from interp.figures.circuit_diagram import circuit
from interp.figures.heatmaps import attention, heatmap, lens_table
from interp.figures.lines_and_bars import bars, lines
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
    "nothing",
    "save",
    "scatter",
]
