"""Induction: when a token occurs again, does the model predict what followed it before?

Olsson et al. 2022, "In-context Learning and Induction Heads" (section "Induction heads"): in random tokens
`... A B ... A` the next token is B, as only the repetition shows.

1. A run of different random tokens is followed by its own beginning, at least half of it, up to A; the answer is B, the
   wrong answer a token of the run that is not repeated yet. Models without a tokenizer get ids, others words.
2. The corrupt prompt is the control: `broken_repeat` has another first run, so that nothing is repeated; `other_token`
   ends with the token before the wrong answer instead of A, which flips the answer.
"""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING

from interp.arguments import checked, whole_number
from interp.arguments import seed as check_seed
from interp.errors import PromptError, check_choice
from interp.prompts.pairs import PromptPairs
from interp.prompts.templates import About

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer

CORRUPTIONS = {
    "broken_repeat": "the first run has other tokens, so that nothing is repeated",
    "other_token": "the last token is the one before the wrong answer: this flips the answer",
}
ABOUT = About(
    "induction",
    "induction",
    "A run of random tokens is repeated: after “{clean}” comes “{right}”, as before. How does the model look it up?",
    "Olsson et al. 2022, In-context Learning and Induction Heads",
)


@checked
def induction(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    length: int = 16,
    corrupt: str = "broken_repeat",
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts of repeated random tokens, so that the next token is the one that came after the last token before.

    The right answer is the token after the first A, where A is the last token; the wrong one is a later token of the
    run. Roles: `A1` and `B1` (A and B, the first time), `END` (A, the second time).

    Args:
        model: with a tokenizer, tokens are drawn from the words of its vocabulary that begin with a space; if these are
            few, or without a tokenizer, from all ids except BOS, EOS and padding.
        n: how many pairs, all different.
        seed: of the draws; no global generator is touched.
        length: the number of tokens of the run.
        corrupt: a name in `CORRUPTIONS`.
        aligned: repeat equally many tokens in every prompt, so that a position means the same in each.
        prepend_bos: as in `model.to_tokens`; without a tokenizer, True puts token 0 in front.

    Raises:
        UnknownName: a corruption that does not exist.
        PromptError: a run that is too short, or too long for the model's context or vocabulary.

    Source: Olsson et al. 2022, section "Induction heads".
    """
    check_choice("corruption", corrupt, CORRUPTIONS)
    front, pool, texts = _vocabulary(model, prepend_bos)
    n, length = (
        whole_number("n", n, least=1, refuse=PromptError),
        whole_number("length", length, least=4, refuse=PromptError),
    )
    _check(model, length, len(front), len(pool))
    seed = check_seed(seed)
    rng = random.Random(seed)
    clean: list[tuple[int, ...]] = []
    other: list[tuple[int, ...]] = []
    answers, roles = [], []
    seen: set[tuple[int, ...]] = set()
    while len(clean) < n:
        drawn = rng.sample(pool, 2 * length)
        run, second = drawn[:length], length // 2 if aligned else rng.randint(length // 2, length - 2)
        again, wrong = run[:second], rng.randrange(second + 1, length)
        row = (*front, *run, *again)
        if row in seen:
            continue
        seen.add(row)
        clean.append(row)
        other.append(
            (*front, *drawn[length:], *again)
            if corrupt == "broken_repeat"
            else (*front, *run, *again[:-1], run[wrong - 1])
        )
        answers.append((run[second], run[wrong]))
        at = len(front) + second
        roles.append({"A1": at - 1, "B1": at, "END": len(row) - 1})
    pairs = PromptPairs.from_tokens(clean, other, answers=answers, roles=roles, name=ABOUT.name)
    if texts is not None:
        pairs = _as_text(pairs, texts)
    shown = pairs.str_tokens[0]
    notes = {
        "title": ABOUT.title,
        "question": ABOUT.question.format(clean=shown[-1].strip(), right=shown[roles[0]["B1"]].strip()),
        "source": ABOUT.source,
        "metric": "logit_diff",
        "n": n,
        "seed": seed,
        "aligned": aligned,
        "corrupt": corrupt,
        "length": length,
        "tokens_to_draw_from": len(pool),
    }
    return dataclasses.replace(pairs, notes=notes)


def _vocabulary(model: HookedModel, prepend_bos: bool | None) -> tuple[list[int], list[int], Tokenizer | None]:
    """The tokens in front of every prompt, the tokens that can be drawn, and the tokenizer, if any."""
    limit = min(model.cfg.d_vocab, model.cfg.d_vocab_out)
    tokenizer = model.tokenizer
    if tokenizer is None:
        front = [0] if prepend_bos else []
        return front, [token for token in range(limit) if token not in front], None
    front = tokenizer.encode("a", prepend_bos=prepend_bos)
    front = front[: tokenizer.n_before(front, "a") or 0]
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, *front}
    every = [token for token in range(min(limit, len(tokenizer))) if token not in special]
    words = [token for token, text in zip(every, tokenizer.str_tokens(every), strict=True) if _is_word(text)]
    return front, words if len(words) >= len(every) / 10 else every, tokenizer


def _is_word(text: str) -> bool:
    return len(text) > 2 and text[0] == " " and text[1:].isascii() and text[1:].isalpha()


def _check(model: HookedModel, length: int, front: int, pool: int) -> None:
    if (longest := front + 2 * length - 2) > model.cfg.n_ctx:
        raise PromptError(
            f"a run of {length} tokens makes prompts of {longest}, longer than the model's context of "
            f"{model.cfg.n_ctx}: the longest run is {(model.cfg.n_ctx - front) // 2 + 1}"
        )
    if 2 * length > pool:
        raise PromptError(
            f"two runs of {length} different tokens need {2 * length}, but this model has {pool} to draw from: "
            f"the longest run is {pool // 2}"
        )


def _as_text(pairs: PromptPairs, tokenizer: Tokenizer) -> PromptPairs:
    """The same pairs with their tokens as text."""
    lengths = pairs.lengths.tolist()
    clean, corrupt = (
        [row[:length].tolist() for row, length in zip(side, lengths, strict=True)]
        for side in (pairs.clean, pairs.corrupt)
    )
    return dataclasses.replace(
        pairs,
        clean_texts=tuple(map(tokenizer.decode, clean)),
        corrupt_texts=tuple(map(tokenizer.decode, corrupt)),
        str_tokens=tuple(tuple(tokenizer.str_tokens(row)) for row in clean),
        corrupt_str_tokens=tuple(tuple(tokenizer.str_tokens(row)) for row in corrupt),
    )
