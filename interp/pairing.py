"""What makes two prompts a pair: equal lengths, answers that are one token each, roles that stand in the prompt.

`PromptPairs` is built with these. Every refusal names the pair, counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import PromptError, check_choice

if TYPE_CHECKING:
    from interp.model import HookedModel
    from interp.tokens import Tokenizer

SIDES = ("clean", "corrupt")
DIRECTIONS = {"denoise": ("corrupt", "clean"), "noise": ("clean", "corrupt")}
"""The names of patching, and which side is edited and which one edits copy from."""

Answer = str | int
Roles = Mapping[str, int | str]
Rows = Sequence[Sequence[int]]


def check_side(side: str) -> None:
    """Refuse what is no side of a pair.

    Raises:
        UnknownName: neither "clean" nor "corrupt".
    """
    check_choice("side", side, SIDES)


def other_side(side: str) -> str:
    """The other side of a pair.

    Raises:
        UnknownName: neither "clean" nor "corrupt".

    >>> other_side("clean")
    'corrupt'
    """
    check_side(side)
    return SIDES[1 - SIDES.index(side)]


def encode_prompts(model: HookedModel, texts: Sequence[str], prepend_bos: bool | None) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        PromptError: a model without a tokenizer, or a prompt longer than its context.
    """
    if model.tokenizer is None:
        raise PromptError("this model has no tokenizer: use PromptPairs.from_tokens, or set model.tokenizer")
    rows = [model.tokenizer.encode(text, prepend_bos=prepend_bos) if text else [] for text in texts]
    for at, row in enumerate(rows):
        if len(row) > model.cfg.n_ctx:
            raise PromptError(
                f"pair {at}: a prompt of {len(row)} tokens is longer than the model's context of {model.cfg.n_ctx}"
            )
    return rows


def check_rows(
    clean: Rows, corrupt: Rows, clean_shown: Sequence[Sequence[str]], corrupt_shown: Sequence[Sequence[str]]
) -> None:
    """Refuse prompts that do not pair.

    Args:
        clean: token ids of each clean prompt.
        corrupt: and of its corrupt one.
        clean_shown: the tokens as text, for messages.
        corrupt_shown: likewise.

    Raises:
        PromptError: no prompt, counts that differ, an empty prompt, a pair of different lengths.
    """
    if not clean:
        raise PromptError("no prompt was given: clean is empty")
    if len(corrupt) != len(clean):
        raise PromptError(f"there are {len(clean)} clean prompts but {len(corrupt)} corrupt ones; each needs a partner")
    for at, (one, other) in enumerate(zip(clean, corrupt, strict=True)):
        if not one or not other:
            raise PromptError(f"pair {at}: the {'corrupt' if one else 'clean'} prompt is empty, it has no token")
        if len(one) == len(other):
            continue
        same = next((p for p, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        start = max(0, same - 2)
        raise PromptError(
            f"pair {at}: the clean prompt has {len(one)} tokens and the corrupt one {len(other)}, but positions can "
            f"only be compared in prompts of equal length; they part at position {same}: from {start} on clean reads "
            f"{_window(clean_shown[at], start)} and corrupt {_window(corrupt_shown[at], start)}"
        )


def _window(tokens: Sequence[str], start: int, *, most: int = 6) -> str:
    shown = ", ".join(map(repr, tokens[start : start + most]))
    return f"[{shown}{', ...' if len(tokens) > start + most else ''}]"


def answer_ids(answers: Any, n: int, model: HookedModel | None) -> Tensor:
    """Ids [n, 2] of the right and the wrong answers.

    Args:
        answers: `(right, wrong)` for each of n pairs, each a text that is one token or an id; alone if n is 1.
        n: the number of pairs.
        model: reads texts, and bounds ids by its vocabulary; None takes ids as they are.

    Raises:
        PromptError: another count, an answer that is not one token or out of range, two equal answers.
    """
    given = answers.tolist() if isinstance(answers, Tensor) else list(answers)
    if n == 1 and len(given) == 2 and all(isinstance(one, str | int) for one in given):
        given = [given]
    if len(given) != n:
        raise PromptError(f"there are {n} clean prompts but {len(given)} answers: give (right, wrong) for each pair")
    ids = []
    for at, pair in enumerate(given):
        if isinstance(pair, str | int) or len(pair) != 2:
            raise PromptError(f"pair {at}: answers must be (right, wrong), not {pair!r}")
        right = _answer_id(pair[0], f"pair {at}: the right answer", model)
        wrong = _answer_id(pair[1], f"pair {at}: the wrong answer", model)
        if right == wrong:
            raise PromptError(f"pair {at}: the right and the wrong answer are the same token, {pair[0]!r} (id {right})")
        ids.append((right, wrong))
    return torch.tensor(ids, dtype=torch.int64)  # [n, 2]


def _answer_id(answer: Answer, where: str, model: HookedModel | None) -> int:
    if not isinstance(answer, str):
        token = int(answer)
    elif model is None:
        raise PromptError(f"{where} must be a token id, not {answer!r}: there is no tokenizer here")
    else:
        try:
            token = model.to_single_token(answer)
        except PromptError as error:
            raise PromptError(f"{where} {error}") from None
    if token < 0 or (model is not None and token >= model.cfg.d_vocab_out):
        choice = "0 and above" if model is None else f"0 to {model.cfg.d_vocab_out - 1}"
        raise PromptError(f"{where}, id {token}, is out of range: the model's answers are {choice}")
    return token


def role_positions(
    roles: Roles | Sequence[Roles] | None, rows: Rows, tokenizer: Tokenizer | None
) -> tuple[dict[str, int], ...]:
    """Role -> position for each pair, counted from the start of the prompt.

    Args:
        roles: a mapping for each pair, or one for all; a position is a number, negative from the end, or the text of a
            token that occurs once.
        rows: token ids of each prompt.
        tokenizer: reads texts; None takes numbers only.

    Raises:
        PromptError: another count, or a role whose text or position is not in its prompt.
    """
    given = [roles or {}] * len(rows) if roles is None or isinstance(roles, Mapping) else list(roles)
    if len(given) != len(rows):
        raise PromptError(f"there are {len(rows)} clean prompts but {len(given)} roles: give one mapping for each pair")
    return tuple(
        {role: _position(place, row, f"pair {at}: role {role!r}", tokenizer) for role, place in of_pair.items()}
        for at, (of_pair, row) in enumerate(zip(given, rows, strict=True))
    )


def _position(place: int | str, row: Sequence[int], where: str, tokenizer: Tokenizer | None) -> int:
    if not isinstance(place, str):
        if not -len(row) <= place < len(row):
            raise PromptError(f"{where} is at position {place}, but the prompt has positions 0 to {len(row) - 1}")
        return int(place) % len(row)
    if tokenizer is None:
        raise PromptError(f"{where} must be a position, not {place!r}: there is no tokenizer here")
    token = tokenizer.single_id(place)
    if token is None:
        pieces = tokenizer.str_tokens(tokenizer.encode(place, prepend_bos=False))
        raise PromptError(f"{where}: {place!r} is not one token but {len(pieces)}: {pieces}; give a position")
    found = [at for at, id_ in enumerate(row) if id_ == token]
    if len(found) != 1:
        stands = f"stands at positions {found}; give one of them" if found else "does not occur in the prompt"
        raise PromptError(f"{where}: the token {place!r} {stands}")
    return found[0]
