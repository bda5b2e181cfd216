"""A model on one prompt: the parts of the view that `interp.show(model, prompt)` gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.arguments import shown
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import InterpError, PromptError
from interp.hooked.model import HookedModel
from interp.lenses.tuned_lens import TunedLens
from interp.prompts.pairs import PromptPairs
from interp.text.characters import visible_token
from interp.ui.views import prompts
from interp.ui.views.view import Part, View


def of_model(
    model: HookedModel,
    given: Any,
    *,
    effects: str | None = None,
    metric: str = "logit_diff",
    lens: TunedLens | None = None,
    title: str | None = None,
) -> View:
    """The view of a model on one prompt; the arguments are those of `interp.show`."""
    if isinstance(model, EncoderDecoder):
        raise InterpError("show is of a model with one stack; of an encoder-decoder show a cache: show(cache, site)")
    pairs = given if isinstance(given, PromptPairs) else None
    if pairs is not None:
        ids = pairs.clean[0][pairs.mask[0]]
    elif given is None:
        raise PromptError("show(model, prompt) needs a prompt: a text, token ids, or PromptPairs")
    else:
        ids = model.to_tokens(given)[0] if isinstance(given, str) else _one_prompt(given)
    if not len(ids):
        raise PromptError("the prompt is empty: it has no token")
    if effects is not None and pairs is None:
        raise PromptError("effects are of an answer: give PromptPairs in place of the prompt")
    ids = ids.to(model.device)
    labels = labels_of(model, ids)
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


def labels_of(model: HookedModel, ids: Tensor) -> list[str]:
    """The tokens of a prompt [pos] as pages show them; their ids, of a model without a tokenizer."""
    named = model.to_str_tokens(ids) if model.tokenizer is not None else [str(one) for one in ids.tolist()]
    return [visible_token(one) for one in named]


def _one_prompt(given: Any) -> Tensor:
    """Token ids [pos] of one prompt, however they were given.

    Raises:
        PromptError: several prompts, or no token ids.
    """
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        ids = None
    if ids is None:
        raise PromptError(f"show(model, prompt) takes one prompt: text, token ids, or PromptPairs, not {shown(given)}")
    if ids.ndim > 2 or (ids.ndim == 2 and len(ids) != 1):
        raise PromptError(f"show(model, prompt) takes one prompt, not token ids of shape {list(ids.shape)}: give a row")
    return ids.reshape(-1)
