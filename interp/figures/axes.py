"""From the columns of a tidy frame to the axes and panels of a figure.

An axis is a column. Its values are ordered as numbers, as categories, or as they first appear; whole numbers are filled
up without gaps, so that it shows what was not measured. A panel is a value, or a combination of values, of the facet
columns.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from interp.arguments import column_of, shown
from interp.errors import InterpError
from interp.figures.glyphs import drawable, position_labels, visible, written
from interp.names import PART_KINDS, UNITS, part_of

Grid = np.ndarray[Any, np.dtype[Any]]

TITLES = {
    "pos": "position",
    "query": "destination (query)",
    "key": "source (key)",
    "value": "",
    "ssm_head": PART_KINDS["ssm_head"].word,
}
PLACES = ("pos", "query", "key")  # columns of positions, which tokens can label
MAX_RANGE = 512  # whole numbers that are further apart than this keep their gaps


@dataclass(frozen=True)
class Axis:
    """One axis of a figure: a column of the frame, and how it is written.

    Attributes:
        column: the column's name.
        title: the title of the axis; None takes the column's name, "" leaves it out.
        labels: the text at each value: a mapping, or a sequence that the values index. None prints the values, or the
            tokens of positions if the frame has a `token` for each.
        values: all values of the axis in order; those that the frame does not have are shown as not measured.
    """

    column: str
    title: str | None = None
    labels: Sequence[str] | Mapping[Any, str] | None = None
    values: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.column, str) or not isinstance(self.title, str | None):
            what, given = ("title", self.title) if isinstance(self.column, str) else ("column", self.column)
            raise InterpError(f"the {what} of an axis must be text, not {shown(given)}")
        if not _are_labels(self.labels):
            raise InterpError(
                f"the labels of an axis must be texts, or a mapping from values to texts, not {shown(self.labels)}"
            )
        if self.values is not None and not _is_list(self.values):
            raise InterpError(f"the values of an axis must be a list of numbers or texts, not {shown(self.values)}")


def _is_list(given: Any) -> bool:
    """Whether something holds, one after another, what can be looked for in a column."""
    listed = isinstance(given, Sequence) or hasattr(given, "tolist")
    listed = listed and not isinstance(given, str | bytes) and getattr(given, "ndim", 1) == 1
    return listed and all(isinstance(one, Hashable) for one in given)


def _are_labels(given: Any) -> bool:
    if given is None:
        return True
    texts = list(given.values()) if isinstance(given, Mapping) else given
    return _is_list(texts) and all(isinstance(text, str) for text in texts)


@dataclass(frozen=True)
class Scale:
    """The axis of one frame: its values in order, the text at each, and `numeric` if some texts may be left out."""

    values: list[Any]
    labels: list[str]
    title: str
    numeric: bool

    def __len__(self) -> int:
        return len(self.values)


def scale(frame: pd.DataFrame, axis: str | Axis) -> Scale:
    """The values, labels and title of an axis over the whole frame."""
    axis = Axis(axis) if isinstance(axis, str) else axis
    present = column(frame, axis.column)
    values = ordered(present) if axis.values is None else list(axis.values)
    if foreign := set(present.dropna()) - set(values):
        raise InterpError(
            f"the frame has {axis.column}={min(foreign, key=str)!r}, which is not among the axis's values: add it to "
            "them, or leave its rows out"
        )
    title = TITLES.get(axis.column, axis.column.replace("_", " ")) if axis.title is None else axis.title
    labels = axis.labels
    if labels is None and axis.column == "pos":
        labels = _tokens(frame)
    if labels is None:
        return Scale(values, [drawable(str(value)) for value in values], written(title), present.dtype.kind in "iuf")
    try:
        texts = [drawable(labels[value]) for value in values]
    except (KeyError, IndexError, TypeError):
        reach = f"{axis.column} from {values[0]} to {values[-1]}"
        raise InterpError(f"the axis needs a label for every {reach}; {len(labels)} labels do not cover them") from None
    return Scale(values, texts, written(title), numeric=False)


def with_tokens(axis: str | Axis, tokens: Sequence[str] | None) -> str | Axis:
    """An axis of positions labelled `9: John` with the prompt's tokens; any other axis as it is."""
    if tokens is None or name(axis) not in PLACES:
        return axis
    axis = Axis(axis) if isinstance(axis, str) else axis
    return axis if axis.labels is not None else replace(axis, labels=position_labels(tokens))


def name(axis: str | Axis) -> str:
    """The column of an axis."""
    return axis if isinstance(axis, str) else axis.column


def metric_name(frame: pd.DataFrame, value: str) -> str:
    """The name of the values: the frame's metric, if it has just one, or the column's name."""
    metrics = set(frame["metric"]) if "metric" in frame.columns and value == "value" else set()
    return str(metrics.pop() if len(metrics) == 1 else value).replace("_", " ")


def column(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    """A column by its name, refused if it does not exist or has no rows."""
    values = column_of(frame, name)
    if frame.empty:
        raise InterpError("there is nothing to draw: the frame has no rows")
    return values


def bounds(frame: pd.DataFrame, names: Sequence[str] | None) -> tuple[str, str] | None:
    """The columns of an interval's two ends, for a band or an error bar; None where none are drawn.

    Raises:
        InterpError: something else than the names of two columns.
    """
    if names is None:
        return None
    if not isinstance(names, list | tuple) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise InterpError(
            f"interval must be the names of two columns, such as ('ci_low', 'ci_high'), or None, not {shown(names)}"
        )
    low, high = names
    return (low, high) if {low, high} <= set(frame.columns) else None


def numbers(frame: pd.DataFrame, name: str) -> Grid:
    """A column as floats, refused if it is not numeric."""
    values = column(frame, name)
    if values.dtype.kind not in "iufb":
        raise InterpError(f"column {name!r} must hold numbers to be drawn, not {values.dtype}")
    return values.astype("float64").to_numpy()


def ordered(values: pd.Series[Any]) -> list[Any]:
    """The different values of a column in the order of an axis; whole numbers without gaps."""
    values = values.dropna()
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [value for value in values.cat.categories if (values == value).any()]
    if values.dtype.kind in "iuf" and len(values) and (values % 1 == 0).all():
        least, most = int(values.min()), int(values.max())
        if most - least < MAX_RANGE:
            return list(range(least, most + 1))
    different = values.unique().tolist()
    return sorted(different) if values.dtype.kind in "iuf" else different


def matrix(frame: pd.DataFrame, x: Scale, y: Scale, names: tuple[str, str], value: str) -> Grid:
    """Values as a grid, NaN where the frame has no row; dtype float, or object for text.  # [y, x]

    A row that has no value on one of the axes (an embedding has no layer) is left out.
    """
    across, down = names
    frame = frame.dropna(subset=[across, down])
    repeated = frame[frame.duplicated([across, down], keep=False)]
    if len(repeated):
        raise InterpError(f"a cell takes one row of the frame, but {repeated_rows(repeated, names)}")
    text = column(frame, value).dtype.kind not in "iufb"
    grid = np.full((len(y), len(x)), np.nan, dtype=object if text else float)
    rows = frame[down].map({v: i for i, v in enumerate(y.values)}).to_numpy(dtype=int)
    columns = frame[across].map({v: i for i, v in enumerate(x.values)}).to_numpy(dtype=int)
    grid[rows, columns] = frame[value].to_numpy() if text else numbers(frame, value)
    return grid


def repeated_rows(rows: pd.DataFrame, names: Sequence[str]) -> str:
    """The second half of an error: which rows share one place, and what to do about it."""
    first = " and ".join(f"{name}={rows[name].iloc[0]!s}" for name in names)
    return (
        f"{len(rows)} rows share theirs, such as {first}: aggregate them first (interp.stats.summarise), or give the "
        "column that distinguishes them as facet"
    )


def panels(frame: pd.DataFrame, facet: str | Sequence[str] | None) -> list[tuple[str, pd.DataFrame]]:
    """The frame split by its facet columns, in the order of first appearance, each part with a title such as `L9H6`."""
    if facet is None:
        return [("", frame)]
    names = [facet] if isinstance(facet, str) else list(facet)
    if not names:
        raise InterpError("facet must name at least one column, or be None for a single panel")
    for name in names:
        column(frame, name)
    groups = frame.groupby(names, sort=False, observed=True, dropna=False)
    return [(written(place(dict(zip(names, key, strict=True)))), part) for key, part in groups]


def place(where: Mapping[str, Any]) -> str:
    """A short name for axis values, such as `L9H6` for a head.

    >>> place({"layer": 9, "head": 6}), place({"head": 2}), place({"metric": "kl", "layer": 3})
    ('L9H6', 'head 2', 'kl, layer 3')
    >>> place({"layer": 9, "ssm_head": 6})
    'L9S6'
    """
    where = {name: int(at) if isinstance(at, float) and at.is_integer() else at for name, at in where.items()}
    part = part_of(where) if is_part(where) else None
    if part is not None:
        return part.name
    return ", ".join(f"{k} {v}" if k in ("layer", "head", "pos", "prompt") else str(v) for k, v in where.items())


def is_part(names: Collection[str]) -> bool:
    """Whether these axes identify a part of a layer that has a name of its own."""
    return len(names) == 2 and "layer" in names and not set(UNITS).isdisjoint(names)


def legend_name(hue: str, value: object) -> str:
    """A value of the hue's column as a legend prints it."""
    return drawable(place({hue: value}).replace("_", " "))


def _tokens(frame: pd.DataFrame) -> dict[Any, str] | None:
    """Position -> its label with the token, if each position has one token."""
    if "token" not in frame.columns:
        return None
    pairs = frame[["pos", "token"]].drop_duplicates()
    if pairs["pos"].duplicated().any():
        return None
    return {pos: f"{pos}: {visible(str(token))}" for pos, token in pairs.itertuples(index=False)}


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions in the same order, moved as little as possible so that they are at least `gap` apart.

    >>> spread([0.0, 0.1, 5.0], 1.0)
    [-0.45, 0.55, 5.0]
    """
    # Neighbours that are too close merge into a block, evenly spaced around the mean of their positions.
    blocks: list[list[int]] = []
    centres: list[float] = []
    for index in sorted(range(len(positions)), key=lambda i: positions[i]):
        blocks.append([index])
        centres.append(positions[index])
        while len(blocks) > 1 and centres[-1] - centres[-2] < gap * (len(blocks[-1]) + len(blocks[-2])) / 2:
            last = blocks.pop()
            centres.pop()
            blocks[-1] += last
            centres[-1] = sum(positions[i] for i in blocks[-1]) / len(blocks[-1])
    return [position for _, position in sorted(_places(blocks, centres, gap))]


def _places(blocks: list[list[int]], centres: list[float], gap: float) -> Iterator[tuple[int, float]]:
    """Every index and its new position."""
    for block, centre in zip(blocks, centres, strict=True):
        for at, index in enumerate(block):
            yield index, centre + gap * (at - (len(block) - 1) / 2)
