"""Views of numbers that are there already: a tensor of a cache, the table of a sweep or a study, values of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp import stats
from interp.errors import InterpError
from interp.ui.views.arrays import exact
from interp.ui.views.view import Part

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("role", "pos", "head", "ssm_head", "kv_head", "channel", "expert", "neuron", "site", "lens", "key", "query")
"""What a map's columns can be, the first that a table has; its rows are layers."""


def heat_map(values: Tensor, rows: Sequence[str], columns: Sequence[str], named: tuple[str, str], what: str) -> Part:
    """A map of a matrix [row, column]."""
    return heat_maps([(what, values)], rows, columns, named, what[:1].upper() + what[1:])


def heat_maps(
    maps: Sequence[tuple[str, Tensor]], rows: Sequence[str], columns: Sequence[str], named: tuple[str, str], title: str
) -> Part:
    """One of several maps of the same rows and columns, each with what it is of."""
    for what, values in maps:
        if values.shape != (len(rows), len(columns)):
            raise InterpError(
                f"{what!r} has shape {list(values.shape)}, and there are {len(rows)} and {len(columns)} labels"
            )
    made = [{"what": what, "signed": bool((values < 0).any()), "values": exact(values)} for what, values in maps]
    payload = {"rows": list(rows), "columns": list(columns), "named": list(named), "maps": made}
    return Part("heatmap", title, payload)


def coloured_tokens(tokens: Sequence[str], series: Mapping[str, Sequence[float]]) -> Part:
    """A text whose tokens are coloured, by one of several series of numbers."""
    for what, values in series.items():
        if len(values) != len(tokens):
            raise InterpError(f"{what!r} has {len(values)} values for {len(tokens)} tokens")
    made = [
        {"what": what, "signed": any(v < 0 for v in listed), "values": [v if np.isfinite(v) else None for v in listed]}
        for what, listed in ((what, [float(v) for v in values]) for what, values in series.items())
    ]
    return Part("tokens", "Tokens", {"tokens": list(tokens), "series": made})


def of_frame(frame: pd.DataFrame) -> Part:
    """A sweep's or a study's table: a map of layers by heads, positions or roles, or bars where it has no such columns.

    Raises:
        InterpError: a table without a column of numbers that is known, or without cells.
    """
    value = next((name for name in ("effect", "value") if name in frame and frame[name].notna().any()), None)
    if value is None or not len(frame):
        raise InterpError(f"a table with a column 'effect' or 'value' can be shown, not one of {list(frame.columns)}")
    across = [name for name in COLUMNS if name in frame and frame[name].notna().any() and frame[name].nunique() > 1]
    n = int(frame["prompt"].nunique()) if "prompt" in frame else int(frame["n"].max()) if "n" in frame else 1
    if "layer" in frame and frame["layer"].notna().any() and across:
        return _map(frame, value, across[0], n)
    parts = [name for name in ("component", "layer", *COLUMNS) if name in frame and frame[name].notna().any()]
    if not parts:
        raise InterpError(f"a table needs columns that name its cells, such as layer and head; it has {list(frame)}")
    table = stats.summarise(frame, by=parts, value=value) if "prompt" in frame else _as_table(frame, value)
    labels = [
        " ".join(f"{row[name]}" if name == "component" else f"{name} {_shown(row[name])}" for name in parts)
        for _, row in table.iterrows()
    ]
    bounds = {
        name: [None if v != v else v for v in table[column].astype(float)]
        for name, column in (("mean", "value"), ("low", "ci_low"), ("high", "ci_high"))
    }
    what = f"{value} on {frame['metric'].iloc[0]}" if "metric" in frame else value
    return Part("bars", what[:1].upper() + what[1:], {"labels": labels, **bounds, "what": what, "n": n})


def _map(frame: pd.DataFrame, value: str, column: str, n: int) -> Part:
    own = frame[frame["layer"].notna() & frame[column].notna()]
    table = stats.summarise(own, by=["layer", column], value=value) if "prompt" in own else _as_table(own, value)
    rows, columns = (list(dict.fromkeys(own[name])) for name in ("layer", column))
    rows.sort()
    if all(isinstance(one, (int, float, np.number)) for one in columns):
        columns.sort()
    where: dict[Any, int] = {key: at for at, key in enumerate(columns)}
    grids = {name: torch.full((len(rows), len(columns)), torch.nan) for name in ("value", "ci_low", "ci_high")}
    for _, row in table.iterrows():
        for name, grid in grids.items():
            grid[rows.index(row["layer"]), where[row[column]]] = float(row[name])
    metric = f" of {frame['metric'].iloc[0]}" if "metric" in frame else ""
    what = f"{value}{metric}, mean over {n} prompt{'s' if n != 1 else ''}"
    maps = [
        {
            "what": what,
            "signed": True,
            "values": exact(grids["value"]),
            "low": exact(grids["ci_low"]),
            "high": exact(grids["ci_high"]),
        }
    ]
    payload = {
        "rows": [_shown(one) for one in rows],
        "columns": [_shown(one) for one in columns],
        "named": ["layer", column],
        "maps": maps,
    }
    return Part("heatmap", f"{value[:1].upper()}{value[1:]} by layer and {column}", payload)


def _as_table(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """A table of means as `stats.summarise` gives one; without intervals where it has none."""
    return frame.assign(value=frame[value], ci_low=frame.get("ci_low", np.nan), ci_high=frame.get("ci_high", np.nan))


def _shown(value: Any) -> str:
    return f"{int(value)}" if isinstance(value, (float, np.floating)) and float(value).is_integer() else f"{value}"


def axis_labels(axis: str, length: int, tokens: Sequence[str] | None) -> list[str]:
    """The labels of an axis: tokens where it is of positions and they are given, else numbers."""
    if tokens is not None and axis in ("pos", "query", "key") and len(tokens) == length:
        return [f"{at}: {text}" for at, text in enumerate(tokens)]
    return [str(at) for at in range(length)]
