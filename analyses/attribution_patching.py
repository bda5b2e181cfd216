"""Attribution patching: which activation would move the answer, judged by gradients instead of by patching?

1. A clean and a corrupt prompt differ in one respect. Patching an activation changes it by the difference of its two
   values; that change times the metric's gradient at the activation is the effect to first order.
2. One forward and one backward serve every activation of the model, single neurons among them, where activation
   patching runs each.
3. Two failures are known, and can be corrected. Attention that is saturated has a flat softmax: `qk-fix` computes the
   pattern anew. A direct effect can cancel with what later layers make of it: `drop` leaves out one layer after the
   other, which ranks cells and does not estimate effects. `atp-star` is both; `ig` averages gradients along the way
   between the prompts.
4. The cells with the largest estimates, and as many drawn at random, are patched exactly. They say how far the
   estimates are off, and how many large cells they may have missed.

Source: Nanda 2023 ("Attribution Patching"); Kramár et al. 2024 ("AtP*", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import click

from interp import figures, stats
from interp.agreement import agreement, choose, means, ranked, tabulated, told
from interp.command import study_command
from interp.edits import Variant
from interp.errors import InterpError, unknown
from interp.gpt import GPT
from interp.gradients import AnyMetric, run_values
from interp.granularity import AXES, PLACES, asked, by_position, cell_columns, cut_by, described, effect_label, variants
from interp.metrics import get_metric
from interp.model import HookedModel
from interp.node_scores import NEURONS, estimate, neurons
from interp.pairing import DIRECTIONS
from interp.prompts import PromptPairs
from interp.scales import Axis
from interp.sites import get_act_name
from interp.sweep import Executor, sweep
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

    from interp.canvas import Figure

ORDER = 45
METHODS: dict[str, dict[str, bool]] = {
    "atp": {},
    "qk-fix": {"qk_fix": True},
    "drop": {"drop": True},
    "atp-star": {"qk_fix": True, "drop": True},
    "ig": {},
}
UNITS = {"head": "H{}", "kv_head": "KV{}", "neuron": "N{}", "query": " from {}", "key": " to {}"}
SHOWN = 20


def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    site: str | Sequence[str] | None = None,
    by: str | Sequence[str] | EllipsisType | None = ...,
    granularity: str | None = None,
    direction: str = "denoise",
    method: str = "atp",
    steps: int = 5,
    metric: AnyMetric = "logit_diff",
    sample: int = 50,
    most: int = 2000,
    seed: int = 0,
    max_memory: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    executor: str | Executor = "local",
) -> pd.DataFrame:
    """Estimate the effect of patching every cell of one or several sites, and measure that of some.

    Args:
        model: the model.
        pairs: clean and corrupt prompts.
        site, by, granularity, direction: as in activation patching; `by="neuron"` cuts the MLPs' "post" (or "pre",
            "pre_linear") into its channels.
        method: "atp", "qk-fix", "drop", "atp-star" or "ig".
        steps: points at which "ig" takes the gradient.
        metric: as `interp.sweep` takes it, if it has a gradient.
        sample: how many cells are patched exactly, half of them those with the largest estimates.
        most: how many cells have rows, those with the largest estimates; patched ones always do.
        seed: of the random cells.
        max_memory, out, progress, executor: as `interp.sweep` takes them.

    Returns:
        A row for each of these cells and every prompt: `direction, site, layer`, what the cell is cut by (`head`, or
        `kv_head` for keys and values, `neuron`, `pos`, `role`, `query`, `key`; beside positions the clean prompt's
        token and role), `method`, `sample` ("top", "random" or ""), `cells` (how many were estimated), `prompt, metric,
        value` (the estimated change of the metric), `exact` (the measured one, where it was), `base_value,
        source_value`, `effect` and `exact_effect` (the changes as parts of the difference between the two runs).

    Raises:
        UnknownName: a direction, method, granularity, site or axis that does not exist, a metric without a gradient.
        PromptError: positions of prompts that differ in length, roles that the prompts lack.
        InterpError: what `interp.node_scores.estimate` and `interp.sweep` refuse; SweepInterrupted as there.
    """
    for kind, name, choices in (("direction", direction, DIRECTIONS), ("method", method, METHODS)):
        if name not in choices:
            raise unknown(kind, name, choices)
    base, source = DIRECTIONS[direction]
    cells = _cells(model, pairs, site, by, granularity)
    estimates = estimate(
        model,
        pairs,
        cells,
        metric,
        base=base,
        source=source,
        steps=steps if method == "ig" else 1,
        **METHODS[method],
        max_memory=max_memory,
    ).numpy()  # [cell, prompt]
    chosen = choose(estimates.mean(1), sample, seed=seed)
    found = sweep(
        model,
        pairs,
        [cells[at] for at in chosen],
        metric,
        base=base,
        source=source,
        max_memory=max_memory,
        out=out,
        progress=progress,
        executor=executor,
    )
    frame = tabulated(
        lambda at: {"direction": direction, "method": method, **cells[at].labels},
        estimates,
        (found["value"] - found["base_value"]).to_numpy().reshape(len(chosen), -1),
        chosen=chosen,
        most=most,
        runs=run_values(model, pairs, metric, base=base, source=source),
        metric=get_metric(metric).name,
    )
    return described(frame, pairs)


def _cells(
    model: HookedModel,
    pairs: PromptPairs,
    site: str | Sequence[str] | None,
    by: str | Sequence[str] | EllipsisType | None,
    granularity: str | None,
) -> list[Variant]:
    if by != "neuron" or granularity is not None:
        sites, axes = asked(site, by, granularity)
        return variants(model, pairs, site=sites, by=axes)
    named = asked("post" if site is None else site)[0]
    return [variant for name in named for variant in neurons(model, name)]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean estimated effect of every cell over prompts with intervals, the exact one beside it, largest first.

    `p_adjusted` takes account of all cells that were estimated, those without rows among them.
    """
    return ranked(frame, cell_columns(frame))


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """How estimates and exact effects agree, as `interp.agreement.agreement` has it."""
    return agreement(frame, by=cell_columns(frame), n_cells=int(frame["cells"].iloc[0]))


def plot(frame: pd.DataFrame) -> Figure:
    """The mean estimated effects: a map of layers by heads, positions or roles, a panel for every site.

    Cells that are cut by two axes, and neurons, are too many for a map: those with the largest estimates are bars.

    Raises:
        InterpError: a frame that holds several granularities.
    """
    cuts = cut_by(frame)
    heads = [name for name in cuts if name in ("head", "kv_head")]
    if frame[[name for name in cuts if name not in heads]].isna().any(axis=None):
        raise InterpError(f"one figure shows one granularity; this frame mixes cells by {', '.join(cuts)}")
    several = [name for name in ("direction", "method", "site") if frame[name].nunique() > 1]
    cell, label = cell_columns(frame), effect_label(frame, "estimated effect")
    if "neuron" in cuts or len(cuts) - max(len(heads) - 1, 0) > 1:
        table = stats.summarise(frame, by=cell, value="effect")
        table = table.loc[table["value"].abs().nlargest(SHOWN).index].assign(name=lambda rows: _names(rows))
        return figures.bars(
            table, x=Axis("name", title=""), horizontal=True, diverging=True, facet=several or None, label=label
        )
    table = frame.groupby(cell, sort=False, dropna=False)["effect"].mean().reset_index(name="value")
    look: dict[str, Any] = {"y": "layer", "facet": several or None, "label": label}
    if heads:
        table["head"] = table[heads].bfill(axis=1).iloc[:, 0].astype(int)
        across = Axis("head", title="head" if heads == ["head"] else "head (of keys and values: key-value head)")
        return figures.heatmap(table, x=across, annotate=0 if several else 6, **look)
    if not cuts:
        return figures.heatmap(
            table, x="site", **look | {"facet": [name for name in several if name != "site"] or None}
        )
    place = Axis("role", values=list(dict.fromkeys(frame["role"]))) if cuts == ["role"] else Axis(cuts[0])
    return figures.heatmap(table, x=place, **look)


def plot_agreement(frame: pd.DataFrame) -> Figure:
    """Estimated against exact effect of every cell that was patched; on the diagonal they are equal."""
    table = means(frame, cell_columns(frame))
    return figures.estimates(table.assign(name=_names(table)))


def _names(table: pd.DataFrame) -> pd.Series:
    """What each cell is called: `L9H6`, `q L9H6 at S2`, `L3N127`, `resid_pre layer 3 at 7`."""
    import pandas as pd

    several = table["site"].nunique() > 1

    def name(row: pd.Series) -> str:
        there = {column: row[column] for column in cut_by(table) if not pd.isna(row[column])}
        unit = next((column for column in ("head", "kv_head", "neuron") if column in there), None)
        text = f"L{row['layer']}{UNITS[unit].format(there[unit])}" if unit else f"layer {row['layer']}"
        text += "".join(UNITS.get(column, " at {}").format(there[column]) for column in PLACES if column in there)
        return f"{row['site']} {text}" if several or unit is None else text

    return pd.Series([name(row) for _, row in table.iterrows()], index=table.index, dtype=object)


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: heads and neurons, and queries and keys with and without the correction."""
    import pandas as pd

    heads = run(model, pairs, site="z", by="head", progress=progress)
    ranked, agreed = summary(heads), compared(heads)
    frames, items, tables = [heads], [], [("How far the estimates for heads agree", agreed)]
    best = ranked.iloc[0]
    findings = [
        f"By gradients, the head whose patching moves the answer most is L{best['layer']}H{best['head']} "
        f"({best['value']:+.2f} of the difference between the runs). {told(agreed, 'heads')}"
    ]
    text = [
        "Each estimate is the difference of an activation between the clean and the corrupt run, times the gradient of "
        "the metric there in the corrupt run. Where patching runs each cell, this takes one backward for all of them; "
        "a sample is patched exactly, to see how far the estimates hold.",
        findings[0],
    ]
    items.append(
        FigureItem(
            "attribution_patching_heads",
            "Estimated effect of patching the output of every head",
            f"Mean over {len(pairs)} prompts.",
            plot(heads),
            ranked,
        )
    )
    items.append(
        FigureItem(
            "attribution_patching_agreement",
            "Estimated against exact effects of heads",
            "Half of these heads have the largest estimates, half were drawn at random among the others.",
            plot_agreement(heads),
            ranked[ranked["sample"] != ""],
        )
    )
    if get_act_name("post", 0) in model.hook_dict:
        cells = run(model, pairs, by="neuron", most=200, progress=progress)
        frames.append(cells)
        told_neurons = told(compared(cells), "neurons")
        text.append(f"Of {int(cells['cells'].iloc[0]):,} neurons: {told_neurons}")
        tables.append(("The ten neurons with the largest estimates", summary(cells).head(10)))
    if isinstance(model, GPT):
        errors = {}
        for method in ("atp", "qk-fix"):
            cells = run(model, pairs, site=["q", "k"], by="head", method=method, progress=progress)
            frames.append(cells)
            agreed = compared(cells)
            errors[method] = agreed.set_index("quantity").loc["relative error", "value"]
            tables.append((f"How far the estimates for queries and keys agree ({method})", agreed))
        if not any(math.isnan(error) for error in errors.values()):
            text.append(
                "Queries and keys act through a softmax, which gradients take to be linear. Estimates for them are off "
                f"by {errors['atp']:.0%} of the mean exact magnitude, and by {errors['qk-fix']:.0%} when the pattern "
                "is computed anew, each on a sample of its own."
            )
    section = Section(
        title="Attribution patching", anchor="attribution-patching", text=text, figures=items, tables=tables
    )
    return pd.concat(frames, ignore_index=True), section, findings


main = study_command(
    run,
    plot=plot,
    summary=summary,
    by_position=by_position,
    options=[
        click.option("--metric", default="logit_diff", show_default=True, help="logit_diff, log_prob, kl, ..."),
        click.option("--sample", default=50, show_default=True, help="How many cells are patched exactly."),
        click.option("--most", default=2000, show_default=True, help="How many cells are listed."),
        click.option("--steps", default=5, show_default=True, help="Points at which ig takes the gradient."),
        click.option("--method", type=click.Choice(list(METHODS)), default="atp", show_default=True),
        click.option("--direction", type=click.Choice(list(DIRECTIONS)), default="denoise", show_default=True),
        click.option("--granularity", help="Instead of --site and --by: resid_pre, attn_head_out_by_pos, ..."),
        click.option("--by", help=f"The cells of a layer: {', '.join(AXES)}, neuron, several as head,pos.  [head]"),
        click.option("--site", help=f"Short site names: z, resid_pre, ..., with neuron {', '.join(NEURONS)}.  [z]"),
    ],
)

if __name__ == "__main__":
    main()
