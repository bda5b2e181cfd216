"""Tidy DataFrame to matplotlib Figure: heat maps, attention patterns, logit lens tables, lines, bars, points, circuits.

A figure computes nothing. A frame comes aggregated, one row a cell, point or bar, with columns for the axes, `value`,
and where there are intervals `n`, `ci_low` and `ci_high`. Every function takes the names of columns, or an `Axis` where
a column needs a title, labels or a full range; colours, fonts and sizes are those of a paper's page.
"""

from __future__ import annotations

from interp.canvas import Figure, nothing, save
from interp.charts import bars, lines
from interp.diagram import circuit
from interp.grids import attention, heatmap, lens_table
from interp.scales import Axis
from interp.scatter import estimates, scatter

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
