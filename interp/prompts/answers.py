"""The answers of pairs: which tokens they are, also where a pair has several right or wrong ones.

1. An answer given as text is the token that follows its prompt when both are read together: the prompt's own tokens
must stay the same, and one token must come after them. 2. Every pair has its own answers, one or several of each kind.
3. Where there is room for only one, the first of several is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

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


NO_ANSWERS = (
    "these prompts have no answers{needs}: give answers=[(right, wrong), ...] to PromptPairs.from_text or from_tokens"
)


class NoAnswers:
    """Stands for the answers of pairs that have none; whoever asks for anything of them is told so."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what `copy` and `pickle` look for
            raise AttributeError(name)
        self._refuse()

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse()

    def __iter__(self) -> NoReturn:
        self._refuse()

    def __len__(self) -> NoReturn:
        self._refuse()

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        cls._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise PromptError(NO_ANSWERS.format(needs=""))

    def __repr__(self) -> str:
        return "no answers"


def no_answers() -> Any:
    """The answers of pairs without any, in place of a tensor."""
    return NoAnswers()


def answer_ids(answers: Any, n: int, model: HookedModel | None, prompts: Sequence[str] | None = None) -> AnswerSets:
    """The ids of the right and of the wrong answers of each pair.

    Args:
        answers: `(right, wrong)` for each of n pairs, each an id, a text, or a list of several; for n = 1 it may stand
            alone, outside a list.
        n: the number of pairs.
        model: the tokenizer of what it writes reads texts, its vocabulary bounds ids; None takes ids without a bound.
        prompts: the clean prompts as text. An answer given as text is the token that follows its prompt; without
            prompts, it is its token within running text.

    Raises:
        PromptError: the wrong number of answers, an answer that is not one token or out of range, or one that is both
            right and wrong.
    """
    pairs = answers.tolist() if isinstance(answers, Tensor | np.ndarray) else answers
    if not is_several(pairs) or isinstance(pairs, set | frozenset):
        raise PromptError(f"answers must be (right, wrong) for each pair, not {shown(answers)}")
    pairs = list(pairs)
    alone = len(pairs) == 2 and not all(_several(one) for one in pairs)
    if n == 1 and (
        alone or (isinstance(answers, tuple) and len(pairs) == 2 and all(type(one) is list for one in pairs))
    ):
        pairs = [pairs]
    if len(pairs) != n:
        raise PromptError(f"there are {n} clean prompts but {len(pairs)} answers: give (right, wrong) for each pair")
    sets = []
    for at, pair in enumerate(pairs):
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
        sets.append((right, wrong))
    return tuple(sets)


def _several(answer: object) -> bool:
    """Whether something is a list of answers rather than one answer."""
    return isinstance(answer, list | tuple) or (isinstance(answer, Tensor | np.ndarray) and answer.ndim > 0)


def check_apart(right: Sequence[int], wrong: Sequence[int], where: str, given: Any = None) -> None:
    """Refuse answers of a pair if a right and a wrong one share a token, or one kind is missing.

    Raises:
        PromptError: they are refused; the message begins with `where`.
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
        sets: for each pair all right ids and all wrong ids, including those of `answers`; or nothing.
        answers: the first right and wrong ids [n, 2].

    Raises:
        PromptError: the wrong number of sets, ids that are not integers, sets that share a token or lack the pair's
            answers.
    """
    if not sets:
        return ()
    if len(sets) != len(answers):
        raise PromptError(f"answer_sets has {len(sets)} entries, expected one for each of {len(answers)} pairs")
    checked_sets = []
    for at, (pair, first) in enumerate(zip(sets, answers.tolist(), strict=True)):
        right, wrong = (tuple(_plain_id(one, f"pair {at}: an answer") for one in side) for side in pair)
        check_apart(right, wrong, f"pair {at}")
        for side, what, own in zip((right, wrong), ("right", "wrong"), first, strict=True):
            if own not in side or len(set(side)) < len(side):
                raise PromptError(f"pair {at}: its {what} answer, id {own}, must be among its {what} answers, {side}")
        checked_sets.append((right, wrong))
    return tuple(checked_sets) if any(len(side) > 1 for pair in checked_sets for side in pair) else ()


def answer_table(sets: AnswerSets, answers: Tensor) -> Tensor:
    """All answers of each pair [n, 2, most], padded with -1."""
    if not sets:
        return answers[:, :, None]
    most = max(len(side) for pair in sets for side in pair)
    table = [[[*side, *[-1] * (most - len(side))] for side in pair] for pair in sets]
    return torch.tensor(table, dtype=torch.int64, device=answers.device)


def sets_by_text(notes: dict[str, Any], texts: Sequence[str], answers: Sequence[Sequence[int]]) -> AnswerSets:
    """The answer sets that files of earlier versions have in their notes, by clean text; removed from the notes.

    Raises:
        PromptError: two pairs with the same text have different answers, of which the file has only one pair's sets.
    """
    by_text = notes.pop("answer_sets", None)
    if not by_text:
        return ()
    sets = []
    for at, (text, (right, wrong)) in enumerate(zip(texts, answers, strict=True)):
        rights, wrongs = by_text.get(text, ([right], [wrong]))
        if right not in rights or wrong not in wrongs:
            raise PromptError(
                f"pair {at}: the file holds the answers of another pair with the same clean prompt, a fault of earlier "
                "versions: make the pairs again"
            )
        sets.append((tuple(rights), tuple(wrongs)))
    return tuple(sets)


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
        raise PromptError(f"{where} must be a token id, not {answer!r}: without a tokenizer, text cannot be read")
    elif prompt is not None and model.answer_tokenizer is not None:
        token = _follows(answer, where, model.answer_tokenizer, prompt)
    else:
        try:
            token = model.to_single_token(answer)
        except PromptError as error:
            raise PromptError(f"{where} {error}") from None
    if token < 0 or (model is not None and token >= model.cfg.d_vocab_out):
        choice = ">= 0" if model is None else f"0 to {model.cfg.d_vocab_out - 1}"
        raise PromptError(f"{where}, id {token}, is out of range: the model's answers are {choice}")
    return token


def _follows(answer: str, where: str, tokenizer: Tokenizer, prompt: str) -> int:
    """The token of an answer after its prompt."""
    ids = tokenizer.following(prompt, answer)
    if ids is not None and len(ids) == 1 and not tokenizer.is_unknown(ids[0], answer):
        return ids[0]
    if ids is not None and len(ids) == 1:
        raise PromptError(f"{where} {answer!r} is unknown to this tokenizer, which reads {tokenizer.decode(ids)!r}")
    if ids is None:
        own, joint = tokenizer.at_start(prompt), tokenizer.at_start(prompt + answer)
        same = next(
            (at for at, (a, b) in enumerate(zip(own, joint, strict=False)) if a != b), min(len(own), len(joint))
        )
        ends = [tokenizer.str_tokens(row[same:]) for row in (own, joint)]
        raise PromptError(
            f"{where} {answer!r} is not a token after the prompt: the prompt's end {window(ends[0])} becomes "
            f"{window(ends[1])} when both are read together; end the prompt elsewhere (a space belongs to the "
            "answer), or give an id"
        )
    spaced = tokenizer.following(prompt, f" {answer}")
    hint = f"; with a space in front, {' ' + answer!r} is one" if spaced is not None and len(spaced) == 1 else ""
    raise PromptError(f"{where} {answer!r} is not one token but {len(ids)}: {tokenizer.str_tokens(ids)}{hint}")
