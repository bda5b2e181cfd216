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
from interp.arguments import checked
from interp.attribution.estimate_check import agreement, choose, means, ranked, tabulated, told
from interp.attribution.gradients import AnyMetric, check_steps
from interp.attribution.node_scores import NEURONS, estimate, neurons
from interp.attribution.run_values import run_values
from interp.edits import Variant
from interp.errors import InterpError, unknown
from interp.figures.axes import Axis
from interp.hooked.model import HookedModel
from interp.metrics import get_metric
from interp.models.gpt import GPT
from interp.names import MIXER_PARTS, PART_KINDS, Part, part_of
from interp.prompts.pair_checks import DIRECTIONS
from interp.prompts.pairs import PromptPairs
from interp.rounding import no_effect
from interp.sites import get_act_name
from interp.study.command import study_command, whole
from interp.sweeps.sweep import Executor, measure
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.granularity import (
    AXES,
    HEAD_AXES,
    PLACES,
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

ORDER = 45
METHODS: dict[str, dict[str, bool]] = {
    "atp": {},
    "qk-fix": {"qk_fix": True},
    "drop": {"drop": True},
    "atp-star": {"qk_fix": True, "drop": True},
    "ig": {},
}
SMALL = (*HEAD_AXES, "neuron")
WORDS = {"query": " from {}", "key": " to {}"}
MANY = ("channel", "neuron")
RECURRENCE = ("conv", "delta", "B", "C", "state", "gate")
SHOWN = 20


@checked
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
            "pre_linear") into its channels. The "state" of a state-space layer is estimated at single positions.
        method: "atp", "qk-fix", "drop", "atp-star" or "ig".
        steps: points at which "ig" takes the gradient.
        metric: as `interp.sweep` takes it, if it has a gradient.
        sample: how many cells are patched exactly, half of them those with the largest estimates.
        most: how many cells have rows, those with the largest estimates; patched ones always do.
        seed: of the random cells.
        max_memory, out, progress, executor: as `interp.sweep` takes them.

    Returns:
        A row for each of these cells and every prompt: `direction, site, layer`, what the cell is cut by (`head`, or
        `kv_head` for keys and values, `ssm_head`, `ssm_group`, `channel`, `neuron`, `pos`, `role`, `query`, `key`;
        beside positions the clean prompt's token and role), `method`, `sample` ("top", "random" or ""), `cells` (how
        many were estimated), `prompt, metric, value` (the estimated change of the metric), `exact` (the measured one,
        where it was), `base_value, source_value`, `effect` and `exact_effect` (the changes as parts of the difference
        between the two runs).

    Raises:
        UnknownName: a direction, method, granularity, site or axis that does not exist, a metric without a gradient.
        PromptError: positions of prompts that differ in length, roles that the prompts lack.
        InterpError: what `interp.attribution.node_scores.estimate` and `interp.sweep` refuse; SweepInterrupted as
            there.
    """
    for kind, name, choices in (("direction", direction, DIRECTIONS), ("method", method, METHODS)):
        if name not in choices:
            raise unknown(kind, name, choices)
    check_steps(steps)
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
    measured = measure(
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
        measured.changes,
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
        sites, axes = asked(site, by, granularity, model=model, pairs=pairs)
        return variants(model, pairs, site=sites, by=axes)
    named = asked("post" if site is None else site)[0]
    return [variant for name in named for variant in neurons(model, name)]


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean estimated effect of every cell over prompts with intervals, the exact one beside it, largest first.

    `p_adjusted` takes account of all cells that were estimated, those without rows among them.
    """
    return ranked(frame, cell_columns(frame))


@checked
def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """How estimates and exact effects agree, as `interp.attribution.estimate_check.agreement` has it."""
    return agreement(frame, by=cell_columns(frame), n_cells=int(frame["cells"].iloc[0]))


@checked
def plot(frame: pd.DataFrame) -> Figure:
    """The mean estimated effects: a map of layers by heads, positions or roles, a panel for every site.

    Cells that are cut by two axes, channels and neurons are too many for a map: those with the largest estimates are
    bars.

    Raises:
        InterpError: a frame that holds several granularities.
    """
    if why := stats.why_nothing(frame, "effect"):
        return figures.nothing(why)
    cuts = cut_by(frame)
    heads = [name for name in cuts if name in SMALL and name not in MANY]
    if frame[[name for name in cuts if name not in heads]].isna().any(axis=None):
        raise InterpError(f"one figure shows one granularity; this frame mixes cells by {', '.join(cuts)}")
    several = [name for name in ("direction", "method", "site") if frame[name].nunique() > 1]
    cell, label = cell_columns(frame), effect_label(frame, "estimated effect")
    if not set(MANY).isdisjoint(cuts) or len(cuts) - max(len(heads) - 1, 0) > 1:
        table = stats.summarise(frame, by=cell, value="effect")
        total = int(frame["cells"].iloc[0])
        table = table.loc[table["value"].abs().nlargest(SHOWN).index].assign(name=lambda rows: _names(rows))
        title = f"The {len(table)} of {total:,} cells with the largest estimates" if len(table) < total else None
        x = Axis("name", title="")
        return figures.bars(
            table, x=x, horizontal=True, diverging=True, facet=several or None, label=label, title=title
        )
    table = frame.groupby(cell, sort=False, dropna=False)["effect"].mean().reset_index(name="value")
    mixed = "site" in several and table.groupby("layer")["site"].nunique().max() == 1  # layers that differ in kind
    several = [name for name in several if name != "site" or not mixed]
    look: dict[str, Any] = {"y": "layer", "facet": several or None, "label": label}
    if heads == ["ssm_head"]:
        return figures.heatmap(table, x="ssm_head", annotate=0 if several else 6, **look)
    if heads:
        table["head"] = table[heads].bfill(axis=1).iloc[:, 0].astype(int)
        titles = {"kv_head": "head (of keys and values: key-value head)", "ssm_group": "head (of B and C: group)"}
        across = Axis("head", title=next((titles[name] for name in heads if name in titles), "head"))
        return figures.heatmap(table, x=across, annotate=0 if several or mixed else 6, **look)
    if not cuts:
        return figures.heatmap(
            table, x="site", **look | {"facet": [name for name in several if name != "site"] or None}
        )
    place = Axis("role", values=list(dict.fromkeys(frame["role"]))) if cuts == ["role"] else Axis(cuts[0])
    return figures.heatmap(table, x=place, **look)


def plot_agreement(frame: pd.DataFrame) -> Figure:
    """Estimated against exact effect of every cell that was patched; on the diagonal they are equal."""
    if why := stats.why_nothing(frame, "effect"):
        return figures.nothing(why)
    table = means(frame, cell_columns(frame))
    return figures.estimates(table.assign(name=_names(table)))


def _names(table: pd.DataFrame) -> pd.Series:
    """What each cell is called: `L9H6`, `q L9H6 at S2`, `L3N127`, `resid_pre layer 3 at 7`."""
    import pandas as pd

    several = table["site"].nunique() > 1

    def name(row: pd.Series) -> str:
        there = {column: row[column] for column in cut_by(table) if not pd.isna(row[column])}
        unit = next((column for column in SMALL if column in there), None)
        text = Part(unit, row["layer"], there[unit]).name if unit else f"layer {row['layer']}"
        text += "".join(WORDS.get(column, " at {}").format(there[column]) for column in PLACES if column in there)
        return f"{row['site']} {text}" if several or unit is None else text

    return pd.Series([name(row) for _, row in table.iterrows()], index=table.index, dtype=object)


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: heads and mixers, neurons and channels, what the recurrence of state-space layers
    is made of, and queries and keys with and without the correction.
    """
    import pandas as pd

    frames, items, tables, findings = [], [], [], []
    for word, options in _parts(model).items():
        frame = run(model, pairs, **options, progress=progress)
        table, agreed = summary(frame), compared(frame)
        best = table.iloc[0]
        findings.append(
            no_effect(table)
            or f"By gradients, the {word} whose patching moves the answer most is {_named(best)} "
            f"({best['value']:+.2f} of the difference between the runs). {told(agreed, word + 's')}"
        )
        frames.append(frame)
        tables.append((f"How far the estimates for {word}s agree", agreed))
        items += _items(word, frame, table, len(pairs))
    text = [
        "Each estimate is the difference of an activation between the clean and the corrupt run, times the gradient of "
        "the metric there in the corrupt run. Where patching runs each cell, this takes one backward for all of them; "
        "a sample is patched exactly, to see how far the estimates hold.",
        *findings,
    ]
    if model.cfg.has_mamba and pairs.role_names:
        cells = run(model, pairs, site=RECURRENCE, by="role", progress=progress)
        frames.append(cells)
        text.append(f"Of what the recurrence of state-space layers is made of: {told(compared(cells), 'cells')}")
        items.append(
            FigureItem(
                "attribution_patching_recurrence",
                "Estimated effect of patching what enters the recurrence, its steps, its state and what is read of it",
                f"By role, mean over {len(pairs)} prompts. The state is set behind one position; later ones follow "
                "from it.",
                plot(cells),
                summary(cells),
            )
        )
    for word, options in _many(model).items():
        cells = run(model, pairs, **options, most=200, progress=progress)
        frames.append(cells)
        text.append(f"Of {int(cells['cells'].iloc[0]):,} {word}: {told(compared(cells), word)}")
        tables.append(
            first_rows(f"The {word} with the largest estimates", summary(cells), 10, of=int(cells["cells"].iloc[0]))
        )
    if isinstance(model, GPT) and model.cfg.has_attention:
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


def _parts(model: HookedModel) -> dict[str, dict[str, Any]]:
    """What a report estimates one by one, heads, or the mixers of layers without any, and the options of `run`."""
    found: dict[str, dict[str, Any]] = {}
    heads = [own.usual for mixer, own in MIXER_PARTS.items() if own.heads and mixer in model.cfg.mixers]
    sites = [PART_KINDS[kind].site for kind in heads]
    if sites:
        found["head"] = {"site": sites, "by": "head"}
    if "mamba" in model.cfg.mixers:
        found["mixer"] = {"site": "out", "by": None}
    return found


def _many(model: HookedModel) -> dict[str, dict[str, Any]]:
    """The smallest parts of layers: neurons, and channels of Mamba-1."""
    neurons = any(get_act_name("post", layer) in model.hook_dict for layer in range(model.cfg.n_layers))
    found: dict[str, dict[str, Any]] = {"neurons": {"by": "neuron"}} if neurons else {}
    return found | ({"channels": {"site": "gated", "by": "channel"}} if "mamba" in model.cfg.mixers else {})


def _named(row: Any) -> str:
    """A head or mixer as a sentence calls it."""
    return (part_of(row) or Part("mixer", row["layer"])).name


def _items(word: str, frame: pd.DataFrame, table: pd.DataFrame, n: int) -> list[FigureItem]:
    """The map of heads or mixers, and how far it can be trusted."""
    own = "" if word == "head" else f"_{word}"
    by_layer = table.sort_values("layer")
    return [
        FigureItem(
            f"attribution_patching_{word}s",
            f"Estimated effect of patching the output of every {word}",
            f"Mean over {n} prompts.",
            figures.lines(by_layer, x="layer", label=effect_label(frame)) if word == "mixer" else plot(frame),
            table,
        ),
        FigureItem(
            f"attribution_patching_agreement{own}",
            f"Estimated against exact effects of {word}s",
            f"Half of these {word}s have the largest estimates, half were drawn at random among the others.",
            plot_agreement(frame),
            table[table["sample"] != ""],
        ),
    ]


main = study_command(
    run,
    plot=plot,
    summary=summary,
    by_position=by_position,
    options=[
        click.option("--metric", default="logit_diff", show_default=True, help="logit_diff, log_prob, kl, ..."),
        whole("--sample", "How many cells are patched exactly.", default=50, least=0),
        whole("--most", "How many cells are listed.", default=2000, least=0),
        whole("--steps", "Points at which ig takes the gradient.", default=5),
        click.option("--method", type=click.Choice(list(METHODS)), default="atp", show_default=True),
        click.option("--direction", type=click.Choice(list(DIRECTIONS)), default="denoise", show_default=True),
        click.option("--granularity", help="Instead of --site and --by: resid_pre, attn_head_out_by_pos, ..."),
        click.option("--by", help=f"The cells of a layer: {', '.join(AXES)}, neuron, several as head,pos.  [head]"),
        click.option("--site", help=f"Short site names: z, resid_pre, ..., with neuron {', '.join(NEURONS)}.  [z]"),
    ],
)

if __name__ == "__main__":
    main()
