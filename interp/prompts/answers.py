"""The answers of pairs: which tokens they are, and several right or wrong ones for a pair.

1. An answer in text is the token that follows its prompt when both are read together: the prompt's own tokens stay, and
   one comes behind them. 2. A pair has its own answers, of each kind one or several; nothing is looked up by text.
3. Of several the first is the one that is named where there is room for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import is_several, is_whole, plain, shown, whole_number
from interp.errors import PromptError
from interp.prompts.pair_checks import window

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer

AnswerSets = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""The ids of all right and of all wrong answers of each pair."""


def answer_ids(answers: Any, n: int, model: HookedModel | None, prompts: Sequence[str] | None = None) -> AnswerSets:
    """The ids of the right and of the wrong answers of each pair.

    Args:
        answers: `(right, wrong)` for each of n pairs, each an id, a text, or several in a list; alone if n
            is 1.
        n: the number of pairs.
        model: reads texts, and bounds ids by its vocabulary; None takes ids as they are.
        prompts: the clean prompts as text. A text is the token that follows its prompt when both are read together;
            without prompts, the token that it is within running text.

    Raises:
        PromptError: another count, an answer that is not one token or out of range, an answer that is right and wrong.
    """
    given = answers.tolist() if isinstance(answers, Tensor | np.ndarray) else answers
    if not is_several(given) or isinstance(given, set | frozenset):
        raise PromptError(f"answers must be (right, wrong) for each pair, not {shown(answers)}")
    given = list(given)
    alone = len(given) == 2 and not all(_several(one) for one in given)
    if n == 1 and (
        alone or (isinstance(answers, tuple) and len(given) == 2 and all(type(one) is list for one in given))
    ):
        given = [given]
    if len(given) != n:
        raise PromptError(f"there are {n} clean prompts but {len(given)} answers: give (right, wrong) for each pair")
    found = []
    for at, pair in enumerate(given):
        pair = pair.tolist() if isinstance(pair, Tensor | np.ndarray) else pair
        if not _several(pair) or len(pair) != 2:
            raise PromptError(f"pair {at}: answers must be (right, wrong), not {pair!r}")
        where, prompt = f"pair {at}", None if prompts is None else prompts[at]
        right, wrong = (
            tuple(
                dict.fromkeys(
                    answer_id(one, f"{where}: the {what} answer", model, prompt)
                    for one in (side if _several(side) else [side])
                )
            )
            for side, what in zip(pair, ("right", "wrong"), strict=True)
        )
        check_apart(right, wrong, where, pair)
        found.append((right, wrong))
    return tuple(found)


def _several(answer: object) -> bool:
    """Whether something is a list of answers, and not one answer."""
    return isinstance(answer, list | tuple) or (isinstance(answer, Tensor | np.ndarray) and answer.ndim > 0)


def check_apart(right: Sequence[int], wrong: Sequence[int], where: str, given: Any = None) -> None:
    """Refuse answers of a pair that share a token, or of which there is none.

    Raises:
        PromptError: they do; the message begins with `where`.
    """
    if not right or not wrong:
        raise PromptError(f"{where}: there is no {'wrong' if right else 'right'} answer")
    shared = set(right) & set(wrong)
    if shared and given is not None and len(right) == len(wrong) == 1:
        raise PromptError(f"{where}: the right and the wrong answer are the same token, {given[0]!r} (id {right[0]})")
    if shared:
        raise PromptError(f"{where}: token {min(shared)} is among the right answers and among the wrong ones")


def check_answer_sets(sets: Any, answers: Tensor) -> AnswerSets:
    """All answers of each pair; () where every pair has one right and one wrong answer.

    Args:
        sets: for each pair all right ids and all wrong ones, those of `answers` among them; or nothing.
        answers: the first right and wrong ids [n, 2].

    Raises:
        PromptError: another count, no whole numbers, sets that share a token or lack the pair's answers.
    """
    if not sets:
        return ()
    if len(sets) != len(answers):
        raise PromptError(f"answer_sets has {len(sets)} entries, expected one for each of {len(answers)} pairs")
    found = []
    for at, (pair, named) in enumerate(zip(sets, answers.tolist(), strict=True)):
        right, wrong = (tuple(_plain_id(one, f"pair {at}: an answer") for one in side) for side in pair)
        check_apart(right, wrong, f"pair {at}")
        for side, what, own in zip((right, wrong), ("right", "wrong"), named, strict=True):
            if own not in side or len(set(side)) < len(side):
                raise PromptError(f"pair {at}: its {what} answer, id {own}, must be among its {what} answers, {side}")
        found.append((right, wrong))
    return tuple(found) if any(len(side) > 1 for pair in found for side in pair) else ()


def answer_table(sets: AnswerSets, answers: Tensor) -> Tensor:
    """All answers of each pair [n, 2, most], padded with -1."""
    if not sets:
        return answers[:, :, None]
    most = max(len(side) for pair in sets for side in pair)
    table = [[[*side, *[-1] * (most - len(side))] for side in pair] for pair in sets]
    return torch.tensor(table, dtype=torch.int64, device=answers.device)


def sets_by_text(notes: dict[str, Any], texts: Sequence[str], answers: Sequence[Sequence[int]]) -> AnswerSets:
    """The answer sets that files of earlier versions have in their notes, by clean text; they leave the notes.

    Raises:
        PromptError: two pairs with one text have other answers than its sets, so that theirs are lost.
    """
    given = notes.pop("answer_sets", None)
    if not given:
        return ()
    found = []
    for at, (text, (right, wrong)) in enumerate(zip(texts, answers, strict=True)):
        rights, wrongs = given.get(text, ([right], [wrong]))
        if right not in rights or wrong not in wrongs:
            raise PromptError(
                f"pair {at}: the file has the answers of another pair with the same clean prompt, as files of earlier "
                "versions have: make its pairs again"
            )
        found.append((tuple(rights), tuple(wrongs)))
    return tuple(found)


def _plain_id(value: Any, where: str) -> int:
    return whole_number(where, value, least=0, refuse=PromptError)


def answer_id(answer: Any, where: str, model: HookedModel | None, prompt: str | None) -> int:
    """The id of one answer; arguments as in `answer_ids`, `where` for messages.

    Raises:
        PromptError: it is not one token, or out of range.
    """
    if not isinstance(answer, str):
        if not is_whole(answer):
            raise PromptError(f"{where} must be a text or a token id, not {shown(answer)}")
        token = int(plain(answer))
    elif model is None:
        raise PromptError(f"{where} must be a token id, not {answer!r}: there is no tokenizer here")
    elif prompt is not None and model.tokenizer is not None:
        token = _follows(answer, where, model.tokenizer, prompt)
    else:
        try:
            token = model.to_single_token(answer)
        except PromptError as error:
            raise PromptError(f"{where} {error}") from None
    if token < 0 or (model is not None and token >= model.cfg.d_vocab_out):
        choice = "0 and above" if model is None else f"0 to {model.cfg.d_vocab_out - 1}"
        raise PromptError(f"{where}, id {token}, is out of range: the model's answers are {choice}")
    return token


def _follows(answer: str, where: str, tokenizer: Tokenizer, prompt: str) -> int:
    """The token that an answer is behind its prompt."""
    ids = tokenizer.following(prompt, answer)
    if ids is not None and len(ids) == 1 and not tokenizer.is_unknown(ids[0], answer):
        return ids[0]
    if ids is not None and len(ids) == 1:
        raise PromptError(f"{where} {answer!r} is unknown to this tokenizer: it reads {tokenizer.decode(ids)!r}")
    if ids is None:
        own, joint = tokenizer.at_start(prompt), tokenizer.at_start(prompt + answer)
        same = next(
            (at for at, (a, b) in enumerate(zip(own, joint, strict=False)) if a != b), min(len(own), len(joint))
        )
        ends = [tokenizer.str_tokens(row[same:]) for row in (own, joint)]
        raise PromptError(
            f"{where} {answer!r} is no token that follows the prompt: its end {window(ends[0])} becomes "
            f"{window(ends[1])} when both are read together; end the prompt elsewhere (a space belongs to the "
            "answer), or give an id"
        )
    spaced = tokenizer.following(prompt, f" {answer}")
    hint = f"; with a space in front, {' ' + answer!r} is one" if spaced is not None and len(spaced) == 1 else ""
    raise PromptError(f"{where} {answer!r} is not one token but {len(ids)}: {tokenizer.str_tokens(ids)}{hint}")
