"""Ablation: what does the answer lose when a component is taken away, and how many components does it need?

1. Run the clean prompts, and put something that carries no information in the place of what a head, a layer's
   attention or state-space mixer, an MLP, an expert, a neuron or a channel gives, at all positions: zero, its mean over
   prompts (position by position, or role by role), its value in another prompt, or in the corrupt prompt. Each is
   another question; all are one sweep.
2. The effect is what the metric loses: its clean value less its ablated one. Above zero the component helps, below it
   works against the answer. p is corrected for all that was tested.
3. Cumulative: take away the component that matters most, then the second as well, and so on. In reverse: take all away
   and give them back, the one that matters most first. A random order is the control: a circuit is found where the
   curves lie far apart.

The order of step 3 is that of step 1 on the same prompts, which flatters the first steps of a curve a little.

Source: Wang et al. 2022 (https://arxiv.org/abs/2211.00593, "Interpretability in the Wild", sections 2 and 4); McGrath
et al. 2023 (https://arxiv.org/abs/2307.15771, "The Hydra Effect").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import click
import numpy as np
from torch import Tensor

from interp import figures, stats
from interp.arguments import MOST, checked, whole_number
from interp.encoder_decoder.model import output_stack
from interp.figures.axes import Axis
from interp.frames import restored, restoring, summarised
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.names import PART_KINDS, WHOLES
from interp.prompts.pair_checks import SIDES
from interp.prompts.pairs import PromptPairs
from interp.sites import NameFilter
from interp.study.command import study_command
from interp.study.fewer_prompts import evenly
from interp.study.options import choice, whole
from interp.study.sentences import spelled
from interp.study.shared_options import METRIC, site_option
from interp.study.sweep_options import SweepOptions, in_folder
from interp.sweeps.sweep import sweep
from interp.variants.ablation_runs import PARTS, TWO_STACKS, curves, losses, recovery, singles, with_effect
from interp.variants.ablations import ABLATIONS, replacements
from interp.variants.components import STAGES, check_apart, components, site_of, steps

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

ORDERS = {"importance": "by importance", "random": "in random order"}
MOST_BARS = 20


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
    **options: Unpack[SweepOptions],
) -> pd.DataFrame:
    """Ablate every component of some sites, one at a time and, where asked, one after another.

    Args:
        model: the model.
        pairs: the prompts; their clean side is run.
        kind: one or several names of `interp.variants.ablations.ABLATIONS`, as "zero,mean".
        site: what the components are, one or several of "z" (heads), "gated" (heads of Mamba-2 layers, channels of
            Mamba-1 layers), "attn_out" (the attention of a layer, with its bias), "out" (the state-space mixer of a
            layer), "mlp_out" (MLPs), "expert_out" (experts of a mixture), "post" (neurons). None takes heads, and the
            mixers of layers without any. Of a model with an encoder and a decoder these are the decoder's;
            "cross_attn.z" are the heads of its cross-attention, "encoder.z" those of the encoder, and None takes all
            three.
        only: only these components, by the names of tables or globs: "L9H6,L9H9", "L9H*", "MLP 3", "attention 3",
            "L9S6" (a head of a Mamba-2 layer), "L9C123" (a channel of a Mamba-1 layer), "mixer 3", "L9E5" (an expert).
        cumulative: take away (and give back) up to so many one after another, or just these numbers; 0 is none.
        draws: random orders that the order of importance is compared with.
        over: the side that means are over and that other prompts are taken from.
        measured: measure only so many prompts, evenly drawn; means are still over all. None measures all.
        seed: of random orders and of `resample`.
        metric: as `interp.sweep` takes it; `kl` is taken to the clean run.
        options: `max_memory, out, progress, executor`, as `interp.sweep` takes them.

    Returns:
        A row for every ablation and prompt: `kind`, `stage` ("single", "ablate" one after another, "restore"), `order`
        ("importance", "random" or ""), `draw`, `number` of components that were ablated or restored, `component, site,
        layer, head, neuron` of a single one (and `ssm_head, channel` or `expert` in models that have them), `prompt,
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
    chosen = evenly(len(pairs), len(pairs) if measured is None else whole_number("measured", measured, least=1))
    few = pairs[chosen]

    # 1. and 2. Every component by itself, with the values that take its place.
    names = dict.fromkeys(site_of(part, model.hook_dict) for part in parts)
    values: dict[str, dict[str, Tensor]] = {}
    for one in kinds:
        given = replacements(model, pairs, names, one, run="corrupt" if one == "corrupt" else over, seed=seed)
        widths = {name: few.masks(model.hook_dict[name].site)[0].shape[1] for name in given}
        values[one] = {name: value[chosen, : widths[name]] for name, value in given.items()}
    clean: dict[str, Any] = {"base": "clean", "source": "clean"}
    frames = [sweep(model, few, singles(parts, values), metric, **clean, **in_folder(options, "single"))]

    # 3. One after another, in the order of what each of them loses.
    if numbers:
        more = curves(frames[0], parts, values, numbers, draws=draws, seed=seed)
        frames.append(sweep(model, few, more, metric, **clean, **in_folder(options, "cumulative")))

    frame = pd.concat(frames, ignore_index=True)
    frame["prompt"] = np.array(chosen)[frame["prompt"]]
    return with_effect(frame, recurrent=model.cfg.has_mamba, sparse=output_stack(model).cfg.experts is not None)


def _listed(words: str | Sequence[str]) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in (words.split(",") if isinstance(words, str) else words)))


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect of every ablation over prompts, with intervals, the largest magnitudes first; then the curves.

    The columns are those of `interp.variants.ablation_runs.losses`.
    """
    return restored(losses(frame))


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """The map of single ablations, a panel for every kind; of cumulative ones, the curves.

    Heads are a grid, layer by head, blue where they help; whole layers are lines; of neurons and channels those with
    the largest effects are bars. A frame with heads and others shows the heads.
    """
    if (frame["stage"] != "single").any():
        return plot_curves(frame)
    return plot_single(frame)


@checked
def plot_single(frame: pd.DataFrame) -> Figure:
    """The map of single ablations, as `plot` says; of a frame or its summary."""
    table = summarised(frame, lambda rows: stats.as_measured(summary(rows), restored(rows)))
    part = next((name for name in PARTS if name in table and table[name].notna().any()), None)
    if part in ("channel", "neuron") and table["site"].isin(WHOLES).any():
        part = None
    table = table.assign(kind=table["kind"].map(spelled))
    label = spelled(table["metric"].iloc[0])
    several = "kind" if table["kind"].nunique() > 1 else None
    if not TWO_STACKS.isdisjoint(table):
        return _plot_stacks(table, several)
    if part in ("head", "ssm_head", "expert"):
        table, marked = table[table[part].notna()], 3 if several else 6
        title = None if several else f"Ablation: {table['kind'].iloc[0]}"
        return figures.heatmap(table, x=part, y="layer", facet=several, label=label, annotate=marked, title=title)
    if part is not None:
        table = table[table[part].notna()]
        kept, total = stats.strongest_groups(table, "component", MOST_BARS)
        kept = kept.sort_values("value", ascending=False)
        title = f"The {len(kept)} {part}s with the largest effects, of {total}"
        x = Axis("component", title=part)
        return figures.bars(kept, x=x, hue=several, horizontal=True, diverging=True, label=label, title=title)
    table = table.assign(part=table["site"].map({site: PART_KINDS[kind].word for site, kind in WHOLES.items()}))
    return figures.lines(table.dropna(subset="part"), x="layer", hue="part", facet=several, label=label)


def _plot_stacks(table: pd.DataFrame, several: str | None) -> Figure:
    """Heads of a model with an encoder and a decoder, layer by head, a panel for each of its attentions."""
    kinds = [kind for kind in ("encoder_head", "head", "cross_head") if kind in table]
    table = table[table[kinds].notna().any(axis=1)]
    words = {"encoder_head": "encoder", "head": "decoder", "cross_head": "cross-attention"}
    attention = [
        next(words[kind] for kind in kinds if not missing[kind]) for _, missing in table[kinds].isna().iterrows()
    ]
    table = table.assign(attention=attention, head=table[kinds].bfill(axis=1).iloc[:, 0].astype(int))
    facet = ["attention"] if several is None else ["kind", "attention"]
    return figures.heatmap(table, x="head", y="layer", facet=facet, label=spelled(table["metric"].iloc[0]))


@checked
def plot_curves(frame: pd.DataFrame) -> Figure:
    """The metric by the number ablated, and restored, by importance and at random; of a frame or its `recovery`."""
    table = summarised(frame, lambda rows: recovery(restored(rows)))
    label = spelled(table["metric"].iloc[0])
    table = table.replace({"stage": STAGES, "order": ORDERS}).assign(kind=table["kind"].map(spelled))
    several = table["kind"].nunique() > 1
    facet, title = (["kind", "stage"], None) if several else ("stage", f"Ablation: {table['kind'].iloc[0]}")
    numbers = sorted(set(table["number"]))
    x = Axis("number", title="components", labels={at: str(at) for at in numbers}, values=numbers)
    return figures.lines(table, x=x, hue="order", facet=facet, columns=2, label=label, title=title)


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        METRIC,
        choice("--over", SIDES, help="Prompts of means and of resampling.  [clean]"),
        whole("--measured", "Measure only so many of the prompts."),
        whole("--draws", "Random orders beside that of importance.  [3]", least=0),
        whole("--cumulative", "Take away, and give back, up to so many one after another.  [0]", least=0),
        click.option("--only", help="Only these: L9H6,L9H9, L9H*, MLP 3, attention 3, L9N123, L9S6, mixer 3, L9E5."),
        site_option(
            "z, gated (heads or channels), attn_out, out, mlp_out, expert_out, post (neurons).  [z, gated, out]"
        ),
        click.option("--kind", help=f"{', '.join(ABLATIONS)}, several as zero,mean.  [mean]"),
    ],
)

if __name__ == "__main__":
    main()
