"""A DataFrame as the cells of a printed table, with as many digits as each column needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Table:
    """A table ready to print: `heads` and `rows` are text; `numeric` columns are aligned at the right."""

    caption: str
    heads: list[str]
    numeric: list[bool]
    rows: list[list[str]]


def table(caption: str, frame: pd.DataFrame) -> Table:
    """The frame's columns and values as text, in its order, without its index."""
    columns = [frame.iloc[:, at] for at in range(frame.shape[1])]
    numeric = [pd.api.types.is_numeric_dtype(column) and column.dtype.kind != "b" for column in columns]
    cells = [_texts(column.tolist(), float_=column.dtype.kind == "f") for column in columns]
    heads = [str(name).replace("_", " ") for name in frame.columns]
    return Table(caption, heads, numeric, [list(row) for row in zip(*cells, strict=True)])


def _texts(values: list[Any], *, float_: bool) -> list[str]:
    places = _places(values) if float_ else 0
    return [_text(value, places) for value in values]


def _places(values: Iterable[float]) -> int:
    """How many digits after the point give the largest value about three significant ones."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 3 if largest < 10 else 2 if largest < 100 else 1


def _text(value: Any, places: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
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
