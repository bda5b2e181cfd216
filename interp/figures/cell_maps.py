"""Maps of cells: layers down, and across the heads, roles or positions by which a layer is cut, as far as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.figures.axes import Axis
from interp.figures.glyphs import visible
from interp.figures.heatmaps import heatmap
from interp.variants.cell_tables import UNITS, VARIES, shared_labels
from interp.variants.granularity import TOLD, cut_by, stack_of

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

EACH_STACK = "position (of its stack)"

SHARED_HEADS = {
    "kv_head": "head (of keys and values: key-value head)",
    "ssm_group": "head (of B and C: group)",
}
"""What the axis says where some sites have one head for several heads of others."""


def cell_map(table: pd.DataFrame, *, facet: Sequence[str] = (), label: str) -> Figure:
    """Cells of one granularity, cut by heads or by one kind of position, or not at all.

    Args:
        table: one row for each cell: `site, layer`, what it is cut by, and `value`; roles in their order.
        facet: columns whose values split the table into panels. Where a layer has one site alone, sites share a panel,
            and uncut cells have theirs side by side.
        label: what the colour bar says.
    """
    cuts = cut_by(table)
    heads = [name for name in cuts if name in UNITS]
    mixed = "site" in facet and table.groupby("layer")["site"].nunique().max() == 1  # layers that differ in kind
    panels = [name for name in facet if name != "site" or not (mixed or not cuts)]
    look: dict[str, Any] = {"y": "layer", "facet": panels or None, "label": label}
    if heads == ["ssm_head"]:
        return heatmap(table, x="ssm_head", annotate=0 if panels else 6, **look)
    if heads:
        table = table.assign(head=table[heads].bfill(axis=1).iloc[:, 0].astype(int))
        title = next((SHARED_HEADS[name] for name in heads if name in SHARED_HEADS), "head")
        return heatmap(table, x=Axis("head", title=title), annotate=0 if panels or mixed else 6, **look)
    if not cuts:
        return heatmap(table, x="site", **look)
    return heatmap(table, x=place_axis(table, cuts[0]), **look)


def place_axis(frame: pd.DataFrame, column: str) -> Axis:
    """Roles in their order; positions with the token that all prompts have there, or else their role.

    Args:
        frame: cells, with the tokens and roles at their positions where `interp.variants.granularity.described` put
            them beside.
        column: "role", "pos", "query" or "key".
    """
    title = in_stack(frame, column)
    if column == "role":
        return Axis("role", title=title, values=list(dict.fromkeys(frame["role"])))
    if not set(TOLD[column]) <= set(frame) or title == EACH_STACK:  # which have other tokens at a position
        return Axis(column, title=title)
    tokens, roles = (shared_labels(frame, column, name) for name in TOLD[column])
    texts = {at: roles[at] or VARIES if token == VARIES else visible(token) for at, token in tokens.items()}
    return Axis(column, title=title, labels={at: f"{at}: {text}" for at, text in texts.items()})


def in_stack(frame: pd.DataFrame, column: str) -> str | None:
    """The title of an axis that says whose layers or positions it counts, where a model has two stacks.

    Args:
        frame: cells, with their `site`.
        column: what the axis counts: "layer", "role", "pos", "query" or "key".

    Returns:
        `layer (encoder)`; of cells in both stacks the word alone, or `EACH_STACK`. None for other models.
    """
    stacks = {stack_of(site, column) for site in frame["site"].unique()} if "site" in frame else {""}
    if stacks == {""}:
        return None
    if len(stacks) > 1:
        return EACH_STACK if column in TOLD else column
    return f"{'position' if column == 'pos' else column} ({stacks.pop()})"
