"""The difference in probability between all right answers of a pair and all wrong ones.

Some tasks have many right answers (any later year, any word for a kind of animal). `pairs.answer_sets` has all answers
of each pair, and every metric measures all of them; this metric is the usual one for such tasks.

Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?" (arXiv 2305.00586), section 2.2, "probability
difference".
"""

from __future__ import annotations

from torch import Tensor

from interp.arguments import checked
from interp.metrics import Metric, joint_log_prob, sides
from interp.prompts.pairs import PromptPairs


def _difference(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    right, wrong = sides(answers)
    return joint_log_prob(logits, right).exp() - joint_log_prob(logits, wrong).exp()


PROB_DIFF = Metric(
    "prob_diff",
    _difference,
    "probability of the right answers minus probability of the wrong answers",
    "probability",
    sets=True,
)


@checked
def prob_diff(pairs: PromptPairs | None = None) -> Metric:
    """The probability of a pair's right answers minus that of its wrong ones, from -1 to 1; for `interp.sweep`.

    Args:
        pairs: ignored, because every pair has its own answers.
    """
    return PROB_DIFF
