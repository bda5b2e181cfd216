"""Figures made of cells: heat maps of anything by anything, attention patterns, the table of a logit lens.

1. Each panel becomes a matrix; cells without a row in the frame stay empty.
2. `cell_panels.sheet` lays the panels out and draws them on one colour scale.
3. Text is printed in the cells: names of the strongest cells, or a token in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp.arguments import checked, whole_number
from interp.figures.axes import (
    Axis,
    Grid,
    is_part,
    matrix,
    metric_name,
    name,
    numbers,
    panels,
    place,
    scale,
    with_tokens,
)
from interp.figures.cell_panels import Sheet, colours_for, mark, sheet, write
from interp.figures.glyphs import position_labels, shorten, visible, width
from interp.figures.style import POINTS, TINY, Figure, explained, styled
from interp.figures.tensors import Values, framed, patterns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from interp.hooked.cache import ActivationCache


@checked
@styled()
def heatmap(
    values: Values,
    *,
    x: str | Axis | None = None,
    y: str | Axis | None = None,
    value: str = "value",
    facet: str | Sequence[str] | None = None,
    axes: str | Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
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
        values: one row for each cell, or a tensor [facet..., y, x]; cells without a row, or with NaN, are hatched.
        x: column, or `Axis`, across.
        y: column, or `Axis`, downwards.
        value: column that gives the colour.
        diverging: red, white, blue around 0 with positive blue; False is white to blue, from 0 or from the smallest
            value if that is negative.
        annotate: mark this many cells of largest magnitude in each panel: heads by name (`L9H6`), others by value.
        facet, axes, tokens, columns, limit, label, baseline, title: as `interp.figures` describes them.

    Raises:
        UnknownName, InterpError: as every figure.

    >>> figure = heatmap(np.eye(3), x="key", y="query", tokens=["When", " Mary", " and"], diverging=False)
    """
    frame, (y, x), facet = framed(values, axes, {"y": y, "x": x}, facet)
    x, y = with_tokens(x, tokens), with_tokens(y, tokens)
    across, down, names = scale(frame, x), scale(frame, y), (name(x), name(y))
    annotate = whole_number("annotate", annotate, least=0)
    numbers(frame, value)
    parts = [(head, matrix(part, across, down, names, value)) for head, part in panels(frame, facet)]
    label = metric_name(frame, value) if label is None else label
    label = label if baseline is None else f"{label} (baseline: {baseline})"
    colours = colours_for([grid for _, grid in parts], diverging=diverging, limit=limit)
    drawn = sheet(parts, across, down, colours, label, columns=columns, title=title)
    for panel, (_, grid) in zip(drawn.axes, parts, strict=True):
        cells = strongest(grid, annotate)
        if is_part(names):
            texts = {
                (row, column): place({names[1]: down.values[row], names[0]: across.values[column]})
                for row, column in cells
            }
        else:
            texts = {(row, column): f"{grid[row, column]:.2f}".replace("-", "−") for row, column in cells}
        if all(width(text, TINY) <= drawn.cell_width * POINTS - 1 for text in texts.values()):
            for (row, column), text in texts.items():
                write(panel, row, column, text, colours.of(grid[row, column]))
        else:
            _mark_beside(panel, texts, drawn, same_layer=is_part(names) and names[1] == "layer")
    return explained(drawn.figure, frame)


def _mark_beside(axes: Axes, texts: Mapping[tuple[int, int], str], drawn: Sheet, *, same_layer: bool) -> None:
    """Frame cells and print their texts beside them; neighbours share one text, which names their layer once."""
    for row in sorted({row for row, _ in texts}):
        named = []
        for neighbours in _neighbours(sorted(column for other, column in texts if other == row)):
            first, *others = (texts[row, column] for column in neighbours)
            short = [text.lstrip("L0123456789") if same_layer else text for text in others]
            named.append((neighbours, ", ".join([first, *short])))
        mark(axes, row, named, drawn.cell_width)


@checked
@styled()
def attention(
    values: Values | ActivationCache,
    tokens: Sequence[str],
    *,
    x: str = "key",
    y: str = "query",
    value: str = "value",
    facet: str | Sequence[str] | None = ("layer", "head"),
    axes: str | Sequence[str] | None = None,
    columns: int | None = None,
    limit: float = 1.0,
    label: str = "attention probability",
    title: str | None = None,
) -> Figure:
    """Attention patterns of one prompt: destination (query) rows, source (key) columns, tokens on both axes.

    Args:
        values: one row for each query, key and panel; a tensor [query, key] or [head, query, key], such as
            `cache["pattern", 3][0]`; or a cache of one prompt, of which all heads are drawn. Positions count from 0. If
            no panel attends ahead, the keys that a causal mask hides are left grey.
        tokens: the prompt's tokens, or its labels `9: John`.
        x: column of source positions (keys).
        y: column of destination positions (queries).
        value: column that gives the colour, from 0.
        facet: columns whose values split the frame into panels; of a tensor, all its other axes.
        axes, columns, limit, label, title: as `interp.figures` describes them.

    Raises:
        UnknownName, InterpError: as every figure; also for positions beyond the tokens, and for several prompts.

    >>> figure = attention(np.tril(np.full((2, 3, 3), 0.5)), ["When", " Mary", " and"])
    """
    frame, facet = patterns(values, axes, y, x, facet)
    labels, positions = position_labels(tokens), range(len(tokens))
    across, down = (scale(frame, Axis(at, labels=labels, values=positions)) for at in (x, y))
    numbers(frame, value)
    parts = [(head, matrix(part, across, down, (x, y), value)) for head, part in panels(frame, facet)]
    ahead = np.triu_indices(len(tokens), 1)
    causal = not any(np.nan_to_num(grid[ahead]).any() for _, grid in parts)
    if causal:
        for _, grid in parts:
            grid[ahead] = np.nan
    colours = colours_for([grid for _, grid in parts], diverging=False, limit=limit)
    drawn = sheet(parts, across, down, colours, label, columns=columns, title=title, square=True, hatched=not causal)
    return drawn.figure


@checked
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
        text: column of tokens; invisible characters are shown, and long tokens are cut.
        label, title: as `interp.figures` describes them.

    Raises:
        UnknownName, InterpError: as every figure.
    """
    if "metric" in frame.columns and "top_prob" in set(frame["metric"]):
        frame = frame[frame["metric"] == "top_prob"]
    across, down, names = scale(frame, x), scale(frame, y), (name(x), name(y))
    numbers(frame, value)
    grid, texts = (matrix(frame, across, down, names, column) for column in (value, text))
    colours = colours_for([grid], diverging=False, limit=1.0)
    drawn = sheet([("", grid)], across, down, colours, label, title=title, widest=0.8)
    room = drawn.cell_width * POINTS - 2.5
    for row, column in zip(*np.nonzero(~np.isnan(grid)), strict=True):
        token = shorten(visible(str(texts[row, column])), TINY, room)
        write(drawn.axes[0], row, column, token, colours.of(grid[row, column]))
    return drawn.figure


def _neighbours(columns: Sequence[int]) -> list[list[int]]:
    """Sorted columns grouped into runs without gaps."""
    runs: list[list[int]] = []
    for column in columns:
        if runs and runs[-1][-1] == column - 1:
            runs[-1].append(column)
        else:
            runs.append([column])
    return runs


def strongest(values: Grid, count: int) -> list[tuple[int, int]]:
    """Row and column of the `count` values of largest magnitude, largest first."""
    known = np.argwhere(~np.isnan(values))
    order = np.argsort([-abs(values[row, column]) for row, column in known], kind="stable")
    return [(int(row), int(column)) for row, column in known[order[:count]]]
