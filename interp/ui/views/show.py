"""`interp.show`: look at a model on a prompt, at a cache, or at a table, in a notebook or as a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.arguments import checked, is_several, shown
from interp.circuits.circuit import Circuit
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import InterpError, PromptError
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.lenses.tuned_lens import TunedLens
from interp.prompts.pairs import PromptPairs
from interp.text.characters import visible_token
from interp.ui.views import circuits, frames, prompts
from interp.ui.views.view import Part, View

if TYPE_CHECKING:
    import pandas as pd

LABELS = {"pos": "token", "query": "query_token", "key": "key_token"}
"""Axes of positions, and the columns of a tidy table that hold their tokens."""


@checked
def show(
    what: HookedModel | ActivationCache | Circuit | pd.DataFrame | Sequence[str],
    given: Any = None,
    layer: int | None = None,
    *,
    tokens: Sequence[str] | None = None,
    effects: str | None = None,
    metric: str = "logit_diff",
    lens: TunedLens | None = None,
    title: str | None = None,
) -> View:
    """A view of numbers: it displays itself in a notebook, and `save` writes it as a page that needs no network.

    | call | shows |
    |---|---|
    | `show(model, "some text")` | the next token, what each layer would say, where every head looks |
    | `show(model, pairs)` | the same of the first clean prompt, with the answer's rank |
    | `show(model, pairs, effects="zero")` | and what the answer loses without each head, exactly, over all pairs |
    | `show(cache, "z", 3)` | any site of a cache as a map |
    | `show(circuit)` | a circuit as a graph: parts can be pinned and grouped, edges pruned |
    | `show(frame)` | the table of a sweep or a study, as a map or as bars |
    | `show(tokens, values)` | a text whose tokens are coloured |

    Args:
        what: a model, a cache, a circuit, a table, or the tokens of a text.
        given: for a model a text, token ids [pos] or pairs; for a cache the name of a site; for tokens their values, or
            several series of values by name.
        layer: for a cache, the layer of the site.
        tokens: for a cache, other labels for the first prompt's tokens than their own.
        effects: for a model with pairs, an ablation (`interp.variants.ablations.ABLATIONS`) of every head.
        metric: what effects are of.
        lens: a tuned lens to show beside the logit lens.
        title: of the view.

    Raises:
        InterpError: anything else.
        PromptError: an empty prompt; `effects` without pairs.
    """
    if isinstance(what, HookedModel):
        return _of_model(what, given, effects, metric, lens, title)
    if isinstance(what, ActivationCache):
        return _of_cache(what, given, layer, tokens, title)
    if isinstance(what, Circuit):
        part = circuits.of_circuit(what)
        return View(title or part.title, [part])
    if hasattr(what, "columns"):
        part = frames.of_frame(what)
        return View(title or part.title, [part])
    if is_several(what) and all(isinstance(one, str) for one in what):
        series = given if isinstance(given, Mapping) else {"value": given}
        if not all(isinstance(one, Tensor) or is_several(one) for one in series.values()):
            raise InterpError(f"show(tokens, values) needs a number for each token, not {shown(given)}")
        return View(title or "Tokens", [frames.coloured_tokens(_visible(what), series)], height=220)
    raise InterpError(
        f"show takes a model with a prompt, a cache with the name of a site, a table, or tokens with values, not "
        f"{shown(what)}"
    )


def _of_model(
    model: HookedModel, given: Any, effects: str | None, metric: str, lens: TunedLens | None, title: str | None
) -> View:
    if isinstance(model, EncoderDecoder):
        raise InterpError("show is of a model with one stack; of an encoder-decoder show a cache: show(cache, site)")
    pairs = given if isinstance(given, PromptPairs) else None
    if pairs is not None:
        ids = pairs.clean[0][pairs.mask[0]]
    elif given is None:
        raise PromptError("show(model, prompt) needs a prompt: a text, token ids, or PromptPairs")
    else:
        ids = torch.as_tensor(given).reshape(-1) if not isinstance(given, str) else model.to_tokens(given)[0]
    if not len(ids):
        raise PromptError("the prompt is empty: it has no token")
    if effects is not None and pairs is None:
        raise PromptError("effects are of an answer: give PromptPairs in place of the prompt")
    ids = ids.to(model.device)
    named = model.to_str_tokens(ids) if model.tokenizer is not None else [str(one) for one in ids.tolist()]
    labels = _visible(named)
    answer = int(pairs.answers[0, 0]) if pairs is not None and pairs.has_answers else None
    lenses = {"logit lens": None} | ({} if lens is None else {"tuned lens": lens.translate})
    parts: list[Part] = []
    if model.cfg.causal:
        parts.append(prompts.next_token(model, ids, after=f"“{labels[-1]}”, at position {len(ids) - 1}"))
    parts.append(prompts.lens(model, ids, labels=labels, lenses=lenses, answer=answer))
    if prompts.attention_layers(model):
        table = (
            None
            if effects is None or pairs is None
            else prompts.head_effects(model, pairs, kind=effects, metric=metric)
        )
        parts.append(prompts.attention(model, ids, labels=labels, effect=table, what=f"{metric} lost ({effects})"))
    if model.cfg.has_mamba:
        parts += prompts.state_space(model, ids, labels=labels)
    return View(title or f"{model.cfg.model_name or 'A model'} on one prompt", parts, height=900)


def _of_cache(
    cache: ActivationCache, site: Any, layer: int | None, tokens: Sequence[str] | None, title: str | None
) -> View:
    if not isinstance(site, str):
        raise InterpError(f"show(cache, site) needs the name of a site, such as 'z', not {shown(site)}")
    frame = cache.tidy(site, layer, prompt=0)
    axes = [name for name in frame if name not in ("layer", "prompt", "value") and not name.endswith("token")]
    sizes = [int(frame[axis].nunique()) for axis in axes]
    name = cache.full_name(site if layer is None else (site, layer))
    given = None if tokens is None else [f"{at}: {text}" for at, text in enumerate(_visible(tokens))]
    labels = []
    for axis, size in zip(axes, sizes, strict=True):
        own = frame.get(LABELS.get(axis, ""))  # the cache's own tokens, where it knows them
        known = None if axis not in LABELS else given or (None if own is None else list(dict.fromkeys(own)))
        labels.append(_labels(size, known, name))
    values = torch.tensor(frame["value"].to_numpy(), dtype=torch.float32).reshape(sizes[0], -1)
    across = (
        labels[1] if len(axes) == 2 else ["value"] if len(axes) == 1 else [str(at) for at in range(values.shape[1])]
    )
    part = frames.heat_map(values, labels[0], across, (axes[0], " x ".join(axes[1:])), name)
    return View(title or name, [part])


def _labels(size: int, tokens: Sequence[str] | None, name: str) -> list[str]:
    """The labels of an axis: the tokens at its positions, or numbers."""
    if tokens is None:
        return [str(at) for at in range(size)]
    if len(tokens) != size:
        raise PromptError(f"{len(tokens)} tokens were given, and the first prompt of {name!r} has {size} positions")
    return list(tokens)


def _visible(tokens: Sequence[str]) -> list[str]:
    return [visible_token(one) for one in tokens]
