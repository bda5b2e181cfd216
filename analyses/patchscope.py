"""Patchscopes: what does a model itself say about a hidden state that is put into another prompt?

1. Take the residual stream of a source prompt at one layer and position.
2. Run a target prompt with the state of its placeholder, at the same layer or at a given one, replaced by it. The
   identity prompt "cat -> cat; 135 -> 135; hello -> hello; ?" asks for what the state stands for.
3. Read what the model says next: the probability of the token at the source position and of the source prompt's right
   answer, and the likeliest token. The untouched target prompt is the base, and the logit lens, which reads the same
   state through the unembedding, the control.

Source: Ghandeharioun et al. 2024 (https://arxiv.org/abs/2401.06102, "Patchscopes: A Unifying Framework for Inspecting
Hidden Representations of Language Models", sections 3 and 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from torch import Tensor

from interp import figures, stats
from interp.arguments import checked, entries, one_of_layers
from interp.directions.steering import states
from interp.errors import PromptError, UnknownName
from interp.figures.axes import Axis
from interp.frames import restoring, summarised
from interp.hooked.model import HookedModel
from interp.lenses.patchscopes import TOP, TOP_PROB, lens_probability, put, readings, wanted
from interp.lenses.read import token_text
from interp.lenses.target_prompts import SITE, copies, target_prompt
from interp.metrics import METRICS, Metric
from interp.models.encoder import Encoder
from interp.prompts.pair_checks import SIDES
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.options import choice, whole
from interp.study.prompts import check_one_stack
from interp.sweeps.sweep import sweep
from interp.variants.granularity import PLACES, cut_by, described, variants

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure


@checked
@torch.no_grad()
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    by: str | EllipsisType | None = ...,
    side: str = "clean",
    layers: Sequence[int] | None = None,
    target: str | Sequence[int] = "next",
    at: int | None = None,
    target_layer: int | None = None,
    read: str | Sequence[str] | None = None,
    top: bool = True,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Put states of the prompts into a target prompt, and read what comes next there.

    Args:
        model: the model.
        pairs: the source prompts.
        by: "role" or "pos" for states at each of them, "layer" or None for the last position. Left out it is "role" for
            prompts that have roles.
        side: which prompts, "clean" or "corrupt". The right answer of a corrupt prompt is taken to be the wrong one.
        layers: the source layers; None takes all.
        target, at: as in `interp.lenses.target_prompts.target_prompt`.
        target_layer: where the state is put in; None puts it into the layer that it is from.
        read: what is looked for, of "token" and "answer"; None takes both, where the model's answers are tokens.
        top: also the likeliest token and its probability.
        max_memory, progress: as `interp.sweep` takes them.

    Returns:
        Columns `layer, target_layer`, `role` or `pos`, `prompt, reading, metric, top_token, value, base_value, control,
        effect`. For each of `reading`, `metric` is "prob": `value` with the state, `base_value` of the untouched target
        prompt, `effect` their difference, and `control` the logit lens's of the same state. Rows of "top_prob" have the
        likeliest token and no reading.

    Raises:
        UnknownName: a layer, axis, role, side or reading that does not exist.
        PromptError: no placeholder; positions of prompts that differ in length.
    """
    import pandas as pd

    check_one_stack(model, "a patchscope puts states into the prompt of", "the logit lens reads its decoder")
    if isinstance(model, Encoder):
        raise PromptError(
            "a patchscope asks how a text goes on, and this model predicts masked tokens: take the logit lens"
        )
    pairs = pairs.to(model.device)
    goal = target_prompt(model, pairs, target, at)
    if isinstance(by, EllipsisType):
        by = "role" if pairs.role_names else None
    n_layers = model.cfg.n_layers
    layers = None if layers is None else entries("layer", layers, n_layers, refuse=UnknownName)
    target_layer = None if target_layer is None else one_of_layers(target_layer, n_layers, "target_layer")
    cells = variants(model, pairs, site=SITE, by=by)
    cells = [cell for cell in cells if layers is None or cell.labels["layer"] in layers]
    if not cells:
        raise PromptError("patchscopes need at least one source layer")
    places = [cell.edits[0].where for cell in cells]
    found = states(model, pairs, SITE, places, side=side)  # [cell, prompt, d_model]
    edited = [
        put(goal, state, cell.labels["layer"] if target_layer is None else target_layer, cell.labels)
        for cell, state in zip(cells, found, strict=True)
    ]
    options: dict[str, Any] = {"base": "clean", "source": "clean", "max_memory": max_memory, "progress": progress}

    def measure(metric: Metric, chosen: Sequence[int], tokens: Tensor) -> pd.DataFrame:
        prompts = copies(goal, tokens.tolist(), model.cfg.d_vocab_out)
        return sweep(model, prompts, [edited[i] for i in chosen], metric, **options)

    frames = []
    for reading in readings(model, read):
        for chosen, tokens in wanted(pairs, places, reading, side):
            lens = torch.cat([lens_probability(model, found[i], tokens) for i in chosen])  # [row]
            frames.append(measure(METRICS["prob"], chosen, tokens).assign(reading=reading, control=lens.numpy()))
    if top:
        every, any_token = range(len(edited)), pairs.answers[:, 0]
        ids = measure(TOP, every, any_token)["value"]
        texts = [token_text(model, int(token)) for token in ids]
        frames.append(measure(TOP_PROB, every, any_token).assign(top_token=texts))
    frame = pd.concat(frames, ignore_index=True)
    frame["effect"] = (frame["value"] - frame["base_value"]).where(frame["metric"] != TOP_PROB.name)
    for name in {"reading", "top_token", "control"} - set(frame):
        frame[name] = np.nan if name == "control" else None
    columns = ["layer", "target_layer", *(name for name in PLACES if name in frame), "prompt", "reading", "metric"]
    return described(frame[[*columns, "top_token", "value", "base_value", "control", "effect"]], pairs)


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of what is looked for at every layer and place, with intervals, the largest first.

    `p` and `p_adjusted` are of the effect, what the state adds to the untouched target prompt.
    """
    cell = ["layer", "target_layer", *cut_by(frame), "reading", "metric"]
    looked = frame[frame["reading"].notna()]
    table = stats.summarise(looked, by=cell)
    tested = stats.tested(looked, by=cell, value="effect", n_resamples=1)  # its interval is not shown
    table["control"] = stats.summarise(looked, by=cell, value="control", n_resamples=1)["value"]
    table = table.assign(effect=tested["value"], p=tested["p"], p_adjusted=tested["p_adjusted"])
    return table.sort_values("value", ascending=False, kind="stable", ignore_index=True)


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """Of states by position the table of likeliest tokens of the first prompt, else the probabilities by layer."""
    if "pos" in frame and (frame["metric"] == TOP_PROB.name).any():
        return plot_table(frame)
    return plot_layers(frame)


@checked
def plot_layers(frame: pd.DataFrame) -> Figure:
    """The probabilities of a frame or its summary by layer, with the logit lens's beside them."""
    import pandas as pd

    table = summarised(frame, summary).sort_values("layer", kind="stable")
    place = next((name for name in PLACES if name in table), None)
    lens = table[["layer", "target_layer", *cut_by(table), "reading", "control"]].rename(columns={"control": "value"})
    both = pd.concat(
        [table.assign(line=table["reading"]), lens.assign(line=table["reading"] + ", logit lens")], ignore_index=True
    )
    both["n"] = int(table["n"].max())
    return figures.lines(both.assign(metric="prob"), x="layer", hue="line", facet=place, label="probability")


@checked
@restoring
def plot_table(frame: pd.DataFrame) -> Figure:
    """The likeliest token at every layer and place of the first prompt."""
    first = frame[(frame["metric"] == TOP_PROB.name) & (frame["prompt"] == frame["prompt"].min())]
    place = next((name for name in PLACES if name in first), None)
    if place is None:
        return figures.lens_table(first.assign(place="last"), x=Axis("place", title=""))
    return figures.lens_table(first, x=place)


main = study_command(
    run,
    plot=plot,
    summary=summary,
    by_position=lambda by=None, **others: by == "pos",
    options=[
        whole("--target-layer", "Where states are put in; the layer that they are from.", least=0),
        click.option("--target", default="next", show_default=True, help="next, token, or a text with a ?."),
        choice("--side", SIDES, default="clean"),
        click.option("--by", help="role, pos, or layer for the last position."),
    ],
)

if __name__ == "__main__":
    main()
