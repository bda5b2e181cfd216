"""Linear probes: at which layer and position can a linear reader tell what the answer hinges on?

1. Take the activations of all clean and corrupt prompts at one place: the residual stream at a role, a head's output.
2. Fit a logistic regression to most of them, and let it say the class of the others: which answer is right, which of
   the answers is named first, clean or corrupt, or labels of your own (`interp.directions.steering`).
3. Do the same with shuffled labels. What a probe scores beyond that, and beyond chance, is its effect (selectivity);
   the effects of all places are tested over prompts and corrected for being many.

That a probe reads something does not say that the model uses it: patching and steering do.

Source: Alain and Bengio 2016 ("Understanding intermediate layers using linear classifier probes", section 3); Hewitt
and Liang 2019 ("Designing and Interpreting Probes with Control Tasks", section 2). The fits are scikit-learn's
(`interp.directions.probes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch

from interp import figures, stats
from interp.arguments import checked
from interp.directions.classes import CONTRASTS, contrast
from interp.directions.probes import METRICS, Probe, held_out, per_prompt, rows_of, sign_test
from interp.directions.steering import states
from interp.hooked.model import HookedModel
from interp.names import MIXER_PARTS, PART_KINDS, part_of
from interp.progress import counting
from interp.prompts.pairs import PromptPairs
from interp.study.command import above_zero, study_command, whole
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.granularity import HEAD_AXES, PLACES, cut_by, described, variants

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

ORDER = 80
CONTROL = "shuffled labels"
MOST_LINES = 7
SHUFFLES = 1  # in a report


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    site: str | Sequence[str] = "resid_pre",
    by: str | Sequence[str] | EllipsisType | None = ...,
    label: str = "auto",
    labels: Sequence[Any] | None = None,
    regularisation: float = Probe.regularisation,
    folds: int = Probe.folds,
    shuffles: int = Probe.shuffles,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Fit probes at every layer of one or several sites, cell by cell, and score them on held-out prompts.

    Args:
        model: the model.
        pairs: clean and corrupt prompts, at least two of every class.
        site: short names of sites with positions: "resid_pre", "z", "mlp_out", "post", "state", ...
        by: what the cells of a layer are cut by, of "role", "pos" and "head" (in state-space layers also "ssm_head",
            "ssm_group", "channel"), such as "head,role"; "layer" or None for the last position of the whole site.
            Without a position, cells read the last one. Left out it is "role" for prompts that have roles, and else
            None.
        label, labels: the classes, as `interp.directions.classes.contrast` takes them.
        regularisation, folds, shuffles, seed: as in `interp.directions.probes.Probe`.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        A row for every cell, pair of prompts and metric: `site, layer`, what the cell is cut by, `label, prompt,
        metric, value, control, effect`. `metric` is "accuracy" (of a pair's prompts, the share that is told rightly) or
        "auroc"; `control` is its mean over shuffled labels. `effect` is what `value` has beyond the cell's mean
        control, or beyond chance where that is more: shuffled labels can be told worse than by chance.

    Raises:
        UnknownName: a site, axis or label that does not exist.
        PromptError: too few prompts, prompts that the label does not tell apart, positions of unequally long prompts.
        ConfigError: an option out of range.
    """
    import pandas as pd

    probe = Probe(regularisation, folds, shuffles, seed)
    if isinstance(by, EllipsisType):
        by = "role" if pairs.role_names else None
    told = contrast(model, pairs, label, labels=labels)
    rows = rows_of(told, probe)
    cells = variants(model, pairs, site=site, by=by)
    # States are read together where they have one shape: mixers of different kinds have others.
    kinds = [(cell.labels["site"], model.cfg.mixer(cell.labels["layer"])) for cell in cells]
    frames = []
    with counting(total=len(cells), desc="probes", unit="cell", progress=progress) as bar:
        for name, mixer in dict.fromkeys(kinds):
            chosen = [cell for cell, kind in zip(cells, kinds, strict=True) if kind == (name, mixer)]
            places = [cell.edits[0].where for cell in chosen]
            read = torch.cat([states(model, pairs, name, places, side=side) for side in told.sides], dim=1)
            for cell, found in zip(chosen, read.numpy(), strict=True):  # [row, ...]
                values, control = held_out(found, rows, probe)
                for metric, chance in zip(METRICS, (rows.chance, 0.5), strict=True):
                    score, other = (per_prompt(of[metric], rows.prompt) for of in (values, control))
                    beyond = score - max(chance, float(np.nanmean(other)) if np.isfinite(other).any() else chance)
                    columns = {"metric": metric, "value": score, "control": other, "effect": beyond}
                    frames.append(pd.DataFrame({"prompt": range(len(score)), **columns}).assign(**cell.labels))
                bar.update()
    frame = described(pd.concat(frames, ignore_index=True).assign(label=told.name), pairs)
    last = ["label", "prompt", "metric", "value", "control", "effect"]
    return frame[[name for name in frame if name not in last] + last]


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of every cell over prompts with intervals, those that are furthest beyond the control first.

    `p` is the sign test's over pairs of prompts, each with its labels against itself with shuffled ones; `p_adjusted`
    is corrected over the cells of a metric (Benjamini and Hochberg 1995).
    """
    cell = ["site", "layer", *cut_by(frame), "label", "metric"]
    table = stats.summarise(frame, by=cell, value="value")
    sides = frame.assign(above=frame["value"] > frame["control"], below=frame["value"] < frame["control"])
    counts = sides.groupby(cell, sort=False, dropna=False)[["above", "below"]].sum()
    means = frame.groupby(cell, sort=False, dropna=False)[["control", "effect"]].mean()
    table = table.assign(control=means["control"].to_numpy(), effect=means["effect"].to_numpy())
    table["p"] = sign_test(counts["above"].to_numpy(), counts["below"].to_numpy())
    table["p_adjusted"] = stats.adjusted(table["p"], table["metric"])
    return table.sort_values(["metric", "effect"], ascending=[True, False], kind="stable", ignore_index=True)


@checked
def plot(frame: pd.DataFrame, *, metric: str = "accuracy") -> Figure:
    """Held-out scores by layer, a line for every role beside the control; of heads and positions a map of effects."""
    table = summary(frame)
    table = table[table["metric"] == metric]
    cuts = cut_by(table)
    facet = "site" if table["site"].nunique() > 1 else None
    if cuts not in ([], ["role"]) or ("role" in cuts and table["role"].nunique() > MOST_LINES):
        across = next(name for name in (*PLACES, *HEAD_AXES) if name in cuts)
        facets = [name for name in (facet, *cuts) if name not in (None, across)]
        label = f"{metric} beyond {CONTROL}"
        return figures.heatmap(
            table.assign(value=table["effect"]), x=across, y="layer", facet=facets or None, label=label
        )
    table = table.assign(line=table["role"] if cuts else "last position").sort_values("layer", kind="stable")
    order = list(dict.fromkeys(frame["role"])) if cuts else ["last position"]
    lines = _lines(table, [*order, CONTROL], facet)
    return figures.lines(lines, x="layer", hue="line", facet=facet, label=f"held-out {metric}")


def _lines(table: pd.DataFrame, order: Sequence[str], facet: str | None) -> pd.DataFrame:
    """The table with a line of the control, its mean over roles."""
    import pandas as pd

    keys = ["layer", *([facet] if facet else [])]
    control = table.groupby(keys, as_index=False)["control"].mean().rename(columns={"control": "value"})
    both = pd.concat([table, control.assign(line=CONTROL, metric=table["metric"].iloc[0])], ignore_index=True)
    both["n"] = both["n"].fillna(table["n"].max()).astype(int)
    return both.assign(line=pd.Categorical(both["line"], order, ordered=True)).sort_values(["line", "layer"])


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: the residual stream by role, and every head's output at the last position."""
    import pandas as pd

    stream = run(model, pairs, shuffles=SHUFFLES, progress=progress)
    frames = [stream]
    table = summary(stream)
    what = CONTRASTS[stream["label"].iloc[0]]
    told = _found(table, what, "the residual stream")
    items = [
        FigureItem(
            "probes_stream",
            "Held-out accuracy of linear probes on the residual stream, by layer",
            f"What is read: {what}. Mean over {len(pairs)} pairs of prompts, bands are 95% bootstrap intervals; "
            f"{CONTROL}: the same probes fitted to classes shuffled within pairs, their mean.",
            plot(stream),
            table,
        )
    ]
    tables = [
        first_rows("The cells of the residual stream whose probes are furthest beyond shuffled labels", _top(table), 10)
    ]
    has = {name.rpartition("hook_")[2] for name in model.hook_dict}
    for mixer, own in MIXER_PARTS.items():
        part = PART_KINDS[own.usual]
        if not own.heads or mixer not in model.cfg.mixers or part.site not in has:
            continue
        heads = run(model, pairs, site=part.site, by=part.axis, shuffles=SHUFFLES, progress=progress)
        frames.append(heads)
        by_head = summary(heads)
        told.append(_found(by_head, what, f"the output of a single {part.word} at the last position")[0])
        items.append(
            FigureItem(
                f"probes_{part.axis}s",
                f"What probes on the output of every {part.word} tell at the last position",
                f"Held-out accuracy less that with {CONTROL}, or less chance where that is more; mean over "
                f"{len(pairs)} pairs.",
                plot(heads),
                by_head,
            )
        )
        tables.append(
            first_rows(f"The {part.plural} whose probes are furthest beyond shuffled labels", _top(by_head), 10)
        )
    method = (
        "A logistic regression (scikit-learn, L2 penalty with C = "
        f"{Probe.regularisation:g} on activations scaled to variance 1) is fitted to the activations of most prompts "
        "and scored on the others; a pair's two prompts are never split. A probe shows that something can be read, not "
        "that the model uses it."
    )
    section = Section(title="Linear probes", anchor="probes", text=[method, *told], figures=items, tables=tables)
    return pd.concat(frames, ignore_index=True), section, told[:1]


def _top(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["metric"] == "accuracy"].drop(columns=["site", "label", "metric"])


def _found(table: pd.DataFrame, what: str, where: str) -> list[str]:
    """What the accuracies of a table say, as sentences."""
    table = table[table["metric"] == "accuracy"]
    best = table.iloc[0]
    read = table[(table["p_adjusted"] < stats.SURE) & (table["effect"] > 0)]
    score = (
        f"{best['value']:.0%} of held-out prompts (95% interval {best['ci_low']:.0%} to {best['ci_high']:.0%}; "
        f"{best['control']:.0%} with {CONTROL})"
    )
    if read.empty:
        return [
            f"No linear probe on {where} tells {what} beyond {CONTROL} for sure (corrected p "
            f"{best['p_adjusted']:.2g}); the best is right on {score}, at {_place(best)}."
        ]
    strong = read[read["effect"] >= read["effect"].max() / 2]
    first = strong.loc[strong["layer"].idxmin()]
    return [
        f"A linear probe on {where} tells {what} for {score} at {_place(best)}; beyond {CONTROL} it does so in "
        f"{len(read)} of {len(table)} cells, by at least half as much first at {_place(first)}."
    ]


def _place(row: pd.Series[Any]) -> str:
    part = part_of(row.drop("site", errors="ignore"))
    if part is not None:
        return part.name
    return f"layer {row['layer']}" + (f", {row['role']}" if "role" in row else ", last position")


main = study_command(
    run,
    plot=plot,
    summary=summary,
    by_position=lambda by=None, **others: by is not None and "pos" in [part.strip() for part in by.split(",")],
    options=[
        whole("--shuffles", "Shuffles of the control's labels.", default=Probe.shuffles),
        whole("--folds", "Parts that are held out in turn.", default=Probe.folds, least=2),
        above_zero("--regularisation", "scikit-learn's C.", default=Probe.regularisation),
        click.option("--label", default="auto", show_default=True, help=f"{', '.join(CONTRASTS)}."),
        click.option("--by", help="The cells of a layer: role, pos, head, several as head,role, or layer."),
        click.option("--site", default="resid_pre", show_default=True, help="Short site names: resid_pre, z, ..."),
    ],
)

if __name__ == "__main__":
    main()
