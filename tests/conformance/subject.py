"""What the checks look at: one tiny random model of transformers, and the same model loaded here."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from checkpoints import CASES, STATE_SPACE, tiny
from torch import Tensor

import interp
from interp.models.gpt import GPT
from interp.weights.huggingface.families import FAMILIES, Family


@dataclass(frozen=True, eq=False)
class Subject:
    """A model on both sides.

    Attributes:
        family: its family in `FAMILIES`.
        theirs: transformers' model, float32 with eager attention.
        ours: what `interp.load` makes of it.
        thorough: whether checks try all that they can, or a part that takes little time.
    """

    family: Family
    theirs: Any
    ours: GPT
    thorough: bool = True

    @classmethod
    def of(cls, model_type: str, options: dict[str, Any], *, thorough: bool = True) -> Subject:
        """The model of a configuration, with random weights."""
        theirs = tiny(model_type, options)
        return cls(FAMILIES[model_type], theirs, interp.load(theirs), thorough)

    def tokens(self, n_rows: int = 3, n_pos: int = 21) -> Tensor:
        """Prompts drawn at random, as long as the context allows.  # [row, pos]"""
        n_pos = min(n_pos, self.ours.cfg.n_ctx)
        generator = torch.Generator().manual_seed(1)
        return torch.randint(1, self.ours.cfg.d_vocab, (n_rows, n_pos), generator=generator)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Transformers' logits.  # [row, pos] -> [row, pos, d_vocab]"""
        return self.theirs(tokens, use_cache=False).logits

    @functools.cached_property
    def wide(self) -> Subject:
        """The same in float64."""
        theirs = copy.deepcopy(self.theirs).double()
        return Subject(self.family, theirs, interp.load(theirs), self.thorough)


def configurations(model_type: str) -> dict[str, dict[str, Any]]:
    """The tiny configurations of a family by their names, the plainest first."""
    found = {name: options for name, (kind, options) in CASES.items() if kind == model_type}
    return found | ({f"{model_type}-small": STATE_SPACE[model_type]} if model_type in STATE_SPACE else {})
