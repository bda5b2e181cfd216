"""Logit lens: what would the model answer if it stopped after each layer?

1. Take the residual stream before every layer, between attention and MLP, and after the last layer.
2. Pass each through the final norm, with its own scale, and the unembedding.
3. Read the top tokens, and the probability, rank and logit difference of the answer.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens". The last row is the model's own output: the check that
the other rows are read on the same scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor

from interp import figures, stats
from interp.command import study_command
from interp.errors import unknown
from interp.glyphs import visible
from interp.model import HookedModel
from interp.prompts import PromptPairs
from interp.scales import Axis
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

    from interp.canvas import Figure

ORDER = 20
DEPTH = Axis("depth", title="layer")
ANSWER = {"prob": "probability of the right answer", "logit_diff": "logit difference"}


@torch.no_grad()
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
    """
    import pandas as pd

    if pos not in ("last", "all"):
        raise unknown("pos", pos, ["last", "all"])
    pairs = pairs.to(model.device)
    names = [n for n in model.hook_dict if n.endswith(("hook_resid_pre", "hook_resid_mid"))]
    names.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    mask = pairs.attention_mask
    logits, cache = model.run_with_cache(pairs.clean, names_filter=names, attention_mask=mask)

    prompt, at = pairs.mask.nonzero(as_tuple=True)  # one entry for every real position
    if pos == "last":
        prompt, at = torch.arange(len(pairs), device=model.device), pairs.last
    is_last = at == pairs.last[prompt]
    follows = pairs.clean[prompt, (at + 1).clamp(max=pairs.clean.shape[1] - 1)]
    right = torch.where(is_last, pairs.answers[prompt, 0], follows)
    wrong = pairs.answers[prompt, 1]
    output = logits[prompt, at].float().log_softmax(-1)  # [place, d_vocab]

    place = pd.DataFrame({"prompt": prompt.tolist(), "pos": at.tolist()})
    place["token"] = [pairs.str_tokens[p][i] for p, i in zip(place["prompt"], place["pos"], strict=True)]
    place["role"] = [_role(pairs, p, i) for p, i in zip(place["prompt"], place["pos"], strict=True)]
    frames = []
    for name in names:
        read = model.unembed(model.ln_final(cache[name][prompt, at]))
        measured = _measure(model, read.float(), output, right, wrong, is_last, top)
        point = model.hook_dict[name]
        frames += [place.assign(layer=point.layer(), site=point.site.short, **columns) for columns in measured]
    frame = pd.concat(frames, ignore_index=True)
    return frame[["layer", "site", "prompt", "pos", "token", "role", "metric", "k", "top_token", "value"]]


def _measure(
    model: HookedModel, logits: Tensor, output: Tensor, right: Tensor, wrong: Tensor, is_last: Tensor, top: int
) -> list[dict[str, Any]]:
    """The columns `metric, k, top_token, value` of one depth, one dictionary for every metric."""
    log_prob = logits.log_softmax(-1)
    answer = logits.gather(-1, right[:, None])
    difference = (answer - logits.gather(-1, wrong[:, None]))[:, 0].masked_fill(~is_last, float("nan"))
    values = {
        "prob": log_prob.gather(-1, right[:, None])[:, 0].exp(),
        "log_prob": log_prob.gather(-1, right[:, None])[:, 0],
        "rank": (logits > answer).sum(-1).float(),
        "logit_diff": difference,
        "kl": (output.exp() * (output - log_prob)).sum(-1),
    }
    columns: list[dict[str, Any]] = [
        {"metric": metric, "k": 0, "top_token": None, "value": value.tolist()} for metric, value in values.items()
    ]
    best = log_prob.topk(min(top, log_prob.shape[-1]), dim=-1)
    for k in range(best.indices.shape[-1]):
        tokens = [_shown(model, token) for token in best.indices[:, k].tolist()]
        columns.append({"metric": "top_prob", "k": k, "top_token": tokens, "value": best.values[:, k].exp().tolist()})
    return columns


def _shown(model: HookedModel, token: int) -> str:
    return str(token) if model.tokenizer is None else model.tokenizer.str_tokens([token])[0]


def _role(pairs: PromptPairs, prompt: int, at: int) -> str:
    return ", ".join(role for role, place in pairs.roles[prompt].items() if place == at)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts at the last position for every depth, with intervals; `top_token` is the first prompt's."""
    last = frame[frame["pos"] == frame.groupby("prompt")["pos"].transform("max")]
    depths = {depth: i for i, depth in enumerate(dict.fromkeys(zip(last["layer"], last["site"], strict=True)))}
    table = stats.summarise(last[last["metric"] != "top_prob"], by=["layer", "site", "metric"], value="value")
    table.insert(2, "depth", [_depth(layer, site) for layer, site in zip(table["layer"], table["site"], strict=True)])
    best = last[(last["metric"] == "top_prob") & (last["k"] == 0) & (last["prompt"] == last["prompt"].min())]
    tops = {
        (layer, site): visible(token)
        for layer, site, token in zip(best["layer"], best["site"], best["top_token"], strict=True)
    }
    table["top_token"] = [tops[at] for at in zip(table["layer"], table["site"], strict=True)]
    order = [depths[at] for at in zip(table["layer"], table["site"], strict=True)]
    return table.assign(order=order).sort_values(["metric", "order"], ignore_index=True).drop(columns="order")


def top_tokens(frame: pd.DataFrame) -> pd.DataFrame:
    """The likeliest tokens at every depth of the first prompt's last position, as one would print them."""
    import pandas as pd

    first = frame[(frame["metric"] == "top_prob") & (frame["prompt"] == frame["prompt"].min())]
    first = first[first["pos"] == first["pos"].max()]
    shown = [f"{visible(token)} {value:.2f}" for token, value in zip(first["top_token"], first["value"], strict=True)]
    wide = first.assign(shown=shown).groupby(["layer", "site", "k"], sort=False)["shown"].first().unstack("k")
    wide.columns = pd.Index([f"top_{k + 1}" for k in wide.columns])
    return wide.reset_index()


def _place(row: pd.Series[Any]) -> str:
    """A depth in words."""
    where = {"resid_pre": "the input of layer", "resid_mid": "the middle of layer", "resid_post": "the output of layer"}
    return f"{where[row['site']]} {row['layer']}"


def _depth(layer: int, site: str) -> float:
    """Where a site stands in units of layers: the stream enters layer 3 at 3, passes its middle at 3.5."""
    return layer + {"resid_pre": 0.0, "resid_mid": 0.5, "resid_post": 1.0}[site]


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
    top = rank[rank["value"] < 1]
    finding = (
        f"Read through the unembedding layer by layer, the right answer has half of its final probability "
        f"({final['value']:.2f}) for the first time at {_place(half)}"
        + (f", and is on average first or second among all tokens from {_place(top.iloc[0])} on." if len(top) else ".")
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
            "Read in the same way; the last point is the model's own output.",
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
        click.option("--top", default=5, show_default=True, help="How many of the likeliest tokens to keep."),
    ],
)

if __name__ == "__main__":
    main()
