"""Tables of the cells of a patching study as maps and bars show them.

1. `by_head` brings heads of several kinds under one column, and a key-value head under every head that reads it.
2. `strongest_units` leaves the layers or heads with the largest effects; `shared_labels` says which token or role
   stands at a position in all prompts; `cell_names` gives every cell a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.names import PART_KINDS, Part
from interp.variants.granularity import HEAD_AXES, PLACES, cut_by

if TYPE_CHECKING:
    import pandas as pd

VARIES = "…"
UNITS = (*HEAD_AXES, "neuron")
"""What a layer is cut into, whatever the positions."""

WORDS = {"query": " from {}", "key": " to {}"}


def shared_labels(frame: pd.DataFrame, column: str, name: str) -> dict[int, str]:
    """The token or role at every position, `…` where prompts differ; two roles that take turns are `IO/S1`."""
    most = 2 if name.endswith("role") else 1
    seen = frame[[column, name]].drop_duplicates().groupby(column)[name].agg(list)
    return {
        int(at): "/".join(texts) if len(texts) == 1 or (len(texts) <= most and all(texts)) else VARIES
        for at, texts in seen.items()
    }


def by_head(table: pd.DataFrame) -> pd.DataFrame:
    """One column `head` where a table has several kinds of heads; every cell's `unit` is named after its own.

    The cells of a kv head stand there once for every head that reads it.
    """
    import numpy as np
    import pandas as pd

    if {"head", "kv_head"} <= set(table):
        shared = table["kv_head"].notna()
        group = int(table["head"].max() + 1) // int(table["kv_head"].max() + 1)
        rows = table.loc[table.index[shared].repeat(group)]
        rows["head"] = rows["kv_head"] * group + np.tile(np.arange(group), int(shared.sum()))
        if group > 1:
            rows["site"] += " (by key-value head)"
        table = pd.concat([table[~shared], rows]).sort_index(kind="stable").drop(columns="kv_head")
    units = [name for name in HEAD_AXES if name in table]
    table["unit"] = [f"layer {layer}" for layer in table["layer"]]
    for name in units:
        own = table[name].notna()
        pairs = zip(table.loc[own, "layer"], table.loc[own, name], strict=True)
        table.loc[own, "unit"] = [Part(name, layer, int(at)).name for layer, at in pairs]
    if {"head", "ssm_head"} <= set(table):
        table = table.assign(head=table["head"].fillna(table["ssm_head"])).drop(columns="ssm_head")
    whole = [name for name in units if name in table and table[name].notna().all()]
    return table.astype(dict.fromkeys(whole, int))


def strongest_units(table: pd.DataFrame, heads: list[str], most: int) -> tuple[pd.DataFrame, str | None]:
    """The layers or heads with the largest magnitude anywhere, in order; how many were left out."""
    largest = table["value"].abs().groupby(table["unit"]).max()
    kept = table[table["unit"].isin(largest.nlargest(most).index)].sort_values(["layer", *heads], kind="stable")
    what = PART_KINDS[heads[0]].plural if heads else "layers"
    return kept, f"The {most} of {len(largest)} {what} with the largest effects" if len(largest) > most else None


def cell_names(table: pd.DataFrame) -> pd.Series:
    """What each cell is called: `L9H6`, `q L9H6 at S2`, `L3N127`, `resid_pre layer 3 at 7`."""
    import pandas as pd

    several = table["site"].nunique() > 1

    def name(row: pd.Series) -> str:
        there = {column: row[column] for column in cut_by(table) if not pd.isna(row[column])}
        unit = next((column for column in UNITS if column in there), None)
        text = Part(unit, row["layer"], there[unit]).name if unit else f"layer {row['layer']}"
        text += "".join(WORDS.get(column, " at {}").format(there[column]) for column in PLACES if column in there)
        return f"{row['site']} {text}" if several or unit is None else text

    return pd.Series([name(row) for _, row in table.iterrows()], index=table.index, dtype=object)
