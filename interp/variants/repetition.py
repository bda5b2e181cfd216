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

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.heads.from_patterns import Sequences, heads_of
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep
from interp.variants.ablation_runs import singles
from interp.variants.ablations import replacements
from interp.variants.components import components, site_of

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


def losses(model: HookedModel, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """The loss on the second copy of every sequence, and on new tokens in its place, in nats.  # [sequence] each

    Raises:
        InterpError: a model that does not say which token comes next.
    """
    _check(model)
    second = _second(sequences)
    with torch.no_grad():
        return tuple(  # type: ignore[return-value]
            _loss(model(tokens)[:, second.start - 1 : second.stop - 1], tokens[:, second]).double().cpu()
            for tokens in (sequences.repeated, sequences.fresh)
        )


def repeating(model: HookedModel, sequences: Sequences) -> Repeating:
    """How well a model repeats these sequences.

    Raises:
        InterpError: as `losses`.
    """
    return Repeating(*(float(loss.mean()) for loss in losses(model, sequences)))


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
        InterpError: as `losses`; a model without heads.
    """
    _, new = losses(model, sequences)
    axis, _ = heads_of(model)
    tokens, second = sequences.repeated, _second(sequences)
    pairs = PromptPairs.from_tokens(tokens, sequences.fresh, answers=tokens[:, second.start : second.start + 2])
    parts = [part for part in components(model, [SITES[axis]]) if part.kind == axis]
    names = dict.fromkeys(site_of(part, model.hook_dict) for part in parts)
    variants = singles(parts, {"mean": replacements(model, pairs, names, "mean", run="clean")})

    def fn(logits: Tensor, rows: PromptPairs) -> Tensor:
        return _loss(logits, rows.clean[:, second].to(logits.device))

    before = tuple(range(second.start - 1, second.stop - 1))
    metric = Metric(LOSS, fn, "mean of -log p of the second copy's tokens", "nats", whole=True, positions=before)
    frame = sweep(model, pairs, variants, metric, base="clean", source="clean", **options)
    frame = frame.assign(control=new.numpy()[frame["prompt"]], effect=frame["value"] - frame["base_value"])
    return frame[["layer", axis, "prompt", "metric", "value", "base_value", "control", "effect"]]


def _second(sequences: Sequences) -> slice:
    """The positions of the second copy that the repetition foretells: all but the first."""
    start = sequences.start + sequences.length
    return slice(start + 1, start + sequences.length)


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """The mean of -log p of tokens [rows, pos] by the logits before them [rows, pos, d_vocab].  # [rows]"""
    log_prob = logits.float().log_softmax(-1) if logits.dtype != torch.float64 else logits.log_softmax(-1)
    return -log_prob.gather(-1, tokens[..., None])[..., 0].mean(-1)


def _check(model: HookedModel) -> None:
    if not model.cfg.causal or model.cfg.d_vocab_out != model.cfg.d_vocab:
        raise InterpError(
            "how well a model repeats is its loss on the next token, and this model does not give one for every token "
            "that it reads"
        )
