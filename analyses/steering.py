"""Steering: does adding the direction that tells two kinds of prompts apart turn the answer round?

1. The prompts are dealt into two halves. At every layer, a direction is the mean activation of one class of prompts
   minus that of the other, over one half (`interp.directions.steering`); pairs stay together.
2. Each corrupt prompt of the other half runs with a multiple of it added, towards the class of its clean partner. The
   effect is 0 where nothing changes and 1 where the answer is that of the clean prompt. Then the halves change places.
3. The control: a random vector of the same length for every prompt.
4. What it breaks: the same vectors are added on neutral prompts, and the divergence of the next token's distribution
   from the unsteered one is measured.

Source: Turner et al. 2023 (https://arxiv.org/abs/2308.10248, "Steering Language Models With Activation Engineering",
section 3) and Rimsky et al. 2024 (https://arxiv.org/abs/2312.06681, "Steering Llama 2 via Contrastive Activation
Addition", section 3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor

from interp import figures
from interp.arguments import checked, entries, real_number, shown
from interp.arguments import seed as check_seed
from interp.directions.classes import contrast
from interp.directions.held_out import (
    ADDED,
    HELD_OUT,
    NEUTRAL,
    VECTORS,
    adding,
    beyond_random,
    held_out_vectors,
    neutral_prompts,
    pulled,
    random_like,
)
from interp.edits import Variant
from interp.errors import ConfigError, UnknownName, check_choice
from interp.frames import restoring, summarised
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.options import choice, numbers
from interp.study.prompts import check_one_stack
from interp.study.shared_options import LABEL, metric_option, site_option
from interp.sweeps.sweep import sweep

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

STRENGTHS = (1.0, 2.0, 4.0)
MOST_LINES = 8


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    site: str = "resid_pre",
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    pos: int | str | None = None,
    add: str = "onward",
    label: str = "auto",
    labels: Sequence[Any] | None = None,
    neutral: Sequence[str] | PromptPairs | None = None,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    seed: int = 0,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Add differences of means to held-out prompts, at every layer and strength, and random vectors of their length.

    Args:
        model: the model.
        pairs: clean and corrupt prompts, at least two of every class.
        site: the short name of a site with positions.
        layers: the layers; None takes all.
        strengths: how many times the difference of means is added.
        pos: where activations are read: a position (-1 is the last), a role; None takes where the answer is
            read, the last position or the role "MASK".
        add: "onward" adds from that position on, "there" at it alone, "all" at every position. Neutral prompts have no
            such position: they take it at the last one, or at all.
        label, labels: the two classes, as `interp.directions.classes.contrast` takes them; labels of your own are
            [prompt, 2]. Pairs whose two prompts are of one class are left out: nothing pulls them either way.
        neutral: prompts (texts, or the clean side of pairs) on which steering should change little; None takes the
            first 16 clean prompts cut off at a random position.
        metric, max_memory, progress: as `interp.sweep` takes them.
        seed: of the halves, the random vectors, and where neutral prompts are cut off.

    Returns:
        Columns `layer, strength, vector, prompts, prompt, metric, value, base_value, source_value, effect`. `vector` is
        "difference" or "random". `prompts` is "held out", with the metric of the steered corrupt prompts, or "neutral",
        whose metric is "kl" in nats; `prompt` counts the pairs, or the neutral prompts.

    Raises:
        UnknownName: a site, layer, role or label that does not exist.
        PromptError: too few prompts, more than two classes, labels of one side only.
        ConfigError: no strength.
    """
    import pandas as pd

    check_one_stack(
        model, "this study steers", "difference_of_means and steer of interp.directions.steering take sites of both"
    )
    check_choice("way to add", add, ADDED)
    if isinstance(strengths, str) or not isinstance(strengths, Iterable) or not len(list(strengths)):
        raise ConfigError(f"steering needs at least one strength, such as strengths=[1.0], not {shown(strengths)}")
    strengths, seed = [real_number("strength", one) for one in strengths], check_seed(seed)
    told, pairs, kept = pulled(contrast(model, pairs, label, labels=labels, most=2), pairs)
    every = entries("layer", layers, model.cfg.n_layers, refuse=UnknownName)
    pos = pairs.answer_place if pos is None else pos
    vectors = held_out_vectors(model, pairs, told, site, [{"layer": layer, "pos": pos} for layer in every], seed=seed)
    others = neutral_prompts(model, pairs, neutral, seed)
    turn = torch.arange(len(others)) % len(pairs)  # neutral prompts take the pairs' vectors in turn
    generator = torch.Generator().manual_seed(seed)
    on_task: list[Variant] = []
    on_neutral: list[Variant] = []
    for layer, difference in zip(every, vectors, strict=True):
        for vector, own in zip(VECTORS, (difference, random_like(difference, generator)), strict=True):
            for strength in strengths:
                labelled = {"layer": layer, "strength": float(strength), "vector": vector}
                on_task.append(Variant((adding(site, layer, strength * own, pairs, pos, add),), labelled))
                at_end = "all" if add == "all" else "there"
                on_neutral.append(Variant((adding(site, layer, strength * own[turn], others, -1, at_end),), labelled))
    steered = sweep(
        model, pairs, on_task, metric, base="corrupt", source="clean", max_memory=max_memory, progress=progress
    )
    broken = sweep(
        model, others, on_neutral, "kl", base="clean", source="clean", max_memory=max_memory, progress=progress
    )
    steered["prompt"] = kept[steered["prompt"]]
    frame = pd.concat([steered.assign(prompts=HELD_OUT), broken.assign(prompts=NEUTRAL)], ignore_index=True)
    front = ["layer", "strength", "vector", "prompts", "prompt"]
    return frame[[*front, *(name for name in frame if name not in front)]]


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect on held-out prompts, and mean divergence on neutral ones, of every layer, strength and vector.

    `p` is of what a difference of means does beyond random vectors, as `interp.directions.held_out.beyond_random` says.
    """
    return beyond_random(frame)


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """Effect and divergence by layer: a line for every strength, and the random vectors at the largest."""
    return plot_strengths(frame)


@checked
def plot_strengths(frame: pd.DataFrame) -> Figure:
    """The figure of `plot` from a frame or its summary."""
    table = summarised(frame, summary)
    metric = table["metric"].iloc[0].replace("_", " ")
    panels = {HELD_OUT: f"{metric} (1: clean prompt)", NEUTRAL: "KL on neutral prompts, nats"}
    most = table["strength"].abs().max()
    several = table["strength"].nunique() < MOST_LINES
    shown = table[(table["vector"] == "difference") | ((table["strength"].abs() == most) & several)]
    shown = shown.assign(panel=shown["prompts"].map(panels), metric="")
    shown = shown.sort_values(["prompts", "vector", "strength", "layer"], kind="stable")
    if several:
        random = (shown["vector"] == "random").map({True: "random ", False: ""})
        shown["strength"] = random + shown["strength"].map("×{:g}".format)
    return figures.lines(shown, x="layer", hue="strength", facet="panel", share=False, label="")


def _place(context: click.Context, option: click.Parameter, text: str | None) -> int | str | None:
    if text is None:
        return None
    return int(text) if re.fullmatch("-?[0-9]{1,9}", text) else text


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        LABEL,
        choice("--add", ADDED, default="onward", help="Where it is added."),
        click.option("--pos", callback=_place, help="A position or a role; left out, where the answer is read."),
        numbers("--strengths", "Numbers with commas between.  [1,2,4]"),
        metric_option("logit_diff, log_prob, ..."),
        site_option("A short site name: resid_pre, z, ...", default="resid_pre"),
    ],
)

if __name__ == "__main__":
    main()
