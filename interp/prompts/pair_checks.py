"""What makes two prompts a pair: equal lengths, and roles that stand in the prompt; `interp.prompts.answers` has the
rest.

`PromptPairs` is built with these. Every refusal names the pair, counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from interp.arguments import is_several, is_whole, plain, shown
from interp.errors import PromptError, check_choice
from interp.text.padding import MASK_OF, as_mask, whole_ids

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer

PADDING_RUN = 3  # so many times one id at the end of a row looks like padding
SIDES = ("clean", "corrupt")
DIRECTIONS = {"denoise": ("corrupt", "clean"), "noise": ("clean", "corrupt")}
"""The names of patching, and which side is edited and which one edits copy from."""

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
            f"{window(clean_shown[at], start)} and corrupt {window(corrupt_shown[at], start)}"
        )


def window(tokens: Sequence[str], start: int = 0, *, most: int = 6) -> str:
    """Some tokens of a prompt, for a message."""
    shown = ", ".join(map(repr, tokens[start : start + most]))
    return f"[{shown}{', ...' if len(tokens) > start + most else ''}]"


def real_rows(given: Any, mask: Any, what: str) -> list[list[int]]:
    """The ids of each prompt, without padding.

    Args:
        given: ids of each prompt, in lists or as [n, pos].
        mask: True at real tokens [n, pos]; None means all.
        what: what these prompts are called.

    Raises:
        PromptError: something else, a mask that does not fit, a padded tensor without a mask.
    """
    if mask is None and (known := padded(given)):
        raise PromptError(
            f"{what} is padded, {known}, and padding is no part of a prompt: give its mask, as in `tokens, mask = "
            "model.to_batch(texts)`, or one list of ids for each prompt"
        )
    if not is_several(given):
        raise PromptError(f"{what} must be the ids of each prompt, [[5, 6, 7], [5, 8]], not {shown(given)}")
    rows = []
    for at, row in enumerate(given):
        if not is_several(row):
            raise PromptError(f"{what} must be the ids of each prompt, [[5, 6, 7], [5, 8]]; entry {at} is {shown(row)}")
        try:
            rows.append(whole_ids(row))
        except PromptError as error:
            raise PromptError(f"pair {at}: {error}") from None
    if mask is None:
        return rows
    real = as_mask(mask, "mask")
    if list(real.shape) != [len(rows), *{len(row) for row in rows}]:
        raise PromptError(
            f"mask is {list(real.shape)}, but {what} has {len(rows)} prompts of {sorted({len(row) for row in rows})} "
            "tokens with their padding"
        )
    starts = real[:, 1:] & ~real[:, :-1]
    if bool((starts.sum(1) + real[:, 0] > 1).any()):
        raise PromptError("mask has padding between real tokens, and a prompt's tokens stand side by side")
    return [
        [token for token, kept in zip(row, keep, strict=True) if kept]
        for row, keep in zip(rows, real.tolist(), strict=True)
    ]


def padded(tokens: Any) -> str:
    """How one sees that token ids [n, pos] are padded, in words; "" where one does not.

    A batch of `model.to_tokens` says so. In another's, some rows end (or begin) with three or more of an id that no
    other row ends with and that occurs nowhere else, but perhaps as the first token, where one id is BOS and padding.
    """
    if not isinstance(tokens, Tensor | np.ndarray) or tokens.ndim != 2 or 0 in tokens.shape:
        return ""
    known = getattr(tokens, MASK_OF, None)
    if known is not None:
        lengths = known.sum(1)
        return f"its prompts have {int(lengths.min())} to {int(lengths.max())} tokens"
    ids = np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens)
    for end, side in (("end", ids[:, ::-1]), ("begin", ids)):
        for token in np.unique(side[:, 0]):
            same = side == token
            run = same.cumprod(1).sum(1)
            elsewhere = same.sum(1) - run - (same[:, -1] & (run < ids.shape[1]))
            if run.max() >= PADDING_RUN and run.min() == 0 and not elsewhere.any():
                return f"some of its rows {end} with up to {run.max()} times the id {token}"
    return ""


def role_positions(
    roles: Roles | Sequence[Roles] | None, rows: Rows, tokenizer: Tokenizer | None, prompts: Sequence[str] | None = None
) -> tuple[dict[str, int], ...]:
    """Role -> position for each pair, counted from the start of the prompt.

    Args:
        roles: a mapping for each pair, or one for all; a position is a number, negative from the end, or the text of a
            token that occurs once.
        rows: token ids of each prompt.
        tokenizer: reads texts; None takes numbers only.
        prompts: the prompts as text, where there are such: the first token may be another at the beginning of a text.

    Raises:
        PromptError: another count, or a role whose text or position is not in its prompt.
    """
    if not (roles is None or isinstance(roles, Mapping) or is_several(roles)):
        raise PromptError(f"roles must be a mapping from role to position, or one for each pair, not {shown(roles)}")
    given = [roles or {}] * len(rows) if roles is None or isinstance(roles, Mapping) else list(roles)
    if len(given) != len(rows):
        raise PromptError(f"there are {len(rows)} clean prompts but {len(given)} roles: give one mapping for each pair")
    found = []
    for at, (of_pair, row) in enumerate(zip(given, rows, strict=True)):
        if not isinstance(of_pair, Mapping):
            raise PromptError(f"pair {at}: roles must be a mapping from role to position, not {shown(of_pair)}")
        for role in of_pair:
            if not isinstance(role, str):
                raise PromptError(f"pair {at}: a role is named by text, not by {shown(role)}")
        prompt = None if prompts is None else prompts[at]
        found.append(
            {
                role: _position(place, row, f"pair {at}: role {role!r}", tokenizer, prompt)
                for role, place in of_pair.items()
            }
        )
    return tuple(found)


def _position(place: Any, row: Sequence[int], where: str, tokenizer: Tokenizer | None, prompt: str | None) -> int:
    if not isinstance(place, str):
        if not is_whole(place):
            raise PromptError(f"{where} must be at a position or the text of a token, not {shown(place)}")
        at = int(plain(place))
        if not -len(row) <= at < len(row):
            raise PromptError(f"{where} is at position {at}, but the prompt has positions 0 to {len(row) - 1}")
        return at % len(row)
    if tokenizer is None:
        raise PromptError(f"{where} must be a position, not {place!r}: there is no tokenizer here")
    found = _standing(place, row, tokenizer, prompt)
    if len(found) == 1:
        return found[0]
    if not found and tokenizer.single_id(place) is None:
        pieces = tokenizer.str_tokens(tokenizer.within(place))
        raise PromptError(f"{where}: {place!r} is not one token but {len(pieces)}: {pieces}; give a position")
    stands = f"stands at positions {found}; give one of them" if found else "does not occur in the prompt"
    raise PromptError(f"{where}: the token {place!r} {stands}")


def _standing(place: str, row: Sequence[int], tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """Where a text stands in a prompt as a token of its own; its first token is read as the beginning of a text."""
    token, first = tokenizer.single_id(place), None if prompt is None else tokenizer.n_before(row, prompt)
    found = [at for at, id_ in enumerate(row) if id_ == token and at != first]
    if first is not None and prompt is not None and prompt.startswith(place):
        found += [first] if tokenizer.at_start(place) == [row[first]] else []
    elif first is not None and not found:  # as the table of tokens shows it, with a space that the text has not
        found = [first] if row[first] == token else []
    return sorted(found)
