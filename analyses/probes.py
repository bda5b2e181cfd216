"""Linear probes: at which layer and position can a linear reader tell what the answer hinges on?

1. Take the activations of all clean and corrupt prompts at one place: the residual stream at a role, a head's output.
2. Fit a logistic regression to most of them, and let it say the class of the others: which answer is right, which of
   the answers is named first, clean or corrupt, or labels of your own (`interp.directions.steering`).
3. Do the same with shuffled labels. What a probe scores beyond that, and beyond chance, is its effect (selectivity);
   the effects of all places are tested over prompts and corrected for being many.

That a probe reads something does not say that the model uses it: patching and steering do.

Source: Alain and Bengio 2016 (https://arxiv.org/abs/1610.01644, "Understanding intermediate layers using linear
classifier probes", section 3); Hewitt and Liang 2019 (https://arxiv.org/abs/1909.03368, "Designing and Interpreting
Probes with Control Tasks", section 2). The fits are scikit-learn's (`interp.directions.probes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp import figures, stats
from interp.arguments import checked
from interp.directions.classes import contrast
from interp.directions.probes import METRICS, Probe, held_out, per_prompt, rows_of, sign_test
from interp.directions.steering import states
from interp.frames import restored, restoring, summarised
from interp.hooked.model import HookedModel
from interp.progress import counting
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.options import above_zero, whole
from interp.study.prompts import check_one_stack
from interp.study.shared_options import LABEL, by_option, site_option
from interp.variants.granularity import HEAD_AXES, PLACES, cut_by, described, variants

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

CONTROL = "shuffled labels"
MOST_LINES = 7


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
            Without a position, cells read the last one, or the role "MASK". Left out it is "role" for prompts that
            have roles, and else None.
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

    check_one_stack(model, "this study probes", "difference_of_means of interp.directions.steering takes sites of both")
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
@restoring
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
@restoring
def plot(frame: pd.DataFrame, *, metric: str = "accuracy") -> Figure:
    """Held-out scores by layer, a line for every role beside the control; of heads and positions a map of effects."""
    return plot_scores(frame, metric=metric)


@checked
def plot_scores(frame: pd.DataFrame, roles: Sequence[str] | None = None, *, metric: str = "accuracy") -> Figure:
    """The figure of `plot` from a frame or its summary; roles in their order, or in that of the rows."""
    table = summarised(frame, summary)
    table = table[table["metric"] == metric]
    roles = list(dict.fromkeys(restored(frame)["role"])) if roles is None and "role" in frame else roles or []
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
    order = list(roles) if cuts else ["last position"]
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


main = study_command(
    run,
    plot=plot,
    summary=summary,
    by_position=lambda by=None, **others: by is not None and "pos" in [part.strip() for part in by.split(",")],
    options=[
        whole("--shuffles", "Shuffles of the control's labels.", default=Probe.shuffles),
        whole("--folds", "Parts that are held out in turn.", default=Probe.folds, least=2),
        above_zero("--regularisation", "scikit-learn's C.", default=Probe.regularisation),
        LABEL,
        by_option("role, pos, head, several as head,role, or layer."),
        site_option("Short site names: resid_pre, z, ...", default="resid_pre"),
    ],
)

if __name__ == "__main__":
    main()
