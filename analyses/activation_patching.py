"""Activation patching: which activation, moved from one prompt to the other, moves the answer with it?

1. A clean and a corrupt prompt of equal length differ in one respect and have opposite answers.
2. Denoising: run the corrupt prompt, and set one activation to its value in the clean run. An effect of 1 says that
   this activation alone restores the clean answer. Noising is the reverse, and asks what is necessary rather than
   sufficient.
3. Repeat for every layer and head, position or role: one cell of the map each. A granularity names what is patched and
   how finely it is cut, by the names of TransformerLens (`interp.variants.granularity`).

In state-space layers any site of the mixer can be patched in the same way, the state after a position among them.

Source: Vig et al. 2020 (https://arxiv.org/abs/2004.12265, "Investigating Gender Bias in Language Models Using Causal
Mediation Analysis", section 3) and Meng et al. 2022 (https://arxiv.org/abs/2202.05262, "Locating and Editing Factual
Associations in GPT", section 2.1); on denoising and noising Heimersheim and Nanda 2024
(https://arxiv.org/abs/2404.15255, "How to use and interpret activation patching", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Unpack

from torch import Tensor

from interp import figures, stats
from interp.arguments import checked
from interp.edits import Variant
from interp.errors import InterpError, check_choice
from interp.figures.axes import Axis
from interp.figures.cell_maps import in_stack, place_axis
from interp.frames import restoring
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.names import PART_KINDS
from interp.prompts.pair_checks import DIRECTIONS
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_effect
from interp.study.command import study_command
from interp.study.shared_options import GRANULARITY, METRIC, by_option, direction_option, site_option
from interp.study.sweep_options import SweepOptions
from interp.sweeps.plan import Plan
from interp.sweeps.sweep import plan_sweep, sweep
from interp.variants.cell_tables import by_head, labels_of, strongest_units
from interp.variants.granularity import (
    AXES,
    PLACES,
    TOLD,
    asked,
    by_position,
    cell_columns,
    cut_by,
    described,
    effect_label,
    variants,
)

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

MOST_ROWS, MOST_PANELS = 24, 9


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    site: str | Sequence[str] | None = None,
    by: str | Sequence[str] | EllipsisType | None = ...,
    granularity: str | None = None,
    direction: str = "denoise",
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    **options: Unpack[SweepOptions],
) -> pd.DataFrame:
    """Patch every layer of one or several sites, cell by cell.

    Args:
        model: the model.
        pairs: clean and corrupt prompts.
        site: what to patch, by short names: "z" (where it is left out), "resid_pre,attn_out,mlp_out", ["k", "v"], ...;
            left out of a model with state-space layers it is what mixers add, "out" (and "attn_out") by role.
        by: what the cells of a layer are cut by, one or several of "head" (where it is left out), "pos", "role", for
            patterns "query" (destination) and "key" (source), and in state-space layers "ssm_head", "ssm_group",
            "channel", such as "head,pos"; None for whole layers. Layers without such an axis have no cells.
        granularity: a name of `interp.variants.granularity` instead of `site` and `by`, such as "attn_head_out_by_pos",
            or "mixer_every" of state-space layers.
        direction: "denoise" patches clean values into the corrupt run, "noise" the reverse.
        metric: as `interp.sweep` takes it.
        options: `max_memory, out, progress, executor`, as `interp.sweep` takes them.

    Returns:
        A row for every cell and prompt: `direction, site, layer`, what the cell is cut by (`head`, or `kv_head` for
        keys and values, `ssm_head` in Mamba-2 layers, `ssm_group`, `channel`, `pos`, `role`, `query`, `key`),
        `prompt, metric, value, base_value, source_value, effect`.
        Beside `pos` stand `token`, of the clean prompt, and `role`; beside `query` and `key` the same, `query_token`.

    Raises:
        UnknownName: a direction, granularity, site or axis that does not exist.
        PromptError: positions of prompts that differ in length, roles that the prompts lack.
        InterpError: what `interp.sweep` refuses; SweepInterrupted as there.
    """
    cells, sides = _cells(model, pairs, site, by, granularity, direction)
    frame = sweep(model, pairs, cells, metric, **sides, **options)
    return described(frame.assign(direction=direction), pairs)


@checked
def plan(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    site: str | Sequence[str] | None = None,
    by: str | Sequence[str] | EllipsisType | None = ...,
    granularity: str | None = None,
    direction: str = "denoise",
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    max_memory: int | None = None,
) -> Plan:
    """What `run` would do with the same options, without doing it."""
    cells, sides = _cells(model, pairs, site, by, granularity, direction)
    return plan_sweep(model, pairs, cells, metric, **sides, max_memory=max_memory)


def _cells(
    model: HookedModel,
    pairs: PromptPairs,
    site: str | Sequence[str] | None,
    by: str | Sequence[str] | EllipsisType | None,
    granularity: str | None,
    direction: str,
) -> tuple[list[Variant], dict[str, Any]]:
    """A variant for every cell, and the two sides of the sweep."""
    check_choice("direction", direction, DIRECTIONS)
    sites, axes = asked(site, by, granularity, model=model, pairs=pairs)
    base, source = DIRECTIONS[direction]
    return variants(model, pairs, site=sites, by=axes), {"base": base, "source": source}


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect of every cell over prompts with intervals and corrected p, the largest magnitudes first."""
    table = stats.tested(frame, by=cell_columns(frame), value="effect", rounding=of_effect(frame))
    table["metric"] = "effect on " + table["metric"]
    for column in TOLD.keys() & set(cut_by(frame)):
        for name in reversed([name for name in TOLD[column] if name in frame]):
            table.insert(table.columns.get_loc(column) + 1, name, labels_of(table, frame, column, name))
    return stats.strongest_first(table)


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """The map of the mean effects, a panel for every site; blue restores the source run's answer.

    Layer by head, position or role. Of heads by position only those with the largest effects are rows, and of patterns
    by destination and source only theirs are panels. A key-value head stands under every head that reads it.

    Raises:
        InterpError: a frame that holds several granularities.
    """
    cells = frame.groupby(cell_columns(frame), sort=False, dropna=False, observed=True)["effect"].mean()
    table = by_head(cells.reset_index(name="value")).assign(reason=stats.why_missing(frame, "effect"))
    several = [name for name in ("direction", "metric", "site") if name in table and table[name].nunique() > 1]
    places = [name for name in cut_by(table) if name in PLACES]
    heads = [name for name in cut_by(table) if name not in PLACES]
    if table[[*heads, *places]].isna().any(axis=None):
        raise InterpError(f"one figure shows one granularity; this frame mixes cells by {', '.join([*heads, *places])}")
    axes = [place_axis(frame, name) for name in places]
    layers = Axis("layer", title=in_stack(frame, "layer"))
    look: dict[str, Any] = {"label": effect_label(frame)}
    if len(places) == 2:
        table, look["title"] = strongest_units(table, heads, MOST_PANELS)
        look |= {"y": axes[0], "x": axes[1], "facet": [*several, "unit"]}
    elif places and heads:
        table, look["title"] = strongest_units(table, heads, MOST_ROWS)
        look |= {"y": Axis("unit", title=PART_KINDS[heads[0]].word), "x": axes[0], "facet": several}
    elif places:
        look |= {"y": layers, "x": axes[0], "facet": several}
    elif heads:
        across = Axis(heads[0], title=PART_KINDS[heads[0]].word)
        look |= {"y": layers, "x": across, "facet": several, "annotate": 0 if several else 6}
    else:
        look |= {"y": layers, "x": "site", "facet": [name for name in several if name != "site"]}
    return figures.heatmap(table, **look | {"facet": look["facet"] or None})


main = study_command(
    run,
    plot=plot,
    summary=summary,
    plan=plan,
    by_position=by_position,
    options=[
        METRIC,
        direction_option("denoise"),
        GRANULARITY,
        by_option(f"{', '.join(AXES)}, several as head,pos, or layer.  [head]"),
        site_option("Short site names: z, resid_pre, mlp_out, ..., several as q,k,v.  [z]"),
    ],
)

if __name__ == "__main__":
    main()
