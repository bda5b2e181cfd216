"""`model.test_prompt`: what a model says after a prompt, and where the answer stands, as TransformerLens prints it.

1. The tokens of the prompt, and of the answer after it. 2. One forward of both: before each token of the answer its
rank and probability, and the likeliest tokens there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.arguments import whole_number
from interp.errors import PromptError
from interp.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["step", "rank", "token", "token_id", "logit", "prob", "is_answer"]


def answer_ids(tokenizer: Tokenizer, prompt: str, answer: str | None, *, prepend_space: bool) -> list[int]:
    """The tokens of an answer after its prompt; none where no answer is given.

    Raises:
        PromptError: the prompt's own tokens are others when both are read together.
    """
    if answer is None:
        return []
    text = f" {answer}" if prepend_space and not answer[:1].isspace() else answer
    ids = tokenizer.following(prompt, text)
    if not ids:
        raise PromptError(
            f"{text!r} is not what follows the prompt: its end has other tokens when both are read together; end the "
            "prompt elsewhere (a space belongs to the answer)"
        )
    return ids


def table(logits: Tensor, answer: list[int], text_of: Callable[[int], str], top_k: Any) -> pd.DataFrame:
    """The likeliest tokens at each step and the answer's, as `HookedModel.test_prompt` describes them.

    Args:
        logits: at the step before each token of the answer, or one without any [step, d_vocab_out].
        answer: the ids of the answer's tokens.
        text_of: the text of a token.
        top_k: how many of the likeliest tokens.
    """
    import pandas as pd

    logits = logits.float()
    top_k = whole_number("top_k", top_k, least=1, refuse=PromptError)
    rows = []
    for step, own in enumerate(logits):
        wanted = answer[step] if answer else None
        chosen = own.topk(min(top_k, len(own))).indices.tolist()
        prob = own.softmax(-1)
        for token in [*chosen, *([wanted] if wanted is not None and wanted not in chosen else [])]:
            rank = int((own > own[token]).sum())
            rows.append((step, rank, text_of(token), token, float(own[token]), float(prob[token]), token == wanted))
    return pd.DataFrame(rows, columns=COLUMNS)


def printed(prompt: list[str], answer: list[str], frame: pd.DataFrame) -> str:
    """What `HookedModel.test_prompt` prints."""
    lines = [f"Tokenized prompt: {prompt}"]
    if answer:
        lines.append(f"Tokenized answer: {answer}")
        ranks = [(row.token, row.rank) for row in frame[frame["is_answer"]].itertuples()]
        lines.append(f"Ranks of the answer tokens: {ranks}")
    for step, own in frame.groupby("step"):
        for row in own[own["is_answer"]].itertuples():
            lines.append(f"Performance on answer token {step}:")
            lines.append(f"Rank: {row.rank:<6} Logit: {row.logit:5.2f} Prob: {row.prob:6.2%} Token: |{row.token}|")
        for k, row in enumerate(own.sort_values("rank", kind="stable").itertuples()):
            if row.rank <= k:
                lines.append(f"Top {k:<7} Logit: {row.logit:5.2f} Prob: {row.prob:6.2%} Token: |{row.token}|")
    return "\n".join(lines)
