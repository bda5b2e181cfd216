"""Ablation: what does the answer lose when a component is taken away, and how many components does it need?

1. Run the clean prompts, and put something that carries no information in the place of what a head, a layer's
   attention or state-space mixer, an MLP, a neuron or a channel gives, at all positions: zero, its mean over prompts
   (position by position, or role by role), its value in another prompt, or in the corrupt prompt. Each is another
   question; all are one sweep.
2. The effect is what the metric loses: its clean value less its ablated one. Above zero the component helps, below it
   works against the answer. p is corrected for all that was tested.
3. Cumulative: take away the component that matters most, then the second as well, and so on. In reverse: take all away
   and give them back, the one that matters most first. A random order is the control: a circuit is found where the
   curves lie far apart.

The order of step 3 is that of step 1 on the same prompts, which flatters the first steps of a curve a little.

Source: Wang et al. 2022 ("Interpretability in the Wild", sections 2 and 4); McGrath et al. 2023 ("The Hydra Effect").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from torch import Tensor

from interp import figures, stats
from interp.arguments import MOST, checked, whole_number
from interp.edits import Edit, Variant
from interp.errors import InterpError
from interp.figures.axes import Axis
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.names import PART_KINDS, WHOLES, Part
from interp.prompts.pair_checks import SIDES
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_rows, quotient, within
from interp.sites import NameFilter
from interp.study.command import study_command, whole
from interp.sweeps.sweep import Executor, plan_sweep, sweep
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.ablations import ABLATIONS, replacements
from interp.variants.components import (
    STAGES,
    check_apart,
    components,
    in_words,
    one_after_another,
    replaced,
    steps,
)

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

ORDER = 38
ORDERS = {"importance": "by importance", "random": "in random order"}
PARTS = ["head", "ssm_head", "channel", "neuron"]
CELL = ["kind", "component", "site", "layer", *PARTS, "metric"]
CURVE = ["kind", "stage", "order", "number", "metric"]
COLUMNS = [
    *("kind", "stage", "order", "draw", "number", "component", "site", "layer", *PARTS),
    *("prompt", "metric", "value", "base_value", "rounding", "effect"),
]
RECURRENT = {"ssm_head", "channel"}  # columns of models that have such layers
MOST_BARS = 20
# Of a report: operations for the map of the heads, prompts that it has at least, heads and prompts of the second look.
MOST_OPERATIONS, FEWEST, MOST_AGAIN, MOST_OTHERS = 1.8e12, 4, 6, 8


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    kind: str | Sequence[str] = "mean",
    site: str | Sequence[str] | None = None,
    only: NameFilter = None,
    cumulative: int | Sequence[int] = 0,
    draws: int = 3,
    over: str = "clean",
    measured: int | None = None,
    seed: int = 0,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    max_memory: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    executor: str | Executor = "local",
) -> pd.DataFrame:
    """Ablate every component of some sites, one at a time and, where asked, one after another.

    Args:
        model: the model.
        pairs: the prompts; their clean side is run.
        kind: one or several names of `interp.variants.ablations.ABLATIONS`, as "zero,mean".
        site: what the components are, one or several of "z" (heads), "gated" (heads of Mamba-2 layers, channels of
            Mamba-1 layers), "attn_out" (the attention of a layer, with its bias), "out" (the state-space mixer of a
            layer), "mlp_out" (MLPs), "post" (neurons). None takes heads, and the mixers of layers without any.
        only: only these components, by the names of tables or globs: "L9H6,L9H9", "L9H*", "MLP 3", "attention 3",
            "L9S6" (a head of a Mamba-2 layer), "L9C123" (a channel of a Mamba-1 layer), "mixer 3".
        cumulative: take away (and give back) up to so many one after another, or just these numbers; 0 is none.
        draws: random orders that the order of importance is compared with.
        over: the side that means are over and that other prompts are taken from.
        measured: measure only so many prompts, evenly drawn; means are still over all. None measures all.
        seed: of random orders and of `resample`.
        metric, max_memory, out, progress, executor: as `interp.sweep` takes them; `kl` is taken to the clean run.

    Returns:
        A row for every ablation and prompt: `kind`, `stage` ("single", "ablate" one after another, "restore"), `order`
        ("importance", "random" or ""), `draw`, `number` of components that were ablated or restored, `component, site,
        layer, head, neuron` of a single one (and `ssm_head, channel` in models with state-space layers), `prompt,
        metric, value, base_value` and `effect` = base_value - value, in the metric's unit.

    Raises:
        UnknownName: a kind, site, component or side that does not exist, or that this model does not have.
        PromptError: prompts that an ablation cannot be made of, as `interp.variants.ablations.replacements` says.
        InterpError: cumulative ablation of components that contain one another; what `interp.sweep` refuses.
    """
    import pandas as pd

    pairs = pairs.to(model.device)
    kinds = _listed(kind)
    parts = components(model, None if site is None else _listed(site), only)
    numbers, draws = steps(cumulative, len(parts)), whole_number("draws", draws, least=0, most=MOST)
    if numbers:
        check_apart(parts)
    chosen = _evenly(len(pairs), measured)
    few = pairs[chosen]
    names = dict.fromkeys(part.full_site for part in parts)
    stands: dict[str, dict[str, Tensor]] = {}
    for one in kinds:
        values = replacements(model, pairs, names, one, run="corrupt" if one == "corrupt" else over, seed=seed)
        stands[one] = {name: value[chosen, : few.mask.shape[1]] for name, value in values.items()}

    def swept(variants: Sequence[Variant], part: str) -> pd.DataFrame:
        frame = sweep(
            model,
            few,
            variants,
            metric,
            base="clean",
            source="clean",
            max_memory=max_memory,
            out=None if out is None else Path(out) / part,
            progress=progress,
            executor=executor,
        )
        effect = frame["base_value"] - frame["value"]
        return frame.assign(effect=effect, prompt=np.array(chosen)[frame["prompt"]])

    singles = []
    for one in kinds:
        of_all = {"kind": one, "stage": "single", "order": "", "number": 1}
        singles += [Variant(replaced([part], stands[one]), {**of_all, **part.labels}) for part in parts]
    frames = [swept(singles, "single")]
    if numbers:
        curves = []
        for one in kinds:
            of_kind = frames[0][frames[0]["kind"] == one]
            means = of_kind.groupby("component")["effect"].mean()
            ranked = sorted(parts, key=lambda part: -means[part.name])
            curves += one_after_another(one, ranked, numbers, draws, seed, stands[one])
        frames.append(swept(curves, "cumulative"))
    columns = [name for name in COLUMNS if model.cfg.has_mamba or name not in RECURRENT]
    whole = {name: "Int64" for name in ("draw", "number", "layer", *PARTS) if name in columns}
    return pd.concat(frames, ignore_index=True).reindex(columns=columns).astype(whole)


def _listed(words: str | Sequence[str]) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in (words.split(",") if isinstance(words, str) else words)))


def _evenly(total: int, measured: int | None) -> list[int]:
    count = total if measured is None else min(total, whole_number("measured, of prompts,", measured, least=1))
    return [at * total // count for at in range(count)]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect of every ablation over prompts, with intervals, the largest magnitudes first; then the curves.

    `share` is the mean effect as a part of the mean clean metric, empty where that is not above zero by more than
    rounding. `p` is of no effect, and `p_adjusted` holds the share of false discoveries among all single ablations
    (Benjamini-Hochberg).
    """
    import pandas as pd

    single, curves = frame[frame["stage"] == "single"], frame[frame["stage"] != "single"]
    base = frame.assign(rounding=of_rows(frame, "base_value")).drop_duplicates(["prompt", "metric"]).groupby("metric")
    table = stats.tested(single, by=_cell(single), value="effect", rounding=of_rows(single, "base_value"))
    table = table.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)
    if len(curves):
        table.insert(1, "stage", "single")
        table = pd.concat([table, stats.summarise(curves, by=CURVE, value="effect")], ignore_index=True)
    front = ["kind", *(name for name in ("stage", "order", "number") if name in table)]
    table = table[[*front, *(name for name in table if name not in front)]]
    whole, off = (table["metric"].map(base[name].mean()) for name in ("base_value", "rounding"))
    table.insert(table.columns.get_loc("n"), "share", quotient(table["value"], whole.clip(lower=0), off))
    table["metric"] = table["metric"] + " lost"
    empty = [name for name in ("layer", *PARTS) if name in table and table[name].isna().all()]
    return table.drop(columns=empty)


def _cell(frame: pd.DataFrame) -> list[str]:
    return [name for name in CELL if name in frame]


def recovery(frame: pd.DataFrame) -> pd.DataFrame:
    """The curves: mean value of the metric by the number ablated or restored, with intervals over prompts.

    Raises:
        InterpError: a frame without cumulative ablations.
    """
    curves = frame[frame["stage"] != "single"]
    if curves.empty:
        raise InterpError("there are no curves: run with cumulative=N")
    return stats.summarise(curves, by=CURVE, value="value")


def plot(frame: pd.DataFrame) -> Figure:
    """The map of single ablations, a panel for every kind; of cumulative ones, the curves.

    Heads are a grid, layer by head, blue where they help; whole layers are lines; of neurons and channels those with
    the largest effects are bars. A frame with heads and others shows the heads.
    """
    return plot_single(frame) if (frame["stage"] == "single").all() else plot_curves(frame)


def plot_single(frame: pd.DataFrame) -> Figure:
    """The map of single ablations, as `plot` says."""
    single = frame[frame["stage"] == "single"]
    part = next((name for name in PARTS if name in single and single[name].notna().any()), None)
    if part in ("channel", "neuron") and single["site"].isin(WHOLES).any():
        part = None
    table = stats.summarise(single, by=_cell(single), value="effect")
    table["kind"] = table["kind"].map(_words)
    label = f"{_words(frame['metric'].iloc[0])} lost"
    several = "kind" if table["kind"].nunique() > 1 else None
    if part in ("head", "ssm_head"):
        table, marked = table[table[part].notna()], 3 if several else 6
        title = None if several else f"Ablation: {table['kind'].iloc[0]}"
        return figures.heatmap(table, x=part, y="layer", facet=several, label=label, annotate=marked, title=title)
    if part is not None:
        table = table[table[part].notna()]
        largest = table["value"].abs().groupby(table["component"], sort=False).max()
        kept = table[table["component"].isin(largest.nlargest(MOST_BARS).index)].sort_values("value", ascending=False)
        title = f"The {len(kept)} {part}s with the largest effects, of {len(largest)}"
        x = Axis("component", title=part)
        return figures.bars(kept, x=x, hue=several, horizontal=True, diverging=True, label=label, title=title)
    table = table.assign(part=table["site"].map({site: PART_KINDS[kind].word for site, kind in WHOLES.items()}))
    return figures.lines(table.dropna(subset="part"), x="layer", hue="part", facet=several, label=label)


def plot_curves(frame: pd.DataFrame) -> Figure:
    """The metric against the number of components ablated, and restored; in order of importance and at random."""
    table = recovery(frame).replace({"stage": STAGES, "order": ORDERS})
    table["kind"] = table["kind"].map(_words)
    several, label = table["kind"].nunique() > 1, _words(frame["metric"].iloc[0])
    facet, title = (["kind", "stage"], None) if several else ("stage", f"Ablation: {table['kind'].iloc[0]}")
    numbers = sorted(set(table["number"]))
    x = Axis("number", title="components", labels={at: str(at) for at in numbers}, values=numbers)
    return figures.lines(table, x=x, hue="order", facet=facet, columns=2, label=label, title=title)


def _words(name: str) -> str:
    """A kind or metric as figures and sentences write it."""
    return name.replace("_", " ").replace("logit diff", "logit difference")


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: layers, heads, the strongest heads again on other prompts, and the curves."""
    import pandas as pd

    kind = ("mean_by_role" if pairs.role_names else "mean") if len(pairs) > 1 else "zero"
    parts = components(model)
    what = in_words(parts)
    few = _affordable(model, pairs, parts)
    has = {name.rpartition("hook_")[2] for name in model.hook_dict}
    wholes = [site for site in WHOLES if site in has]
    layers = run(model, pairs, kind=sorted({"zero", kind}), site=wholes, measured=few, progress=progress)
    most = len(parts).bit_length() - 2 * any(part.row.axis for part in parts)  # of many heads, the first quarter
    sizes = [*(2**at for at in range(most)), len(parts)]
    maps = run(model, pairs, kind=kind, cumulative=sizes, draws=2, measured=few, progress=progress)
    single, by_layer = summary(maps[maps["stage"] == "single"]), summary(layers)
    again = _again(model, pairs, single["component"].head(MOST_AGAIN), set(maps["prompt"]), kind, progress)

    clean = float(maps.drop_duplicates("prompt")["base_value"].mean())
    instead = f"its {_words(kind)}" if kind != "zero" else "zero"
    fewer = f"The maps are measured on {few} of the {len(pairs)} prompts. " * (few < len(pairs))
    intro = (
        f"Each component is taken away at all positions of the clean prompts, {instead} in its place. {fewer}"
        "Later components can make up for one that is missing: a small effect does not say that it does nothing."
    )
    strongest, off = by_layer.iloc[0], float(of_rows(maps, "base_value").mean())
    told = (
        f"Of whole layers, {strongest['component']} has the largest effect: under {_words(strongest['kind'])} ablation "
        f"the logit difference of {clean:.2f} changes by {-strongest['value']:+.2f}{_interval(strongest)}"
        f"{within(strongest['value'], off)}."
    )
    found, curve = _found(single, again, kind, clean, what, off), _halves(maps, clean, what)
    tables = [first_rows(f"The {what} with the largest effect", single, 10)]
    tables += [] if again is None else [(f"The strongest {what} on other prompts, by kind of ablation", again)]
    caption = f"Mean over {few} of {len(pairs)} prompts." if fewer else f"Mean over {few} prompts."
    of_layers = " and ".join(PART_KINDS[WHOLES[site]].word for site in wholes if site != "mlp_out")
    items = [
        FigureItem(
            "ablation_layers",
            f"What is lost without each layer's {of_layers}" + (", and without its MLP" if "mlp_out" in wholes else ""),
            f"{caption} Bands are 95% bootstrap intervals over prompts.",
            plot(layers),
            by_layer,
        )
    ]
    heads = [name for name in ("head", "ssm_head") if name in single]
    items += [
        FigureItem(
            f"ablation_{name}s",
            f"What is lost without each {PART_KINDS[name].word}",
            f"{caption} Blue heads help, red heads work against the answer.",
            plot_single(maps[maps[name].notna()]),
            single[single[name].notna()].drop(columns=[other for other in heads if other != name]),
        )
        for name in heads
    ]
    items.append(
        FigureItem(
            "ablation_curves",
            f"{what.capitalize()} taken away one after another, and given back",
            f"{caption} The order of importance is that of the single ablations on these prompts, "
            "the random one the mean of two draws.",
            plot_curves(maps),
            recovery(maps),
        )
    )
    section = Section(
        title="Ablation", anchor="ablation", text=[intro, told, found, curve], figures=items, tables=tables
    )
    return pd.concat([maps, layers], ignore_index=True), section, [found, curve]


def _affordable(model: HookedModel, pairs: PromptPairs, parts: Sequence[Part]) -> int:
    """How many prompts the map of a report takes: all of them where the model is small."""
    zeros = [
        Variant([Edit(part.full_site, {} if part.row.axis is None else {part.row.axis: part.index or 0}, "zero")])
        for part in parts
    ]
    operations = plan_sweep(model, pairs, zeros, base="clean", source="clean").operations
    return min(len(pairs), max(FEWEST, int(len(pairs) * MOST_OPERATIONS / operations)))


def _again(
    model: HookedModel, pairs: PromptPairs, heads: Iterable[str], seen: set[int], kind: str, progress: bool | None
) -> pd.DataFrame | None:
    """The effects of heads on prompts that did not choose them, under every ablation that these prompts allow."""
    others = [at for at in range(len(pairs)) if at not in seen][:MOST_OTHERS]
    if len(others) < 2:
        return None
    rest = pairs[others]
    alone = rest.lengths.unique(return_counts=True)[1].min() == 1
    kinds = [kind, "zero", *([] if alone else ["resample"]), "corrupt"]
    return summary(run(model, rest, kind=kinds, only=list(heads), progress=progress))


def _interval(row: Any) -> str:
    """The interval of the change, which is the loss the other way round."""
    known = row["ci_low"] == row["ci_low"]
    return f" (95% interval {-row['ci_high']:+.2f} to {-row['ci_low']:+.2f})" if known else ""


def _found(single: pd.DataFrame, again: pd.DataFrame | None, kind: str, clean: float, what: str, off: float) -> str:
    """Which head or mixer matters most, and how many of the strongest still do on prompts that did not choose them."""
    best = single.iloc[0]
    told = (
        f"Of {len(single)} {what}, {best['component']} has the largest effect: without it ({_words(kind)} ablation) "
        f"the logit difference of {clean:.2f} changes by {-best['value']:+.2f}"
    )
    if again is None:
        return told + _interval(best) + within(best["value"], off) + "."
    same = again[again["kind"] == kind]
    row = same[same["component"] == best["component"]].iloc[0]
    sure = same[same["p_adjusted"] < stats.SURE]["value"]
    return (
        f"{told}, and on {row['n']} other prompts by {-row['value']:+.2f}{_interval(row)}{within(row['value'], off)}. "
        f"Of the {len(same)} {what} "
        f"with the largest effects {(sure > 0).sum()} help there, too, and {(sure < 0).sum()} work against the answer "
        f"(p < {stats.SURE}, corrected for all that was tested there)."
    )


def _halves(maps: pd.DataFrame, clean: float, what: str) -> str:
    """How many heads or mixers must go, or come back, for half of the metric."""
    if clean <= of_rows(maps, "base_value").mean():
        return f"The clean logit difference is {clean:.2f}: there is no right answer that ablation could take away."
    means = {key: part.set_index("number")["value"] for key, part in recovery(maps).groupby(["stage", "order"])}
    fell = {}
    for order in ORDERS:
        curve = means["ablate", order]
        low = curve.index[curve <= clean / 2]
        fell[order] = f"after {low.min()}" if len(low) else "never"
    back = means["restore", "importance"]
    again = f"; giving them back by importance, half is there again with {back.index[back >= clean / 2].min()}"
    return (
        f"Taking {what} away by importance, the logit difference of {clean:.2f} falls to half {fell['importance']}; in "
        f"random order, {fell['random']}. With all {back.index.max()} ablated it is {back.loc[0]:.2f}"
        f"{again if back.loc[0] < clean / 2 else ''}. (Numbers tried: {', '.join(map(str, back.index))}.)"
    )


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        click.option("--metric", default="logit_diff", show_default=True, help="logit_diff, log_prob, kl, ..."),
        click.option("--over", type=click.Choice(SIDES), help="Prompts of means and of resampling.  [clean]"),
        whole("--measured", "Measure only so many of the prompts."),
        whole("--draws", "Random orders beside that of importance.  [3]", least=0),
        whole("--cumulative", "Take away, and give back, up to so many one after another.  [0]", least=0),
        click.option("--only", help="Only these: L9H6,L9H9, L9H*, MLP 3, attention 3, L9N123, L9S6, mixer 3."),
        click.option(
            "--site", help="z, gated (heads or channels), attn_out, out, mlp_out, post (neurons).  [z, gated, out]"
        ),
        click.option("--kind", help=f"{', '.join(ABLATIONS)}, several as zero,mean.  [mean]"),
    ],
)

if __name__ == "__main__":
    main()
