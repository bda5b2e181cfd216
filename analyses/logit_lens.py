"""Logit lens: what would the model answer if it stopped after each layer?

1. Take the residual stream before every layer, between mixer and MLP, and after the last layer.
2. Pass each through the final norm, with its own scale, and the unembedding.
3. Read the top tokens, and the probability, rank and logit difference of the answer.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens". The last row is the model's own output: the check that
the other rows are read on the same scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from interp import figures
from interp.arguments import checked
from interp.figures.axes import Axis
from interp.hooked.model import HookedModel
from interp.lenses import read as lens
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command, whole
from interp.text.characters import visible_token
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

ORDER = 20
DEPTH = Axis("depth", title="layer")
ANSWER = {"prob": "probability of the right answer", "logit_diff": "logit difference"}


@checked
def run(model: HookedModel, pairs: PromptPairs, *, pos: str = "last", top: int = 5) -> pd.DataFrame:
    """Read every layer and sub-layer of the clean prompts through the unembedding.

    Args:
        model: the model.
        pairs: the prompts; their clean side is read.
        pos: "last" for the last position of every prompt, "all" for every position. The answer at an earlier position
            is the prompt's own next token.
        top: how many of the likeliest tokens to keep.

    Returns:
        Columns `layer, site, prompt, pos, token, role, metric, k, top_token, value`, in order of depth. The answer's
        metrics are `prob`, `log_prob` (nats), `rank` (0 is first) and, at the last position, `logit_diff` (right
        minus wrong); `kl` is the divergence of the model's output from this row, in nats; `top_prob` is the
        probability of the k-th likeliest token, which `top_token` names.

    Raises:
        UnknownName: another `pos`.
        ParityError: what is read behind the last layer is not the model's own output.
    """
    frame = lens.read(model, pairs, lens.depths(model), lenses={"logit": None}, pos=pos, top=top)
    return frame.drop(columns="lens")


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts at the last position for every depth, with intervals; `top_token` is the first prompt's."""
    table = lens.summary(frame.assign(lens="logit")).drop(columns="lens")
    return table.assign(top_token=[visible_token(token) for token in table["top_token"]])


def top_tokens(frame: pd.DataFrame) -> pd.DataFrame:
    """The likeliest tokens at every depth of the first prompt's last position, as one would print them."""
    import pandas as pd

    first = frame[(frame["metric"] == "top_prob") & (frame["prompt"] == frame["prompt"].min())]
    first = first[first["pos"] == first["pos"].max()]
    shown = [
        f"{visible_token(token)} {value:.2f}" for token, value in zip(first["top_token"], first["value"], strict=True)
    ]
    wide = first.assign(shown=shown).groupby(["layer", "site", "k"], sort=False)["shown"].first().unstack("k")
    wide.columns = pd.Index([f"top_{k + 1}" for k in wide.columns])
    return wide.reset_index()


@checked
def plot(frame: pd.DataFrame) -> Figure:
    """With every position the table of top tokens of the first prompt, else the answer's standing by depth."""
    every = bool((frame.groupby("prompt")["pos"].nunique() > 1).any())
    return plot_table(frame) if every else plot_answer(summary(frame))


def plot_answer(table: pd.DataFrame) -> Figure:
    """Probability and logit difference of the summary over depth, with intervals."""
    shown = table[table["metric"].isin(ANSWER)]
    shown = shown.assign(metric="", panel=shown["metric"].map(ANSWER))
    return figures.lines(shown, x=DEPTH, facet="panel", share=False, label="")


def plot_rank(table: pd.DataFrame) -> Figure:
    """The answer's place among all tokens over depth; 1 is first."""
    rank = table[table["metric"] == "rank"]
    places = rank.assign(**{name: rank[name] + 1 for name in ("value", "ci_low", "ci_high")})
    return figures.lines(places, x=DEPTH, log=True, label="place of the right answer (1 is first)")


def plot_table(frame: pd.DataFrame) -> Figure:
    """The likeliest token at every layer's input and every position of the first prompt."""
    first = frame[(frame["metric"] == "top_prob") & (frame["k"] == 0) & (frame["prompt"] == frame["prompt"].min())]
    first = first[first["site"] != "resid_mid"]
    rows = first["layer"].astype(str).where(first["site"] == "resid_pre", "out")
    return figures.lens_table(first.assign(layer=rows), y=Axis("layer", values=list(dict.fromkeys(rows))))


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: its measurements, how they are told, and what goes into the summary."""
    frame = run(model, pairs, pos="last")
    grid = run(model, pairs[:1], pos="all", top=1)
    table = summary(frame)
    prob = table[table["metric"] == "prob"].reset_index(drop=True)
    final = prob.iloc[-1]
    half = prob[prob["value"] >= final["value"] / 2].iloc[0]
    rank = table[table["metric"] == "rank"].reset_index(drop=True)
    first = lens.settled(rank, rank["value"] < 1)
    then = (
        "" if first is None else f", and is on average first or second among all tokens from {lens.in_words(first)} on"
    )
    finding = (
        "Read through the unembedding layer by layer, the right answer has half of its final probability "
        f"({final['value']:.2f}) for the first time at {lens.in_words(half)}{then}."
    )
    items = [
        FigureItem(
            "logit_lens_rank",
            "Place of the right answer among all tokens, by depth",
            f"Residual stream at the last position through the final norm and the unembedding; mean over {len(pairs)} "
            "prompts on a logarithmic scale, the band is a 95% bootstrap interval.",
            plot_rank(table),
            rank,
        ),
        FigureItem(
            "logit_lens_answer",
            "Probability of the right answer and logit difference by depth",
            "Read in the same way; the last point is the model's own output (largest divergence of any prompt: "
            f"{lens.gap(frame):.1e} nats).",
            plot_answer(table),
            table[table["metric"].isin(ANSWER)],
        ),
        FigureItem(
            "logit_lens_table",
            "Likeliest token at every layer and position of the first prompt",
            "Rows are the input of each layer and the model's output; the colour is the token's probability.",
            plot_table(grid),
            grid[grid["metric"] == "top_prob"],
        ),
    ]
    return frame, Section(title="Logit lens", anchor="logit-lens", text=[finding], figures=items), [finding]


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        click.option(
            "--pos", type=click.Choice(["last", "all"]), default="last", show_default=True, help="Positions to read."
        ),
        whole("--top", "How many of the likeliest tokens to keep.", default=5),
    ],
)

if __name__ == "__main__":
    main()
