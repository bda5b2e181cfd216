"""The numbers behind a page's figures, as the page holds them: once, in columns, for its views and for its files.

A column of fractions is base64 of single precision (double where that would lose a number). Any other column is a list
of its different values, and for each row the number of its own in that list; one with a single value is that list.
Where a text holds what cannot be seen, `shown` has it as readers see it.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.frames import restored
from interp.text.characters import visible, visible_token
from interp.ui.views.frames import layout

if TYPE_CHECKING:
    import pandas as pd

VIEWS = {"attention": "attention", "lens": "lens", "circuit": "graph"}
"""Ways to point at a figure's numbers, and the views that draw them; `cells` is a map or bars, by the columns."""


def stored(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame as the page holds it."""
    return {"rows": len(frame), "columns": {str(name): _column(frame[name]) for name in frame}}


def pointed(frame: pd.DataFrame, view: str) -> dict[str, Any]:
    """Which view of the frame there is, and of which columns; nothing if it has no number, or none is asked for."""
    if not view or not frame[[name for name in ("value", "effect") if name in frame]].notna().any(axis=None):
        return {}
    if view != "cells":
        return {"view": VIEWS[view]}
    found = layout(restored(frame))
    return {"view": "heatmap" if found.across else "bars", **found._asdict()}


def _column(column: pd.Series[Any]) -> dict[str, Any]:
    if column.dtype.kind == "f":
        return _fractions(column.to_numpy(dtype=np.float64))
    values = [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]
    known: dict[Any, int] = {}
    at = np.array([known.setdefault((type(value), value), len(known)) for value in values])
    made: dict[str, Any] = {"values": [value for _, value in known]}
    texts = [value for _, value in known if isinstance(value, str)]
    show = visible_token if str(column.name).endswith("token") else visible
    if any(show(text) != text for text in texts):
        made["shown"] = [show(value) if isinstance(value, str) else value for _, value in known]
    if len(known) > 1:
        made |= _encoded(at.astype("<u1" if len(known) <= 256 else "<u2" if len(known) <= 65_536 else "<u4"))
    return made


def _fractions(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    single = not len(sizes) or (sizes.min() > 1e-37 and sizes.max() < 1e38)
    return _encoded(values.astype("<f4" if single else "<f8"))


def _encoded(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"type": values.dtype.name, "data": base64.b64encode(values.tobytes()).decode("ascii")}
