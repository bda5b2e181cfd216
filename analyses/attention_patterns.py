"""Attention patterns: where do heads look, and what does that say about their job?

1. Compute the pattern of the chosen heads, and of no others. In state-space layers it is the hidden attention: the
   share that each earlier position has in what is read from the state (`interp.heads.hidden_attention`), of the heads
   of Mamba-2, of whole mixers of Mamba-1 and of single channels.
2. Average, over prompts, the attention from each role of the prompt to each other.
3. Name what a head does by the pair of roles that stands out.

Source: Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762, "Attention Is All You Need", section 3.2.1) for the
pattern; Wang et al. 2022 (https://arxiv.org/abs/2211.00593, "Interpretability in the Wild", section 3) for reading
heads by the roles they connect; Ali et al. 2024 (https://arxiv.org/abs/2403.01590, "The Hidden Attention of Mamba
Models", section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import torch
from torch import Tensor

from interp import figures, stats
from interp.arguments import checked
from interp.circuits.graph import parse_head
from interp.frames import restoring
from interp.heads.hidden_attention import mixer_of, patterns, shares, sources, together
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.names import Part
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.prompts import check_one_stack
from interp.variants.components import components, having

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

MOST_HEADS = 6
LEAST_LINK = 0.2
DARKEST = 0.98
SHARE = "share of hidden attention"


@checked
@torch.no_grad()
def run(model: HookedModel, pairs: PromptPairs, *, heads: Sequence[str] | None = None) -> pd.DataFrame:
    """Attention probabilities of some heads on the clean prompts.

    Args:
        model: the model.
        pairs: the prompts; their clean side is read.
        heads: names as `L9H6`; in state-space layers `L9S6` (a head of Mamba-2), `L9C123` (a channel of Mamba-1),
            `mixer 9`. None takes every head, and whole mixers in layers of Mamba-1.

    Returns:
        Columns `layer, head, prompt, query, key, query_token, key_token, query_role, key_role, value`: a row for every
        key that a query may look at. With state-space layers there are `component` (the name), `ssm_head`, `channel`
        and `weight`: `value` is a share of hidden attention there, and `weight` the entry of the pattern itself, with
        its sign and with D where a position looks at itself (empty for whole mixers).

    Raises:
        UnknownName: a head, channel or mixer that the model does not have.
    """
    import pandas as pd

    check_one_stack(
        model, "attention patterns are drawn of", "read cache['decoder.cross_attn.pattern', layer] of run_with_cache"
    )
    pairs = pairs.to(model.device)
    chosen = _chosen(model, heads)
    layers = sorted({part.layer for part in chosen if part.layer is not None})
    mask = pairs.attention_mask
    # A layer that calls a shared block may have heads of attention and of its own mixer among them.
    kinds = {(part.layer, part.kind == "head") for part in chosen}
    attending = [layer for layer in layers if model.cfg.attends(layer) and (layer, True) in kinds]
    recurrent = [layer for layer in layers if (layer, False) in kinds]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in attending]
    names += [name for layer in recurrent for name in sources(layer)]
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
    hidden = {layer: _hidden(model, cache, layer, chosen, mask) for layer in recurrent}
    frames = []
    for part in chosen:
        if part.kind == "head":
            value, weight = cache["pattern", part.layer][:, part.index], None
        else:
            value, weight = hidden[part.layer or 0][part]
        frame = links.assign(value=value[looks].double().cpu().numpy())
        if model.cfg.has_mamba:
            frame["weight"] = float("nan") if weight is None else weight[looks].double().cpu().numpy()
            for kind in ("channel", "ssm_head", "head"):
                frame.insert(0, kind, pd.array([part.index if part.kind == kind else None] * len(frame), "Int64"))
            frame.insert(0, "layer", part.layer)
            frame.insert(0, "component", part.name)
        else:
            frame.insert(0, "head", part.index)
            frame.insert(0, "layer", part.layer)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _chosen(model: HookedModel, heads: Sequence[str] | None) -> list[Part]:
    """The heads, channels and mixers of these names, in their order."""
    heads = [] if heads is None else list(heads)
    if not heads:
        return components(model)
    if not model.cfg.has_mamba:
        return [Part("head", *parse_head(name, model)) for name in heads]
    sites = having(model, ("z", "gated", "out"))
    return [part for name in heads for part in components(model, sites, [name])]


def _hidden(
    model: HookedModel, cache: ActivationCache, layer: int, chosen: Sequence[Part], mask: Tensor | None
) -> dict[Part, tuple[Tensor, Tensor | None]]:
    """Shares and entries [batch, query, key] of the parts of a state-space layer that were chosen."""
    own = [part for part in chosen if part.layer == layer and part.kind != "head"]
    found: dict[Part, tuple[list[Tensor], list[Tensor]]] = {part: ([], []) for part in own}
    D = mixer_of(model, layer).D
    for _, pattern in patterns(model, cache, layer, mask):
        for part, (values, entries) in found.items():
            if part.index is None:
                values.append(together(pattern, D))
                continue
            one = pattern[:, part.index : part.index + 1]
            values.append(shares(one, D[part.index : part.index + 1])[:, 0])
            entries.append(one[:, 0].clone())
    return {
        part: (torch.cat(values), torch.cat(entries) if entries else None) for part, (values, entries) in found.items()
    }


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean attention from role to role, over prompts, with intervals; the strongest links first."""
    return _links(frame)


def _links(frame: pd.DataFrame, n_resamples: int = 2000) -> pd.DataFrame:
    named = frame[(frame["query_role"] != "") & (frame["key_role"] != "")].assign(metric="attention")
    if named.empty:
        named = frame.assign(metric="attention", query_role=frame["query"], key_role=frame["key"])
    table = stats.summarise(
        named, by=[*_own(frame), "query_role", "key_role", "metric"], value="value", n_resamples=n_resamples
    )
    return table.sort_values("value", ascending=False, kind="stable", ignore_index=True)


def _own(frame: pd.DataFrame) -> list[str]:
    """The columns that tell patterns apart."""
    return ["component", "layer"] if "component" in frame else ["layer", "head"]


@checked
@restoring
def names_of(frame: pd.DataFrame) -> pd.Series[str]:
    """What the patterns of rows are called: `L9H6`, `L9S6`, `mixer 9`."""
    if "component" in frame:
        return frame["component"]
    import pandas as pd

    heads = list(zip(frame["layer"], frame["head"], strict=True))
    names = {head: Part("head", *head).name for head in set(heads)}
    return pd.Series([names[head] for head in heads], index=frame.index, dtype=object)


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """The patterns of the first prompt, one panel a head; of many heads, those with the strongest links."""
    own = _own(frame)
    first = frame[frame["prompt"] == frame["prompt"].min()]
    total, title = len(first[own].drop_duplicates()), None
    if total > MOST_HEADS:
        what = "heads" if "component" not in own else "patterns"
        title = f"The {MOST_HEADS} of {total} {what} with the strongest links"
        links = _links(frame[frame["query"] != frame["key"]], n_resamples=1)  # no intervals are needed
        best = links[own].drop_duplicates().head(MOST_HEADS)
        first = first.merge(best, on=own)
    tokens = first.drop_duplicates("query").sort_values("query")["query_token"].tolist()
    if "component" not in own:
        return figures.attention(first, tokens=tokens, title=title)
    hidden = first["head"].isna()
    label = SHARE if hidden.all() else "attention probability" + f", or {SHARE}" * bool(hidden.any())
    limit = max(LEAST_LINK, float(first["value"].quantile(DARKEST))) if hidden.all() else 1.0
    return figures.attention(first, tokens=tokens, facet="component", label=label, limit=limit, title=title)


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        click.option(
            "--head", "heads", multiple=True, help="A head, as L9H6 (or L9S6, L9C123, 'mixer 9'); repeat for several."
        )
    ],
)

if __name__ == "__main__":
    main()
