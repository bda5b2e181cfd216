"""Logit lens: what would the model answer if it stopped after each layer?

1. Take the residual stream before every layer, between mixer and MLP, and after the last layer.
2. Pass each through the final norm, with its own scale, and the unembedding.
3. Read the top tokens, and the probability, rank and logit difference of the answer.

Source: nostalgebraist 2020 (https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru, "interpreting GPT: the logit lens"). The
last row is the model's own output: the check that the other rows are read on the same scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp import figures
from interp.arguments import checked
from interp.figures.axes import Axis
from interp.frames import restoring, summarised
from interp.hooked.model import HookedModel
from interp.lenses import read as lens
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.shared_options import POS, TOP
from interp.text.characters import visible_token

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

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
        ParityError: what is read after the last layer is not the model's own output.
    """
    frame = lens.read(model, pairs, lens.depths(model), lenses={"logit": None}, pos=pos, top=top)
    return frame.drop(columns="lens")


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts at the last position for every depth, with intervals; `top_token` is the first prompt's."""
    table = lens.summary(frame.assign(lens="logit")).drop(columns="lens")
    return table.assign(top_token=[visible_token(token) for token in table["top_token"]])


@checked
@restoring
def top_tokens(frame: pd.DataFrame, *, answer: bool = False) -> pd.DataFrame:
    """The likeliest tokens at every depth of the first prompt's last position, as one would print them.

    With `answer` there are `answer_rank`, the right answer's place among all tokens (1 is first), and `answer_prob`.
    """
    import pandas as pd

    last = frame[frame["prompt"] == frame["prompt"].min()]
    last = last[last["pos"] == last["pos"].max()]
    first = last[last["metric"] == "top_prob"]
    shown = [
        f"{visible_token(token)} {value:.2f}" for token, value in zip(first["top_token"], first["value"], strict=True)
    ]
    wide = first.assign(shown=shown).groupby(["layer", "site", "k"], sort=False)["shown"].first().unstack("k")
    wide.columns = pd.Index([f"top_{k + 1}" for k in wide.columns])
    if answer:
        own = last.pivot_table(index=["layer", "site"], columns="metric", values="value", sort=False)
        wide.insert(0, "answer_rank", own["rank"].astype(int) + 1)
        wide.insert(1, "answer_prob", own["prob"])
    return wide.reset_index()


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """With every position the table of top tokens of the first prompt, else the answer's standing by depth."""
    every = bool((frame.groupby("prompt")["pos"].nunique() > 1).any())
    return plot_table(frame) if every else plot_answer(frame)


@checked
def plot_answer(frame: pd.DataFrame) -> Figure:
    """Probability and logit difference over depth, with intervals; of a frame or its summary."""
    table = summarised(frame, summary)
    shown = table[table["metric"].isin(ANSWER)]
    shown = shown.assign(metric="", panel=shown["metric"].map(ANSWER))
    return figures.lines(shown, x=DEPTH, facet="panel", share=False, label="")


@checked
def plot_rank(frame: pd.DataFrame) -> Figure:
    """The answer's place among all tokens over depth, 1 is first; of a frame or its summary."""
    table = summarised(frame, summary)
    rank = table[table["metric"] == "rank"]
    places = rank.assign(**{name: rank[name] + 1 for name in ("value", "ci_low", "ci_high")})
    return figures.lines(places, x=DEPTH, log=True, label="place of the right answer (1 is first)")


@checked
@restoring
def plot_table(frame: pd.DataFrame) -> Figure:
    """The likeliest token at every layer's input and every position of the first prompt."""
    first = frame[(frame["metric"] == "top_prob") & (frame["k"] == 0) & (frame["prompt"] == frame["prompt"].min())]
    first = first[~first["site"].str.endswith("resid_mid")]
    rows = first["layer"].astype(str).where(first["site"] == "resid_pre", "out")
    return figures.lens_table(first.assign(layer=rows), y=Axis("layer", values=list(dict.fromkeys(rows))))


main = study_command(
    run,
    plot=plot,
    summary=summary,
    natural="layer",
    options=[POS, TOP],
)

if __name__ == "__main__":
    main()
