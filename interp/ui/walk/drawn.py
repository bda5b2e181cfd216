"""What a step of the walk is made of: words with numbers and tokens in them, and small drawings.

A text is a list of pieces: plain words, `{"number": 1.5}`, or a token `{"token": "Mary", "at": 3}`. The page sets
numbers and tokens in their own type, so that none of them is ever read as markup or turns the line around.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from interp.ui.views.arrays import exact, packed

Piece = str | dict[str, Any]
Item = dict[str, Any]
Cell = str | float | dict[str, Any] | None


def step(key: str, title: str, text: Sequence[Piece], *items: Item | None) -> dict[str, Any]:
    """A step: a heading, a few sentences, and what is drawn below them; None is left out."""
    return {"key": key, "title": title, "text": list(text), "items": [one for one in items if one is not None]}


def number(value: float | Tensor) -> dict[str, Any]:
    """A number within a text."""
    return {"number": float(value)}


def size(vector: Tensor) -> dict[str, Any]:
    """The length of a vector, within a text."""
    return number(vector.float().norm())


def vectors(rows: Sequence[tuple[str, Tensor]], what: str = "") -> Item:
    """Vectors below one another, each a strip of cells [number]; all share one scale of colours."""
    return {"kind": "vectors", "what": what, "rows": [{"what": name, "values": exact(row)} for name, row in rows]}


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Item:
    """A table whose first column names its rows."""
    return {"kind": "table", "caption": caption, "heads": list(heads), "rows": [list(row) for row in rows]}


def bars(what: str, labels: Sequence[Piece], values: Tensor, *, chosen: int | None = None, chooses: str = "") -> Item:
    """A bar for each of several numbers; clicked, it changes what `chooses` names ("unit" or "position")."""
    listed = values.float().tolist()
    return {
        "kind": "bars",
        "what": what,
        "labels": list(labels),
        "values": listed,
        "chosen": chosen,
        "chooses": chooses,
    }


def lines(what: str, across: str, made: Sequence[tuple[str, Tensor]], *, chosen: int, mark: int | None = None) -> Item:
    """Curves over whole numbers from 0, one of them strong; `mark` is a place that is pointed out."""
    curves = [{"what": name, "values": values.float().tolist()} for name, values in made]
    return {"kind": "lines", "what": what, "across": across, "lines": curves, "chosen": chosen, "mark": mark}


def triangles(made: Sequence[tuple[str, Tensor]]) -> Item:
    """Matrices [query, key] side by side; -inf is drawn as not there."""
    return {"kind": "triangles", "maps": [{"what": what, "values": packed(values)} for what, values in made]}


def after(words: Item, before: str) -> Item:
    """Words that a vector says, with what they are of."""
    words["before"] = before
    return words
