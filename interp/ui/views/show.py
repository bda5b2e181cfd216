"""`interp.show`: look at a model on a prompt, at a cache, or at a table, in a notebook or as a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.arguments import checked, is_several, shown
from interp.circuits.circuit import Circuit
from interp.errors import ConfigError, InterpError, PromptError
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.lenses.tuned_lens import TunedLens
from interp.text.characters import visible_token
from interp.ui.views import circuits, frames
from interp.ui.views.of_model import of_model
from interp.ui.views.view import View

if TYPE_CHECKING:
    import pandas as pd

    from interp.ui.live.widget import Live

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
    live: bool = False,
) -> View | Live:
    """A view of numbers: it displays itself in a notebook, and `save` writes it as a page that needs no network.

    | call | shows |
    |---|---|
    | `show(model, "some text")` | the next token, what each layer would say, where every head looks |
    | `show(model, "some text", live=True)` | the same as a widget, in which a click changes a head, by this kernel |
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
        live: for a model, a widget (`interp.ui.live.widget.Live`) in place of the view, which needs a notebook with a
            kernel and `pip install 'interp[live]'`.

    Raises:
        InterpError: anything else.
        ConfigError: `live` without anywidget, or with arguments that only views take; a model with those of a cache.
        PromptError: an empty prompt, or several; `effects` without pairs.
    """
    if isinstance(what, HookedModel):
        if live:
            return _live(what, given, layer, tokens, effects, lens, title)
        if odd := [name for name, value in {"layer": layer, "tokens": tokens}.items() if value is not None]:
            raise ConfigError(f"show(model, prompt) does not take {' and '.join(odd)}, of a cache: show(cache, site)")
        return of_model(what, given, effects=effects, metric=metric, lens=lens, title=title)
    if live:
        raise InterpError(f"live=True is of a model and a prompt, not of {shown(what)}")
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


def _live(
    model: HookedModel,
    given: Any,
    layer: int | None,
    tokens: Sequence[str] | None,
    effects: str | None,
    lens: TunedLens | None,
    title: str | None,
) -> Live:
    extra = {"layer": layer, "tokens": tokens, "effects": effects, "lens": lens}
    if odd := [name for name, value in extra.items() if value is not None]:
        raise ConfigError(f"live=True takes a model, a prompt and a title, and not {', '.join(odd)}")
    try:
        from interp.ui.live.widget import Live
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"live=True needs {error.name}, which is not installed: pip install 'interp[live]'"
        ) from error
    return Live(model, given, title=title)


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
