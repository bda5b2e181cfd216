"""What a Patchscope puts where, what it looks for, and its control.

1. `put`: the edit that replaces the state of a target prompt's placeholder.
2. `wanted`: the tokens that are looked for after it, the one at the source position or the right answer; `TOP` and
   `TOP_PROB` read the likeliest token.
3. `lens_probability`, the control: the logit lens of the same state.

Source: Ghandeharioun et al. 2024 ("Patchscopes: A Unifying Framework for Inspecting Hidden Representations of Language
Models", sections 3 and 4.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.edits import Edit, Variant
from interp.errors import PromptError, check_choice
from interp.hooked.model import HookedModel
from interp.lenses.target_prompts import SITE, Target
from interp.metrics import METRICS, Metric
from interp.prompts.pairs import PromptPairs

READINGS = {"token": "the token at the source position", "answer": "the right answer"}
TOP = Metric("top_token", lambda logits, *_: logits.argmax(-1).double(), "id of the likeliest token", "token id")
TOP_PROB = Metric(
    "top_prob",
    lambda logits, *_: logits.float().softmax(-1).amax(-1),
    "probability of the likeliest token",
    "probability",
)


def put(goal: Target, state: Tensor, layer: int, labels: Mapping[str, Any]) -> Variant:
    """The target prompt with every prompt's state at its placeholder.

    Args:
        goal: the target prompt.
        state: [prompt, d_model].
        layer: where the state is put in, `target_layer` among the labels.
        labels: of the source, whose `site` is left out.
    """
    edit = Edit(SITE, {"layer": layer, "pos": goal.at}, source=state[:, None])  # [prompt, pos, d_model]
    return Variant((edit,), {**{key: at for key, at in labels.items() if key != "site"}, "target_layer": layer})


def readings(model: HookedModel, read: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of `READINGS`: those that were asked for, or all that the model can say.

    Raises:
        UnknownName: a reading that does not exist.
        PromptError: "token" of a model whose answers are not its tokens.
    """
    tokens = model.cfg.d_vocab_out == model.cfg.d_vocab
    if read is None:
        return tuple(READINGS) if tokens else ("answer",)
    names = tuple(part.strip() for part in read.split(",")) if isinstance(read, str) else tuple(read)
    for name in names:
        check_choice("reading", name, READINGS)
    if "token" in names and not tokens:
        raise PromptError(
            f"this model has {model.cfg.d_vocab} tokens and {model.cfg.d_vocab_out} answers, so that it cannot say a "
            "token: read='answer'"
        )
    return names


def wanted(
    pairs: PromptPairs, places: Sequence[Mapping[str, Any]], reading: str, side: str
) -> Iterator[tuple[list[int], Tensor]]:
    """What is looked for in each prompt [prompt], and the numbers of the places for which it is the same.

    Args:
        pairs: the source prompts.
        places: where each state is from; without `pos`, the last position.
        reading: a name of `READINGS`.
        side: of the source prompts. The right answer of a corrupt prompt is taken to be the wrong one.
    """
    if reading == "answer":
        yield list(range(len(places))), pairs.answers[:, int(side == "corrupt")]
        return
    for pos in dict.fromkeys(where.get("pos", -1) for where in places):
        at = pairs.positions(pos)[:, 0]
        chosen = [i for i, where in enumerate(places) if where.get("pos", -1) == pos]
        yield chosen, getattr(pairs, side)[torch.arange(len(pairs), device=at.device), at]


def lens_probability(model: HookedModel, state: Tensor, token: Tensor) -> Tensor:
    """The probability of a token [prompt] by the logit lens of states [prompt, d_model]."""
    logits = model.unembed(model.to_unembed(state.to(model.device, model.dtype)[:, None]))[:, 0]
    return METRICS["prob"].fn(logits, token[:, None].expand(-1, 2), None).double().cpu()
