"""Activation patching: which activation, moved from one prompt to the other, moves the answer with it?

1. A clean and a corrupt prompt of equal length differ in one respect and have opposite answers.
2. Denoising: run the corrupt prompt, and set one activation to its value in the clean run. An effect of 1 says that
   this activation alone restores the clean answer. Noising is the reverse, and asks what is necessary rather than
   sufficient.
3. Repeat for every layer and head, position or role: one cell of the map each.

Source: Vig et al. 2020 ("Investigating Gender Bias in Language Models Using Causal Mediation Analysis", section 3) and
Meng et al. 2022 ("Locating and Editing Factual Associations in GPT", section 2.1); on denoising and noising Heimersheim
and Nanda 2024 ("How to use and interpret activation patching", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click
from torch import Tensor

from interp import figures, stats
from interp.command import study_command
from interp.edits import Edit, Variant
from interp.errors import PromptError, unknown
from interp.metrics import Metric
from interp.model import HookedModel
from interp.prompts import PromptPairs
from interp.scales import Axis
from interp.sites import get_act_name, site_names
from interp.sweep import sweep
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

    from interp.canvas import Figure

ORDER = 40
AXES = ("head", "pos", "role")
DIRECTIONS = {"denoise": ("corrupt", "clean"), "noise": ("clean", "corrupt")}  # base, source


def variants(model: HookedModel, pairs: PromptPairs, *, site: str, by: str | None) -> list[Variant]:
    """One edit for every layer and every value of `by`.

    Args:
        model: the model.
        pairs: the prompts, for their positions and roles.
        site: short site name of a layer, as `z` or `resid_pre`.
        by: "head" (`kv_head` for keys and values), "pos", "role", or None for whole layers.
    """
    names = site_names(model.cfg)
    full = get_act_name(site, 0)
    if full not in names:
        raise unknown("site", full, names)
    axes = names[full].axes
    heads = {"head": model.cfg.n_heads, "kv_head": model.cfg.n_kv_heads}
    axis = by
    if by is None:
        values: list[int | str | None] = [None]
    elif by == "head":
        axis = "kv_head" if "kv_head" in axes else "head"
        values = list(range(heads[axis]))
    elif by == "pos":
        if len(set(pairs.lengths.tolist())) > 1:
            raise PromptError("by='pos' needs prompts of one length; these differ, so choose by='role' or one template")
        values = list(range(int(pairs.lengths[0])))
    elif by == "role":
        axis, values = "pos", list(pairs.role_names)
        if not values:
            raise PromptError("by='role' needs prompts with roles; these have none")
    else:
        raise unknown("axis to patch by", by, AXES)
    if axis is not None and axis not in axes:
        raise unknown(f"axis of {site!r}", axis, [a for a in axes if a not in ("batch", "one")])
    made = []
    for layer in range(model.cfg.n_layers):
        for value in values:
            where = {"layer": layer} if axis is None or value is None else {"layer": layer, axis: value}
            labels = {"site": site, "layer": layer} if by is None else {"site": site, "layer": layer, by: value}
            made.append(Variant([Edit(site, where=where)], labels=labels))
    return made


def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    site: str = "z",
    by: str | None = "head",
    direction: str = "denoise",
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Patch every layer of one site, cell by cell.

    Args:
        model: the model.
        pairs: clean and corrupt prompts.
        site: what to patch, by short name: `z`, `resid_pre`, `mlp_out`, `pattern`, ...
        by: cells of a layer: "head", "pos", "role", or None for the whole layer.
        direction: "denoise" patches clean values into the corrupt run, "noise" the reverse.
        metric: as `interp.sweep` takes it.
        progress: a bar on stderr.

    Returns:
        A row for every cell and prompt: `site, layer`, `head`, `pos` or `role`, `prompt, metric, value, base_value,
        source_value, effect`, and `direction`.
    """
    if direction not in DIRECTIONS:
        raise unknown("direction", direction, DIRECTIONS)
    base, source = DIRECTIONS[direction]
    cells = variants(model, pairs, site=site, by=by)
    frame = sweep(model, pairs, cells, metric, base=base, source=source, progress=progress)
    frame.insert(0, "direction", direction)
    return frame


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect of every cell over prompts with intervals, the largest magnitudes first."""
    by = [name for name in ("direction", "site", "layer", *AXES) if name in frame]
    table = stats.summarise(frame, by=[*by, "metric"], value="effect")
    table["metric"] = "effect on " + table["metric"]
    return table.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)


def plot(frame: pd.DataFrame) -> Figure:
    """Layer by head, position or role; one panel a site. Blue restores the source run's answer."""
    table = summary(frame)
    x = next((name for name in AXES if name in table), "site")
    several = table["site"].nunique() > 1
    facet = "site" if several and x != "site" else None
    across: str | Axis = x
    if x == "role":
        across = Axis("role", values=list(dict.fromkeys(frame["role"])))
    return figures.heatmap(
        table, x=across, y="layer", facet=facet, label=_label(frame), annotate=6 if x == "head" else 0
    )


def _label(frame: pd.DataFrame) -> str:
    return f"effect on {frame['metric'].iloc[0]} (0 {frame.attrs.get('base', 'base')}, 1 source)"


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: residual stream, attention and MLP by role, and every head."""
    import pandas as pd

    sites = [site for site in ("resid_pre", "attn_out", "mlp_out") if get_act_name(site, 0) in model.hook_dict]
    by_role = pd.concat(
        [run(model, pairs, site=site, by="role", progress=progress) for site in sites], ignore_index=True
    )
    by_head = run(model, pairs, site="z", by="head", progress=progress)
    heads = summary(by_head)
    resid = summary(by_role[by_role["site"] == "resid_pre"])
    best, worst = heads.sort_values("value", ascending=False).iloc[0], heads.sort_values("value").iloc[0]
    carried = []
    for role in pairs.role_names:
        strong = resid[(resid["role"] == role) & (resid["value"] >= 0.5)]["layer"]
        if len(strong):
            carried.append(f"at {role} before layers {strong.min()} to {strong.max()}")
    where = (
        f"What decides the answer is carried by the residual stream {', '.join(carried)}: patching it there restores "
        "at least half of the clean logit difference."
        if carried
        else "No single position's residual stream restores half of the clean logit difference."
    )
    intro = (
        "Each cell runs the corrupt prompt with one activation set to its value in the clean run. The effect is 0 "
        "where nothing changes and 1 where the clean logit difference is back."
    )
    told = (
        f"The head whose output restores most is L{best['layer']}H{best['head']} ({best['value']:+.2f}, 95% interval "
        f"{best['ci_low']:.2f} to {best['ci_high']:.2f}); the one that works most against it is "
        f"L{worst['layer']}H{worst['head']} ({worst['value']:+.2f})."
    )
    section = Section(
        title="Activation patching",
        anchor="patching",
        text=[intro, where, told],
        figures=[
            FigureItem(
                "patching_roles",
                "Effect of patching the residual stream, attention and MLP outputs by role",
                f"Denoising, mean over {len(pairs)} prompts.",
                plot(by_role),
                summary(by_role),
            ),
            FigureItem(
                "patching_heads",
                "Effect of patching the output of every head",
                f"Denoising of z at all positions, mean over {len(pairs)} prompts.",
                plot(by_head),
                heads,
            ),
        ],
        tables=[("The ten heads with the largest effect", heads.head(10))],
    )
    return pd.concat([by_head, by_role], ignore_index=True), section, [where, told]


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        click.option("--metric", default="logit_diff", show_default=True, help="logit_diff, log_prob, kl, ..."),
        click.option("--direction", type=click.Choice(list(DIRECTIONS)), default="denoise", show_default=True),
        click.option("--by", type=click.Choice(AXES), default="head", show_default=True, help="The cells of a layer."),
        click.option("--site", default="z", show_default=True, help="Short site name: z, resid_pre, mlp_out, ..."),
    ],
)

if __name__ == "__main__":
    main()
