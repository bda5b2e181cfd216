"""Attention patterns: where do heads look, and what does that say about their job?

1. Compute the pattern of the chosen heads, and of no others.
2. Average, over prompts, the attention from each role of the prompt to each other.
3. Name what a head does by the pair of roles that stands out.

Source: Vaswani et al. 2017 ("Attention Is All You Need", section 3.2.1) for the pattern; Wang et al. 2022
("Interpretability in the Wild", section 3) for reading heads by the roles they connect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
import torch

from interp import figures, stats
from interp.command import study_command
from interp.graph import parse_head
from interp.model import HookedModel
from interp.prompts import PromptPairs
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

    from interp.canvas import Figure

ORDER = 50
MOST_HEADS = 6


@torch.no_grad()
def run(model: HookedModel, pairs: PromptPairs, *, heads: Sequence[str] | None = None) -> pd.DataFrame:
    """Attention probabilities of some heads on the clean prompts.

    Args:
        model: the model.
        pairs: the prompts; their clean side is read.
        heads: names as `L9H6`; None takes every head.

    Returns:
        Columns `layer, head, prompt, query, key, query_token, key_token, query_role, key_role, value`: a row for every
        key that a query may look at.
    """
    import pandas as pd

    pairs = pairs.to(model.device)
    every = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    chosen = [parse_head(name, model) for name in heads] if heads else every
    layers = sorted({layer for layer, _ in chosen})
    mask = pairs.attention_mask
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    _, cache = model.run_with_cache(pairs.clean, names_filter=names, attention_mask=mask, stop_at_layer=layers[-1] + 1)
    looks = torch.ones(pairs.mask.shape[1], pairs.mask.shape[1], dtype=torch.bool, device=model.device)
    looks = (looks.tril() if model.cfg.causal else looks) & pairs.mask[:, :, None] & pairs.mask[:, None, :]
    prompt, query, key = (index.tolist() for index in looks.nonzero(as_tuple=True))
    roles = [{place: role for role, place in named.items()} for named in pairs.roles]
    links = pd.DataFrame(
        {
            "prompt": prompt,
            "query": query,
            "key": key,
            "query_token": [pairs.str_tokens[p][i] for p, i in zip(prompt, query, strict=True)],
            "key_token": [pairs.str_tokens[p][i] for p, i in zip(prompt, key, strict=True)],
            "query_role": [roles[p].get(i, "") for p, i in zip(prompt, query, strict=True)],
            "key_role": [roles[p].get(i, "") for p, i in zip(prompt, key, strict=True)],
        }
    )
    frames = []
    for layer, head in chosen:
        frame = links.assign(value=cache["pattern", layer][:, head][looks].float().cpu().numpy())
        frame.insert(0, "head", head)
        frame.insert(0, "layer", layer)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean attention from role to role, over prompts, with intervals; the strongest links first."""
    named = frame[(frame["query_role"] != "") & (frame["key_role"] != "")].assign(metric="attention")
    if named.empty:
        named = frame.assign(metric="attention", query_role=frame["query"], key_role=frame["key"])
    table = stats.summarise(named, by=["layer", "head", "query_role", "key_role", "metric"], value="value")
    return table.sort_values("value", ascending=False, kind="stable", ignore_index=True)


def plot(frame: pd.DataFrame) -> Figure:
    """The patterns of the first prompt, one panel a head; of many heads, those with the strongest links."""
    first = frame[frame["prompt"] == frame["prompt"].min()]
    if len(first[["layer", "head"]].drop_duplicates()) > MOST_HEADS:
        best = summary(frame[frame["query"] != frame["key"]])[["layer", "head"]].drop_duplicates().head(MOST_HEADS)
        first = first.merge(best, on=["layer", "head"])
    tokens = first.drop_duplicates("query").sort_values("query")["query_token"].tolist()
    return figures.attention(first, tokens=tokens)


LEAST_LINK = 0.2


def describe(table: pd.DataFrame, layer: int, head: int, last: str) -> str:
    """What a head does, from the links between roles: where the last position looks, or else its strongest link."""
    own = table[(table["layer"] == layer) & (table["head"] == head) & (table["query_role"] != table["key_role"])]
    strong = own[own["value"] >= LEAST_LINK]
    if strong.empty:
        return f"L{layer}H{head} looks from no role to another with more than {LEAST_LINK} on average"
    from_last = strong[strong["query_role"] == last]
    link = (from_last if len(from_last) else strong).iloc[0]
    return f"L{layer}H{head} looks from {link['query_role']} to {link['key_role']} ({link['value']:.2f})"


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: the heads that patching or, failing that, attribution found strongest."""
    heads = None
    if "activation_patching" in results:
        cells = results["activation_patching"].dropna(subset=["head"])
        means = cells.groupby(["layer", "head"])["effect"].mean().abs().sort_values(ascending=False)
        heads = [f"L{int(layer)}H{int(head)}" for layer, head in means.index[:MOST_HEADS]]
    frame = run(model, pairs, heads=heads)
    table = summary(frame)
    chosen = list(dict.fromkeys(zip(frame["layer"], frame["head"], strict=True)))
    last = pairs.role_names[-1] if pairs.role_names else ""
    text = [
        "Mean attention over prompts between the roles of the prompt: "
        + "; ".join(describe(table, layer, head, last) for layer, head in chosen)
        + "."
    ]
    item = FigureItem(
        "attention_patterns",
        "Attention patterns of the heads with the largest effect",
        "First prompt. Rows are the positions that look (destination), columns those that are looked at (source).",
        plot(frame),
        frame[frame["prompt"] == 0],
    )
    section = Section(
        title="Attention patterns",
        anchor="attention",
        text=text,
        figures=[item],
        tables=[("Links between roles", table.head(12))],
    )
    return frame, section, text


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[click.option("--head", "heads", multiple=True, help="A head, as L9H6; repeat for several.")],
)

if __name__ == "__main__":
    main()
