"""What the checks look at: one tiny random model of transformers, and the same model loaded here."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from checkpoints import CASES, STATE_SPACE, tiny
from torch import Tensor

import interp
from interp.models.gpt import GPT
from interp.weights.huggingface.families import FAMILIES, Family

TEXT = "text_config"


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
        family, ours = FAMILIES[model_type], interp.load(theirs)
        if family.rows_of is not None:
            family = replace(family, rows=family.rows_of(ours.cfg))
        return cls(family, theirs, ours, thorough)

    def tokens(self, n_rows: int = 3, n_pos: int = 21) -> Tensor:
        """Prompts drawn at random, as long as the context allows.  # [row, pos]"""
        n_pos = min(n_pos, self.ours.cfg.n_ctx)
        generator = torch.Generator().manual_seed(1)
        return torch.randint(1, self.ours.cfg.d_vocab, (n_rows, n_pos), generator=generator)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Transformers' logits.  # [row, pos] -> [row, pos, d_vocab]"""
        forget(self.theirs)
        return self.theirs(tokens, use_cache=False).logits

    @functools.cached_property
    def wide(self) -> Subject:
        """The same in float64."""
        theirs = copy.deepcopy(self.theirs).double()
        return Subject(self.family, theirs, interp.load(theirs), self.thorough)


@torch.no_grad()
def forget(theirs: Any) -> None:
    """Undo what longer prompts have left: where rotary angles follow the length, transformers keeps the largest."""
    for module in theirs.modules():
        if getattr(module, "max_seq_len_cached", 0) > getattr(module, "original_max_seq_len", 0):
            theirs(torch.ones(1, 1, dtype=torch.int64), use_cache=False)
            return


def changed(model_type: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A family's plainest configuration with some changes, which belong to its text part if it has several."""
    plain = copy.deepcopy(next(iter(configurations(model_type).values())))
    changes = copy.deepcopy(changes)  # transformers writes into what it is given
    return {**plain, TEXT: {**plain[TEXT], **changes}} if TEXT in plain else {**plain, **changes}


def written(model_type: str, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What transformers writes of such a configuration: the whole, and the part that belongs to text."""
    whole = transformers.AutoConfig.for_model(model_type, **changed(model_type, changes)).to_dict()
    return whole, whole.get(TEXT, whole)


def configurations(model_type: str) -> dict[str, dict[str, Any]]:
    """The tiny configurations of a family by their names, the plainest first."""
    found = {name: options for name, (kind, options) in CASES.items() if kind == model_type}
    return found | ({f"{model_type}-small": STATE_SPACE[model_type]} if model_type in STATE_SPACE else {})
