"""Tables of the cells of a patching study as maps and bars show them.

1. `by_head` brings heads of several kinds under one column, and a key-value head under every head that reads it.
2. `strongest_units` leaves the layers or heads with the largest effects; `shared_labels` says which token or role
   stands at a position in all prompts; `cell_names` gives every cell a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.config import STACKS
from interp.names import PART_KINDS, Part
from interp.variants.granularity import HEAD_COLUMNS, PLACES, cut_by, stack_of

if TYPE_CHECKING:
    import pandas as pd

VARIES = "…"
UNITS = (*HEAD_COLUMNS, "neuron")
"""What a layer is cut into, whatever the positions."""

QUERY_HEADS = ("head", "encoder_head", "cross_head")
"""The columns of heads that have keys and values, or share them."""

WORDS = {"query": " from {}", "key": " to {}"}


def shared_labels(frame: pd.DataFrame, column: str, name: str) -> dict[int, str]:
    """The token or role at every position, `…` where prompts differ; two roles that take turns are `IO/S1`."""
    most = 2 if name.endswith("role") else 1
    seen = frame[[column, name]].drop_duplicates().groupby(column)[name].agg(list)
    return {
        int(at): "/".join(texts) if len(texts) == 1 or (len(texts) <= most and all(texts)) else VARIES
        for at, texts in seen.items()
    }


def labels_of(table: pd.DataFrame, frame: pd.DataFrame, column: str, name: str) -> pd.Series:
    """`shared_labels` of a frame for the positions of every cell of a table, those of two stacks each by themselves."""
    import pandas as pd

    mine, theirs = (each["site"].map(lambda site: stack_of(site, column)) for each in (table, frame))
    made = pd.Series(index=table.index, dtype=object)
    for stack in theirs.unique():
        made[mine == stack] = table.loc[mine == stack, column].map(shared_labels(frame[theirs == stack], column, name))
    return made


def by_head(table: pd.DataFrame) -> pd.DataFrame:
    """One column `head` where a table has several kinds of heads; every cell's `unit` is named after its own.

    The cells of a kv head stand there once for every head that reads it.
    """
    if "kv_head" in table and not set(QUERY_HEADS).isdisjoint(table):
        table = _under_every_head(table)
    units = [name for name in HEAD_COLUMNS if name in table]
    table["unit"] = [f"layer {layer}" for layer in table["layer"]]
    for name in units:
        own = table[name].notna()
        pairs = zip(table.loc[own, "layer"], table.loc[own, name], strict=True)
        table.loc[own, "unit"] = [Part(name, layer, int(at)).name for layer, at in pairs]
    shared = () if set(QUERY_HEADS).isdisjoint(table) else ("kv_head",)
    kinds = [name for name in (*QUERY_HEADS, *shared, "ssm_head") if name in table]
    if len(kinds) > 1:
        head = table[kinds].bfill(axis=1).iloc[:, 0]
        table = table.drop(columns=kinds).assign(head=head)
    whole = [name for name in dict.fromkeys((*units, "head")) if name in table and table[name].notna().all()]
    return table.astype(dict.fromkeys(whole, int))


def _under_every_head(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its kv heads in the columns of the heads that read them, in each stack of two by themselves.

    Those of a stack none of whose heads are in the table stay what they are.
    """
    import numpy as np
    import pandas as pd

    made = [table[table["kv_head"].isna()]]
    shared = table[table["kv_head"].notna()]
    for site, rows in shared.groupby("site", sort=False, observed=True):
        stack, cross = str(site).partition(".")[0], ".cross_attn." in str(site)
        beside = table[table["site"].str.partition(".")[0] == stack] if stack in STACKS else table
        heads = beside[[name for name in QUERY_HEADS if name in table]].max().max()
        group = 0 if pd.isna(heads) else int(heads + 1) // int(rows["kv_head"].max() + 1)
        if group:
            rows = rows.loc[rows.index.repeat(group)]
            column = "cross_head" if cross else "encoder_head" if stack == "encoder" else "head"
            numbers = rows["kv_head"] * group + np.tile(np.arange(group), len(rows) // group)
            rows = rows.assign(**{column: numbers, "kv_head": pd.NA})
        made.append(rows if group == 1 else rows.assign(site=f"{site} (by key-value head)"))
    return pd.concat(made).sort_index(kind="stable").dropna(axis="columns", how="all")


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
