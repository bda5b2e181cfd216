"""The rows of a study's table that a terminal shows, and in which order.

1. A summary has its rows in the order of effect, group by group (a metric, a kind of head); that of a lens in the order
   of depth.
2. Where there are too many, those that matter least go: the smallest effects of every group, or the earliest depths.
3. In the order of layers the strongest rows are marked with a star.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import check_choice
from interp.frames import INDICES

if TYPE_CHECKING:
    import pandas as pd

ORDERS = ("layer", "effect")

GROUPS = ("detector", "source", "metric", "stage", "prompts", "vector")
"""Columns whose values have an order of effect each."""

MOST_ROWS, LEAST_OF_GROUP = 40, 3
MARKED, MARKED_OF_GROUP = 6, 2


@dataclass(frozen=True)
class Listing:
    """What is printed: `rows`, and what was `left_out`, in words; "" where all rows are there."""

    rows: pd.DataFrame
    left_out: str


def listing(
    table: pd.DataFrame, order: str | None = None, *, natural: str = "effect", most: int = MOST_ROWS
) -> Listing:
    """The rows of a summary that are printed, and which are not.

    Args:
        table: the summary, as the study orders it.
        order: "layer" or "effect"; None takes the study's own.
        natural: how the study orders it, "effect" or "layer"; "" is an order of another kind, which is kept.
        most: about how many rows are printed.

    Raises:
        UnknownName: another order.
    """
    if order is not None:
        check_choice("order", order, ORDERS)
    order = natural if order is None else order
    depth = next((name for name in ("layer", "sender_layer") if name in table), None)
    if not natural or depth is None or table.empty:
        return Listing(*_without_middle(table, most))
    # 1. In the order of effect.
    groups = [name for name in GROUPS if name in table and table[name].nunique() > 1]
    by_effect = order == "effect" or natural == "effect"
    if by_effect and natural != "effect":
        strength = table["value"].abs()
        first = dict.fromkeys(zip(*(table[name] for name in groups), strict=True)) if groups else {}
        table = table.assign(_group=_numbered(table, groups, list(first)), _strength=-strength)
        table = table.sort_values(["_group", "_strength"], kind="stable").drop(columns=["_group", "_strength"])
    # 2. What matters least goes.
    total, place = len(table), _places(table, groups, from_end=not by_effect)
    several = len(table[groups].drop_duplicates()) if groups else 1
    if total > most:
        share = max(most // several, LEAST_OF_GROUP) if several > 1 else most
        kept = place < share
        table, place = table[kept], place[kept]
    # 3. In the order of layers.
    if order == "layer" and by_effect:
        marks = ["*" if at < (MARKED_OF_GROUP if several > 1 else MARKED) else "" for at in place]
        table = table.assign(strongest=marks)[["strongest", *table]]
        keys = [depth, *(name for name in INDICES if name in table and name != depth)]
        table = table.sort_values(keys, kind="stable", na_position="first")
    gone = total - len(table)
    what = "those with the smallest effects" if by_effect else "those of the earliest depths"
    return Listing(table.reset_index(drop=True), f"{gone:,} of {total:,} rows left out, {what}" if gone else "")


def _numbered(table: pd.DataFrame, groups: list[str], first: list[tuple[object, ...]]) -> list[int]:
    """The number of every row's group, in the order in which groups first occur."""
    at = {group: number for number, group in enumerate(first)}
    return [at[key] for key in zip(*(table[name] for name in groups), strict=True)] if groups else [0] * len(table)


def _places(table: pd.DataFrame, groups: list[str], *, from_end: bool) -> pd.Series[int]:
    """The place of every row within its group, from its first or its last row."""
    if not groups:
        import pandas as pd

        places = range(len(table))
        return pd.Series(reversed(places) if from_end else places, index=table.index)
    grouped = table.groupby(groups, sort=False, dropna=False, observed=True)
    return grouped.cumcount(ascending=not from_end)


def _without_middle(table: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    """A table of which neither end matters less, without its middle."""
    gone = len(table) - most
    if gone <= 0:
        return table, ""
    kept = [*range(most // 2), *range(len(table) - most + most // 2, len(table))]
    return table.iloc[kept], f"{gone:,} of {len(table):,} rows left out, those in the middle"
