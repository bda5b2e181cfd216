"""Ablations of components: each by itself, then one after another, and the tables of what the metric loses.

1. `singles` takes every component away by itself, and `ablated` runs them. What the metric loses is the effect;
   `by_importance` orders components by its mean.
2. `curves` takes them away one after another in this order, and in random ones, and gives them back
   (`interp.variants.components.one_after_another`).
3. `losses` and `recovery` are the means over prompts of single ablations, and of curves.

Source: Wang et al. 2022 ("Interpretability in the Wild", sections 2 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp import stats
from interp.arguments import checked
from interp.edits import Variant
from interp.errors import InterpError
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.names import Part
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_rows, quotient
from interp.sweeps.sweep import sweep
from interp.variants.ablations import replacements
from interp.variants.components import one_after_another, replaced, site_of

if TYPE_CHECKING:
    import pandas as pd

PARTS = ["head", "cross_head", "encoder_head", "ssm_head", "channel", "expert", "neuron"]
"""Columns of a component's number in its layer, by what it is."""

CELL = ["kind", "component", "site", "layer", *PARTS, "metric"]
CURVE = ["kind", "stage", "order", "number", "metric"]
COLUMNS = [
    *("kind", "stage", "order", "draw", "number", "component", "site", "layer", *PARTS),
    *("prompt", "metric", "value", "base_value", "rounding", "effect"),
]
RECURRENT = {"ssm_head", "channel"}  # columns of models that have such layers
SPARSE = {"expert"}
TWO_STACKS = {"cross_head", "encoder_head"}  # columns of models with an encoder and a decoder


def singles(parts: Sequence[Part], values: Mapping[str, Mapping[str, Tensor]]) -> list[Variant]:
    """Every component by itself, under every kind of ablation.

    Args:
        parts: the components.
        values: by kind and full site name, as `interp.variants.ablations.replacements` gives them.
    """
    made = []
    for kind, of_kind in values.items():
        labels = {"kind": kind, "stage": "single", "order": "", "number": 1}
        made += [Variant(replaced([part], of_kind), {**labels, **part.labels}) for part in parts]
    return made


def ablated(
    model: HookedModel,
    pairs: PromptPairs,
    parts: Sequence[Part],
    kind: str,
    metric: str | Metric,
    **options: Any,
) -> pd.DataFrame:
    """Every component by itself under one kind of ablation over the clean prompts, as `interp.sweep` gives it.

    Args:
        model, pairs, metric, options: as `interp.sweep` takes them.
        parts: the components.
        kind: a name of `interp.variants.ablations.ABLATIONS`.
    """
    pairs = pairs.to(model.device)
    names = dict.fromkeys(site_of(part, model.hook_dict) for part in parts)
    values = {kind: replacements(model, pairs, names, kind, run="corrupt" if kind == "corrupt" else "clean")}
    return sweep(model, pairs, singles(parts, values), metric, base="clean", source="clean", **options)


def by_importance(frame: pd.DataFrame, parts: Sequence[Part], kind: str) -> list[Part]:
    """Components by what the metric loses without each under one kind of ablation, the largest mean loss first."""
    own = frame[frame["kind"] == kind]
    means = (own["base_value"] - own["value"]).groupby(own["component"]).mean()
    return sorted(parts, key=lambda part: -means[part.name])


def curves(
    frame: pd.DataFrame,
    parts: Sequence[Part],
    values: Mapping[str, Mapping[str, Tensor]],
    numbers: Sequence[int],
    *,
    draws: int,
    seed: int,
) -> list[Variant]:
    """The curves of every kind of ablation, by importance and at random.

    Args:
        frame: single ablations of the same components and kinds, as `interp.sweep` gives them.
        parts, values: as `singles` takes them.
        numbers, draws, seed: as `interp.variants.components.one_after_another` takes them.
    """
    made = []
    for kind, of_kind in values.items():
        made += one_after_another(kind, by_importance(frame, parts, kind), numbers, draws, seed, of_kind)
    return made


def with_effect(frame: pd.DataFrame, *, recurrent: bool, sparse: bool) -> pd.DataFrame:
    """A sweep's table with the effect, base_value - value, and its columns in order.

    Args:
        frame: single ablations, and curves.
        recurrent: whether there are columns of heads and channels of state-space layers.
        sparse: whether there is one of experts.
    """
    frame = frame.assign(effect=frame["base_value"] - frame["value"])
    absent = (set() if recurrent else RECURRENT) | (set() if sparse else SPARSE)
    columns = [name for name in COLUMNS if name not in absent and (name in frame or name not in TWO_STACKS)]
    whole = {name: "Int64" for name in ("draw", "number", "layer", *PARTS) if name in columns}
    return frame.reindex(columns=columns).astype(whole)


@checked
def losses(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect of every ablation over prompts, with intervals, the largest magnitudes first; then the curves.

    Returns:
        `share` is the mean effect as a part of the mean clean metric, empty where that is not above zero by more than
        rounding. `p` is of no effect, and `p_adjusted` holds the share of false discoveries among all single ablations
        (Benjamini-Hochberg).
    """
    import pandas as pd

    single, several = frame[frame["stage"] == "single"], frame[frame["stage"] != "single"]
    base = frame.assign(rounding=of_rows(frame, "base_value")).drop_duplicates(["prompt", "metric"]).groupby("metric")
    cell = [name for name in CELL if name in single]
    table = stats.strongest_first(stats.tested(single, by=cell, value="effect", rounding=of_rows(single, "base_value")))
    if len(several):
        table.insert(1, "stage", "single")
        table = pd.concat([table, stats.summarise(several, by=CURVE, value="effect")], ignore_index=True)
    front = ["kind", *(name for name in ("stage", "order", "number") if name in table)]
    table = table[[*front, *(name for name in table if name not in front)]]
    whole, off = (table["metric"].map(base[name].mean()) for name in ("base_value", "rounding"))
    table.insert(table.columns.get_loc("n"), "share", quotient(table["value"], whole.clip(lower=0), off))
    table["metric"] = table["metric"] + " lost"
    empty = [name for name in ("layer", *PARTS) if name in table and table[name].isna().all()]
    return table.drop(columns=empty)


@checked
def recovery(frame: pd.DataFrame) -> pd.DataFrame:
    """The curves: mean value of the metric by the number ablated or restored, with intervals over prompts.

    Raises:
        InterpError: a frame without cumulative ablations.
    """
    several = frame[frame["stage"] != "single"]
    if several.empty:
        raise InterpError("there are no curves: run with cumulative=N")
    return stats.summarise(several, by=CURVE, value="value")
