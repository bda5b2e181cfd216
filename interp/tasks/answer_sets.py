"""Answers that are sets of tokens: the probability of all right ones minus that of all wrong ones.

Some tasks have many right answers (any later year, any word for a kind of animal). Their pairs name one of each in
`answers`, so that every metric works, and all of them in `notes["answer_sets"]`: clean text -> [right ids, wrong ids].
`prob_diff` makes the metric of such pairs.

Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?" (arXiv 2305.00586), section 2.2, "probability
difference".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.arguments import checked
from interp.errors import PromptError
from interp.metrics import Metric
from interp.prompts import PromptPairs

NOTE = "answer_sets"
Sets = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class _Difference:
    """P(right) - P(wrong) at the last position; `sets` by clean text."""

    sets: Sets

    def __call__(self, logits: Tensor, pairs: PromptPairs) -> Tensor:
        chances = logits[:, -1].float().softmax(-1)  # [rows, d_vocab_out]
        values = []
        for chance, text in zip(chances, pairs.clean_texts, strict=True):
            right, wrong = self.sets[text]
            values.append(chance[list(right)].sum() - chance[list(wrong)].sum())
        return torch.stack(values)


@checked
def prob_diff(pairs: PromptPairs) -> Metric:
    """The probability of a pair's right answers minus that of its wrong ones, from -1 to 1; for `interp.sweep`.

    Args:
        pairs: of a task whose answers are sets; otherwise the two answers of each pair are its sets.
    """
    given = pairs.notes.get(NOTE) or {}
    sets = {
        text: given.get(text, [[right], [wrong]])
        for text, (right, wrong) in zip(pairs.clean_texts, pairs.answers.tolist(), strict=True)
    }
    return Metric(
        "prob_diff",
        _Difference(sets),
        "probability of the right answers minus probability of the wrong answers",
        "probability",
        whole=True,
        positions=-1,
    )


def check_sets(right: Sequence[int], wrong: Sequence[int], where: str) -> None:
    """Refuse sets that share a token or are empty.

    Raises:
        PromptError: they do.
    """
    if not right or not wrong:
        raise PromptError(f"{where}: there is no {'wrong' if right else 'right'} answer")
    if shared := set(right) & set(wrong):
        raise PromptError(f"{where}: token {min(shared)} is among the right answers and among the wrong ones")
