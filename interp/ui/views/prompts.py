"""Views of a model on one prompt: what comes next, what each layer would say, where each head looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.heads.hidden_attention import mixer_of, shares
from interp.hooked.model import HookedModel
from interp.lenses.read import Translate, depths, read_out, token_text
from interp.prompts.pairs import PromptPairs
from interp.sites import get_act_name
from interp.text.characters import visible_token
from interp.ui.views.arrays import LARGEST_HALVES, exact, packed
from interp.ui.views.frames import BOUNDS, heat_map, heat_maps
from interp.ui.views.view import Part
from interp.variants.ablation_runs import ablated, losses, with_effect
from interp.variants.components import components

if TYPE_CHECKING:
    import pandas as pd

MOST_SCORES = 300_000  # so many of them add about a megabyte and a half to a page
MOST_LABELS = 50  # of the likeliest next tokens
LONGEST_HIDDEN = 128  # positions: hidden attention has a matrix for every channel
TOP = 5  # tokens in a cell of a lens
HIDDEN = (
    "Hidden attention has no softmax: shown is each entry’s size as a share of its row, without D, which bypasses the "
    "state. The signs are lost."
)


@torch.no_grad()
def next_token(model: HookedModel, tokens: Tensor, *, after: str) -> Part:
    """The distribution of the token after a prompt [pos], of the whole vocabulary."""
    logits = model(tokens[None])[0, -1].float()
    ranked = logits.sort(descending=True)
    labels = [_text(model, token) for token in ranked.indices[:MOST_LABELS].tolist()]
    return Part("next_token", "Next token", {"logits": exact(ranked.values), "labels": labels, "after": after})


@torch.no_grad()
def lens(
    model: HookedModel,
    tokens: Tensor,
    *,
    labels: Sequence[str],
    lenses: Mapping[str, Translate | None],
    answer: int | None = None,
    window: range | None = None,
) -> Part:
    """What every layer would say at every position of a prompt [pos], or of a window of it, if it were the last."""
    names = depths(model, halves=False)
    _, cache = model.run_with_cache(tokens[None], names_filter=names, return_type=None)
    read: dict[str, Any] = {}
    for title, translate in lenses.items():
        words: dict[int, int] = {}  # token id -> its number among the texts of this payload
        tops, shares, ranks = [], [], []
        for name in names:
            stream = cache[name][0][window.start : window.stop] if window else cache[name][0]
            log_probs = read_out(model, stream if translate is None else translate(name, stream)).log_softmax(-1)
            best = log_probs.topk(min(TOP, log_probs.shape[-1]), dim=-1)  # [pos, TOP]
            tops.append([[words.setdefault(token, len(words)) for token in row] for row in best.indices.tolist()])
            shares.append(best.values.exp())
            if answer is not None:
                ranks.append((log_probs > log_probs[:, answer, None]).sum(-1))
        read[title] = {
            "words": [_text(model, token) for token in words],
            "tops": tops,
            "probs": exact(torch.stack(shares)),
            "ranks": exact(torch.stack(ranks)) if ranks else None,
        }
    payload = {
        "tokens": list(labels[window.start : window.stop] if window else labels),
        "start": window.start if window else 0,
        "layers": [*(f"into {at}" for at in range(len(names) - 1)), "output"],
        "lenses": read,
        "answer": None if answer is None else _text(model, answer),
    }
    return Part("lens", "What each layer would say", payload)


def attention_layers(model: HookedModel) -> list[int]:
    """The layers whose attention patterns can be seen."""
    return [at for at in range(model.cfg.n_layers) if get_act_name("pattern", at) in model.hook_dict]


@torch.no_grad()
def attention(
    model: HookedModel,
    tokens: Tensor,
    *,
    labels: Sequence[str],
    effect: pd.DataFrame | None = None,
    what: str = "",
    layer: int | None = None,
    window: range | None = None,
) -> Part:
    """Where every head looks on a prompt [pos].

    Args:
        model: a model with attention.
        tokens: one prompt, without padding.
        labels: its tokens as text.
        effect: of every head, as `head_effects` gives them; None shows patterns alone.
        what: what the effect is, in a few words.
        layer: the only layer that is shown; None shows all.
        window: the positions that are shown, as queries and as keys; None shows all.
    """
    layers = attention_layers(model) if layer is None else [layer]
    shown = slice(None) if window is None else slice(window.start, window.stop)
    names = [get_act_name("pattern", at) for at in layers]
    scored = [get_act_name("attn_scores", at) for at in layers]
    n_scores = len(layers) * model.cfg.n_heads * len(tokens) ** 2
    staged = (
        window is None
        and n_scores <= MOST_SCORES
        and not model.cfg.attn_sinks
        and all(name in model.hook_dict for name in scored)
    )
    names += scored if staged else []
    _, cache = model.run_with_cache(tokens[None], names_filter=names, return_type=None)
    patterns = torch.stack([cache["pattern", at][0][:, shown, shown] for at in layers])  # [layer, head, query, key]
    payload: dict[str, Any] = {
        "tokens": list(labels[shown]),
        "start": 0 if window is None else window.start,
        "layers": layers,
        "heads": patterns.shape[1],
        "causal": model.cfg.causal,
        "pattern": packed(patterns, causal=model.cfg.causal),
        "effect": None if effect is None else _by_head(effect, layers, patterns.shape[1], what),
        "stages": None,
    }
    if staged:
        scores = torch.stack([cache["attn_scores", at][0] for at in layers])
        payload["stages"] = {"layers": layers, "scores": exact(scores.clamp(min=torch.finfo(torch.float32).min))}
    return Part("attention", "Where heads look", payload)


@torch.no_grad()
def state_space(model: HookedModel, tokens: Tensor, *, labels: Sequence[str]) -> list[Part]:
    """What state-space layers let in at each position of a prompt [pos], and how far they look back.

    Means over channels or heads: of step sizes (the larger, the more a token writes and the faster the state forgets),
    and of the sizes of hidden attention (Ali et al. 2024, "The Hidden Attention of Mamba Models"), where the prompt is
    not longer than `LONGEST_HIDDEN`. The heads of Mamba-2 layers are also shown one by one, as attention heads are.
    """
    layers = [at for at in range(model.cfg.n_layers) if get_act_name("delta", at) in model.hook_dict]
    rows, places = [str(at) for at in layers], [f"{at}: {text}" for at, text in enumerate(labels)]
    _, cache = model.run_with_cache(tokens[None], names_filter=[get_act_name("delta", at) for at in layers])
    steps = torch.stack([cache["delta", at][0].float().mean(-1) for at in layers])  # [layer, pos]
    parts = [heat_map(steps, rows, places, ("layer", "position"), "step size, mean over channels")]
    if len(tokens) > LONGEST_HIDDEN:
        return parts
    maps, by_head = [], {}
    with_heads = [at for at in layers if _has_heads(model, at)]
    drawn = len(with_heads) * model.cfg.n_ssm_heads * len(tokens) ** 2 <= LARGEST_HALVES
    for at in layers:  # one by one: each is [channel, query, key]
        name = get_act_name("pattern", at, "mixer")
        _, own = model.run_with_cache(tokens[None], names_filter=[name], return_type=None)
        maps.append((f"layer {at}, mean size over channels", own[name][0].float().abs().mean(0)))
        if drawn and at in with_heads:
            by_head[at] = shares(own[name], mixer_of(model, at).D)[0]  # [ssm_head, query, key]
    parts.append(heat_maps(maps, places, places, ("from", "to"), "Hidden attention"))
    return [*parts, _hidden_heads(by_head, labels)] if by_head else parts


def _has_heads(model: HookedModel, layer: int) -> bool:
    """Whether a layer's hidden attention has a matrix for each head, as in Mamba-2, and not for each channel."""
    return "ssm_head" in model.hook_dict[get_act_name("pattern", layer, "mixer")].site.axes


def _hidden_heads(by_head: Mapping[int, Tensor], labels: Sequence[str]) -> Part:
    """The hidden attention of each head, by layer [ssm_head, query, key], drawn as attention patterns are."""
    pattern = torch.stack([*by_head.values()])  # [layer, ssm_head, query, key]
    payload = {
        "tokens": list(labels),
        "layers": [*by_head],
        "heads": pattern.shape[1],
        "letter": "S",
        "causal": True,
        "pattern": packed(pattern, causal=True),
        "effect": None,
        "stages": None,
        "note": HIDDEN,
    }
    return Part("attention", "Hidden attention of each head", payload)


def head_effects(model: HookedModel, pairs: PromptPairs, *, kind: str, metric: str) -> pd.DataFrame:
    """What a metric loses without each head: means over prompts with their intervals, as `losses` gives them."""
    frame = ablated(model, pairs, components(model, ["z"]), kind, metric)
    return losses(with_effect(frame, recurrent=False, sparse=False))


def _by_head(table: pd.DataFrame, layers: Sequence[int], heads: int, what: str) -> dict[str, Any]:
    """Effects in the order of heads; None where there is no number."""
    own = table.set_index(["layer", "head"]).reindex([(layer, head) for layer in layers for head in range(heads)])
    listed = {name: own[column].astype(float).tolist() for name, column in BOUNDS.items()}
    return {"what": what} | {name: [None if v != v else v for v in values] for name, values in listed.items()}


def _text(model: HookedModel, token: int) -> str:
    return visible_token(token_text(model, token))
