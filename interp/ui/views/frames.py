"""Views of numbers that are there already: a tensor of a cache, the table of a sweep or a study, values of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp import stats
from interp.arguments import shown
from interp.errors import InterpError
from interp.frames import restored
from interp.ui.views.arrays import exact
from interp.ui.views.view import Part

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("role", "pos", "head", "ssm_head", "kv_head", "channel", "expert", "neuron", "site", "lens", "key", "query")
"""What a map's columns can be, the first that a table has; its rows are layers."""

NUMBERS = {
    "value", "effect", "base_value", "source_value", "rounding", "ci_low", "ci_high", "n", "p", "p_adjusted", "share",
    "reason", "component", "token", "query_token", "key_token", "logit", "prob",
}  # fmt: skip
"""Columns that are measured, or say a cell's place in other words."""

BOUNDS = {"mean": "value", "low": "ci_low", "high": "ci_high"}


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
        for value in values:
            if isinstance(value, str) or not hasattr(value, "__float__"):
                raise InterpError(f"{what!r} needs a number for each token, not {shown(value)}")
    made = [
        {"what": what, "signed": any(v < 0 for v in listed), "values": [v if np.isfinite(v) else None for v in listed]}
        for what, listed in ((what, [float(v) for v in values]) for what, values in series.items())
    ]
    return Part("tokens", "Tokens", {"tokens": list(tokens), "series": made})


class Layout(NamedTuple):
    """How a table is shown: a map of layers by another column, or bars.

    Attributes:
        value: the column of the numbers that are shown.
        across: of a map the column whose values are its columns; None for bars.
        names: of bars the columns that name them; of maps those that tell one map from another.
        what: what the numbers are.
        n: how many prompts they are of.
    """

    value: str
    across: str | None
    names: list[str]
    what: str
    n: int


def layout(frame: pd.DataFrame) -> Layout:
    """How the table of a sweep or a study is shown.

    Raises:
        InterpError: a table without a column of numbers that is known, or without cells.
    """
    known = ("value", "effect") if "ci_low" in frame else ("effect", "value")  # a summary's interval is of its value
    value = next((name for name in known if name in frame and frame[name].notna().any()), None)
    if value is None or not len(frame):
        raise InterpError(f"a table with a column 'effect' or 'value' can be shown, not one of {list(frame.columns)}")
    across = [name for name in COLUMNS if name in frame and frame[name].notna().any() and frame[name].nunique() > 1]
    if "layer" in frame and frame["layer"].notna().any() and across:
        own = frame[frame["layer"].notna() & frame[across[0]].notna()]
        names = _telling(own, ["layer", across[0]])
        return Layout(value, across[0], names, _what(value, frame, names), _prompts(frame))
    parts = [name for name in ("component", "layer", *COLUMNS) if name in frame and frame[name].notna().any()]
    parts += _telling(frame, parts)
    if not parts:
        raise InterpError(f"a table needs columns that name its cells, such as layer and head; it has {list(frame)}")
    return Layout(value, None, parts, _what(value, frame, parts), _prompts(frame))


def of_frame(frame: pd.DataFrame) -> Part:
    """A sweep's or a study's table: a map of layers by heads, positions or roles, or bars where it has no such columns.

    What else tells rows apart (a metric, a kind of ablation, a second axis) makes a map or bars of its own.

    Raises:
        InterpError: a table without a column of numbers that is known, or without cells.
    """
    frame = restored(frame)
    found = layout(frame)
    if found.across is not None:
        return _map(frame, found, found.across)
    table = _means(frame, found.names, found.value)
    rows = table[found.names].to_dict("records")
    labels = [
        " ".join(
            f"{text}" if name in ("component", "metric") else f"{name} {_shown(text)}" for name, text in row.items()
        )
        for row in rows
    ]
    bounds = {name: [None if v != v else v for v in table[column].astype(float)] for name, column in BOUNDS.items()}
    title = found.what[:1].upper() + found.what[1:]
    return Part("bars", title, {"labels": labels, **bounds, "what": found.what, "n": found.n})


def _map(frame: pd.DataFrame, found: Layout, column: str) -> Part:
    own = frame[frame["layer"].notna() & frame[column].notna()]
    rows, columns = (list(dict.fromkeys(own[name])) for name in ("layer", column))
    rows.sort()
    if all(isinstance(one, (int, float, np.number)) for one in columns):
        columns.sort()
    table = _means(own, ["layer", column, *found.names], found.value)
    maps = []
    for key, cells in table.groupby(found.names, sort=False, dropna=False) if found.names else [((), table)]:
        grid = cells.set_index(["layer", column]).reindex([(row, one) for row in rows for one in columns])
        values = {
            name: exact(torch.tensor(grid[of].to_numpy(dtype=float, na_value=np.nan)).view(len(rows), len(columns)))
            for name, of in {"values": "value", "low": "ci_low", "high": "ci_high"}.items()
        }
        which = ", ".join(f"{name} {_shown(one)}" for name, one in zip(found.names, key, strict=True))
        what = f"{found.what}, mean over {found.n} prompt{'s'[: found.n > 1]}"
        maps.append({"what": f"{which}: {what}" if which else what, "signed": True, **values})
    payload = {
        "rows": [_shown(one) for one in rows],
        "columns": [_shown(one) for one in columns],
        "named": ["layer", column],
        "maps": maps,
    }
    return Part("heatmap", f"{found.value[:1].upper()}{found.value[1:]} by layer and {column}", payload)


def _telling(frame: pd.DataFrame, cell: Sequence[str]) -> list[str]:
    """The columns by which rows of one cell and prompt differ: each of their values is a table of its own."""
    own = [*cell, *(["prompt"] if "prompt" in frame else [])]
    others = [name for name in frame if name not in own and name not in NUMBERS]
    found: list[str] = []
    for name in others:
        keys = [*own, *found]
        if not frame.duplicated(keys).any():
            break
        if (frame.groupby(keys, dropna=False)[name].nunique(dropna=False) > 1).any():
            found.append(name)
    return found


def _means(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Means over prompts with intervals; of a summary its own, and no interval where it has none."""
    if "prompt" in frame:
        return stats.summarise(frame, by=list(by), value=value)
    return frame.assign(value=frame[value], ci_low=frame.get("ci_low", np.nan), ci_high=frame.get("ci_high", np.nan))


def _prompts(frame: pd.DataFrame) -> int:
    return int(frame["prompt"].nunique() if "prompt" in frame else frame["n"].max() if "n" in frame else 1)


def _what(value: str, frame: pd.DataFrame, names: Sequence[str]) -> str:
    return f"{value} of {frame['metric'].iloc[0]}" if "metric" in frame and "metric" not in names else value


def _shown(value: Any) -> str:
    return f"{int(value)}" if isinstance(value, (float, np.floating)) and float(value).is_integer() else f"{value}"
