"""A DataFrame as the cells of a printed table, with as many digits as each column needs.

1. A column that says the same in every row goes into the caption; one that says nothing is left out.
2. The two ends of an interval share a column.
3. Numbers of a column have the same digits after the point, about three that matter; a p below 0.001 is printed so.
4. The exact value of a rounded number stays in its cell, from where the page writes the table to a file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ENDS = ("ci_low", "ci_high")
INTERVAL = "95% interval"
LEAST_P = 0.001
FIRST = 5  # rows that are there before a long table is unfolded
FITS = 68  # letters across, in a wide font: what needs more is wider than the text
BOLD = 1.2  # letters of a head in letters of a cell
LONGEST_WORDS = 22  # letters of a cell of words in one line


@dataclass(frozen=True)
class Cell:
    """What is printed, and the exact number of each of its columns where that is something else."""

    text: str
    exact: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Column:
    """A printed column: its head, the columns of the frame in it, and whether it is of numbers."""

    head: str
    names: tuple[str, ...]
    numeric: bool


@dataclass(frozen=True)
class Table:
    """A table ready to print: `same` has what is true of all rows, as text by column."""

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    same: dict[str, str] = field(default_factory=dict)

    @property
    def wide(self) -> bool:
        """Whether it needs more room than the text beside it."""
        return sum(self._across(at) + 2 for at in range(len(self.columns))) > FITS

    @property
    def first(self) -> list[list[Cell]]:
        """The rows that are shown at first: all, if few more are left."""
        return self.rows[: len(self.rows) if len(self.rows) <= FIRST + 2 else FIRST]

    @property
    def more(self) -> list[list[Cell]]:
        """The rows that are folded at first."""
        return self.rows[len(self.first) :]

    def _across(self, at: int) -> int:
        longest = max((len(row[at].text) for row in self.rows), default=0)
        head = math.ceil(BOLD * max(map(len, self.columns[at].head.split()), default=0))
        return max(longest if self.columns[at].numeric else min(longest, LONGEST_WORDS), head)


def table(caption: str, frame: pd.DataFrame) -> Table:
    """The frame's columns and values as text, in its order, without its index."""
    columns = [frame.iloc[:, at] for at in range(frame.shape[1])]
    # 1. What is the same in all rows.
    same = {str(one.name): one.iloc[0] for one in columns if len(frame) > 1 and _is_constant(one)}
    kept = [one for one in columns if str(one.name) not in same] or columns
    same = {} if kept is columns else same
    # 2. and 3. The others, the ends of an interval together.
    names = [str(one.name) for one in kept]
    printed, cells = [], []
    for at, one in enumerate(kept):
        numeric = _is_numeric(one)
        own = _cells(one)
        if names[at : at + 2] == list(ENDS):
            others = _cells(kept[at + 1])
            printed.append(Column(INTERVAL, ENDS, numeric))
            cells.append([_interval(low, high) for low, high in zip(own, others, strict=True)])
        elif not (names[at] == ENDS[1] and at and names[at - 1] == ENDS[0]):
            printed.append(Column(names[at].replace("_", " "), (names[at],), numeric))
            cells.append(own)
    told = {name: _cells(pd.Series([value]))[0].text for name, value in same.items() if not _is_missing(value)}
    return Table(caption, printed, [list(row) for row in zip(*cells, strict=True)], told)


def _is_numeric(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column) and column.dtype.kind != "b"


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value))


def _is_constant(column: pd.Series[Any]) -> bool:
    values = column.tolist()
    return all(map(_is_missing, values)) or all(not _is_missing(one) and one == values[0] for one in values)


def _cells(column: pd.Series[Any]) -> list[Cell]:
    values = column.tolist()
    is_p = re.fullmatch(r"p(_adjusted)?", str(column.name)) is not None
    places = _places(values, is_p=is_p) if column.dtype.kind == "f" else 0
    return [_cell(value, places, is_p=is_p) for value in values]


def _cell(value: Any, places: int, *, is_p: bool) -> Cell:
    if isinstance(value, float) and 0 <= value < LEAST_P and is_p:
        return Cell(f"<{LEAST_P}", (repr(value),))
    text = _text(value, places)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        exact = "" if _is_missing(value) else repr(value)
        return Cell(text, None if exact == text else (exact,))
    return Cell(text, ("",) if _is_missing(value) else None)


def _interval(low: Cell, high: Cell) -> Cell:
    text = "–" if low.text == high.text == "–" else f"[{low.text}, {high.text}]"
    return Cell(text, tuple(one.exact[0] if one.exact else one.text for one in (low, high)))


def _places(values: Sequence[float], *, is_p: bool = False) -> int:
    """How many digits after the point give the largest value about three significant ones."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if is_p or not 0 < largest < 0.1:
        return 3 if largest < 10 else 2 if largest < 100 else 1
    return 4 if largest >= 0.01 else 5 if largest >= LEAST_P else 3


def _text(value: Any, places: int) -> str:
    if _is_missing(value):
        return "" if isinstance(value, str) else "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, places)
    return str(value).replace("-", "−") if isinstance(value, int) else str(value)


def number(value: float, places: int = 3) -> str:
    """A number as text: with a true minus sign, and as a power of ten if it is too small or too large for digits.

    >>> number(-0.12345), number(1.2e-6), number(0.0), number(float("inf"))
    ('−0.123', '1.2 × 10⁻⁶', '0.000', '∞')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not 0.5 * 10**-places <= abs(value) < 1e7:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa} × 10{str(int(power)).translate(SUPERSCRIPTS)}".replace("-", "−")
    return f"{value:.{places}f}".replace("-", "−")
