"""The checks that two prompts form a pair: equal lengths, and roles that are in the prompt.

`PromptPairs` is built with these, and with the answers of `interp.prompts.answers`. Every refusal names the pair,
counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import is_several, is_whole, plain, shown
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import PromptError, check_choice
from interp.models.encoder import Encoder
from interp.text.padding import MASK_OF, as_mask, whole_ids

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer

PADDING_RUN = 3  # an id that is repeated this often at the end of a row looks like padding
MASK = "MASK"  # the role of the token that an encoder predicts
MASK_TOKENS = ("[MASK]", "<mask>")
"""How tokenizers write the token in place of which an encoder predicts another."""
SIDES = ("clean", "corrupt")
DIRECTIONS = {"denoise": ("corrupt", "clean"), "noise": ("clean", "corrupt")}
"""Direction of patching -> the side that is edited, and the side that edits copy from."""

Roles = Mapping[str, int | str]
Rows = Sequence[Sequence[int]]


def check_side(side: str) -> None:
    """Refuse anything that is not a side of a pair.

    Raises:
        UnknownName: it is neither "clean" nor "corrupt".
    """
    check_choice("side", side, SIDES)


def other_side(side: str) -> str:
    """The other side of a pair.

    Raises:
        UnknownName: it is neither "clean" nor "corrupt".

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


def with_masks(model: HookedModel, rows: Rows, roles: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
    """Roles of each pair; those of an encoder with the place of its masked token, where they do not say it.

    Raises:
        PromptError: an encoder's prompt that has no masked token, or several, and no role "MASK".
    """
    if not isinstance(model, Encoder):
        return [dict(of_pair) for of_pair in roles]
    assert model.tokenizer is not None  # encode_prompts refuses
    masks = {model.tokenizer.token_to_id(text): text for text in MASK_TOKENS}
    made = []
    for at, (row, of_pair) in enumerate(zip(rows, roles, strict=True)):
        places = [place for place, token in enumerate(row) if token in masks]
        if MASK not in of_pair and len(places) != 1:
            own = next((text for token, text in masks.items() if token is not None), MASK_TOKENS[0])
            raise PromptError(
                f"pair {at}: this model predicts a masked token, and the prompt has {own} {len(places)} times: "
                f'write it once, or say which by the role "{MASK}"'
            )
        made.append({**of_pair} if MASK in of_pair else {**of_pair, MASK: places[0]})
    return made


def decoder_texts(decoder: str | Sequence[str] | None, n: int) -> list[str]:
    """What the decoder of a model continues in each of n pairs, after its start token.

    Raises:
        PromptError: no texts, or not one for each pair.
    """
    texts = [decoder or ""] * n if isinstance(decoder, str | None) else decoder
    if not is_several(texts) or not all(isinstance(text, str) for text in texts):
        raise PromptError(f"decoder must be a text, or one for each pair, not {shown(decoder)}")
    if len(texts) != n:
        raise PromptError(f"there are {n} clean prompts but {len(texts)} texts of the decoder: give one for each pair")
    return list(texts)


def decoder_rows(model: HookedModel, decoder: str | Sequence[str] | None, n: int) -> list[list[int]] | None:
    """Token ids of what the decoder of a model continues in each of n pairs; None for a model of one stack.

    Raises:
        PromptError: `decoder` for a model of one stack; texts that are not one for each pair.
    """
    if not isinstance(model, EncoderDecoder):
        if decoder is not None:
            raise PromptError("decoder is for models with an encoder and a decoder, and this one has a single stack")
        return None
    tokens, mask = model.decoder_tokens(decoder_texts(decoder, n), n)
    return real_rows(tokens, torch.ones_like(tokens) if mask is None else mask, "decoder")


def check_rows(
    clean: Rows, corrupt: Rows, clean_shown: Sequence[Sequence[str]], corrupt_shown: Sequence[Sequence[str]]
) -> None:
    """Refuse prompts that do not form pairs.

    Args:
        clean: token ids of each clean prompt.
        corrupt: token ids of each corrupt prompt.
        clean_shown: the clean prompts' tokens as text, for messages.
        corrupt_shown: those of the corrupt prompts.

    Raises:
        PromptError: no prompt, counts that differ, an empty prompt, a pair of different lengths.
    """
    if not clean:
        raise PromptError("no prompt was given: clean is empty")
    if len(corrupt) != len(clean):
        raise PromptError(f"there are {len(clean)} clean prompts but {len(corrupt)} corrupt ones; each needs a partner")
    for at, (one, other) in enumerate(zip(clean, corrupt, strict=True)):
        if not one or not other:
            raise PromptError(f"pair {at}: the {'corrupt' if one else 'clean'} prompt is empty: it has no token")
        if len(one) == len(other):
            continue
        same = next((p for p, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        start = max(0, same - 2)
        raise PromptError(
            f"pair {at}: the clean prompt has {len(one)} tokens and the corrupt one {len(other)}, but positions can "
            f"only be compared in prompts of equal length; they first differ at position {same}: from {start} on clean "
            f"reads {window(clean_shown[at], start)} and corrupt {window(corrupt_shown[at], start)}"
        )


def window(tokens: Sequence[str], start: int = 0, *, most: int = 6) -> str:
    """At most `most` tokens of a prompt from `start` on, for a message."""
    shown = ", ".join(map(repr, tokens[start : start + most]))
    return f"[{shown}{', ...' if len(tokens) > start + most else ''}]"


def real_rows(prompts: Any, mask: Any, what: str) -> list[list[int]]:
    """The ids of each prompt, without padding.

    Args:
        prompts: ids of each prompt, in lists or as [n, pos].
        mask: True at real tokens [n, pos]; None means that all are real.
        what: the name of these prompts in messages.

    Raises:
        PromptError: prompts that are not ids, a mask that does not fit, a padded tensor without a mask.
    """
    if mask is None and (sign := padded(prompts)):
        raise PromptError(
            f"{what} is padded, {sign}: give its mask, as in `tokens, mask = model.to_batch(texts)`, or one list of "
            "ids for each prompt"
        )
    if not is_several(prompts):
        raise PromptError(f"{what} must be the ids of each prompt, [[5, 6, 7], [5, 8]], not {shown(prompts)}")
    rows = []
    for at, row in enumerate(prompts):
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
        raise PromptError("mask has padding between real tokens; a prompt's tokens must be next to each other")
    return [
        [token for token, kept in zip(row, keep, strict=True) if kept]
        for row, keep in zip(rows, real.tolist(), strict=True)
    ]


def padded(tokens: Any) -> str:
    """The evidence that token ids [n, pos] are padded, in words; "" if there is none.

    A batch of `model.to_tokens` carries its mask. Any other batch counts as padded if some rows, but not all, end (or
    begin) with the same id three or more times, and this id occurs nowhere else, except perhaps as the single token at
    the opposite end of a row, such as a BOS that has the same id as the padding.
    """
    if not isinstance(tokens, Tensor | np.ndarray) or tokens.ndim != 2 or 0 in tokens.shape:
        return ""
    mask = getattr(tokens, MASK_OF, None)
    if mask is not None:
        lengths = mask.sum(1)
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
        roles: a mapping for each pair, or one for all; a position is a number (negative: from the end) or the text of a
            token that occurs once.
        rows: token ids of each prompt.
        tokenizer: reads texts; None takes numbers only.
        prompts: the prompts as text, if there are any: a word may have another token at the beginning of a text.

    Raises:
        PromptError: the wrong number of mappings, or a role whose text or position is not in its prompt.
    """
    if not (roles is None or isinstance(roles, Mapping) or is_several(roles)):
        raise PromptError(f"roles must be a mapping from role to position, or one for each pair, not {shown(roles)}")
    mappings = [roles or {}] * len(rows) if roles is None or isinstance(roles, Mapping) else list(roles)
    if len(mappings) != len(rows):
        raise PromptError(
            f"there are {len(rows)} clean prompts but {len(mappings)} roles: give one mapping for each pair"
        )
    positions = []
    for at, (of_pair, row) in enumerate(zip(mappings, rows, strict=True)):
        if not isinstance(of_pair, Mapping):
            raise PromptError(f"pair {at}: roles must be a mapping from role to position, not {shown(of_pair)}")
        for role in of_pair:
            if not isinstance(role, str):
                raise PromptError(f"pair {at}: a role is named by text, not by {shown(role)}")
        prompt = None if prompts is None else prompts[at]
        positions.append(
            {
                role: _position(place, row, f"pair {at}: role {role!r}", tokenizer, prompt)
                for role, place in of_pair.items()
            }
        )
    return tuple(positions)


def _position(place: Any, row: Sequence[int], where: str, tokenizer: Tokenizer | None, prompt: str | None) -> int:
    if not isinstance(place, str):
        if not is_whole(place):
            raise PromptError(f"{where} must be a position or the text of a token, not {shown(place)}")
        at = int(plain(place))
        if not -len(row) <= at < len(row):
            raise PromptError(f"{where} is at position {at}, but the prompt has positions 0 to {len(row) - 1}")
        return at % len(row)
    if tokenizer is None:
        raise PromptError(f"{where} must be a position, not {place!r}: without a tokenizer, text cannot be read")
    positions = _occurrences(place, row, tokenizer, prompt)
    if len(positions) == 1:
        return positions[0]
    if positions:
        raise PromptError(f"{where}: the token {place!r} is at positions {positions}; give one of them")
    spaced = place[1:] if place.startswith(" ") else f" {place}"
    found = _occurrences(spaced, row, tokenizer, prompt) if spaced else []
    hint = f"; did you mean {spaced!r}, at position {found[0]}?" if len(found) == 1 else ""
    if tokenizer.single_id(place) is None:
        pieces = tokenizer.str_tokens(tokenizer.within(place))
        fault = f"{place!r} is not one token but {len(pieces)}: {pieces}"
        raise PromptError(f"{where}: {fault}{hint or '; give a position'}")
    raise PromptError(f"{where}: the token {place!r} does not occur in the prompt{hint}")


def _occurrences(place: str, row: Sequence[int], tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """The positions at which `place` is one token; the prompt's first token is read as the beginning of a text."""
    token, first = tokenizer.single_id(place), None if prompt is None else tokenizer.n_before(row, prompt)
    positions = [at for at, id_ in enumerate(row) if id_ == token and at != first]
    if first is not None and prompt is not None and prompt.startswith(place):
        positions += [first] if tokenizer.at_start(place) == [row[first]] else []
    elif first is not None and not positions:  # as in the table of tokens, with a space that the text does not have
        positions = [first] if row[first] == token else []
    return sorted(positions)
