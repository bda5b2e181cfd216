"""Which heads does a model repeat with? What it loses of a repetition without each head, exact, from one sweep.

1. Random tokens that occur twice (`interp.heads.from_patterns.random_sequences`): nothing but the repetition foretells
   a token of the second copy. As a control, sequences whose second half has new tokens.
2. The loss on the second copy: the mean of -log p of its tokens after the first, in nats.
3. Every head by itself is replaced by its mean over sequences at every position; the effect is by how much the loss
   grows. A detector by patterns looks for one way to look back; this one finds whatever the model looks back with.

Source: Olsson et al. 2022 ("In-context Learning and Induction Heads", https://arxiv.org/abs/2209.11895, arguments 2 and
3: repeated random tokens, and ablations of heads).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.heads.from_patterns import Sequences, heads_of
from interp.hooked.model import HookedModel
from interp.metrics import Metric, loss, measure
from interp.prompts.pairs import PromptPairs
from interp.variants.ablation_runs import ablated
from interp.variants.components import components

if TYPE_CHECKING:
    import pandas as pd

SITES = {"head": "z", "ssm_head": "gated"}
LOSS = "loss on the second copy"
REPEATS = 0.5  # of the loss on new tokens: a model whose loss on the second copy is below this repeats


class Repeating(NamedTuple):
    """How well a model repeats.

    Attributes:
        loss: on the second copy, nats a token, the mean over sequences.
        new: the same where the second half has new tokens.
    """

    loss: float
    new: float

    @property
    def repeats(self) -> bool:
        """Whether the repetition saves the model more than half of its loss."""
        return self.loss < REPEATS * self.new


def on_second_copy(model: HookedModel, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """The loss on the second copy of every sequence, and on new tokens in its place, in nats.  # [sequence] each

    Raises:
        InterpError: a model that does not say which token comes next.
    """
    _check(model)
    pairs, metric = _pairs(sequences), _metric(sequences)
    with torch.no_grad():
        repeated, fresh = (
            measure(metric, model(tokens), pairs, side=side).double().cpu()
            for side, tokens in (("clean", pairs.clean), ("corrupt", pairs.corrupt))
        )
    return repeated, fresh


def repeating(model: HookedModel, sequences: Sequences) -> Repeating:
    """How well a model repeats these sequences.

    Raises:
        InterpError: as `on_second_copy`.
    """
    return Repeating(*(float(own.mean()) for own in on_second_copy(model, sequences)))


def without_each_head(model: HookedModel, sequences: Sequences, **options: Any) -> pd.DataFrame:
    """What the loss on the second copy is without every head.

    Args:
        model: the model.
        sequences: random tokens that occur twice.
        options: `max_memory, out, progress, executor`, as `interp.sweep` takes them.

    Returns:
        A row for every head and sequence: `layer`, `head` (or `ssm_head`), `prompt, metric`, `value` (the loss without
        the head), `base_value` (with it), `control` (on new tokens) and `effect` = value - base_value, in nats.

    Raises:
        InterpError: as `on_second_copy`; a model without heads.
    """
    _, new = on_second_copy(model, sequences)
    axis, _ = heads_of(model)
    parts = [part for part in components(model, [SITES[axis]]) if part.kind == axis]
    frame = ablated(model, _pairs(sequences), parts, "mean", _metric(sequences), **options)
    frame = frame.assign(control=new.numpy()[frame["prompt"]], effect=frame["value"] - frame["base_value"])
    return frame[["layer", axis, "prompt", "metric", "value", "base_value", "control", "effect"]]


def _pairs(sequences: Sequences) -> PromptPairs:
    """The sequences that repeat, and beside each the one that does not."""
    return PromptPairs.from_tokens(sequences.repeated, sequences.fresh)


def _metric(sequences: Sequences) -> Metric:
    """The loss on all of the second copy but its first token, which nothing foretells."""
    start = sequences.start + sequences.length
    return replace(loss(positions=slice(start, start + sequences.length - 1)), name=LOSS)


def _check(model: HookedModel) -> None:
    if not model.cfg.causal or model.cfg.d_vocab_out != model.cfg.d_vocab:
        raise InterpError(
            "how well a model repeats is its loss on the next token, and this model does not give one for every token "
            "that it reads"
        )
